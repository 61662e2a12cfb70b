"""What the study found: rows, knobs of routing and fits of machines, as JSON and as tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from cache_replay import Locality
from localities import Found, locality_table
from mixtral_offloading import Fit
from published_rows import Row, median_error, table

from moesim.files import write_json

__all__ = ["LARGE_PCT", "TABLES", "Results", "read_results", "tables_of", "write_results"]

TABLES: Final = {
    "resident": "llama.cpp, all weights on the card",
    "offloading": "mixtral-offloading",
    "pre_gated": "Pre-gated MoE",
    "infinity": "MoE-Infinity and FineMoE",
    "systems": "hit rates of HybriMoE and Fiddler",
    "recent": "hit rates on recent models",
}
LARGE_PCT: Final = 50.0
_DIGITS: Final = 6


@dataclass(frozen=True, slots=True)
class Results:
    """Rows of all tables, knobs of routing, and fits of mixtral-offloading by machine.

    `lru_by_slots` are hit rates in per cent at 1, 2, ... slots a layer, by routing. `layer_ns` are
    the fitted times of a layer beside its copies in other tables, by system.
    """

    rows: Sequence[Row] = ()
    found: Sequence[Found] = ()
    fits: Mapping[str, Fit] = field(default_factory=dict)
    lru_by_slots: Mapping[str, Sequence[float]] = field(default_factory=dict)
    layer_ns: Mapping[str, float] = field(default_factory=dict)


def tables_of(results: Results) -> dict[str, str]:
    """Return each table of the document as Markdown, by its name."""
    rows = {name: [row for row in results.rows if row.table == name] for name in TABLES}
    of_group = {row.group: row.table for row in results.rows}
    recent = [each for each in results.found if of_group.get(each.group) == "recent"]
    mixtral = [each for each in results.found if of_group.get(each.group) == "systems"]
    return {
        "summary": _summary(rows),
        "large": _large(results.rows),
        **{name: table(own) for name, own in rows.items()},
        "groups": _groups(rows["offloading"]),
        "designs": _groups(rows["pre_gated"]),
        "layers": _layers(results.layer_ns),
        "fits": _fits(results.fits),
        "gains": _gains(rows["offloading"]),
        "slots": _slots(results.lru_by_slots),
        "mixtral": locality_table(mixtral, results.rows),
        "locality": locality_table(recent, results.rows),
    }


def _summary(rows: Mapping[str, Sequence[Row]]) -> str:
    lines = [
        "| table | predicted rows | median error | fitted rows | median error | missing |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, own in rows.items():
        number = dict.fromkeys(("predicted", "fitted", "missing"), 0)
        for row in own:
            number[row.kind] += 1
        predicted, fitted = _median(own, "predicted"), _median(own, "fitted")
        lines.append(
            f"| {TABLES[name]} | {number['predicted']} | {predicted} | {number['fitted']} "
            f"| {fitted} | {number['missing']} |"
        )
    return "\n".join(lines)


def _median(rows: Sequence[Row], kind: Any) -> str:
    found = median_error(rows, kind)
    if found is None:
        return ""
    unit = "points" if all(row.in_points for row in rows) else "%"
    return f"{found:.1f} {unit}"


def _large(rows: Sequence[Row]) -> str:
    """Return the rows with an error of more than 50 per cent of the published figure."""
    large = [row for row in rows if row.relative_pct is not None]
    large = [row for row in large if abs(row.relative_pct or 0) > LARGE_PCT]
    return table(large) if large else "No row."


def _groups(rows: Sequence[Row]) -> str:
    """Return the median and the largest error of each group of rows."""
    lines = ["| rows | kind | number | median error | largest error |", "|---|---|--:|--:|--:|"]
    for group, kind in dict.fromkeys((row.group, row.kind) for row in rows):
        own = [row for row in rows if (row.group, row.kind) == (group, kind)]
        worst = max(own, key=lambda row: abs(row.error or 0))
        lines.append(
            f"| {group} | {kind} | {len(own)} | {median_error(own, kind):.1f} % "
            f"| {worst.error_text} |"
        )
    return "\n".join(lines)


def _gains(rows: Sequence[Row]) -> str:
    """Return how much faster full is than LRU, there and here."""
    lines = ["| gain of prefetch, % | published | ours |", "|---|--:|--:|"]
    by_what = {row.what: row for row in rows}
    for what, full in by_what.items():
        setting, _, algorithm = what.rpartition(", ")
        if algorithm != "full":
            continue
        lru = by_what[f"{setting}, LRU"]
        published = 100 * (full.published / lru.published - 1)
        ours = 100 * ((full.ours or 0) / (lru.ours or 1) - 1)
        lines.append(f"| {setting} | {published:+.0f} | {ours:+.0f} |")
    return "\n".join(lines)


def _fits(fits: Mapping[str, Fit]) -> str:
    lines = ["| machine | link, GB/s | a layer, ms |", "|---|--:|--:|"]
    lines += [
        f"| {name} | {fit.link_bytes_per_s / 1e9:.1f} | {fit.layer_ns / 1e6:.1f} |"
        for name, fit in fits.items()
    ]
    return "\n".join(lines)


def _layers(layer_ns: Mapping[str, float]) -> str:
    lines = ["| system | a layer, ms |", "|---|--:|"]
    lines += [f"| {system} | {each / 1e6:.2f} |" for system, each in layer_ns.items()]
    return "\n".join(lines)


def _slots(rates: Mapping[str, Sequence[float]]) -> str:
    number = max(map(len, rates.values()), default=0)
    lines = [
        f"| hits of LRU in %, by slots a layer | {' | '.join(map(str, range(1, number + 1)))} |",
        f"|---|{'--:|' * number}",
    ]
    for routing, each in rates.items():
        lines.append(f"| {routing} | {' | '.join(f'{rate:.0f}' for rate in each)} |")
    return "\n".join(lines)


def write_results(results: Results, path: Path) -> None:
    """Write results as JSON, with figures to six digits."""
    write_json(path, _rounded(asdict(results)))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return value


def read_results(path: Path) -> Results:
    """Return the results that `write_results` wrote."""
    plain = json.loads(path.read_text(encoding="utf-8"))
    found = [Found(**{**each, "knobs": Locality(**each["knobs"])}) for each in plain["found"]]
    fits = {name: Fit(**each) for name, each in plain["fits"].items()}
    rows = [Row(**each) for each in plain["rows"]]
    return Results(rows, found, fits, plain["lru_by_slots"], plain["layer_ns"])
