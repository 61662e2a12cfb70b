"""`moearc-trace-v1`: a header line, then one JSON object for each step of llama.cpp.

A step is one token, and `e` lists `layer, expert, layer, expert, ...`. Prefill and decode are
separate files (chrisdesrochers/MoEArc, bench/traces/README.md).
"""

from __future__ import annotations

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


def _sniff(glimpse: Glimpse) -> bool:
    return glimpse.first_object.get("format") == _NAME


def _read(path: Path, options: Options) -> Imported:
    lines = lines_of(path, options.progress)
    header = _object(path, *next(lines))
    if header.get("format") != _NAME:
        raise SourceError(
            path, "line 1", f"format must be {_NAME!r}, not {shown(header.get('format'))}"
        )
    stated = _stated(path, header)
    uses = Uses(path, most_id(path, options, stated.get("n_expert")))
    first_pos = None
    count = 0
    for line, text in lines:
        step = _object(path, line, text)
        position = _check_step(path, line, step, header, count, first_pos)
        first_pos = position if count == 0 else first_pos
        _add(uses, line, step, count)
        count += 1
    return _built(path, options, header, stated, uses, count)


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


def _stated(path: Path, header: dict[str, Any]) -> dict[str, int]:
    """Return the counts that the header states."""
    names = (
        "n_expert", "n_expert_used", "n_layers_routed", "n_prompt_tokens", "n_prefill_steps",
        "n_decode_steps",
    )  # fmt: skip
    if header.get("phase") not in ("prefill", "decode"):
        raise SourceError(
            path, "line 1", f"phase must be prefill or decode, not {shown(header.get('phase'))}"
        )
    return {
        name: small_number(header[name], path, "line 1", name) for name in names if name in header
    }


def _check_step(
    path: Path, line: int, step: dict[str, Any], header: dict[str, Any], count: int,
    first_pos: int | None,
) -> int | None:  # fmt: skip
    """Return the position of a step. Raise `SourceError` where it is not the next of its phase."""
    where = f"line {line}"
    if odd := [key for key in step if key not in _STEP]:
        raise SourceError(path, where, f"has the unknown key {shown(odd[0])}")
    if "step" not in step or "e" not in step:
        raise SourceError(path, where, "must have the keys step and e")
    number = small_number(step["step"], path, where, "step")
    if number != count:
        raise SourceError(path, where, f"is step {number}, and step {count} was expected")
    if step.get("phase", header["phase"]) != header["phase"]:
        raise SourceError(
            path, where, f"phase is {shown(step['phase'])}, and the header says {header['phase']}"
        )
    if "pos" not in step:
        return None
    position = small_number(step["pos"], path, where, "pos")
    if first_pos is not None and position != first_pos + count:
        raise SourceError(path, where, f"is at position {position}, not {first_pos + count}")
    return position


def _add(uses: Uses, line: int, step: dict[str, Any], token: int) -> None:
    pairs = integers(step["e"], uses.path, f"line {line}", "e", MOST_EXPERTS)
    if not pairs or len(pairs) % 2:
        raise uses.error(
            line, f"e has {len(pairs)} numbers, and pairs of layer and expert were expected"
        )
    for layer, expert in zip(pairs[::2], pairs[1::2], strict=True):
        uses.add(line, "", token, layer, expert)


def _built(
    path: Path, options: Options, header: dict[str, Any], stated: dict[str, int], uses: Uses,
    count: int,
) -> Imported:  # fmt: skip
    phase = header["phase"]
    expected = stated.get(f"n_{phase}_steps", count)
    if count != expected:
        raise SourceError(
            path, "", f"holds {count} steps, and the header says {expected}: it ends early or late"
        )
    top_k = stated.get("n_expert_used", options.top_k)
    arrays = uses.arrays(top_k)
    layers = stated.get("n_layers_routed", len(arrays.layers))
    if layers != len(arrays.layers):
        raise SourceError(
            path, "line 1", f"says {layers} routed layers, and steps have {len(arrays.layers)}"
        )
    extra: dict[str, Any] = {"domain": str(header.get("prompt_name", path.stem))}
    if phase == "decode":
        prompt = options.prompt_tokens or stated.get("n_prompt_tokens")
        if not prompt:
            raise SourceError(
                path, "line 1", "does not say n_prompt_tokens; state it with --prompt-tokens"
            )
        extra |= {"prompt_rows": "absent", "prompt_tokens": [prompt]}
    if isinstance(header.get("model_file"), str):
        extra["model"] = Path(header["model_file"]).stem
    return built(
        path, FORMAT.name, arrays, options, stated_experts=stated.get("n_expert"),
        provenance={
            key: header[key]
            for key in ("quantisation", "llama_cpp_commit", "sampling", "backend", "phase")
            if isinstance(header.get(key), str)
        },
        **extra,
    )  # fmt: skip


FORMAT = Format("moearc", f"JSON lines whose first has format {_NAME}", _sniff, _read)
