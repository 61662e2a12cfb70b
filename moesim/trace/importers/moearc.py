"""`moearc-trace-v1`: a header line, then one JSON object for each step of llama.cpp.

A step is one token, and `e` lists `layer, expert, layer, expert, ...`. Prefill and decode are
separate files (chrisdesrochers/MoEArc, bench/traces/README.md). Files may follow each other in one:
a prefill and the decode after it are one request.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from moesim.errors import SourceError, shown
from moesim.inputs import parse_json
from moesim.trace.importers.base import MOST_EXPERTS, Format, Imported, Options, small_number
from moesim.trace.importers.build import built, most_id
from moesim.trace.importers.json_text import check_keys, integers
from moesim.trace.importers.source import Glimpse, lines_of
from moesim.trace.importers.uses import Uses

__all__ = ["FORMAT"]

_NAME: Final = "moearc-trace-v1"
_STEP: Final = ("step", "phase", "pos", "e")
_COUNTS: Final[tuple[str, ...]] = (
    "n_expert", "n_expert_used", "n_layers_routed", "n_prompt_tokens", "n_prefill_steps",
    "n_decode_steps",
)  # fmt: skip
_SHARED: Final[tuple[str, ...]] = ("n_expert", "n_expert_used", "n_layers_routed", "model_file")
"""Keys in which the headers of one file agree."""


@dataclass(slots=True)
class _Section:
    """A header and the steps after it: `request` they belong to, and the tokens before them."""

    line: int
    header: dict[str, Any]
    stated: dict[str, int]
    request: int
    before: int
    steps: int = 0
    first_pos: int | None = None

    @property
    def phase(self) -> str:
        return str(self.header["phase"])


def _sniff(glimpse: Glimpse) -> bool:
    return glimpse.first_object.get("format") == _NAME


def _read(path: Path, options: Options) -> Imported:
    sections: list[_Section] = []
    uses = Uses(path, MOST_EXPERTS - 1)
    for line, text in lines_of(path, options.progress):
        value = _object(path, line, text)
        if not sections or "format" in value:
            sections.append(_begun(path, line, value, sections))
            if len(sections) == 1:
                uses.most = most_id(path, options, sections[0].stated.get("n_expert"))
            continue
        section = sections[-1]
        _check_step(path, line, value, section)
        _add(uses, line, value, section)
        section.steps += 1
    for section in sections:
        if not section.steps:
            raise SourceError(path, f"line {section.line}", "no step follows this header")
        expected = section.stated.get(f"n_{section.phase}_steps", section.steps)
        if section.steps != expected:
            raise SourceError(
                path,
                f"line {section.line}",
                f"says {expected} steps, and {section.steps} follow: the file ends early or late",
            )
    return _built(path, options, sections, uses)


def _object(path: Path, line: int, text: str) -> dict[str, Any]:
    where = f"line {line}"
    try:
        value = parse_json(text.encode())
    except ValueError as error:
        raise SourceError(path, where, f"is not readable JSON ({error})") from None
    if not isinstance(value, dict):
        raise SourceError(path, where, f"must be a JSON object, not {shown(value)}")
    check_keys(path, where, text)
    return value


def _begun(path: Path, line: int, header: dict[str, Any], before: list[_Section]) -> _Section:
    """Return a new section; a decode continues the request of the prefill before it."""
    where = f"line {line}"
    if header.get("format") != _NAME:
        raise SourceError(path, where, f"format must be {_NAME!r}, not {shown(header['format'])}"
                          if "format" in header else f"has no format {_NAME!r}")  # fmt: skip
    if header.get("phase") not in ("prefill", "decode"):
        raise SourceError(
            path, where, f"phase must be prefill or decode, not {shown(header.get('phase'))}"
        )
    stated: dict[str, int] = {
        name: small_number(header[name], path, where, name) for name in _COUNTS if name in header
    }
    if not before:
        return _Section(line, header, stated, 0, 0)
    last = before[-1]
    for name in _SHARED:
        if header.get(name) != last.header.get(name):
            raise SourceError(
                path,
                where,
                f"{name} is {shown(header.get(name))}, and the header before says "
                f"{shown(last.header.get(name))}",
            )
    if last.phase == "prefill" and header["phase"] == "decode":
        _check_same_prompt(path, where, header, last)
        return _Section(line, header, stated, last.request, last.steps)
    return _Section(line, header, stated, last.request + 1, 0)


def _check_same_prompt(path: Path, where: str, header: dict[str, Any], last: _Section) -> None:
    for name in ("prompt_name", "prompt", "n_prompt_tokens"):
        if header.get(name) != last.header.get(name):
            raise SourceError(
                path, where, f"decodes another prompt than the prefill before it: {name} differs"
            )
    if header.get("n_prompt_tokens", last.steps) != last.steps:
        raise SourceError(
            path,
            where,
            f"says {header['n_prompt_tokens']} prompt tokens, and the prefill has {last.steps}",
        )


def _check_step(path: Path, line: int, step: dict[str, Any], section: _Section) -> None:
    """Raise `SourceError` where a step is not the next of its section."""
    where = f"line {line}"
    if odd := [key for key in step if key not in _STEP]:
        raise SourceError(path, where, f"has the unknown key {shown(odd[0])}")
    if "step" not in step or "e" not in step:
        raise SourceError(path, where, "must have the keys step and e")
    number = small_number(step["step"], path, where, "step")
    if number != section.steps:
        raise SourceError(path, where, f"is step {number}, and step {section.steps} was expected")
    if step.get("phase", section.phase) != section.phase:
        raise SourceError(
            path, where, f"phase is {shown(step['phase'])}, and the header says {section.phase}"
        )
    if "pos" not in step:
        return
    position = small_number(step["pos"], path, where, "pos")
    if section.first_pos is None:
        section.first_pos = position - section.steps
    if position != section.first_pos + section.steps:
        raise SourceError(
            path, where, f"is at position {position}, not {section.first_pos + section.steps}"
        )


def _add(uses: Uses, line: int, step: dict[str, Any], section: _Section) -> None:
    pairs = integers(step["e"], uses.path, f"line {line}", "e", MOST_EXPERTS)
    if not pairs or len(pairs) % 2:
        raise uses.error(
            line, f"e has {len(pairs)} numbers, and pairs of layer and expert were expected"
        )
    token = section.before + section.steps
    for layer, expert in zip(pairs[::2], pairs[1::2], strict=True):
        uses.add(line, str(section.request), token, layer, expert)


def _built(path: Path, options: Options, sections: list[_Section], uses: Uses) -> Imported:
    first = sections[0]
    arrays = uses.arrays(first.stated.get("n_expert_used", options.top_k))
    layers = first.stated.get("n_layers_routed", len(arrays.layers))
    if layers != len(arrays.layers):
        raise SourceError(
            path,
            f"line {first.line}",
            f"says {layers} routed layers, and steps have {len(arrays.layers)}",
        )
    header = first.header
    extra = _prompts(path, options, sections)
    extra["domain"] = [
        str(section.header.get("prompt_name", path.stem)) for section in sections
        if not section.before
    ]  # fmt: skip
    if isinstance(header.get("model_file"), str):
        extra["model"] = Path(header["model_file"]).stem
    return built(
        path, FORMAT.name, arrays, options, stated_experts=first.stated.get("n_expert"),
        provenance={
            key: header[key]
            for key in ("quantisation", "llama_cpp_commit", "sampling", "backend")
            if isinstance(header.get(key), str)
        },
        **extra,
    )  # fmt: skip


def _prompts(path: Path, options: Options, sections: list[_Section]) -> dict[str, Any]:
    """Return the prompt's tokens of each request, and whether their rows are there."""
    starts = [section for section in sections if not section.before]
    recorded = starts[0].phase == "prefill"
    tokens = []
    for section in starts:
        if (section.phase == "prefill") != recorded:
            raise SourceError(
                path,
                f"line {section.line}",
                f"starts a request with its {section.phase}, unlike the first request",
            )
        count = section.steps if recorded else section.stated.get("n_prompt_tokens")
        count = options.prompt_tokens if count is None else count
        if not count:
            raise SourceError(
                path,
                f"line {section.line}",
                "does not say n_prompt_tokens; state it with --prompt-tokens",
            )
        tokens.append(count)
    return {"prompt_tokens": tokens, "prompt_rows": "recorded" if recorded else "absent"}


FORMAT = Format("moearc", f"JSON lines whose first has format {_NAME}", _sniff, _read)
