"""Claim: *template prompts fake locality, by 19 to 32 points*.

Real requests are edited in two ways. A *template* replaces the first part of each request by that
of one request, as a shared system prompt does. A *loop* repeats the first tokens of a request until
its end, as the filler prompt of a benchmark does. What the hit rate gains by this is no locality of
the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from finding import Finding
from routing import HEAD, SHARED, TASKS, task, thinned

from moesim.report.chart import Chart, grid
from moesim.report.planes import PLANE_LEGEND, draw_plane
from moesim.report.statistics import Estimate
from moesim.simulate.step_hits import points, step_hits
from moesim.trace import Trace

LENGTH: Final = 100
CLAIMED: Final = (19, 32)
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Grid:
    """What is swept; capacities are slots a layer. All requests are cut to 100 tokens."""

    task: str = "law"
    shares: Sequence[float] = (0.1, 0.25, 0.5, 0.75, 0.9, 1)
    loops: Sequence[int] = (64, 32, 16, 8, 4, 2, 1)
    capacities: Sequence[int] = (8, 16, 24, 32, 48)
    batch: int = 8
    tasks: Sequence[str] = TASKS
    shared: Path = SHARED


SMALL: Final = Grid(shares=(0.5,), loops=(2,), capacities=(16,), tasks=("intent",))


@dataclass(frozen=True, slots=True)
class Found:
    """Points that LRU gains, planes [share or loop][capacity]; `alike`: by task, see `alike`.

    `single`: templates at batch 1. `batched`: templates in lock-step. `loops`: at batch 1.
    """

    single: list[list[Estimate | None]]
    batched: list[list[Estimate | None]]
    loops: list[list[Estimate | None]]
    alike: dict[str, tuple[float, float]]


def measure(on: Grid = Grid()) -> Found:
    """Return the gains by templates and loops."""
    trace = thinned(on.task, on.shared)
    ids_NTLK = requests_of(trace)

    def gains(edited: Sequence[Ids], batch: int) -> list[list[Estimate | None]]:
        plain = step_hits(joined(ids_NTLK), "lru", capacities=on.capacities, batch=batch)
        return [
            list(
                points(
                    step_hits(joined(ids), "lru", capacities=on.capacities, batch=batch),
                    plain,
                    batch,
                )
            )
            for ids in edited
        ]

    templated = [with_template(ids_NTLK, round(share * LENGTH)) for share in on.shares]
    return Found(
        gains(templated, 1),
        gains(templated, on.batch),
        gains([looped(ids_NTLK, loop) for loop in on.loops], 1),
        {name: alike(task(name, on.shared)) for name in on.tasks},
    )


def requests_of(trace: Trace) -> Ids:
    """Return the first tokens of each long request, (requests, tokens, layers, k)."""
    ids = np.asarray(trace.expert_ids[:]).astype(np.int64)
    parts = [trace.slice(number) for number in range(trace.num_requests)]
    return np.stack([ids[p.start : p.start + LENGTH] for p in parts if p.stop - p.start >= LENGTH])


def joined(ids_NTLK: Ids) -> Trace:
    """Return requests of equal length as a trace."""
    count, length, layers, top_k = ids_NTLK.shape
    return Trace.from_arrays(
        expert_ids=ids_NTLK.reshape(count * length, layers, top_k),
        seq_len=[length] * count,
        num_experts=64,
    )


def with_template(ids_NTLK: Ids, tokens: int) -> Ids:
    """Return the requests with their first tokens replaced by those of the first request."""
    edited = ids_NTLK.copy()
    edited[:, :tokens] = ids_NTLK[0, :tokens]
    return edited


def looped(ids_NTLK: Ids, tokens: int) -> Ids:
    """Return each request as a repetition of its own first tokens."""
    return ids_NTLK[:, np.arange(ids_NTLK.shape[1]) % tokens]


def alike(trace: Trace, head: int = 8, tail: int = 16) -> tuple[float, float]:
    """Return the experts that two requests share at the same position, in %.

    The first number is of the first `head` tokens of the requests, the second of the `tail` tokens
    after the template.
    """
    ids = np.asarray(trace.expert_ids[:]).astype(np.int64)
    numbers = range(trace.num_requests)
    starts = [trace.slice(n).start for n in numbers if _length(trace, n) >= HEAD + tail]
    ids_NTLK = np.stack([ids[start : start + HEAD + tail] for start in starts])
    used = np.zeros((*ids_NTLK.shape[:3], trace.num_experts), bool)
    np.put_along_axis(used, ids_NTLK, True, axis=3)
    shared = used & np.roll(used, 1, axis=0)

    def share(part: slice) -> float:
        return 100 * float(shared[:, part].sum() / used[:, part].sum())

    return share(slice(head)), share(slice(HEAD, None))


def _length(trace: Trace, request: int) -> int:
    part = trace.slice(request)
    return int(part.stop - part.start)


def draw(on: Grid, found: Found) -> Chart:
    """Draw the planes."""
    chart = grid(
        "templates",
        "Hits gained by templates and loops",
        CAPTION.format(batch=on.batch),
        (),
        note=NOTE,
        shape=(1, 3),
        height_in=2.4,
    )
    percents = [f"{100 * c / 64:.0f}" for c in on.capacities]
    shares = [f"{100 * share:.0f}" for share in on.shares]
    panels = ((shares, found.single, "template (% of tokens)", "template, batch 1"),
              (shares, found.batched, "template (% of tokens)", f"template, batch {on.batch}"),
              (list(map(str, on.loops)), found.loops, "loop (tokens)", "loop, batch 1"),
              )  # fmt: skip
    for axes, (names, plane, label, title) in zip(chart.axes[0], panels, strict=True):
        draw_plane(axes, percents, names, plane, most=50, size=6)
        axes.set_xlabel("experts in slots (%)")
        axes.set_ylabel(label)
        axes.set_title(title, fontsize=7.5)
    return chart


NOTE: Final = "cells: hit rate gained (points); DeepSeek-V2-Lite's routing, requests edited"
"""What stays in the picture."""
CAPTION: Final = (
    "Points that the hit rate of LRU gains if real requests (DeepSeek-V2-Lite, law, 100 tokens "
    "each) are edited: their first part is "
    "the same for all (left; middle: {batch} in lock-step), or each repeats its own first tokens "
    "(right). " + PLANE_LEGEND
)


def find(on: Grid = Grid()) -> tuple[Finding, Chart]:
    """Return the finding and its picture."""
    found = measure(on)
    return Finding(
        name="templates", **_words(on, found), caption=CAPTION.format(batch=on.batch)
    ), draw(on, found)


def _reached(names: Sequence[str], plane: Sequence[Sequence[Estimate | None]]) -> str:
    """Return the first row of a plane of which a cell surely reaches the claimed 19 points."""
    for name, row in zip(names, plane, strict=True):
        if any(value is not None and value.low >= CLAIMED[0] for value in row):
            return name
    return "no setting"


def _words(on: Grid, found: Found) -> dict[str, str]:
    shares = [f"{100 * share:.0f} %" for share in on.shares]
    batched, loops = (
        _reached(shares, found.batched),
        _reached([f"{n} tokens" for n in on.loops], found.loops),
    )
    table = [
        "| task | experts that two requests share: first 8 tokens | after the template |",
        "|---|--:|--:|",
    ]
    for name, (first, later) in found.alike.items():
        table.append(f"| {name} | {first:.1f} % | {later:.1f} % |")

    def most(plane: Sequence[Sequence[Estimate | None]]) -> float:
        return max(value.mean for row in plane for value in row if value)

    return {
        "claim": "Template prompts fake locality, by 19 to 32 points",
        "source": "a note of the field; also github.com/kekzl/imp, pull request 2061 (a "
        "benchmark's repetitive prompt decodes twice as fast as text)",
        "holds": f"for loops of at most {loops}, and in lock-step "
        + (
            "only if requests are nearly the same: no template here surely gains 19 points"
            if batched == "no setting"
            else f"for templates of at least {batched} of the tokens"
        ),
        "flips": "for one request after another, where a shared template gains at most "
        f"{most(found.single):+.0f} points: a cache of recent experts has forgotten the template "
        "before its next use. Loops whose experts do not fit into the slots gain little",
        "evidence": f"largest gain: template at batch 1 {most(found.single):+.0f}, at batch "
        f"{on.batch} {most(found.batched):+.0f}, loop {most(found.loops):+.0f} points",
        "text": "\n".join(
            [
                f"Swept: share of the template, length of the loop, slots {on.capacities} of 64, "
                f"batch 1 and {on.batch}.",
                "",
                "All four tasks begin with a template. It shows in the experts that two "
                "requests share at the same position:",
                "",
                *table,
                "",
                "- `moesim trace locality` compares neighbours within a request, so a template "
                "raises it only by loops.",
                f"- In lock-step, {on.batch} equal tokens want the same six experts. This is the "
                f"part that batching of unlike requests does not have.",
            ]
        ),
    }
