"""Lessons: the part of a trace from which a policy learns, kept apart from what a run serves.

A table that is learnt from the requests that it then predicts knows the future. So a run that
serves a request of the training part is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moesim.policies.prefetch import Lessons
from moesim.workload.workload import requests_of

if TYPE_CHECKING:
    from moesim.serving.request import Request
    from moesim.trace import Trace

__all__ = ["lessons_of", "served_lessons"]


def lessons_of(trace: Trace, part: tuple[float, float]) -> Lessons:
    """Return the rows of a part of a trace."""
    requests = requests_of(trace, part)
    slices = [trace.slice(number) for number in requests]
    rows = slice(slices[0].start, slices[-1].stop) if slices else slice(0, 0)
    ids_BLK = np.asarray(trace.expert_ids[rows]).astype(np.int64)
    weights = trace.gate_weights
    return Lessons(
        np.where(ids_BLK == trace.meta.unused, -1, ids_BLK),
        None if weights is None else np.asarray(weights[rows]).astype(np.float64),
        np.repeat(list(requests), [each.stop - each.start for each in slices]),
    )


def served_lessons(
    profile: Trace, part: tuple[float, float], trace: Trace, requests: Sequence[Request]
) -> list[int]:
    """Return the requests of `trace` that a run serves and that are in a part of `profile`.

    In the same trace they are the same by number, in another one by their recorded experts.
    """
    served = np.unique(_owners(trace, requests)).tolist()
    learnt = requests_of(profile, part)
    if profile is trace:
        return [number for number in served if number in learnt]
    known = {_digest(profile, number) for number in learnt}
    return [number for number in served if _digest(trace, number) in known]


def _owners(trace: Trace, requests: Sequence[Request]) -> npt.NDArray[np.int64]:
    """Return the requests of the trace to which the rows of a run belong, rows of tiles too."""
    rows = np.unique(np.concatenate([np.zeros(0, np.int64), *(each.rows for each in requests)]))
    # Requests without rows share their first row with the next one, so the last is the owner.
    first = np.asarray(trace.requests["first_row"], np.int64)
    return np.searchsorted(first, rows, side="right") - 1


def _digest(trace: Trace, request: int) -> bytes:
    """Return a hash of the experts of a request, for traces whose ids have other types, too."""
    ids = np.asarray(trace.expert_ids[trace.slice(request)]).astype(np.int64)
    ids[ids == trace.meta.unused] = -1
    return hashlib.sha256(ids.tobytes()).digest()
