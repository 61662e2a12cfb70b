"""Prefetch: which experts are copied to GPU memory before they are needed.

`Prefetch.wanted` is called at the start of a step, when the view's layer is -1, and right after
each layer event. The server skips the returned keys that are resident or being copied.

A prefetched key takes a slot as soon as its copy is issued, before the copy has landed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Le

from moesim.policies.base import Policy
from moesim.policies.view import Key, View


@dataclass(frozen=True, slots=True)
class DepthOptions:
    """`depth`: number of later layers to prefetch for."""

    depth: Annotated[int, Ge(1), Le(1000)] = 1  # more layers than any model has


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

    def __init__(self, options: Any = None) -> None:
        self.options = self.Options() if options is None else options

    @abstractmethod
    def wanted(self, view: View) -> Sequence[Key]:
        """Return the keys to fetch now, most urgent first."""
