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

from moesim.errors import ScenarioError, TraceError
from moesim.policies.prefetch import Lessons
from moesim.trace import load_trace
from moesim.workload.workload import requests_of

if TYPE_CHECKING:
    from moesim.policies.base import Input
    from moesim.scenario import Scenario
    from moesim.serving.request import Request
    from moesim.trace import Trace

__all__ = ["lessons_of", "profile_at", "refuse_served", "served_lessons"]


def profile_at(scenario: Scenario, trace: Trace, key: str, learnt: Input) -> Trace:
    """Return the trace of an input, which the dotted `key` names; it may be `trace` itself.

    Raises:
        ScenarioError: it is not a trace, or has other layers or experts than `trace`.
    """
    if learnt.path is None:
        return trace
    try:
        profile = load_trace(learnt.path)
    except TraceError as error:
        raise ScenarioError.at(scenario, key, str(error)) from None
    shapes = [(each.num_layers, each.num_experts) for each in (profile, trace)]
    if shapes[0] != shapes[1]:
        raise ScenarioError.at(
            scenario,
            key,
            f"the profile {str(learnt.path)!r} is of another shape than the trace: "
            "{} layers of {} experts, not {} of {}".format(*shapes[0], *shapes[1]),
        )
    return profile


def refuse_served(
    scenario: Scenario,
    trace: Trace,
    requests: Sequence[Request],
    name: str,
    given: Input,
    key: str,
) -> None:
    """Raise ScenarioError where a run serves requests of the part of a trace that `name` learns.

    An input without a part is not checked. `key` names the input.
    """
    if given.part is None:
        return
    profile = profile_at(scenario, trace, key, given)
    learnt = requests_of(profile, given.part)
    where = "the replayed trace" if given.path is None else f"{str(given.path)!r}"
    part = f"requests {learnt.start} to {learnt.stop - 1} of {where}"
    if not learnt:
        message = f"{name} learns from no request: {where} has {profile.num_requests}, "
        message += "of which the training part has none; choose a larger part"
    elif both := served_lessons(profile, given.part, trace, requests):
        message = f"{name} learns from {part}, and the run serves {len(both)} of them, "
        message += f"first request {both[0]} of the trace; {_apart(given)}"
    else:
        return
    raise ScenarioError.at(scenario, key, message)


def _apart(given: Input) -> str:
    """Return what a run needs to serve no request of a training part."""
    first, last = given.part or (0.0, 1.0)
    rest = [[0, first]] if first > 0 else []
    rest += [[last, 1]] if last < 1 else []
    if given.path is not None or not rest:
        return "learn from another trace, or from a part that is not served"
    return f"write {' or '.join(f'workload.part: {each}' for each in rest)}"


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
