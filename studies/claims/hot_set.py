"""Claims: *10 % of experts give 80 % of hits*, and *there is no hot set at all*.

The hot set is the tenth of all (layer, expert) pairs with the most uses. Its share of uses is
counted on the steps that chose it (hindsight, as claims do), and on later steps of the same task.
Few tokens inflate the first: experts that were not seen yet hold no share. So uniform routing of
the same number of tokens stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from finding import Finding
from routing import KNOBS, SHARED, TASKS, synthetic, text, thinned

from moesim.report.chart import Chart, grid
from moesim.report.statistics import Estimate, estimate
from moesim.simulate.curve import lock_step
from moesim.trace import Trace, load_trace
from moesim.trace.parts import halves

if TYPE_CHECKING:
    pass

ROOT: Final = Path(__file__).resolve().parents[2]
HOT: Final = 0.1
CLAIMED: Final = 80.0
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Grid:
    """What is swept. `windows`: tokens in which the hot set is counted."""

    tasks: Sequence[str] = TASKS
    windows: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
    repeats: int = 8
    skews: Sequence[float] = (0, 0.5, 1, 1.5, 2, 2.5, 3)
    top_ks: Sequence[int] = (1, 2, 4, 6, 8, 12)
    seeds: int = 3
    capacity: int = 16
    shared: Path = SHARED


SMALL: Final = Grid(
    tasks=("intent",), windows=(4, 64), repeats=2, skews=(0, 3), top_ks=(1, 6), seeds=2
)


@dataclass(frozen=True, slots=True)
class Found:
    """Shares in per cent: by task and window (and of uniform routing); of whole tasks; of hits.

    `later`: of the second half of requests, hot set of the first. `curves`: share of all uses by
    share of pairs. `dial`: by top-k and skew, synthetic.
    """

    windows: dict[str, list[Estimate]]
    whole: dict[str, float]
    half_share: dict[str, float]
    later: dict[str, float]
    hits: dict[str, float]
    curves: dict[str, npt.NDArray[np.float64]]
    dial: dict[int, list[Estimate]]


def hot_share(ids_TLK: Ids, experts: int, part: float = HOT) -> float:
    """Return the share of uses, in per cent, of the part of all pairs that has the most uses."""
    return 100 * float(_curve(_counts(ids_TLK, experts))[round(part * ids_TLK.shape[1] * experts)])


def _counts(ids_TLK: Ids, experts: int) -> Ids:
    """Return the uses of each pair, (layers × experts,)."""
    pairs = ids_TLK + np.arange(ids_TLK.shape[1])[None, :, None] * experts
    return np.bincount(pairs.ravel(), minlength=ids_TLK.shape[1] * experts)


def _curve(counts: Ids) -> npt.NDArray[np.float64]:
    """Return the share of uses of the n most used pairs, for each n from 0."""
    ranked = np.sort(counts)[::-1]
    return np.concatenate([[0.0], np.cumsum(ranked) / counts.sum()])


def measure(on: Grid = Grid()) -> Found:
    """Return all shares."""
    found = Found({}, {}, {}, {}, {}, {}, {})
    for name in on.tasks:
        trace = text(name, on.shared)
        ids, experts = _ids(trace), trace.num_experts
        found.windows[name] = _windows(on, ids, experts)
        found.whole[name] = hot_share(ids, experts)
        found.half_share[name] = hot_share(ids, experts, 0.5)
        found.curves[f"{name} (64, top-6)"] = _curve(_counts(ids, experts))
        both = halves(trace)
        found.later[name] = _later(_ids(both.train), _ids(both.test), experts)
        found.hits[name] = _of_hits(on, name)
    rng = np.random.default_rng(0)
    uniform = np.argsort(rng.random((max(on.windows), 26, 64)), axis=2)[:, :, :6]
    found.windows["uniform"] = _windows(on, uniform, 64)
    deep = load_trace(ROOT / "traces/deep")
    found.curves["deep (8, top-2)"] = _curve(_counts(_ids(deep), 8))
    mixtral = np.load(on.shared / "data/routing/mixtral_moe_eras/expert_frequencies.npy")
    found.curves["Mixtral-8x7B (8, top-2)"] = _curve(np.asarray(mixtral).ravel())
    for top_k in on.top_ks:
        knobs = replace(KNOBS, top_k=top_k, requests=8)
        found.dial[top_k] = [
            estimate(
                hot_share(_ids(synthetic(skew, 0, seed, knobs)), 64) for seed in range(on.seeds)
            )
            for skew in on.skews
        ]
    return found


def _ids(trace: Trace) -> Ids:
    return np.asarray(trace.expert_ids[:]).astype(np.int64)


def _windows(on: Grid, ids: Ids, experts: int) -> list[Estimate]:
    """Return the share of the hot set within windows of consecutive tokens."""
    result = []
    for window in on.windows:
        starts = np.linspace(0, max(0, len(ids) - window), on.repeats).astype(int)
        result.append(estimate(hot_share(ids[s : s + window], experts) for s in np.unique(starts)))
    return result


def _later(first: Ids, second: Ids, experts: int) -> float:
    """Return the share of the uses of `second` by the hot set of `first`, in per cent."""
    before, after = _counts(first, experts), _counts(second, experts)
    hot = np.argsort(-before, kind="stable")[: round(HOT * len(before))]
    return 100 * float(after[hot].sum() / after.sum())


def _of_hits(on: Grid, name: str) -> float:
    """Return the share of an LRU cache's hits that its most hit tenth of pairs has, in per cent."""
    trace = thinned(name, on.shared)
    hits = np.zeros(trace.num_layers * trace.num_experts, np.int64)
    ids = _ids(trace)
    for layer in range(trace.num_layers):
        resident: dict[int, None] = {}
        for (row,) in lock_step(trace, 1):
            wanted = ids[row, layer].tolist()
            for expert in wanted:
                hits[layer * trace.num_experts + expert] += expert in resident
            for expert in wanted:
                resident.pop(expert, None)
                resident[expert] = None
            for expert in list(resident)[: max(0, len(resident) - on.capacity)]:
                del resident[expert]
    return 100 * float(_curve(hits)[round(HOT * len(hits))])


