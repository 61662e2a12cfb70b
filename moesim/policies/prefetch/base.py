"""Prefetch: which experts to fetch before they are asked for.

Asked at two defined moments: at the start of a step (the view's layer is -1) and right after
each layer event. The answer is a list of keys, most urgent first; those that are resident or on
their way are skipped. A prefetched key takes a slot when its copy is issued.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Le

from moesim.policies.registry import NoOptions
from moesim.policies.view import Key, View


@dataclass(frozen=True, slots=True)
class DepthOptions:
    """`depth`: how many layers ahead to look."""

    depth: Annotated[int, Ge(1), Le(1000)] = 1  # more layers than any model has


class Prefetch(ABC):
    """Base of all prefetch policies. `clairvoyant` ones see the true future of the step and are
    bounds; `needs_routing` ones ask for what a router reveals ahead of its layers;
    `needs_predictions` ones ask for predictions, which a trace may lack; `active` is False for the
    one that never asks for anything."""

    name: ClassVar[str]
    clairvoyant: ClassVar[bool] = False
    needs_routing: ClassVar[bool] = False
    needs_predictions: ClassVar[bool] = False
    active: ClassVar[bool] = True
    Options: ClassVar[type[Any]] = NoOptions

    def __init__(self, options: Any = None) -> None:
        self.options = self.Options() if options is None else options

    @abstractmethod
    def wanted(self, view: View) -> Sequence[Key]:
        """Keys worth fetching now, most urgent first."""
