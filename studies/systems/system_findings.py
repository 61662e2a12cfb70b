"""Where each system wins and why, in sentences whose figures all come from the rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from system_cells import COMMON, FITTED, Cell
from system_rows import Row

from moesim.report.statistics import Estimate, difference

__all__ = [
    "LEVEL",
    "Standing",
    "best_of",
    "by_cell",
    "cell_text",
    "general",
    "how",
    "level_with",
    "named",
]
__all__ += ["offloading", "percent", "rank_correlation", "ranked", "standing", "system_text"]

LEVEL: Final = 0.01
"""Systems whose tokens/s differ by less are level."""
_NEAR: Final = 0.1
"""So are those that differ by less than this, where the interval contains 0."""
_ON_CPU: Final = ("cost", "two_queue", "cpu_experts", "cpu_layers")


def by_cell(rows: Iterable[Row], engine: str = COMMON) -> dict[Cell, list[Row]]:
    """Return the rows under an engine, by cell."""
    cells: dict[Cell, list[Row]] = {}
    for row in rows:
        if row.engine == engine:
            cells.setdefault(row.cell, []).append(row)
    return cells


def ranked(rows: Iterable[Row]) -> list[Row]:
    """Return the rows that may be ranked, fastest first."""
    return sorted((r for r in rows if r.status == "ranked"), key=lambda r: (-r.speed, r.system))


def best_of(rows: Iterable[Row]) -> Row | None:
    """Return the fastest row that may be ranked."""
    return next(iter(ranked(rows)), None)


def gain(row: Row, other: Row) -> Estimate:
    """Return by how much more tokens/s a row has than another one, paired by seed: 0.1 is 10 %."""
    return difference(row.tokens, other.tokens)


def level_with(row: Row, best: Row) -> bool:
    """Return whether a row is as fast as the best one, as far as the seeds tell."""
    found = gain(best, row)
    unsure = found.half is not None and found.low <= 0
    return found.mean < (_NEAR if unsure else LEVEL)


def cell_text(rows: Sequence[Row]) -> str:
    """Return who wins a cell, why, and who loses it."""
    order = ranked(rows)
    if not order:
        return "no system can be ranked."
    best, last = order[0], order[-1]
    level = [row.system for row in order[1:] if level_with(row, best)]
    others = [row for row in order[1:] if row.system not in level]
    text = f"**{best.system}**"
    text += f", level with {', '.join(level)}" if level else ""
    text += f": {_speed(best)}"
    if others:
        text += f", {_gain(best, others[0])} on {others[0].system}"
        text += f". It {_why(best, others)}"
    if last.system != best.system and last in others:
        text += f". Last: {last.system}, {_speed(last)}; it {how(last)}"
    return f"{text}.{_unranked(rows, best)}"


def _speed(row: Row) -> str:
    value = row.values["tokens_per_s"]
    half = "" if value.half is None else f" ± {_short(value.half)}"
    return f"{_short(value.mean)}{half} tokens/s"


def _gain(row: Row, other: Row) -> str:
    found = gain(row, other)
    if found.half is None:
        return percent(found.mean, sign="+")
    low, high = percent(found.low, sign="+"), percent(found.high, sign="+")
    return f"{percent(found.mean, sign='+')} ({low} to {high})"


def percent(share: float, *, sign: str = "", digits: int = 0) -> str:
    """Return a share in per cent as text."""
    return f"{100 * share:{sign}.{digits}f} %"


def _why(best: Row, others: Sequence[Row]) -> str:
    usual = median(row.mean("mib_per_token") for row in others)
    return f"{how(best)} (the others copy {_short(usual)} MiB a token in the median)"


def how(row: Row) -> str:
    """Return what a system copies, computes and waits for."""
    cause, share = row.longest_wait()
    parts = [f"copies {_short(row.mean('mib_per_token'))} MiB a token"]
    if row.mean("cpu_pct") >= 1:
        parts.append(f"computes {row.mean('cpu_pct'):.0f} % of the expert uses on the CPU")
    parts.append(f"hits {row.mean('on_time_pct'):.0f} % in time")
    if row.mean("wasted_pct") >= 5:
        parts.append(f"wastes {row.mean('wasted_pct'):.0f} % of its copies")
    parts.append(f"the GPU waits {share:.0f} % of the time for {cause}")
    return ", ".join(parts)


def _unranked(rows: Sequence[Row], best: Row) -> str:
    texts = [
        f"{row.system} {_short(row.speed)}"
        for row in rows
        if row.status in ("hindsight", "other model") and row.speed > best.speed
    ]
    return f" Faster, but not ranked: {', '.join(texts)}." if texts else ""


def _short(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 99.5 else f"{value:.3g}"


@dataclass(frozen=True, slots=True)
class Standing:
    """How one system stands over the cells where not everything fits.

    `won` counts cells where it is the fastest or level with it, `near` those where it has nine
    tenths of the best tokens/s or more, `last` those where it is the slowest. `shares` are its
    tokens/s as shares of the best, and `worst` is the row with the least share.
    """

    system: str
    won: int
    near: int
    last: int
    shares: Mapping[Cell, float]
    worst: Row

    @property
    def median(self) -> float:
        """The median share of the best system's tokens/s."""
        return median(self.shares.values())

    def median_at(self, batch: int) -> float:
        """Return the median share in the cells of one batch; NaN without any."""
        own = [share for cell, share in self.shares.items() if cell.batch == batch]
        return median(own) if own else math.nan