def most_possible(experts: float, top_k: float, part: float = HOT) -> float:
    """Return the largest share of uses, in per cent, that a part of the experts can have.

    A token uses an expert once at most. So n experts of a layer have at most n of its top-k uses.
    """
    return min(100.0, 100 * part * experts / top_k)


def draw(on: Grid, found: Found) -> Chart:
    """Draw the share over the part of experts, over the window, and over skew and top-k."""
    chart = grid(
        "hot_set",
        "Share of uses of the hottest experts",
        CAPTION,
        (),
        note=NOTE,
        shape=(1, 3),
        height_in=2.6,
    )
    curves, windows, dial = chart.axes[0]
    colors = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#888888")
    looks = dict(zip([*on.tasks, "uniform"], colors, strict=False))
    for name, values in found.curves.items():
        color = looks.get(name.split(" ")[0])
        line = "-" if color else ("--" if name.startswith("deep") else ":")
        curves.plot(np.linspace(0, 100, len(values)), 100 * values, line, color=color or "#333333",
                    linewidth=1.1, label=name)  # fmt: skip
    curves.plot([0, 100], [0, 100], color="#BBBBBB", linewidth=0.8)
    curves.plot([100 * HOT], [CLAIMED], "k*", markersize=7)
    curves.plot([50], [75], "kx", markersize=5)
    curves.annotate("10 %: 80 %", (12, 83), fontsize=6)
    curves.annotate("OLMoE, 50 %: 75 %", (52, 60), fontsize=6)
    _label(curves, "most used experts (% of all)", "share of uses (%)", "whole tasks")
    curves.legend(fontsize=5, loc="lower right")
    for name, shares in found.windows.items():
        windows.errorbar(on.windows, [s.mean for s in shares], [s.half or 0 for s in shares],
                         color=looks[name], linewidth=1.1, capsize=1.5, label=name,
                         linestyle="--" if name == "uniform" else "-")  # fmt: skip
    windows.axhline(CLAIMED, color="black", linewidth=0.8, linestyle=":")
    windows.set_xscale("log", base=2)
    _label(windows, "tokens counted", "share of the hottest 10 % (%)", "over the window")
    windows.legend(fontsize=5.5)
    for top_k, shares in found.dial.items():
        dial.errorbar(on.skews, [s.mean for s in shares], [s.half or 0 for s in shares],
                      linewidth=1.1, capsize=1.5, label=f"top-{top_k}")  # fmt: skip
    dial.axhline(CLAIMED, color="black", linewidth=0.8, linestyle=":")
    _label(dial, "skew (Zipf exponent)", "share of the hottest 10 % (%)", "synthetic, 64 experts")
    dial.legend(fontsize=5.5)
    return chart


def _label(axes: Any, x: str, y: str, title: str) -> None:
    axes.set_xlabel(x, fontsize=7)
    axes.set_ylabel(y, fontsize=7)
    axes.set_title(title, fontsize=7.5)
    axes.tick_params(labelsize=6.5)


NOTE: Final = "routing of DeepSeek-V2-Lite and, where labelled, of others; right: synthetic routing"
"""What stays in the picture."""
CAPTION: Final = (
    "Left: share of uses of the most used (layer, expert) pairs, all layers; star and cross: "
    "published figures. Deep is a small model of this project, Mixtral-8x7B published frequencies. "
    "Middle: share of the hottest tenth in windows of consecutive tokens, mean and 95 % over "
    "windows; dashed: uniform routing. Right: synthetic routing of given skew and top-k. Dotted: "
    "80 %."
)


