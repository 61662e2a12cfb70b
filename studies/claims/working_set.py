"""Question of the field: *is it a policy failure or a working-set failure?*

What LRU misses has two parts. The *policy* part is what MIN would hit and LRU does not. The
*working-set* part is what MIN misses, too: no policy can hit it with these slots. A claim about a
better policy needs the first part to be the larger one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from finding import Finding
from routing import SHARED, TASKS, counts, thinned

from moesim.report.chart import Chart, grid
from moesim.report.planes import PLANE_LEGEND, by_side, draw_plane, spread
from moesim.report.statistics import Estimate, estimate
from moesim.simulate.step_hits import BLOCKS, points, step_hits
from moesim.trace.parts import halves

CAUSAL: Final = ("lfu", "lfru", "lfu_decay")


@dataclass(frozen=True, slots=True)
class Grid:
    """What is swept; capacities are slots a layer."""

    tasks: Sequence[str] = TASKS
    batches: Sequence[int] = (1, 4, 16)
    capacities: Sequence[int] = (4, 8, 12, 16, 24, 32, 48)
    quarter: int = 16
    shared: Path = SHARED


SMALL: Final = Grid(tasks=("intent",), batches=(1,), capacities=(8, 48), quarter=8)


@dataclass(frozen=True, slots=True)
class Found:
    """By task: planes [batch][capacity] of the policy part less the working-set part, in points.

    `parts`: both parts at batch 1, [capacity]. `gains`: above LRU at a quarter.
    """

    planes: dict[str, list[list[Estimate | None]]]
    parts: dict[str, list[tuple[float, float]]]
    gains: dict[str, dict[str, Estimate]]


def measure(on: Grid = Grid()) -> Found:
    """Return the parts of all tasks."""
    planes: dict[str, list[list[Estimate | None]]] = {}
    parts: dict[str, list[tuple[float, float]]] = {}
    gains: dict[str, dict[str, Estimate]] = {}
    for name in on.tasks:
        both = halves(thinned(name, on.shared))
        planes[name] = []
        for batch in on.batches:
            if both.test.num_requests < batch:
                planes[name].append([None] * len(on.capacities))
                continue
            replay = partial(step_hits, both.test, capacities=on.capacities, batch=batch)
            lru, best = (
                100 * replay(policy).block_rates(BLOCKS, batch=batch) for policy in ("lru", "min")
            )
            both_parts = np.stack([best - lru, 100 - best])  # (2, blocks, capacities)
            if batch == 1:
                policy, working = both_parts.mean(axis=1)
                parts[name] = list(zip(policy.tolist(), working.tolist(), strict=True))
            less = both_parts[0] - both_parts[1]
            planes[name].append([estimate(column) for column in less.T])
        replay = partial(step_hits, both.test, capacities=[on.quarter])
        lru_hits = replay("lru")
        gains[name] = {policy: points(replay(policy), lru_hits)[0] for policy in (*CAUSAL, "min")}
        pinned = replay("static", popularity=counts([both.train]))
        gains[name]["pinned"] = points(pinned, lru_hits)[0]
    return Found(planes, parts, gains)


def draw(on: Grid, found: Found) -> Chart:
    """Draw the planes of the tasks, and below them the parts at batch 1."""
    chart = grid(
        "working_set",
        "What LRU misses, by cause",
        CAPTION,
        (),
        note=NOTE,
        shape=(2, max(2, len(on.tasks))),
        height_in=3.6,
    )
    percents = [f"{100 * c / 64:.0f}" for c in on.capacities]
    for column, name in enumerate(on.tasks):
        upper, lower = chart.axes[0][column], chart.axes[1][column]
        draw_plane(upper, percents, list(map(str, on.batches)), found.planes[name], most=80)
        upper.set_title(name, fontsize=7.5)
        share = [100 * c / 64 for c in on.capacities]
        policy, working = zip(*found.parts[name], strict=True)
        lower.stackplot(share, [working, policy], colors=["#D55E00", "#0072B2"],
                        labels=["working set", "policy"])  # fmt: skip
        lower.set_xlabel("experts in slots (%)")
        lower.set_ylim(0, 100)
        if not column:
            upper.set_ylabel("batch (requests)")
            lower.set_ylabel("uses that LRU misses (%)")
            lower.legend(fontsize=6)
    for column in range(len(on.tasks), len(chart.axes[0])):
        for row in chart.axes:
            row[column].set_visible(False)
    return chart


NOTE: Final = (
    "cells: policy part less working-set part of LRU's misses (points); DeepSeek-V2-Lite's routing"
)
"""What stays in the picture."""
CAPTION: Final = (
    "Top: the policy part of LRU's misses less the working-set part, in points. Blue is a policy "
    f"failure, red a working-set failure. {PLANE_LEGEND} Bottom: both parts at batch 1. "
    "DeepSeek-V2-Lite's routing."
)


def find(on: Grid = Grid()) -> tuple[Finding, Chart]:
    """Return the finding and its picture."""
    found = measure(on)
    return Finding(name="working_set", **_words(on, found), caption=CAPTION), draw(on, found)


def _border(on: Grid, row: Sequence[Estimate | None]) -> str:
    """Return between which shares of experts in slots the policy part becomes the larger one."""
    percent = [100 * c / 64 for c in on.capacities]
    below, above = by_side(percent, row)
    if not above:
        return f"above {max(below):.0f} %" if below else "undecided"
    return f"{max(below):.0f} to {min(above):.0f} %" if below else f"below {min(above):.0f} %"


def _words(on: Grid, found: Found) -> dict[str, str]:
    table = [f"| task | {' | '.join(f'batch {b}' for b in on.batches)} |",
             f"|---|{'---|' * len(on.batches)}"]  # fmt: skip
    for name, plane in found.planes.items():
        cells = ["" if row[0] is None else _border(on, row) for row in plane]
        table.append(f"| {name} | {' | '.join(cells)} |")
    names = [*CAUSAL, "pinned", "min"]
    gains = [f"| task | {' | '.join(names)} |", f"|---|{'--:|' * len(names)}"]
    for name, values in found.gains.items():
        gains.append(f"| {name} | {' | '.join(spread(values[policy]) for policy in names)} |")
    first = ", ".join(f"{name} {_border(on, plane[0])}" for name, plane in found.planes.items())
    best = max(
        (v[p] for v in found.gains.values() for p in (*CAUSAL, "pinned")), key=lambda v: v.mean
    )
    return {
        "claim": "A bad hit rate is a policy failure; it is a working-set failure",
        "source": "github.com/Helldez/BigMoeOnEdge, issue 33 (8-9 % hits of gpt-oss-120b in 2000 "
        "MiB, 75 % of Qwen3-30B-A3B in 4000 MiB, the same LRU)",
        "holds": "*working set*: with few slots. No policy hits what MIN misses, and this is the "
        f"larger part of LRU's misses at batch {on.batches[0]} up to {first} of the experts",
        "flips": "to *policy* with more slots, and later with a larger batch, because a batch "
        "wants more experts at once. What a causal policy can take of that part is small",
        "evidence": f"border at batch {on.batches[0]}: {first}; best causal gain over LRU at 25 %: "
        f"{spread(best)} points, of "
        f"{spread(max((v['min'] for v in found.gains.values()), key=lambda v: v.mean))} that MIN "
        f"has at most",
        "text": "\n".join(
            [
                f"Swept: {len(on.tasks)} tasks × batch {on.batches} × slots {on.capacities} of 64. "
                f"Experts in slots from which the policy part is the larger one:",
                "",
                *table,
                "",
                f"Points above LRU at {on.quarter} slots and batch 1 (`pinned` learnt on the first "
                f"half):",
                "",
                *gains,
                "",
                "- MIN knows the future. So its part is an upper bound of what any policy could "
                "gain, not a promise.",
            ]
        ),
    }