def standing(rows: Sequence[Row]) -> list[Standing]:
    """Return how each system stands over the cells where not everything fits, best first."""
    placed: dict[str, list[tuple[Row, Row, Row]]] = {}
    for own in offloading(rows).values():
        order = ranked(own)
        for row in order:
            placed.setdefault(row.system, []).append((row, order[0], order[-1]))
    found = [
        Standing(
            system,
            sum(row is best or level_with(row, best) for row, best, _ in each),
            sum(row.speed >= 0.9 * best.speed for row, best, _ in each),
            sum(row is last for row, _, last in each),
            {row.cell: row.speed / best.speed for row, best, _ in each},
            min(each, key=lambda item: item[0].speed / item[1].speed)[0],
        )
        for system, each in placed.items()
    ]
    return sorted(found, key=lambda each: (-each.median, each.system))


def offloading(rows: Iterable[Row], engine: str = COMMON) -> dict[Cell, list[Row]]:
    """Return the rows of the cells where not everything fits and some system can be ranked."""
    cells = by_cell(rows, engine)
    return {
        cell: own
        for cell, own in cells.items()
        if not any(row.fits for row in own) and best_of(own) is not None
    }


def system_text(found: Standing) -> str:
    """Return where a system is fast, and where it falls behind and why."""
    best = max(found.shares.values())
    where = [cell for cell, share in found.shares.items() if share == best]
    text = (
        f"**{found.system}** is the fastest or level with it in {found.won} of {len(found.shares)} "
        f"cells. It has {percent(found.median)} of the best tokens/s in the median"
    )
    if best < 1:
        text += f", and {percent(best)} at most ({named(where[0])})"
    worst = found.shares[found.worst.cell]
    if worst < 1:
        text += f". It falls behind most in {named(found.worst.cell)} ({percent(worst)}): it "
        text += how(found.worst)
    return f"{text}."


def named(cell: Cell) -> str:
    """Return a cell in a few words."""
    return f"{cell.model.label}, {cell.machine.label}, batch {cell.batch}"


def general(rows: Sequence[Row]) -> list[str]:
    """Return what holds over all cells where not everything fits, a sentence each."""
    cells = offloading(rows)
    if not cells:
        return ["Everything fits in GPU memory, so there is nothing to compare."]
    texts = [*_winners(cells), *_equals(cells), *_copy_or_cpu(cells), *_bytes_decide(cells)]
    return [*texts, *_engines(cells, by_cell(rows, FITTED)), *_verdicts(cells)]


def _winners(cells: Mapping[Cell, Sequence[Row]]) -> list[str]:
    wins: dict[str, int] = {}
    for own in cells.values():
        best = best_of(own)
        assert best is not None
        wins[best.system] = wins.get(best.system, 0) + 1
    order = sorted(wins.items(), key=lambda item: (-item[1], item[0]))
    text = ", ".join(f"{system} in {count}" for system, count in order)
    return [f"Of {len(cells)} cells where not everything fits, the fastest is: {text}."]


