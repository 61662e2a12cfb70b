"""Claim: *a global cache is worse than one a layer below 40 % of the experts, and not above*.

Layers are visited in turn. So the experts that a global LRU used longest ago are those of the layer
that is needed next. With few slots it evicts them. With many, it gives slots to layers that need
them more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from finding import Finding
from routing import HEAD, SHARED, TASKS, task

from moesim.report.chart import Chart, grid
from moesim.report.planes import PLANE_LEGEND, by_side, draw_plane
from moesim.report.statistics import Estimate
from moesim.simulate.step_hits import points, step_hits
from moesim.trace.parts import pick


@dataclass(frozen=True, slots=True)
class Grid:
    """What is swept; capacities are slots a layer. The last `part` of the requests is replayed."""

    tasks: Sequence[str] = TASKS
    batches: Sequence[int] = (1, 4)
    capacities: Sequence[int] = (4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56)
    part: float = 0.35
    shared: Path = SHARED


SMALL: Final = Grid(tasks=("intent",), batches=(1,), capacities=(8, 48), part=0.1)
Planes = dict[str, list[list[Estimate | None]]]


def measure(on: Grid = Grid()) -> Planes:
    """Return global less per-layer LRU in points, planes [batch][capacity] by task."""
    planes: Planes = {}
    for name in on.tasks:
        trace = task(name, on.shared)
        last = round(on.part * trace.num_requests)
        part = pick(trace, range(trace.num_requests - last, trace.num_requests), skip=HEAD)
        planes[name] = []
        for batch in on.batches:
            replay = partial(step_hits, part, "lru", capacities=on.capacities, batch=batch)
            one = replay(scope="global")
            planes[name].append(list(points(one, replay(), batch)))
    return planes


def draw(on: Grid, planes: Planes) -> Chart:
    """Draw a line for each task and batch."""
    chart = grid(
        "scope",
        "A global cache against one a layer",
        CAPTION,
        (),
        note=NOTE,
        height_in=2.6,
        shape=(len(on.tasks), 1),
        sharex=True,
    )
    percents = [f"{100 * c / 64:.0f}" for c in on.capacities]
    for (axes,), (name, plane) in zip(chart.axes, planes.items(), strict=True):
        draw_plane(axes, percents, list(map(str, on.batches)), plane, most=8, digits=1, size=6)
        axes.set_ylabel(f"{name}\nbatch", fontsize=7)
    chart.axes[-1][0].set_xlabel("experts in slots (%)")
    return chart


NOTE: Final = (
    "cells: hit rate of one cache for all layers less that of one a layer (points); "
    "DeepSeek-V2-Lite's routing"
)
"""What stays in the picture."""
CAPTION: Final = (
    "Hit rate of one LRU cache for all layers less that of one a layer, with the same slots in "
    f"all, in points. DeepSeek-V2-Lite's routing, all 26 layers. {PLANE_LEGEND}"
)


def find(on: Grid = Grid()) -> tuple[Finding, Chart]:
    """Return the finding and its picture."""
    planes = measure(on)
    return Finding(name="scope", **_words(on, planes), caption=CAPTION), draw(on, planes)


def _border(on: Grid, row: Sequence[Estimate | None]) -> str:
    percent = [100 * c / 64 for c in on.capacities]
    worse, better = by_side(percent, row)
    if not better:
        return f"worse up to {max(worse):.0f} %, never better" if worse else "undecided"
    return f"{max((p for p in worse if p < min(better)), default=0):.0f} to {min(better):.0f} %"


def _words(on: Grid, planes: Planes) -> dict[str, str]:
    table = [
        f"| task | {' | '.join(f'batch {b}' for b in on.batches)} |",
        f"|---|{'---|' * len(on.batches)}",
    ]
    for name, plane in planes.items():
        table.append(f"| {name} | {' | '.join(_border(on, row) for row in plane)} |")
    values = [value.mean for plane in planes.values() for row in plane for value in row if value]
    worst = ", ".join(
        f"{-min(v.mean for plane in planes.values() for v in plane[row] if v):.1f} (batch {batch})"
        for row, batch in enumerate(on.batches)
    )
    first = ", ".join(f"{name} {_border(on, plane[0])}" for name, plane in planes.items())
    return {
        "claim": "A global cache is worse than one a layer",
        "source": "measured for this project on these tasks; systems differ (mixtral-offloading: a "
        "cache a layer; MoE-Infinity, ProMoE: global)",
        "holds": f"with few slots, and the more so with a batch: up to {worst} points worse",
        "flips": f"with more slots, at batch 1: {first}. There, layers of uneven need share slots "
        f"(at most {max(values):+.1f} points)",
        "evidence": f"{len(on.tasks)} tasks, {len(on.capacities)} sizes, all 26 layers; from "
        f"{min(values):+.1f} to {max(values):+.1f} points",
        "text": "\n".join(
            [
                "Swept: task × batch × slots. Experts in slots between which the sign changes:",
                "",
                *table,
                "",
                "- This is LRU. A global cache by counts has no such cycle.",
            ]
        ),
    }
