"""The last step of every importer: arrays become a trace whose header says where it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moesim.errors import SourceError, TraceError
from moesim.trace.importers.base import MOST_EXPERTS, Imported, Options
from moesim.trace.importers.uses import Arrays
from moesim.trace.trace import Trace

__all__ = ["built", "counted", "most_id", "trace_of"]


def most_id(path: Path, options: Options, stated: int | None = None) -> int:
    """Return the highest expert id that may occur, by the option or what the file states."""
    own = options.num_experts
    if own is not None and stated is not None and own != stated:
        raise SourceError(path, "", f"says {stated} experts, and --num-experts says {own}")
    count = own if own is not None else stated
    if count is not None and not 1 <= count <= MOST_EXPERTS:
        raise SourceError(path, "", f"{count} experts are out of range: 1 to {MOST_EXPERTS}")
    return (MOST_EXPERTS if count is None else count) - 1


def counted(arrays: Arrays, options: Options, stated: int | None, notes: list[str]) -> int:
    """Return the number of experts; it is counted from the ids where it is not stated."""
    count = options.num_experts if options.num_experts is not None else stated
    if count is None:
        count = int(arrays.expert_ids.max()) + 1
        notes.append(
            f"{count} experts: counted from the highest id, because the file does not say; state "
            "it with --num-experts"
        )
    return count


def trace_of(path: Path, **arguments: Any) -> Trace:
    """Return `Trace.from_arrays(...)`, whose errors then name the file."""
    try:
        return Trace.from_arrays(**arguments)
    except TraceError as error:
        where = ", ".join(part for part in (error.file, error.where) if part)
        raise SourceError(path, where, error.reason) from None


def built(
    path: Path,
    name: str,
    arrays: Arrays,
    options: Options,
    *,
    stated_experts: int | None = None,
    notes: list[str] | None = None,
    provenance: dict[str, Any] | None = None,
    **arguments: Any,
) -> Imported:
    """Return the trace of assembled arrays, read from `path` in the format `name`."""
    told = list(notes or ())
    experts = counted(arrays, options, stated_experts, told)
    arguments.setdefault("domain", path.stem)
    arguments.setdefault("model", path.stem)
    if options.model is not None:
        arguments["model"] = options.model
    if options.prompt_tokens is not None:
        arguments["prompt_tokens"] = [options.prompt_tokens] * len(arrays.seq_len)
    trace = trace_of(
        path,
        expert_ids=arrays.expert_ids,
        gate_weights=arrays.gate_weights,
        seq_len=arrays.seq_len,
        num_experts=experts,
        layer_map=arrays.layer_map,
        provenance={"imported_from": path.name, "format": name, **(provenance or {})},
        **arguments,
    )
    return Imported(trace, told)