def _equals(cells: Mapping[Cell, Sequence[Row]]) -> list[str]:
    """Name the systems that have the same tokens/s in all cells: only their engines differ."""
    found: dict[tuple[tuple[Cell, float], ...], list[str]] = {}
    systems = sorted({row.system for own in cells.values() for row in ranked(own)})
    for system in systems:
        speeds = [
            (cell, row.speed)
            for cell, own in cells.items()
            for row in ranked(own)
            if row.system == system
        ]
        found.setdefault(tuple(speeds), []).append(system)
    return [
        f"{' and '.join(same)} are equal in every cell: their presets differ in the engine alone."
        for same in found.values()
        if len(same) > 1
    ]


def _copy_or_cpu(cells: Mapping[Cell, Sequence[Row]]) -> list[str]:
    """Compare the best system that computes on the CPU with the best one that only copies."""
    texts = []
    for batch in sorted({cell.batch for cell in cells}):
        ratios: dict[float, Cell] = {}
        for cell, own in cells.items():
            cpu = best_of(row for row in own if row.facts.get("placement_policy") in _ON_CPU)
            copy = best_of(row for row in own if row.facts.get("placement_policy") == "copy")
            if cell.batch == batch and cpu is not None and copy is not None:
                ratios[cpu.speed / copy.speed] = cell
        if not ratios:
            continue
        low, high = min(ratios), max(ratios)
        texts.append(
            f"Batch {batch}: the best system with experts on the CPU has {low:.2g} "
            f"({named(ratios[low])}) to {high:.2g} times ({named(ratios[high])}) the tokens/s of "
            f"the best one that only copies; median {median(ratios):.2g}."
        )
    return texts


def _bytes_decide(cells: Mapping[Cell, Sequence[Row]]) -> list[str]:
    found = []
    for own in cells.values():
        copying = [row for row in ranked(own) if row.facts.get("placement_policy") == "copy"]
        if len(copying) >= 3:
            speeds = [row.speed for row in copying]
            found.append(rank_correlation(speeds, [row.mean("mib_per_token") for row in copying]))
    if not found:
        return []
    return [
        "Among systems that only copy, those that copy fewer bytes a token are faster: the rank "
        f"correlation of tokens/s and MiB a token is {median(found):+.2f} in the median of "
        f"{len(found)} cells ({min(found):+.2f} to {max(found):+.2f})."
    ]


def _engines(
    cells: Mapping[Cell, Sequence[Row]], fitted: Mapping[Cell, Sequence[Row]]
) -> list[str]:
    same, kept, differs = 0, [], []
    for cell, own in cells.items():
        other = {row.system: row for row in ranked(fitted.get(cell, ()))}
        both = [row for row in ranked(own) if row.system in other]
        if len(both) < 3:
            continue
        kept.append(
            rank_correlation([r.speed for r in both], [other[r.system].speed for r in both])
        )
        winner = max(other.values(), key=lambda row: row.speed)
        near = other[both[0].system].speed >= (1 - LEVEL) * winner.speed
        same += near
        if not near:
            differs.append(f"{named(cell)}: {winner.system}, not {both[0].system}")
    if not kept:
        return []
    text = (
        f"Under the engine {FITTED} in place of {COMMON}, {same} of {len(kept)} cells have the "
        f"same winner; the rank correlation is {median(kept):+.2f} in the median "
        f"({min(kept):+.2f} at least)."
    )
    return [text + (f" Others: {'; '.join(differs)}." if differs else "")]


def _verdicts(cells: Mapping[Cell, Sequence[Row]]) -> list[str]:
    words: dict[str, int] = {}
    for own in cells.values():
        for row in ranked(own):
            words[row.facts["verdict"]] = words.get(row.facts["verdict"], 0) + 1
    order = sorted(words.items(), key=lambda item: (-item[1], item[0]))
    text = ", ".join(f"{word or 'none'} {count}" for word, count in order)
    return [f"Verdicts of ranked runs: {text}."]


def rank_correlation(left: Sequence[float], right: Sequence[float]) -> float:
    """Return Spearman's rank correlation; equal values share their mean rank."""
    a, b = _ranks(left), _ranks(right)
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    both = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    spread = math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))
    return both / spread if spread else 0.0


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(values)
    return [order.index(value) + (order.count(value) - 1) / 2 for value in values]
