"""The routing that the claims are tried on: real tasks, parts of them, and synthetic planes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Final

from moesim.policies import Key
from moesim.simulate.curve import trace_popularity
from moesim.trace import Trace, from_esft
from moesim.trace.parts import pick
from moesim.trace.synthetic import SyntheticKnobs, synthesize

__all__ = [
    "HEAD",
    "KNOBS",
    "LAYERS",
    "SHARED",
    "TASKS",
    "counts",
    "synthetic",
    "task",
    "text",
    "thinned",
]

SHARED: Final = Path(__file__).resolve().parents[3] / "shared"
TASKS: Final = ("intent", "law", "summary", "translation")
LAYERS: Final = range(1, 26, 4)
"""The layers whose hits are counted; all 26 would take four times as long."""
HEAD: Final = 24
"""Tokens at the begin of each request that are left out: all requests of a task share them."""
KNOBS: Final = SyntheticKnobs(
    requests=32, prompt_tokens=1, output_tokens=96, num_layers=2, num_experts=64, top_k=6,
    layer_correlation=0,
)  # fmt: skip
"""Synthetic routing of the shape of DeepSeek-V2-Lite, in fewer layers."""


@cache
def task(name: str, shared: Path = SHARED) -> Trace:
    """Return the real routing of DeepSeek-V2-Lite on a task.

    Raises:
        TraceError: the shared data are not there.
    """
    return from_esft(shared / f"data/routing/esft_deepseek_v2_lite/{name}.npz")


@cache
def text(name: str, shared: Path = SHARED) -> Trace:
    """Return the routing of a task without the template that its requests begin with."""
    trace = task(name, shared)
    return pick(trace, range(trace.num_requests), skip=HEAD)


@cache
def thinned(name: str, shared: Path = SHARED) -> Trace:
    """Return what `text` does, in the layers whose hits are counted."""
    trace = task(name, shared)
    return pick(trace, range(trace.num_requests), LAYERS, skip=HEAD)


def counts(traces: Iterable[Trace]) -> dict[Key, int]:
    """Return how often each (layer, expert) is used, in all traces together."""
    total: dict[Key, int] = {}
    for trace in traces:
        for key, number in trace_popularity(trace).items():
            total[key] = total.get(key, 0) + number
    return total


@cache
def synthetic(skew: float, stickiness: float, seed: int, knobs: SyntheticKnobs = KNOBS) -> Trace:
    """Return synthetic routing of given popularity skew (Zipf exponent) and locality."""
    return synthesize(replace(knobs, skew=skew, stickiness=stickiness, seed=seed))
