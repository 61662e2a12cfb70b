"""YAML becomes plain data with the place of everything, or a ScenarioError."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.config.yaml_document import (
    Document,
    dump_document,
    load_document,
    parse_document,
    parse_value,
)
from moesim.errors import ScenarioError

LETTERS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]))
KEYS = st.sampled_from(["a", "b", "c d", "1e3", "null", "true", "7"])
PLAIN = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | LETTERS
    | st.sampled_from(["1e3", "on", "12:30", "0x10", "~", "=", "<<", "2026-11-23", "no", "1_0"])
)


def problems(text: str) -> list[str]:
    with pytest.raises(ScenarioError) as caught:
        parse_document(text, "f.yaml")
    return caught.value.problems


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e3", 1000.0),
        ("1.5e-3", 0.0015),
        ("12", 12),
        ("-7", -7),
        ("010", 10),
        ("12:30", "12:30"),
        ("on", "on"),
        ("no", "no"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("2024-01-01", "2024-01-01"),
        ("24GiB", "24GiB"),
        ("50%", "50%"),
        ('"12"', "12"),
        ("[1, a]", [1, "a"]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
        (".5", 0.5),
        ("1.", 1.0),
    ],
)
def test_scalars_follow_the_core_schema(text: str, value: Any) -> None:
    read = parse_value(text, "--set a")
    assert read == value
    assert type(read) is type(value)


def test_every_value_keeps_its_place() -> None:
    document = parse_document("a: 1\nb:\n  c: [x, yy]\n  d: {e: 2}\n", "f.yaml")
    assert document.place(("a",)) == "f.yaml:1:4"
    assert document.place(("a",), key=True) == "f.yaml:1:1"
    assert document.place(("b", "c", 1)) == "f.yaml:3:10"
    assert document.place(("b", "d", "e")) == "f.yaml:4:10"
    assert document.place(("b", "d", "none")) == "f.yaml:4:6"
    assert document.place(("none",)) == "f.yaml:1:1"
    assert document.at(("b", "c", 1)) == "yy"
    assert document.at(("b", "nowhere", 1)) is None


def test_a_key_given_twice_is_refused_with_both_lines() -> None:
    assert problems("a: 1\nb: {c: 1}\na: 2\n") == [
        "f.yaml:3:1: a: the key is given twice, on line 1 and on line 3; keep one"
    ]
    assert len(problems("a: {b: 1, b: 2}\na: 3\n")) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "f.yaml:1:1: the file is empty"),
        ("# only a comment\n", "the file is empty"),
        ("- a\n- b\n", "must hold keys and values (`key: value`), not a list"),
        ("just words", "not the value 'just words'"),
        ("a: [1, 2\nb: 3\n", "f.yaml:2:2: cannot be read as YAML"),
        ("a: 1\n\tb: 2\n", "f.yaml:2:1: cannot be read as YAML"),
        ("a: 1\n---\nb: 2\n", "cannot be read as YAML"),
        ("a: \x07\n", "the character #x0007 is not allowed"),
        ('a: "\\UFFFFFFFF"\n', "cannot be read as YAML"),
        ("a: !!python/object:os.system {}\n", "the tag"),
        ("a: !!binary aGk=\n", "the tag 'tag:yaml.org,2002:binary' is not supported; leave it out"),
        ("a: !!int x\n", "'x' cannot be read as a number"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", "merge keys"),
        ("a: &x [*x]\n", "too large or nested too deeply"),
        ("[a]: 1\n", "a key must be text"),
        ("a: " + "[" * 5000, "too large or nested too deeply"),
        ("a: " + "9" * 5000, "cannot be read as a number"),
        ("a: *b\n", "undefined alias"),
    ],
)
def test_what_is_no_plain_mapping_is_refused(text: str, says: str) -> None:
    said = problems(text)
    assert any(says in problem for problem in said), said
    assert all(problem.startswith("f.yaml:") for problem in said)


def test_aliases_that_multiply_without_end_are_refused_quickly() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    assert "too large" in problems("\n".join(lines))[0]


@pytest.mark.parametrize("kind", ["missing", "folder", "binary", "null"])
def test_a_file_that_cannot_be_read_is_a_scenario_error(tmp_path: Path, kind: str) -> None:
    path: Path | str = tmp_path / "x.yaml"
    if kind == "folder":
        path = tmp_path
    elif kind == "binary":
        Path(path).write_bytes(b"a: \xff\xfe\n")
    elif kind == "null":
        path = "a\0b.yaml"
    with pytest.raises(ScenarioError) as caught:
        load_document(path)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(f"{path}: ")


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert load_document(tmp_path / "x.yaml").data == {"a": 1}


def test_setting_a_value_leaves_the_original_and_moves_the_place() -> None:
    document = parse_document("a: {b: 1}\nc: short\nd: null\n", "f")
    made = document.with_value(("a", "b"), 2, "--set a.b", {})
    assert (document.data["a"], made.data["a"]) == ({"b": 1}, {"b": 2})
    assert made.place(("a", "b")) == "--set a.b"
    assert document.place(("a", "b")) == "f:1:8"
    made = document.with_value(("c", "x", "y"), 3, "p", {("c",): "name"})
    assert made.data["c"] == {"name": "short", "x": {"y": 3}}
    assert made.place(("c", "name")) == "f:2:4"
    assert document.with_value(("d", "e"), 4, "p", {}).data["d"] == {"e": 4}
    with pytest.raises(ScenarioError, match="c is 'short', which has no keys"):
        document.with_value(("c", "x"), 3, "p", {})


def test_data_from_python_has_no_lines() -> None:
    assert Document("scenario", {}, has_lines=False).place(("a",)) == "scenario"


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=60))
def test_any_text_is_a_document_or_a_scenario_error(text: str) -> None:
    for read in (parse_document, parse_value):
        try:
            read(text, "f.yaml")
        except ScenarioError as error:
            said = error.problems
            assert said


@given(st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner)))
def test_what_is_dumped_is_read_back(value: Any) -> None:
    text = dump_document({"key": value})
    assert parse_document(text, "dumped").data == {"key": value}
