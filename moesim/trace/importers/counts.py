"""Popularity: how often each expert of each layer was used, without tokens.

It comes as CSV with the columns `layer,expert,count`, as llama.cpp's forks write it, or as a NumPy
array (layers, experts). The trace is synthetic and fitted to the counts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from moesim.errors import SourceError
from moesim.trace.importers.arrays import npy_array
from moesim.trace.importers.base import Format, Imported, Options
from moesim.trace.importers.build import most_id
from moesim.trace.importers.columns import rows_of, split_header
from moesim.trace.importers.fitted import fitted_to_counts
from moesim.trace.importers.source import Glimpse

__all__ = ["FORMAT"]

_COLUMNS: Final = ("layer", "expert", "count")


def _sniff(glimpse: Glimpse) -> bool:
    return len(glimpse.npy_shape) == 2 or split_header(glimpse.first_line)[:3] == _COLUMNS


def _read(path: Path, options: Options) -> Imported:
    if Glimpse(path).head.startswith(b"\x93NUMPY"):
        return fitted_to_counts(path, FORMAT.name, npy_array(path), options)
    return _read_csv(path, options)


def _read_csv(path: Path, options: Options) -> Imported:
    most = most_id(path, options)
    counts: dict[int, dict[int, int]] = {}
    for row in rows_of(path, progress=options.progress):
        if tuple(row.cells)[:3] != _COLUMNS:
            raise SourceError(path, "line 1", f"is no header of {FORMAT.expects}")
        layer, expert = row.whole("layer"), row.whole("expert")
        if expert > most:
            raise row.error(f"expert id {expert} is out of range for {most + 1} experts")
        if layer > 9_999:
            raise row.error(f"layer {layer} is out of range: 0 to 9999")
        of_layer = counts.setdefault(layer, {})
        if expert in of_layer:
            raise row.error(f"expert {expert} of layer {layer} is counted twice")
        of_layer[expert] = row.whole("count")
    if not counts:
        raise SourceError(path, "", "counts no expert")
    highest = max(max(of_layer) for of_layer in counts.values())
    experts = highest + 1 if options.num_experts is None else options.num_experts
    layers = tuple(sorted(counts))
    table = np.zeros((len(layers), experts))
    for number, layer in enumerate(layers):
        for expert, count in counts[layer].items():
            table[number, expert] = count
    notes = []
    if options.num_experts is None:
        notes.append(
            f"{experts} experts: counted from the highest id, because the file does not say; state "
            "it with --num-experts"
        )
    return fitted_to_counts(path, FORMAT.name, table, options, layers=layers, notes=notes)


FORMAT = Format(
    "counts",
    "a CSV with the columns layer,expert,count, or a .npy of counts (layers, experts)",
    _sniff,
    _read,
)
