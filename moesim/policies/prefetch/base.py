"""Prefetch: which experts are copied to GPU memory before they are needed.

`Prefetch.wanted` is called at the start of a step, when the view's layer is -1, and right after
each layer event. The server skips the returned keys that are resident or being copied.

A prefetched key takes a slot as soon as its copy is issued, before the copy has landed.

Shapes: B rows, L layers, K experts per row (top-k).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
from annotated_types import Ge, Le

from moesim.policies.base import Input, Policy
from moesim.policies.placement.base import Estimate
from moesim.policies.view import Key, View


@dataclass(frozen=True, slots=True)
class DepthOptions:
    """`depth`: number of later layers to prefetch for."""

    depth: Annotated[int, Ge(1), Le(1000)] = 1  # more layers than any model has


@dataclass(frozen=True, slots=True)
class Lessons:
    """The rows from which a policy learns, in recorded order.

    - `ids`: experts, of shape [B, L, K], -1 where a place is unused.
    - `weights`: gate weights, of shape [B, L, K]; None if the trace records none.
    - `requests`: the number of the request of each row, of shape [B].
    """

    ids: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64] | None
    requests: npt.NDArray[np.int64]


class Prices(Estimate, Protocol):
    """Durations on otherwise idle lanes in nanoseconds, the same on every machine."""

    has_cpu: bool
    """Whether missing experts may run on the CPU; without it, `cpu_ns` must not be called."""

    def front_ns(self, layer: int, rows: int) -> int:
        """Return the duration of an MoE layer without its routed experts, for a step's rows."""


@dataclass(frozen=True, slots=True)
class PrefetchContext:
    """What a prefetch policy may know of the model and of its lessons before a run.

    `rng` is the policy's own random stream. `lessons` reads the rows of an input, which must be one
    of the policy's `inputs`. `recorded_depth` is the number of later layers for which the trace
    holds predictions. `prices` tells how long an expert takes in each place. `lessons` and `prices`
    are None where options are checked, and where text is generated.
    """

    num_layers: int
    num_experts: int
    top_k: int
    rng: np.random.Generator
    lessons: Callable[[Input], Lessons] | None = None
    recorded_depth: int = 0
    prices: Prices | None = None


class Prefetch(Policy, ABC):
    """Base class of prefetch policies.

    Class attributes declare what a policy needs:

    - `clairvoyant`: sees the true experts of later layers, so it is a bound and no real policy;
    - `needs_routing`: calls `View.exact`, which a layer-wise router does not support;
    - `needs_predictions`: calls `View.predicted`, for which a trace may hold no data;
    - `active`: False if the policy never prefetches, which lets the server skip all calls.
    """

    needs_routing: ClassVar[bool] = False
    needs_predictions: ClassVar[bool] = False
    active: ClassVar[bool] = True

    @classmethod
    def prediction_depth(cls, options: Any) -> int:
        """Return how many layers ahead a policy with these options reads predictions; 0: none."""
        depth: int = getattr(options, "depth", 1)  # a plug-in need not have this option
        return depth if cls.needs_predictions else 0

    @classmethod
    def mistakes(cls, options: Any, context: PrefetchContext) -> Sequence[tuple[str, str]]:
        """Return the options that cannot hold for this model, each with what is wrong."""
        return ()

    def __init__(self, options: Any = None) -> None:
        self.options = self.Options() if options is None else options

    def prepare(self, context: PrefetchContext) -> None:
        """Prepare for a run, once and before the first `wanted`; by default nothing."""

    @abstractmethod
    def wanted(self, view: View) -> Sequence[Key]:
        """Return the keys to fetch now, most urgent first."""
