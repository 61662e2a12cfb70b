"""Parts of a trace, as traces: some requests, some layers, or both halves of the requests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from moesim.trace.trace import Trace

__all__ = ["Halves", "halves", "pick"]


@dataclass(frozen=True, slots=True)
class Halves:
    """The first half of a task's requests, to learn from, and the second half, to replay."""

    train: Trace
    test: Trace


def pick(
    trace: Trace, requests: Iterable[int], layers: Sequence[int] | None = None, *, skip: int = 0
) -> Trace:
    """Return some requests of a trace as a trace, in the given order, with all layers or some.

    The first `skip` rows of each request are left out. A request without others is left out, too.
    """
    whole = [trace.slice(number) for number in requests]
    slices = [
        slice(part.start + skip, part.stop) for part in whole if part.stop - part.start > skip
    ]
    rows = np.concatenate([np.arange(part.start, part.stop) for part in slices])
    kept = slice(None) if layers is None else list(layers)
    weights = trace.gate_weights
    return Trace.from_arrays(
        expert_ids=np.asarray(trace.expert_ids[:])[rows][:, kept],
        seq_len=[part.stop - part.start for part in slices],
        num_experts=trace.num_experts,
        gate_weights=None if weights is None else np.asarray(weights[:])[rows][:, kept],
        model=trace.meta.model,
        synthetic=trace.meta.synthetic,
        num_shared_experts=trace.meta.num_shared_experts,
        layer_map=np.asarray(trace.meta.layer_map)[kept].tolist() if trace.meta.layer_map else None,
    )


def halves(trace: Trace) -> Halves:
    """Return both halves of a trace's requests."""
    middle = trace.num_requests // 2
    return Halves(pick(trace, range(middle)), pick(trace, range(middle, trace.num_requests)))