def find(on: Grid = Grid()) -> tuple[Finding, Chart]:
    """Return the finding and its picture."""
    found = measure(on)
    return Finding(name="hot_set", **_words(on, found), caption=CAPTION), draw(on, found)


def crossing(xs: Sequence[float], shares: Sequence[Estimate], at: float = CLAIMED) -> str:
    """Return between which values the shares cross a level, by intervals that exclude it."""
    above = [x for x, share in zip(xs, shares, strict=True) if share.low >= at]
    below = [x for x, share in zip(xs, shares, strict=True) if share.high < at]
    if not above:
        return "never"
    if not below:
        return "always"
    rising = min(above) > min(below)
    inner = (max(b for b in below if b < min(above)), min(above)) if rising else (
        max(above), min(b for b in below if b > max(above)))  # fmt: skip
    return f"between {inner[0]:g} and {inner[1]:g}"


def _words(on: Grid, found: Found) -> dict[str, str]:
    shown = [window for window in on.windows if window in (1, 2, 4, 16, 64, 256)]
    rows = [
        "| task | hottest 10 %: share of uses | of later requests' uses | of LRU's hits at 25 % | "
        f"hottest 50 % | {' | '.join(f'hottest 10 %, window of {w}' for w in shown)} |",
        f"|---|--:|--:|--:|--:|{'--:|' * len(shown)}",
    ]
    for name, shares in found.windows.items():
        known = name in found.whole
        cells = [found.whole, found.later, found.hits, found.half_share]
        texts = [f"{cell[name]:.1f} %" if known else "" for cell in cells]
        by_window = dict(zip(on.windows, shares, strict=True))
        texts += [f"{by_window[window].mean:.0f} %" for window in shown]
        rows.append(f"| {name} | {' | '.join(texts)} |")
    dial = "; ".join(
        f"top-{top_k} {crossing(on.skews, shares)}" for top_k, shares in found.dial.items()
    )
    low, high = min(found.whole.values()), max(found.whole.values())
    hits = (min(found.hits.values()), max(found.hits.values()))
    return {
        "claim": "10 % of experts give 80 % of hits; there is no hot set",
        "source": "hot set: a note of the field, from one trace; no hot set: "
        "github.com/JustVugg/colibri, issue 864 "
        "(OLMoE-1B-7B: half of a layer's experts have 75 % of its uses)",
        "holds": f"in windows of {_longest(on, found)} (few experts were seen yet; uniform routing "
        "shows the same), and on synthetic routing of top-6 from a Zipf exponent "
        f"{crossing(on.skews, found.dial.get(6, shares_of(found)))}",
        "flips": f"over whole tasks: the hottest tenth has {low:.0f} to {high:.0f} % of uses and "
        f"{hits[0]:.0f} to {hits[1]:.0f} % of LRU's hits. With k of E experts a token, a tenth of "
        f"the experts "
        f"has at most E / 10k of the uses: {most_possible(8, 2):.0f} % for Mixtral, so the claim "
        f"cannot hold there",
        "evidence": f"{low:.0f} to {high:.0f} % of uses on {len(on.tasks)} real tasks (a tenth "
        f"would have 10 % of evenly spread "
        f"uses); half of the experts has {min(found.half_share.values()):.0f} to "
        f"{max(found.half_share.values()):.0f} %",
        "text": "\n".join(
            [
                f"Swept: the window in tokens ({on.windows[0]} to {on.windows[-1]}), the task, and "
                f"on synthetic routing skew and top-k.",
                "",
                *rows,
                "",
                "- **A short window makes a hot set.** A single token uses six experts of a layer "
                "and no others, so a tenth "
                "has them all. Uniform routing does the same, so each share needs that of uniform "
                "routing beside it.",
                f"- **Synthetic routing** reaches 80 % at a skew: {dial}.",
                "- **Hits are not uses.** A cache keeps what was used lately, so its hits are more "
                "concentrated than the uses. The headroom is full: a share could be 100 % with "
                "top-6 of 64.",
                "- A hot set of one half of the requests has about the same share in the other "
                "half, so it is real; it is only small.",
            ]
        ),
    }  # fmt: skip


def _longest(on: Grid, found: Found) -> str:
    """Return the longest window in which the hottest tenth has 80 % on some real task."""
    windows = [
        window
        for name in on.tasks
        for window, share in zip(on.windows, found.windows[name], strict=True)
        if share.mean >= CLAIMED
    ]
    longest = max(windows, default=0)
    return "one token" if longest == 1 else f"at most {longest} tokens"


def shares_of(found: Found) -> Sequence[Estimate]:
    """Return the shares of the largest top-k that was swept."""
    return found.dial[max(found.dial)]
