"""Routing of DeepSeek-V2-Lite that deepseek-ai/ESFT published (results/expert_scores).

The source is 26 MoE layers (model layers 1-26) of 64 experts, top-6, teacher-forced. It comes as a
folder of `expert_weights_N.txt`, one file a layer: each line is a sequence, with its ids, an empty
cell, and its gate weights, all separated by tabs. The same arrays packed as `.npz` are read too.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from moesim.errors import SourceError
from moesim.trace.importers.base import Format, Imported, Options
from moesim.trace.importers.build import trace_of
from moesim.trace.importers.columns import Row
from moesim.trace.importers.npz import from_npz
from moesim.trace.importers.source import Glimpse, lines_of
from moesim.trace.trace import Trace

__all__ = ["FORMAT", "from_esft"]

_TOP_K: Final = 6
_EXPERTS: Final = 64
_LAYERS: Final = tuple(range(1, 27))
_FILE: Final = re.compile(r"expert_weights_([1-9]\d{0,2})\.txt")
_SOURCE: Final = {"source": "deepseek-ai/ESFT results/expert_scores", "forced": True}


def from_esft(path: str | Path, **meta: Any) -> Trace:
    """Import routing of DeepSeek-V2-Lite, published by deepseek-ai/ESFT, packed as `.npz`.

    The source is `results/expert_scores`: 26 MoE layers (model layers 1-26) of 64 experts, top-6,
    teacher-forced. Raise as `from_npz` does.
    """
    defaults: dict[str, Any] = {
        "num_experts": _EXPERTS,
        "model": "deepseek-v2-lite",
        "layer_map": _LAYERS,
        "num_shared_experts": 2,
        "provenance": dict(_SOURCE),
    }
    return from_npz(path, **{**defaults, **meta})


def _read(path: Path, options: Options) -> Imported:
    named = {"num_experts": options.num_experts, "model": options.model}
    meta = {key: value for key, value in named.items() if value is not None}
    return Imported(_from_folder(path, meta) if path.is_dir() else from_esft(path, **meta))


def _files(folder: Path) -> dict[int, Path]:
    matched = ((_FILE.fullmatch(file.name), file) for file in folder.iterdir())
    return dict(sorted((int(match[1]), file) for match, file in matched if match))


def _from_folder(folder: Path, meta: dict[str, Any]) -> Trace:
    """Return the trace of a folder of texts. Raise `SourceError` with the file and the line."""
    files = _files(folder)
    if not files:
        raise SourceError(folder, "", f"is a folder without files named {_FILE.pattern}")
    layers = tuple(files)
    if layers != tuple(range(1, len(layers) + 1)):
        absent = next(n for n in range(1, max(layers)) if n not in files)
        raise SourceError(folder, f"expert_weights_{absent}.txt", "missing: a layer has no file")
    experts = int(meta.pop("num_experts", _EXPERTS))
    blocks = [_layer(file, experts) for file in files.values()]
    lengths = blocks[0][2]
    for file, block in zip(files.values(), blocks, strict=True):
        if block[2] != lengths:
            line = next(
                (n for n, (a, b) in enumerate(zip(block[2], lengths, strict=False), 1) if a != b),
                min(len(block[2]), len(lengths)) + 1,
            )
            raise SourceError(
                file, f"line {line}", "has another number of tokens than the first layer's file"
            )
    return trace_of(
        folder,
        expert_ids=np.stack([block[0] for block in blocks], axis=1),
        gate_weights=np.stack([block[1] for block in blocks], axis=1),
        seq_len=lengths,
        num_experts=experts,
        layer_map=layers,
        num_shared_experts=2,
        domain=folder.name,
        model=meta.get("model", "deepseek-v2-lite"),
        provenance={**_SOURCE, "imported_from": folder.name, "format": "esft"},
    )


def _layer(
    file: Path, experts: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], list[int]]:
    """Return ids (tokens, 6), weights (tokens, 6) and the tokens of each line of one file."""
    ids: list[int] = []
    weights: list[float] = []
    lengths: list[int] = []
    for line, text in lines_of(file):
        row = Row(file, line, {})
        halves = text.split("\t\t")
        if len(halves) != 2:
            raise row.error("must hold ids, an empty cell, and weights, separated by tabs")
        some = [row.digits("an expert id", part) for part in halves[0].split("\t")]
        shares = [row.decimal("a gate weight", part) for part in halves[1].rstrip("\t").split("\t")]
        if len(some) != len(shares) or len(some) % _TOP_K:
            raise row.error(
                f"holds {len(some)} ids and {len(shares)} weights; {_TOP_K} of each are expected "
                "for a token"
            )
        _check_ids(row, some, experts)
        ids += some
        weights += shares
        lengths.append(len(some) // _TOP_K)
    return (
        np.array(ids, np.int64).reshape(-1, _TOP_K),
        np.array(weights).reshape(-1, _TOP_K),
        lengths,
    )


def _check_ids(row: Row, ids: list[int], experts: int) -> None:
    if max(ids) >= experts:
        raise row.error(f"expert id {max(ids)} is out of range for {experts} experts")
    for first in range(0, len(ids), _TOP_K):
        if len(set(ids[first : first + _TOP_K])) < _TOP_K:
            raise row.error(f"token {first // _TOP_K} uses an expert twice")


def _sniff(glimpse: Glimpse) -> bool:
    return glimpse.path.is_dir() and bool(_files(glimpse.path))


FORMAT = Format(
    "esft",
    "a folder of expert_weights_N.txt as deepseek-ai/ESFT published them, or their arrays as .npz",
    _sniff,
    _read,
)
