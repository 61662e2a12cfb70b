"""Rows of measured throughput: what is read, what is refused, and that no row has a value."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from moesim.errors import UsageError
from moesim.measured import Row, read_measured, read_rows


def written(path: Path, content: Any) -> Path:
    file = path / "rows.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_a_row_has_no_value() -> None:
    assert "value" not in {field.name for field in fields(Row)}
    assert not hasattr(Row(), "value")


def test_a_row_has_no_note_because_it_may_quote_the_value(tmp_path: Path) -> None:
    (read,) = read_measured(written(tmp_path, [{"note": " 33-34 tok/s"}]))
    assert (read.note, "33-34" in repr(read.row)) == ("33-34 tok/s", False)


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({"note": "pp512 sd 1.2", "metric": "prefill_tok_s"}, 512),
        ({"note": "ubatch of 256 at depth", "metric": "prefill_tok_s"}, 256),
        ({"note": "pp512", "metric": "prefill_tok_s", "prompt": 8}, 8),
        ({"note": "pp512", "metric": "prefill_tok_s", "prompt": 0}, 512),
        ({"note": "pp512", "metric": "decode_tok_s"}, None),
        ({"note": "128 tokens", "metric": "prefill_tok_s"}, None),
    ],
)
def test_a_missing_prompt_is_read_from_the_note(
    fields: dict[str, Any], prompt: int | None, tmp_path: Path
) -> None:
    (row,) = read_rows(written(tmp_path, [fields]))
    assert row.prompt == prompt


def test_fields_are_read_and_the_value_is_kept_apart(tmp_path: Path) -> None:
    given = {"model": "M ", "depth": 512, "batch": 2, "fit": True, "value": 3, "unit": [1]}
    (read,) = read_measured(written(tmp_path, [given]))
    assert read.row == Row(model="M", depth=512, batch=2, fit=True)
    assert read.value == 3.0


def test_missing_null_empty_and_nan_are_the_same(tmp_path: Path) -> None:
    empty = {"gpu": "", "cpu": None, "depth": "", "prompt": None, "batch": "", "fit": None}
    text = json.dumps([{}, empty | {"value": ""}])[:-1] + ', {"value": NaN, "depth": NaN}]'
    rows = read_measured(written(tmp_path, text))
    assert [read.value for read in rows] == [None, None, None]
    assert [read.row for read in rows] == [Row(index=index) for index in range(3)]


def test_a_whole_number_may_be_written_as_a_float(tmp_path: Path) -> None:
    (row,) = read_rows(written(tmp_path, [{"depth": 512.0}]))
    assert (row.depth, type(row.depth)) == (512, int)


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"model": 3}, "`model`"),
        ({"gpu": ["x"]}, "`gpu`"),
        ({"depth": "512"}, "`depth`"),
        ({"depth": -1}, "`depth`"),
        ({"depth": 1.5}, "`depth`"),
        ({"depth": True}, "`depth`"),
        ({"depth": 10**30}, "`depth`"),
        ({"batch": 0}, "`batch`"),
        ({"fit": 1}, "`fit`"),
        ({"value": 0}, "`value`"),
        ({"value": -1.0}, "`value`"),
        ({"value": "fast"}, "`value`"),
        ({"setting": "x" * 3000}, "`setting`"),
        (7, "row 1: expected a JSON object"),
        (None, "row 1:"),
    ],
)
def test_a_wrong_kind_is_refused_with_file_and_index(row: Any, named: str, tmp_path: Path) -> None:
    file = written(tmp_path, [{}, row])
    with pytest.raises(UsageError) as refused:
        read_measured(file)
    assert f"{file}: row 1" in str(refused.value)
    assert named in str(refused.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{}", "expected a JSON list"),
        ("[", "is no JSON"),
        ("", "is no JSON"),
        ('[{"value": Infinity}]', "`value`"),
        ("[" * 5000, "is no JSON"),
    ],
)
def test_what_is_no_list_of_rows_is_refused(text: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=why):
        read_measured(written(tmp_path, text))


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.json"):
        read_measured(tmp_path / "none.json")


def test_a_byte_order_mark_is_no_part_of_the_rows(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text('[{"model": "M"}]', encoding="utf-8-sig")
    assert read_rows(file)[0].model == "M"
    file.write_text('\ufeff[{"model": "M"}]', encoding="utf-8-sig")
    with pytest.raises(UsageError, match="is no JSON"):
        read_rows(file)


def test_an_empty_list_is_no_mistake(tmp_path: Path) -> None:
    assert read_measured(written(tmp_path, [])) == []


def test_many_mistakes_are_one_short_message(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="and 980 more mistakes"):
        read_measured(written(tmp_path, [{"depth": -1}] * 1000))


def test_a_hundred_thousand_rows_are_read(tmp_path: Path) -> None:
    rows = read_rows(written(tmp_path, [{"model": "M", "setting": "ncmoe=1" * 40}] * 100_000))
    assert (len(rows), rows[-1].index) == (100_000, 99_999)
