"""Claim: *uniform routing gives every policy a hit rate of slots ÷ experts*.

With independent uniform tokens, what a cache holds says nothing of the next token. So each policy
without foresight hits slots ÷ experts. This is a test of a simulator, and no workload. The sweep
asks how little skew or repetition is enough to tell policies apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from finding import Finding
from routing import KNOBS, SHARED, TASKS, synthetic, thinned

from moesim.report.chart import Chart, grid
from moesim.report.planes import PLANE_LEGEND, draw_plane, side
from moesim.report.statistics import Estimate, estimate
from moesim.simulate.step_hits import BLOCKS, step_hits
from moesim.trace import Trace
from moesim.trace.parts import halves


@dataclass(frozen=True, slots=True)
class Grid:
    """What is swept, at `slots` of 64 slots a layer."""

    policies: Sequence[str] = ("random", "fifo", "lru", "lfu", "lfru", "arc", "min")
    skews: Sequence[float] = (0, 0.1, 0.2, 0.4, 0.8)
    sticky: Sequence[float] = (0, 0.02, 0.05, 0.1, 0.3)
    batches: Sequence[int] = (1, 8)
    tasks: Sequence[str] = TASKS
    slots: int = 16
    seeds: int = 4
    shared: Path = SHARED


SMALL: Final = Grid(
    policies=("lru", "min"),
    skews=(0, 0.8),
    sticky=(0, 0.3),
    batches=(1,),
    tasks=("intent",),
    seeds=2,
)
_KNOBS: Final = replace(KNOBS, requests=16)


@dataclass(frozen=True, slots=True)
class Found:
    """Hit rate less slots ÷ experts, in points, planes [policy][setting].

    `skew`, `sticky`: synthetic, batch 1. `batch`: uniform, by batch. `real`: by task, batch 1.
    """

    skew: list[list[Estimate | None]]
    sticky: list[list[Estimate | None]]
    batch: list[list[Estimate | None]]
    real: list[list[Estimate | None]]


def measure(on: Grid = Grid()) -> Found:
    """Return the distances of all policies from slots ÷ experts."""

    def drawn(policy: str, skew: float, sticky: float, batch: int = 1) -> Estimate:
        traces = (synthetic(skew, sticky, seed, _KNOBS) for seed in range(on.seeds))
        return estimate(_beyond(on, trace, policy, batch) for trace in traces)

    def real(policy: str, task: str) -> Estimate:
        found = step_hits(halves(thinned(task, on.shared)).test, policy, capacities=[on.slots])
        return estimate(100 * (found.block_rates(BLOCKS)[:, 0] - on.slots / 64))

    return Found(
        [[drawn(policy, skew, 0) for skew in on.skews] for policy in on.policies],
        [[drawn(policy, 0, sticky) for sticky in on.sticky] for policy in on.policies],
        [[drawn(policy, 0, 0, batch) for batch in on.batches] for policy in on.policies],
        [[real(policy, task) for task in on.tasks] for policy in on.policies],
    )


def _beyond(on: Grid, trace: Trace, policy: str, batch: int) -> float:
    """Return by how many points a policy hits more than slots ÷ experts, once its cache is full."""
    found = step_hits(trace, policy, capacities=[on.slots], batch=batch)
    later = found.block_rates(5, batch=batch)[:, 0].mean()
    return 100 * float(later - on.slots / trace.num_experts)


def draw(on: Grid, found: Found) -> Chart:
    """Draw the planes."""
    chart = grid(
        "uniform",
        "Hit rate less slots ÷ experts",
        CAPTION,
        (),
        note=NOTE,
        shape=(1, 4),
        height_in=2.3,
        widths=[5, 5, 2.6, 4],
        sharey=True,
    )
    panels = (
        ([f"{v:g}" for v in on.skews], found.skew, "skew (Zipf exponent)", "synthetic, no repeats"),
        (
            [f"{v:g}" for v in on.sticky],
            found.sticky,
            "stickiness (share of repeats)",
            "synthetic, no skew",
        ),
        (list(map(str, on.batches)), found.batch, "batch", "uniform"),
        (list(on.tasks), found.real, "task", "real"),
    )
    for axes, (names, plane, label, title) in zip(chart.axes[0], panels, strict=True):
        draw_plane(axes, names, list(on.policies), plane, most=30, digits=1, size=5.5)
        axes.set_xlabel(label)
        axes.set_title(title, fontsize=7.5)
        if label == "task":
            axes.tick_params(axis="x", labelrotation=35)
    return chart


NOTE: Final = "cells: hit rate less slots ÷ experts (points), 16 of 64 slots; MIN knows the future"
"""What stays in the picture."""
CAPTION: Final = (
    f"Hit rate less slots ÷ experts, in points, at 16 of 64 slots. {PLANE_LEGEND} Synthetic "
    f"routing is top-6; real is DeepSeek-V2-Lite's. MIN knows the future."
)


def find(on: Grid = Grid()) -> tuple[Finding, Chart]:
    """Return the finding and its picture."""
    found = measure(on)
    return Finding(name="uniform", **_words(on, found), caption=CAPTION), draw(on, found)


def _first(values: Sequence[float], rows: Sequence[Sequence[Estimate | None]]) -> str:
    """Return the least setting at which any policy lies above slots ÷ experts."""
    for value, column in zip(values, zip(*rows, strict=True), strict=True):
        if any(side(each) > 0 for each in column):
            return f"{value:g}"
    return "none of those swept"


def _words(on: Grid, found: Found) -> dict[str, str]:
    causal = [number for number, policy in enumerate(on.policies) if policy != "min"]
    level = [
        value
        for number in causal
        for value in (found.skew[number][0], *found.batch[number])
        if value
    ]
    worst = max(abs(value.mean) for value in level)
    best = found.skew[on.policies.index("min")][0]
    real = [value.mean for number in causal for value in found.real[number] if value]
    skew = _first(on.skews[1:], [found.skew[number][1:] for number in causal])
    sticky = _first(on.sticky[1:], [found.sticky[number][1:] for number in causal])
    assert best is not None
    return {
        "claim": "Uniform routing gives every policy slots ÷ experts",
        "source": "a note of the field (*a good test oracle and a bad workload*); also "
        "github.com/randyap8-wq/"
        "Micro-Expert-Router-SSD-Streamed-MoE-MER, pull request 116 (57.7 % hits with 50 % of the "
        "slots)",
        "holds": f"for every policy without foresight on uniform independent tokens, at each "
        f"batch: within {worst:.1f} points",
        "flips": f"for MIN ({best.mean:+.1f} points: it knows the future), from a skew of {skew}, "
        f"and from a stickiness of {sticky}. "
        "Skew tells counting policies apart, stickiness those by recency",
        "evidence": f"synthetic, {on.seeds} seeds; real tasks lie {min(real):.0f} to "
        f"{max(real):.0f} points above",
        "text": f"Swept: {len(on.policies)} policies × skew, stickiness, batch, at {on.slots} of "
        f"64 slots.\n\n"
        "- A benchmark on uniform tokens cannot prefer any policy. It has no headroom but that of "
        "MIN.\n"
        "- A cache that hits much more than slots ÷ experts on such tokens has an error, or counts "
        "warm-up or repeats.",
    }
