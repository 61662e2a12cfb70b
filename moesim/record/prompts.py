"""Prompts of a recorded model, each with a domain and perhaps a limit of generated tokens.

Three kinds of file:
- *JSONL* (`.jsonl`): one object a line, `{"prompt": "...", "domain": "law", "max_new_tokens": 32}`,
  of which only `prompt` is required, or one bare JSON string a line. In place of `prompt`,
  `messages` is a chat, `[{"role": "user", "content": "..."}]`, for the model's chat template;
- *lines*: one prompt a line; `domain<TAB>prompt` names the domain (blank lines are skipped);
- *text*: one prompt a paragraph, paragraphs being separated by blank lines.

Without an explicit kind, a `.jsonl` file is JSONL, a `.tsv` file lines, and any other file is text
if it has a blank line between two others, and lines if it has none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from moesim.errors import UsageError, shown
from moesim.files import as_path
from moesim.inputs import read_bytes

_MOST_BYTES: Final = 256 << 20

KINDS = ("auto", "jsonl", "lines", "text")

_KEYS = ("prompt", "messages", "domain", "max_new_tokens")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request: a text, or a chat of `messages` ({role, content} each), or ids of tokens.

    `tokens`, if given, are fed as they are; the others are then ignored.
    """

    text: str = ""
    domain: str | None = None
    max_new_tokens: int | None = None
    tokens: tuple[int, ...] | None = None
    where: str = ""  # file:line, for messages
    messages: tuple[Mapping[str, str], ...] | None = None

    def __str__(self) -> str:
        return self.where or f"prompt {self.text[:40]!r}"


def read_prompts(
    path: str | Path, *, kind: str = "auto", domain: str | None = None
) -> list[Prompt]:
    """Read a file of prompts; prompts without a domain get `domain`.

    Raise `UsageError` with `file:line` for a missing or empty file, bad JSON, a wrong key or type.
    """
    path = as_path(path)
    if kind not in KINDS:
        raise UsageError(f"unknown kind of prompts {kind!r}: choose one of {', '.join(KINDS)}")
    content = _read(path)
    parse = _PARSERS[_kind_of(path, content) if kind == "auto" else kind]
    prompts = [
        prompt if prompt.domain is not None else _with_domain(prompt, domain)
        for prompt in parse(path, content)
    ]
    if not prompts:
        raise UsageError(f"{path}: no prompts in it; give at least one")
    return prompts


def _read(path: Path) -> str:
    try:
        return read_bytes(path, _MOST_BYTES).decode()
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file of prompts") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text (byte {error.start}); convert it first") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from None


def _kind_of(path: Path, content: str) -> str:
    if path.suffix in (".jsonl", ".ndjson"):
        return "jsonl"
    # A blank line between two others: a blank line at the end does not count.
    if path.suffix != ".tsv" and re.search(r"\S[^\S\n]*\n\s*\n", content.strip()):
        return "text"
    return "lines"


def _with_domain(prompt: Prompt, domain: str | None) -> Prompt:
    return replace(prompt, domain=domain)


def _lines(path: Path, content: str) -> Iterator[Prompt]:
    for number, line in enumerate(content.split("\n"), start=1):
        head, tab, tail = line.rstrip("\r").partition("\t")
        text, domain = (tail, head.strip() or None) if tab else (head, None)
        if text.strip():
            yield Prompt(text, domain, where=f"{path}:{number}")
        elif tab:
            raise UsageError(f"{path}:{number}: a domain without a prompt after the tab")


def _paragraphs(path: Path, content: str) -> Iterator[Prompt]:
    for match in re.finditer(r"\S.*?(?=\n\s*\n|\s*\Z)", content, flags=re.DOTALL):
        line = content.count("\n", 0, match.start()) + 1
        yield Prompt(match.group(), where=f"{path}:{line}")


def _jsonl(path: Path, content: str) -> Iterator[Prompt]:
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            yield _json_prompt(line, f"{path}:{number}")


def _json_prompt(line: str, where: str) -> Prompt:
    try:
        value: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where}:{error.colno}: not JSON: {error.msg}") from None
    except (RecursionError, ValueError) as error:  # nested too deeply, or an endless number
        raise UsageError(f"{where}: not JSON: {error}") from None
    if isinstance(value, str):
        value = {"prompt": value}
    if not isinstance(value, dict):
        raise UsageError(f"{where}: expected an object with a prompt, got {type(value).__name__}")
    if unknown := sorted(set(value) - set(_KEYS)):
        raise UsageError(f"{where}: unknown key {unknown[0]!r}: the keys are {', '.join(_KEYS)}")
    text, messages, domain, limit = (value.get(key) for key in _KEYS)
    if messages is not None:
        if text is not None:
            raise UsageError(f"{where}: has both 'prompt' and 'messages'; give one of them")
        text, messages = "", _checked_messages(messages, where)
    elif not isinstance(text, str) or not text.strip():
        raise UsageError(f"{where}: 'prompt' must be a text that is not empty, got {text!r}")
    if domain is not None and not isinstance(domain, str):
        raise UsageError(f"{where}: 'domain' must be a text, got {domain!r}")
    if limit is not None and (type(limit) is not int or limit < 1):
        raise UsageError(
            f"{where}: 'max_new_tokens' must be an integer of at least 1, got {limit!r}"
        )
    return Prompt(text, domain, limit, where=where, messages=messages)


def _checked_messages(messages: Any, where: str) -> tuple[dict[str, str], ...]:
    """Return a chat's messages. Raise `UsageError` if they are no list of texts with roles."""
    if not isinstance(messages, list) or not messages:
        raise UsageError(f"{where}: 'messages' must be a list that is not empty, got {messages!r}")
    for number, message in enumerate(messages):
        wrong = not isinstance(message, dict) or set(message) != {"role", "content"}
        if wrong or not all(isinstance(text, str) for text in message.values()):
            raise UsageError(
                f"{where}: messages[{number}] must have two texts, role and content, "
                f"got {shown(message)}"
            )
    return tuple(messages)


_PARSERS: dict[str, Callable[[Path, str], Iterator[Prompt]]] = {
    "jsonl": _jsonl,
    "lines": _lines,
    "text": _paragraphs,
}
