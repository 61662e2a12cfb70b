"""Terms: what takes the time of a step, as a sum that can be checked.

The GPU and the CPU work in turns: while one computes, the other waits, except for copies that
overlap. So the times of all work on both and between them add up to the step, but for what runs at
the same time, which has a term of its own.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from moesim.serving.ledger import Ledger

__all__ = ["OVERLAP", "Term", "terms_of"]

_NAMES: Final = {
    ("gpu", "front"): "attention, routers and shared experts on the GPU",
    ("gpu", "experts"): "experts on the GPU",
    ("gpu", "tail"): "LM head on the GPU",
    ("cpu", "front"): "attention, routers and shared experts on the CPU",
    ("cpu", "experts"): "experts on the CPU",
    ("cpu", "tail"): "LM head on the CPU",
    ("h2d", "states"): "hidden states to the GPU",
    ("d2h", "states"): "hidden states to the CPU",
    ("d2h", "readback"): "expert ids to the CPU",
    ("h2d", "demand"): "copies of experts to the GPU",
    ("disk", "read"): "reads from disk",
}
OVERLAP: Final = "at the same time as other work"


@dataclass(frozen=True, slots=True)
class Term:
    """One part of a step: its name, its milliseconds, and its share of the step."""

    name: str
    ms: float
    share: float


def terms_of(ledger: Ledger) -> list[Term]:
    """Return the terms of the mean step of a run, the longest first; they sum to the step."""
    busy: Counter[tuple[str, str]] = Counter()
    for lane, kind, start_ns, finish_ns, *_ in ledger.timeline:
        busy[lane, kind] += finish_ns - start_ns
    whole = ledger.stepping_ns
    rest = whole - sum(busy.values())
    named = {_NAMES.get(key, f"{key[1]} on {key[0]}"): ns for key, ns in busy.most_common()}
    if rest > 0:
        named["waiting for the host"] = rest
    elif rest < 0:
        named[OVERLAP] = rest
    steps = ledger.num_steps * 1e6
    return [Term(name, ns / steps, ns / whole) for name, ns in named.items()]
