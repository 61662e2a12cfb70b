"""Claims: *a prompt touches nearly every expert*; *B tokens touch E (1 - (1 - k/E)^B)*.

Counted are the distinct experts of a layer event: of consecutive tokens of one request (a prompt),
and of tokens of different requests (a batch of decodes). The formula assumes uniform independent
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from finding import Finding
from routing import SHARED, TASKS, task

from moesim.report.chart import Chart, grid
from moesim.report.statistics import Estimate, estimate
from moesim.trace import Trace

NEARLY: Final = 90.0
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Grid:
    """What is swept: tokens of a layer event. `draws` events are counted of each size."""

    tasks: Sequence[str] = TASKS
    tokens: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    draws: int = 30
    shared: Path = SHARED


SMALL: Final = Grid(tasks=("intent",), tokens=(1, 8), draws=3)


@dataclass(frozen=True, slots=True)
class Found:
    """Share of a layer's experts that an event touches, in per cent, by task at each size.

    `prompt`: consecutive tokens of one request; None if no request is long enough. `batch`: a token
    each of different requests.
    """

    prompt: dict[str, list[Estimate | None]]
    batch: dict[str, list[Estimate | None]]


def formula(tokens: int, experts: int = 64, top_k: int = 6) -> float:
    """Return the share of experts that uniform independent tokens touch on average, in per cent."""
    return 100 * (1 - (1 - top_k / experts) ** tokens)


def measure(on: Grid = Grid()) -> Found:
    """Return the shares of all tasks."""
    found = Found({}, {})
    for name in on.tasks:
        trace = task(name, on.shared)
        rng = np.random.default_rng(0)
        ids = np.asarray(trace.expert_ids[:]).astype(np.int64)
        found.prompt[name] = [_prompt(trace, ids, n, on.draws, rng) for n in on.tokens]
        found.batch[name] = [_batch(trace, ids, n, on.draws, rng) for n in on.tokens]
    return found


def touched(ids_TLK: Ids, experts: int = 64) -> float:
    """Return the share of a layer's experts that the rows touch, in per cent, mean over layers."""
    distinct = [len(np.unique(ids_TLK[:, layer])) for layer in range(ids_TLK.shape[1])]
    return 100 * float(np.mean(distinct)) / experts


def _prompt(
    trace: Trace, ids: Ids, tokens: int, draws: int, rng: np.random.Generator
) -> Estimate | None:
    parts = [trace.slice(number) for number in range(trace.num_requests)]
    long = [part for part in parts if part.stop - part.start >= tokens]
    if len(long) < 2:
        return None
    # The first tokens, as in a prompt; each request once at most.
    chosen = rng.permutation(len(long))[:draws]
    return estimate(touched(ids[long[n].start : long[n].start + tokens]) for n in chosen)


def _batch(
    trace: Trace, ids: Ids, tokens: int, draws: int, rng: np.random.Generator
) -> Estimate | None:
    if tokens > trace.num_requests:
        return None
    shares = []
    for _ in range(draws):
        requests = rng.permutation(trace.num_requests)[:tokens]
        rows = [rng.integers(trace.slice(n).start, trace.slice(n).stop) for n in requests]
        shares.append(touched(ids[rows]))
    return estimate(shares)


def draw(on: Grid, found: Found) -> Chart:
    """Draw the shares over the tokens of an event."""
    chart = grid(
        "prefill",
        "Experts that a layer event touches",
        CAPTION,
        (),
        note=NOTE,
        shape=(1, 2),
        height_in=2.5,
        sharey=True,
    )
    titles = ("tokens of one prompt", "tokens of different requests")
    looks = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
    for axes, shares, title in zip(chart.axes[0], (found.prompt, found.batch), titles, strict=True):
        for (name, values), color in zip(shares.items(), looks, strict=False):
            known = [(n, v) for n, v in zip(on.tokens, values, strict=True) if v is not None]
            axes.errorbar([n for n, _ in known], [v.mean for _, v in known],
                          [v.half or 0 for _, v in known],
                          color=color, linewidth=1.1, capsize=1.5, label=name)  # fmt: skip
        axes.plot(on.tokens, [formula(n) for n in on.tokens], "k--", linewidth=1, label="formula")
        axes.axhline(NEARLY, color="#888888", linewidth=0.8, linestyle=":")
        axes.set_xscale("log", base=2)
        axes.set_xlabel("tokens in the event")
        axes.set_title(title, fontsize=7.5)
    chart.axes[0][0].set_ylabel("experts touched (% of a layer)")
    chart.axes[0][0].legend(fontsize=6)
    return chart


NOTE: Final = "DeepSeek-V2-Lite's routing, 64 experts, top-6; mean and 95 % over events"
"""What stays in the picture."""
CAPTION: Final = (
    "Distinct experts of a layer event, DeepSeek-V2-Lite's routing (64 experts, top-6), mean and "
    "95 % over events. Prompts begin with their template. Dashed: E (1 - (1 - k/E)^B). Dotted: "
    "90 %. Lines end where requests are too short or too few."
)


def find(on: Grid = Grid()) -> tuple[Finding, Chart]:
    """Return the finding and its picture."""
    found = measure(on)
    return Finding(name="prefill", **_words(on, found), caption=CAPTION), draw(on, found)


def _reached(on: Grid, values: Sequence[Estimate | None]) -> str:
    """Return between which numbers of tokens a share surely passes 90 %."""
    above = [n for n, v in zip(on.tokens, values, strict=True) if v is not None and v.low >= NEARLY]
    below = [n for n, v in zip(on.tokens, values, strict=True) if v is not None and v.high < NEARLY]
    if not above:
        return f"more than {max(below)}" if below else "undecided"
    return f"{max(below)} to {min(above)}" if below else f"at most {min(above)}"


def _words(on: Grid, found: Found) -> dict[str, str]:
    table = [
        "| task | tokens of a prompt for 90 % | of different requests "
        "| formula less real at 8 tokens: prompt | of different requests |",
        "|---|---|---|--:|--:|",
    ]
    place = list(on.tokens).index(8)
    gaps = []
    for name in on.tasks:
        cells = []
        for shares in (found.prompt, found.batch):
            value = shares[name][place]
            cells.append("" if value is None else f"{formula(8) - value.mean:+.1f} points")
            if value is not None:
                gaps.append(formula(8) - value.mean)
        table.append(
            f"| {name} | {_reached(on, found.prompt[name])} | {_reached(on, found.batch[name])} | "
            f"{' | '.join(cells)} |"
        )
    first = ", ".join(f"{name} {_reached(on, found.prompt[name])}" for name in on.tasks)
    uniform = next(n for n in range(1, 1000) if formula(n) >= NEARLY)
    return {
        "claim": "A prompt touches nearly every expert",
        "source": "a rule of thumb of offloading systems; the formula is used by simulators "
        "(github.com/inference-sim/inference-sim, issue 789)",
        "holds": f"for long prompts only. Tokens until 90 % of a layer's experts are touched: "
        f"{first}",
        "flips": f"for short prompts, and for narrow tasks: uniform routing would need {uniform} "
        f"tokens. The formula says too much at every "
        f"size ({min(gaps):.0f} to {max(gaps):.0f} points at 8 tokens)",
        "evidence": f"{len(on.tasks)} tasks, 26 layers, up to {on.tokens[-1]} tokens",
        "text": "\n".join(
            [
                f"Swept: tokens of a layer event {on.tokens}, from one prompt or from different "
                f"requests.",
                "",
                *table,
                "",
                "- A cache with fewer slots than a prompt's experts cannot help the prompt, "
                "whatever its policy.",
            ]
        ),
    }
