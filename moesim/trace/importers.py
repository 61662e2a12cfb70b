"""Importers: recordings in other formats, turned into traces. One function each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moesim.errors import TraceError
from moesim.files import as_path
from moesim.inputs import open_regular
from moesim.trace.trace import Trace

_OPTIONAL = ("prompt_tokens", "gate_weights", "predictions", "probabilities", "arrival_s")


def from_npz(path: str | Path, *, num_experts: int | None = None, **meta: Any) -> Trace:
    """Import an `.npz` file of arrays, the recommended form for your own recordings.

    It holds `expert_ids` (rows, layers, k), `seq_len` (requests,) and, optionally, `prompt_tokens`,
    `gate_weights`, `predictions`, `probabilities`, `arrival_s`. `Trace.from_arrays` defines them.
    `num_experts` defaults to the highest id plus one. Raise `TraceError` for a missing array or one
    that breaks the format.
    """
    file = as_path(path)
    try:
        with open_regular(file) as handle, np.load(handle, allow_pickle=False) as arrays:
            # Read at once: an array of an `.npz` is decompressed on each access.
            data = {name: arrays[name] for name in arrays.files}
    except Exception as error:  # zip, zlib and numpy each raise their own on a damaged file
        raise TraceError(file, "", f"is not a readable .npz: {error}") from None
    for name in ("expert_ids", "seq_len"):
        if name not in data:
            raise TraceError(file, name, f"missing; the file has {', '.join(sorted(data))}")
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
        raise TraceError(file, where, error.reason) from None


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


def from_esft(path: str | Path, **meta: Any) -> Trace:
    """Import routing of DeepSeek-V2-Lite, published by deepseek-ai/ESFT, packed as `.npz`.

    The source is `results/expert_scores`: 26 MoE layers (model layers 1-26) of 64 experts, top-6,
    teacher-forced. Raise as `from_npz` does.
    """
    defaults: dict[str, Any] = {
        "num_experts": 64,
        "model": "deepseek-v2-lite",
        "layer_map": tuple(range(1, 27)),
        "num_shared_experts": 2,
        "provenance": {"source": "deepseek-ai/ESFT results/expert_scores", "forced": True},
    }
    return from_npz(path, **{**defaults, **meta})


IMPORTERS: dict[str, Callable[..., Trace]] = {"npz": from_npz, "esft": from_esft}
