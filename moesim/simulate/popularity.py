"""How often keys are used, in a trace, in a part of one or in a replay: what a placement learns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.errors import UsageError
from moesim.policies import Key

if TYPE_CHECKING:
    from moesim.trace import Trace

__all__ = ["Popularity", "part_popularity", "popularity_of", "trace_popularity"]

Popularity = Callable[[Any], Mapping[Key, int]]
"""`popularity(profile)`: the uses of each key in a profile trace, or in the replay for None."""


def popularity_of(
    shape: tuple[int, int] | None, counts: Callable[[], dict[Key, int]]
) -> Popularity:
    """Return a function that counts the uses of keys in a profile; `counts` are those of a replay.

    `shape`: layers and experts, which a profile must share.
    """

    def popularity(profile: Path | None) -> dict[Key, int]:
        if profile is None:
            # Without a profile the policy learns on the stream itself, which is hindsight.
            return counts()
        from moesim.trace import load_trace

        profile_trace = load_trace(profile)
        layers, experts = profile_trace.num_layers, profile_trace.num_experts
        if shape is not None and shape != (layers, experts):
            raise UsageError(
                f"the profile {str(profile)!r} has {layers} layers of {experts} experts, but "
                f"the trace has {shape[0]} layers of {shape[1]}; name a profile "
                "of the same model"
            )
        return trace_popularity(profile_trace)

    return popularity


def part_popularity(trace: Trace, part: Sequence[float]) -> dict[Key, int]:
    """Return how many rows of a part of a trace's requests use each key."""
    from moesim.simulate.lessons import lessons_of

    ids_BLK = lessons_of(trace, (part[0], part[1])).ids
    keys_BLK = ids_BLK + (np.arange(trace.num_layers) * trace.num_experts)[:, None]
    keys = trace.num_layers * trace.num_experts
    return dict(enumerate(np.bincount(keys_BLK[ids_BLK >= 0], minlength=keys).tolist()))


def trace_popularity(trace: Trace) -> dict[Key, int]:
    """Return how many rows of a trace use each key (layer × experts + expert)."""
    counts = np.zeros(trace.num_layers * trace.num_experts, np.int64)
    base = np.arange(trace.num_layers)[None, :, None] * trace.num_experts
    for _, shard in trace.expert_ids.pieces():
        ids = np.asarray(shard)
        used = ids != trace.meta.unused
        counts += np.bincount((ids + base)[used], minlength=len(counts))
    return dict(enumerate(counts.tolist()))
