"""Arrays in an `.npz` file, the recommended form for your own recordings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from moesim.errors import SourceError, TraceError
from moesim.files import as_path
from moesim.trace.importers.arrays import arrays_in_zip
from moesim.trace.importers.base import Format, Imported, Options
from moesim.trace.importers.source import Glimpse
from moesim.trace.trace import Trace

__all__ = ["FORMAT", "from_npz"]

_OPTIONAL: Final = ("prompt_tokens", "gate_weights", "predictions", "probabilities", "arrival_s")


def from_npz(path: str | Path, *, num_experts: int | None = None, **meta: Any) -> Trace:
    """Import an `.npz` file of arrays, the recommended form for your own recordings.

    It holds `expert_ids` (rows, layers, k), `seq_len` (requests,) and, optionally, `prompt_tokens`,
    `gate_weights`, `predictions`, `probabilities`, `arrival_s`. `Trace.from_arrays` defines them.
    `num_experts` defaults to the highest id plus one. Raise `SourceError` for a missing array or
    one that breaks the format.
    """
    file = as_path(path)
    data = arrays_in_zip(file)
    for name in ("expert_ids", "seq_len"):
        if name not in data:
            raise SourceError(file, name, f"missing; the file has {', '.join(sorted(data))}")
    ids = data["expert_ids"]
    provenance = {"imported_from": file.name, "format": "npz"}
    try:
        return Trace.from_arrays(
            expert_ids=ids,
            seq_len=data["seq_len"],
            num_experts=_count_experts(ids) if num_experts is None else num_experts,
            domain=meta.pop("domain", file.stem),
            provenance={**provenance, **meta.pop("provenance", {})},
            **{"model": file.stem, **{name: data.get(name) for name in _OPTIONAL}, **meta},
        )
    except TraceError as error:
        where = ", ".join(part for part in (error.file, error.where) if part)
        raise SourceError(file, where, error.reason) from None


def _count_experts(ids: npt.NDArray[Any]) -> int:
    if not ids.size or not np.issubdtype(ids.dtype, np.integer):
        return 65_535  # any number: `from_arrays` refuses such ids with a better message
    highest = int(ids.max())
    if ids.dtype.kind == "u" and highest == np.iinfo(ids.dtype).max:
        raise TraceError(
            "expert_ids",
            "",
            f"pass num_experts to say whether id {highest} is an unused place or an expert",
        )
    return highest + 1


def _read(path: Path, options: Options) -> Imported:
    named = {"num_experts": options.num_experts, "model": options.model}
    meta: dict[str, Any] = {key: value for key, value in named.items() if value is not None}
    if options.prompt_tokens is not None:
        lengths = np.atleast_1d(arrays_in_zip(path).get("seq_len", np.zeros(1)))
        meta["prompt_tokens"] = [options.prompt_tokens] * len(lengths)
    trace = from_npz(path, **meta)
    notes = []
    if options.num_experts is None:
        notes.append(
            f"{trace.num_experts} experts: counted from the highest id, because the file does not "
            "say; state it with --num-experts"
        )
    return Imported(trace, notes)


def _sniff(glimpse: Glimpse) -> bool:
    return {"expert_ids", "seq_len"} <= set(glimpse.arrays)


FORMAT = Format(
    "npz",
    "an .npz with the arrays expert_ids (rows, layers, k) and seq_len (requests)",
    _sniff,
    _read,
)
