"""Claim: *LRU with prefetch hurts*, against systems whose prefetch pays.

A synthetic predictor of given accuracy (the policy `dial`, recall equal to precision) names the
experts of the next layer. A predicted expert takes a slot when its copy is issued. So a wrong one
costs a copy, and it evicts an expert that may be needed. Learned predictors are tried beside it.
The perfect predictor is the headroom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from finding import Finding
from routing import SHARED, task
from times import Served, change, serve

from moesim.report.chart import Chart, grid
from moesim.report.planes import PLANE_LEGEND, by_side, draw_plane, side, spread
from moesim.report.statistics import Estimate, estimate

KEY: Final = "output_tokens_per_s"
LEARNED: Final = ("popularity", "previous_layer", "previous_token")


@dataclass(frozen=True, slots=True)
class Grid:
    """What is swept around 16 slots, 25 GB/s and batch 1."""

    task: str = "law"
    accuracies: Sequence[float] = (0.5, 0.7, 0.8, 0.9, 1.0)
    slots: Sequence[int] = (8, 16, 32, 48)
    links: Sequence[str] = ("6GB/s", "12GB/s", "25GB/s", "50GB/s", "200GB/s", "800GB/s")
    batches: Sequence[int] = (1, 2, 4, 8)
    output: int = 24
    seeds: int = 3
    shared: Path = SHARED


SMALL: Final = Grid(
    task="intent",
    accuracies=(0.5, 1.0),
    slots=(16,),
    links=("25GB/s",),
    batches=(2,),
    output=4,
    seeds=2,
)


@dataclass(frozen=True, slots=True)
class Found:
    """Change of tokens/s against no prefetch, in per cent; planes [accuracy][setting].

    `learned`: by predictor, at each number of slots. `pollution`: of accuracy 0.7, experts evicted
    for a copy and wanted before its use, for each 100 copies ahead, at each number of slots.
    """

    slots: list[list[Estimate | None]]
    links: list[list[Estimate | None]]
    batches: list[list[Estimate | None]]
    learned: dict[str, list[Estimate]]
    pollution: list[float]


def measure(on: Grid = Grid()) -> Found:
    """Return all changes."""
    trace = task(on.task, on.shared)
    length = {"prompt": 16, "output": on.output}
    run = partial(serve, "lru_prefetch", trace, range(on.seeds), workload__lengths=length)
    by_slots = [_column(on, partial(run, cache__slots=f"{n}/layer")) for n in on.slots]
    by_link = [
        _column(on, partial(run, hardware__h2d={"pinned_bandwidth": link})) for link in on.links
    ]
    by_batch = [
        _column(
            on,
            partial(
                run, batching__max_sequences=batch, workload__requests=max(3, batch),
                workload__lengths={"prompt": 16, "output": max(4, on.output // batch * 2)},
            ),
        )
        for batch in on.batches
    ]  # fmt: skip
    learned: dict[str, list[Estimate]] = {name: [] for name in LEARNED}
    pollution = []
    for number in on.slots:
        place = partial(run, cache__slots=f"{number}/layer")
        none = place(prefetch="none")
        for name in LEARNED:
            learned[name].append(change(place(prefetch=name), none, KEY))
        seen = place(prefetch=_dial(0.7))
        pollution.append(estimate(_polluted(each) for each in seen).mean)
    return Found(_rows(by_slots), _rows(by_link), _rows(by_batch), learned, pollution)


def _dial(accuracy: float) -> dict[str, Any]:
    return {"policy": "dial", "options": {"recall": accuracy, "precision": accuracy}}


def _column(on: Grid, run: Any) -> list[Estimate]:
    none: list[Served] = run(prefetch="none")
    return [change(run(prefetch=_dial(a)), none, KEY) for a in on.accuracies]


def _rows(columns: Sequence[Sequence[Estimate]]) -> list[list[Estimate | None]]:
    return [list(row) for row in zip(*columns, strict=True)]


def _polluted(summary: Served) -> float:
    copies = summary["prefetch_bytes"]
    size = summary["demand_bytes"] / max(1, summary["misses"])
    return 100 * float(summary["prefetch_pollution"]) * size / copies if copies else 0.0


def draw(on: Grid, found: Found) -> Chart:
    """Draw the three planes and the learned predictors."""
    chart = grid(
        "lru_prefetch",
        "LRU with prefetch against LRU alone",
        CAPTION,
        (),
        note=NOTE,
        shape=(2, 2),
        height_in=4.6,
    )
    rows = [f"{100 * a:.0f}" for a in on.accuracies]
    names = (
        [str(100 * n // 64) for n in on.slots],
        [link.removesuffix("GB/s") for link in on.links],
        list(map(str, on.batches)),
    )
    labels = ("experts in slots (%)", "link (GB/s)", "batch (requests)")
    titles = ("over slots: 25 GB/s, batch 1", "over the link: 25 % in slots, batch 1",
              "over the batch: 25 % in slots, 25 GB/s")  # fmt: skip
    panels = [chart.axes[0][0], chart.axes[0][1], chart.axes[1][0]]
    planes = (found.slots, found.links, found.batches)
    for axes, names_, label, title, plane in zip(
        panels, names, labels, titles, planes, strict=True
    ):
        draw_plane(axes, names_, rows, plane, most=40, size=6.5)
        axes.set_xlabel(label)
        axes.set_ylabel("accuracy of the predictor (%)")
        axes.set_title(title, fontsize=7.5)
    axes = chart.axes[1][1]
    for (name, values), marker in zip(found.learned.items(), "os^", strict=True):
        axes.errorbar(
            [100 * n / 64 for n in on.slots],
            [v.mean for v in values], [v.half or 0 for v in values],
            marker=marker, markersize=3.5, linewidth=1.2, capsize=2, label=name.replace("_", " "),
        )  # fmt: skip
    axes.axhline(0, color="black", linewidth=0.7)
    axes.set_xlabel("experts in slots (%)")
    axes.set_ylabel("change of tokens/s (%)")
    axes.set_title("learned predictors: 25 GB/s, batch 1", fontsize=7.5)
    axes.legend()
    return chart


NOTE: Final = (
    "cells: change of output tokens/s (%); "
    "DeepSeek-V2-Lite's routing, 4-bit experts, RTX 4090; simulated; synthetic predictor"
)
"""What stays in the picture."""
CAPTION: Final = (
    "Change of output tokens/s by prefetching the next layer's experts, against LRU alone, in per "
    "cent. DeepSeek-V2-Lite's "
    "routing on law, 4-bit experts, RTX 4090; simulated. The predictor of the planes is synthetic: "
    "recall equal to precision. "
    f"{PLANE_LEGEND} Bottom right: predictors learned on the first half of the requests, bars 95 % "
    f"over seeds."
)


def find(on: Grid = Grid()) -> tuple[Finding, Chart]:
    """Return the finding and its picture."""
    found = measure(on)
    return Finding(name="lru_prefetch", **_words(on, found), caption=CAPTION), draw(on, found)


def needed(accuracies: Sequence[float], column: Sequence[Estimate | None]) -> str:
    """Return between which accuracies prefetch begins to pay, in per cent."""
    hurts, pays = by_side(accuracies, column)
    if not pays:
        return "never"
    if not hurts:
        return f"at {100 * min(pays):.0f} % or less"
    return f"{100 * max(hurts):.0f} to {100 * min(pays):.0f} %"


def _words(on: Grid, found: Found) -> dict[str, str]:
    def borders(names: Sequence[object], rows: list[list[Estimate | None]]) -> str:
        columns = zip(names, zip(*rows, strict=True), strict=True)
        return ", ".join(f"{name}: {needed(on.accuracies, column)}" for name, column in columns)

    table = [f"| predictor | {' | '.join(f'{n} slots' for n in on.slots)} |",
             f"|---|{'--:|' * len(on.slots)}"]  # fmt: skip
    for name, values in found.learned.items():
        table.append(f"| {name.replace('_', ' ')} | {' | '.join(spread(v) for v in values)} |")
    perfect = found.slots[-1]
    middle = on.slots.index(16)
    table.append(f"| perfect (headroom) | {' | '.join(spread(v) for v in perfect if v)} |")
    flat = [value for values in found.learned.values() for value in values]
    hurt = sum(side(value) < 0 for value in flat)
    helped = sum(side(value) > 0 for value in flat)
    pollution = ", ".join(f"{value:.0f}" for value in found.pollution)
    return {
        "claim": "LRU with prefetch hurts",
        "source": "a note of the field, from one trace (beside *pinning wins at batch 8*); the "
        "opposite is what systems with "
        "prefetch publish (mixtral-offloading, Pre-gated MoE, ProMoE)",
        "holds": "for predictors that history alone can train "
        f"({hurt} of {len(flat)} settings slower, {helped} faster), and for any predictor less "
        f"accurate than the border: "
        f"{needed(on.accuracies, [row[middle] for row in found.slots])} at 16 slots and 25 GB/s",
        "flips": "above an accuracy that falls with the speed of the link "
        f"({borders(on.links, found.links)}). Slots and batch move this border little",
        "evidence": f"law, RTX 4090: accuracy needed by slots: {borders(on.slots, found.slots)}; a "
        f"perfect predictor gains "
        f"{spread(perfect[0]) if perfect[0] else ''} % at {on.slots[0]} slots",
        "text": "\n".join(
            [
                f"Swept: accuracy of a synthetic predictor {on.accuracies} × slots, link, batch; "
                f"three learned predictors.",
                "",
                *table,
                "",
                "Change of tokens/s in per cent, batch 1, 25 GB/s. Accuracy at which prefetch "
                "begins to pay (hurts at the first, pays at the second):",
                "",
                f"- by slots of 64: {borders(on.slots, found.slots)}",
                f"- by link: {borders(on.links, found.links)}",
                f"- by batch: {borders(on.batches, found.batches)}",
                "",
                f"- **Why.** At an accuracy of 70 %, of 100 copies ahead {pollution} evict an "
                f"expert that is wanted "
                f"before the copied one is used (at {', '.join(map(str, on.slots))} slots). The "
                f"link is busy without prefetch, so a wrong copy delays the next one on demand.",
                "- **Headroom.** A perfect predictor one layer ahead only hides copies behind the "
                "computing of one layer. On these links most of the time is copying, so it gains "
                f"{spread(perfect[0]) if perfect[0] else ''} % at {on.slots[0]} slots.",
                "- **What was not tried.** A predicted expert takes a slot at once. Buffers of its "
                "own would spare the slots, and not the link.",
                "- A pinned set has no slots for prefetches, so prefetch cannot hurt it. This is "
                "one reason why pinning can win where LRU with prefetch loses.",
            ]
        ),
    }
