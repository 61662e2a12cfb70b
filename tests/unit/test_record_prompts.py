"""Files of prompts: three kinds, and every mistake with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from moesim.errors import UsageError
from moesim.record.prompts import Prompt, read_prompts


def write(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


def told(prompts: list[Prompt]) -> list[tuple[str, str | None]]:
    return [(prompt.text, prompt.domain) for prompt in prompts]


def test_jsonl_takes_objects_and_bare_strings(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "p.jsonl",
        '{"prompt": "a\\nb", "domain": "law", "max_new_tokens": 7}\n\n"bare"\n',
    )
    first, second = read_prompts(path)
    assert (first.text, first.domain, first.max_new_tokens) == ("a\nb", "law", 7)
    assert (second.text, second.domain, second.max_new_tokens) == ("bare", None, None)
    assert second.where == f"{path}:3"


def test_lines_are_prompts_and_a_tab_names_the_domain(tmp_path: Path) -> None:
    path = write(tmp_path, "p.txt", "one\ncode\tdef f(x):\ttabbed\nthree\n")
    assert told(read_prompts(path)) == [
        ("one", None),
        ("def f(x):\ttabbed", "code"),
        ("three", None),
    ]


def test_a_blank_line_makes_paragraphs(tmp_path: Path) -> None:
    path = write(tmp_path, "p.txt", "\n\nfirst\nstill first\n  \n\nsecond\n\n")
    prompts = read_prompts(path)
    assert [p.text for p in prompts] == ["first\nstill first", "second"]
    assert [p.where for p in prompts] == [f"{path}:3", f"{path}:7"]


def test_trailing_blank_lines_alone_do_not_make_paragraphs(tmp_path: Path) -> None:
    assert len(read_prompts(write(tmp_path, "p.txt", "one\ntwo\n\n\n"))) == 2


def test_the_kind_can_be_forced(tmp_path: Path) -> None:
    path = write(tmp_path, "p.txt", "one\n\ntwo\nthree\n")
    assert [p.text for p in read_prompts(path, kind="lines")] == ["one", "two", "three"]
    assert [p.text for p in read_prompts(path, kind="text")] == ["one", "two\nthree"]


def test_a_default_domain_is_given_to_those_without(tmp_path: Path) -> None:
    path = write(tmp_path, "p.tsv", "law\tone\ntwo\n")
    assert told(read_prompts(path, domain="rest")) == [("one", "law"), ("two", "rest")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", '"fine"\n{"prompt": \n', r"p\.jsonl:2:12: not JSON"),
        ("p.jsonl", '{"prompt": ""}', r"p\.jsonl:1: 'prompt' must be a text that is not empty"),
        ("p.jsonl", '{"text": "x"}', r"p\.jsonl:1: unknown key 'text': the keys are prompt"),
        ("p.jsonl", '{"prompt": "x", "domain": 3}', r"p\.jsonl:1: 'domain' must be a text"),
        (
            "p.jsonl",
            '{"prompt": "x", "max_new_tokens": 0}',
            r"p\.jsonl:1: 'max_new_tokens' must be an integer of at least 1, got 0",
        ),
        ("p.jsonl", '{"prompt": "x", "max_new_tokens": true}', "got True"),
        ("p.jsonl", "[1]", r"p\.jsonl:1: expected an object with a prompt, got list"),
        ("p.tsv", "law\t \n", r"p\.tsv:1: a domain without a prompt"),
        ("p.txt", "", r"p\.txt: no prompts in it"),
        ("p.txt", " \n\n", r"p\.txt: no prompts in it"),
        ("p.jsonl", "\n", r"p\.jsonl: no prompts in it"),
    ],
)
def test_a_mistake_is_named_with_its_line(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        read_prompts(write(tmp_path, name, content))


def test_a_missing_file_a_folder_and_bytes_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file of prompts"):
        read_prompts(tmp_path / "absent.txt")
    with pytest.raises(UsageError, match="cannot be read"):
        read_prompts(tmp_path)
    (tmp_path / "p.bin").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8"):
        read_prompts(tmp_path / "p.bin")
    with pytest.raises(UsageError, match="unknown kind of prompts 'csv'"):
        read_prompts(tmp_path / "p.bin", kind="csv")


def test_messages_are_a_chat(tmp_path: Path) -> None:
    chat = '[{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]'
    path = write(tmp_path, "p.jsonl", f'{{"messages": {chat}, "domain": "chat"}}\n')
    (prompt,) = read_prompts(path)
    assert prompt.domain == "chat"
    assert prompt.messages is not None
    assert [message["role"] for message in prompt.messages] == ["system", "user"]


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ('{"messages": []}', "'messages' must be a list that is not empty"),
        ('{"messages": "hi"}', "'messages' must be a list that is not empty"),
        ('{"messages": [{"role": "user"}]}', r"messages\[0\] must have two texts"),
        ('{"messages": [{"role": "user", "content": 3}]}', r"messages\[0\] must have two texts"),
        (
            '{"prompt": "a", "messages": [{"role": "user", "content": "b"}]}',
            "has both 'prompt' and 'messages'",
        ),
    ],
)
def test_wrong_messages_are_refused_with_their_line(tmp_path: Path, entry: str, says: str) -> None:
    path = write(tmp_path, "p.jsonl", f'"good"\n{entry}\n')
    with pytest.raises(UsageError, match=rf"p\.jsonl:2: .*{says}"):
        read_prompts(path)
