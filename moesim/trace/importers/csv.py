"""CSV of your own: one line for each use of an expert, or for each token and layer.

Columns are `token`, `layer` and `expert` (or `experts`, ids separated by spaces); optional ones are
`request` and `weight` (or `weights`). Their order is free.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from moesim.errors import SourceError
from moesim.trace.importers.base import Format, Imported, Options
from moesim.trace.importers.build import built, most_id
from moesim.trace.importers.columns import Row, rows_of, split_header
from moesim.trace.importers.source import Glimpse, lines_of
from moesim.trace.importers.uses import Uses

__all__ = ["FORMAT"]

_ONE: Final = frozenset(("token", "layer", "expert"))
_SEVERAL: Final = frozenset(("token", "layer", "experts"))
_OPTIONAL: Final = frozenset(("request", "weight", "weights"))


def _sniff(glimpse: Glimpse) -> bool:
    names = set(split_header(glimpse.first_line))
    return (names >= _ONE or names >= _SEVERAL) and names <= _ONE | _SEVERAL | _OPTIONAL


def _read(path: Path, options: Options) -> Imported:
    names = set(split_header(next(lines_of(path))[1]))
    wide = names >= _SEVERAL
    needed = _SEVERAL if wide else _ONE
    weights = "weights" if wide else "weight"
    if missing := sorted(needed - names):
        raise SourceError(
            path, "line 1", f"has no column {missing[0]!r}; expected {FORMAT.expects}"
        )
    if odd := sorted(names - needed - {"request", weights}):
        raise SourceError(path, "line 1", f"has the unknown column {odd[0]!r}")
    uses = Uses(path, most_id(path, options), weighted=weights in names)
    for row in rows_of(path, progress=options.progress):
        _add(uses, row, wide)
    return built(path, FORMAT.name, uses.arrays(options.top_k), options)


def _add(uses: Uses, row: Row, wide: bool) -> None:
    token, layer = row.whole("token"), row.whole("layer")
    request = row.cells.get("request", "")
    if wide:
        ids = row.wholes("experts")
        shares = row.decimals("weights") if uses.weighted else [0.0] * len(ids)
        if len(ids) != len(shares) or not ids:
            raise row.error(f"has {len(ids)} experts and {len(shares)} weights")
    else:
        ids = [row.whole("expert")]
        shares = [row.number("weight") if uses.weighted else 0.0]
    for expert, share in zip(ids, shares, strict=True):
        uses.add(row.line, request, token, layer, expert, share)


FORMAT = Format(
    "csv",
    "a CSV with the columns token, layer and expert (or experts), and optionally request, weight",
    _sniff,
    _read,
)
