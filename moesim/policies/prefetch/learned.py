"""Learned prefetch: what policies share that learn a table from a trace and rank experts by it.

A table is learnt from one part of a trace and used on another. A run that serves requests of the
training part is refused, because the table would know the future.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from annotated_types import Ge, Gt, Le

from moesim.errors import UsageError
from moesim.policies.base import Input
from moesim.policies.prefetch.base import Lessons, Prefetch, PrefetchContext
from moesim.policies.view import Key, View

Scores = npt.NDArray[np.float64]


class TrainingPart:
    """Options that name the part of a trace to learn from: `profile` and `train`."""

    __slots__ = ()
    profile: Path | None
    train: float | None

    @property
    def share(self) -> float:
        """The share of the requests to learn from."""
        return self.train or (0.5 if self.profile is None else 1.0)


@dataclass(frozen=True, slots=True)
class LearnedOptions(TrainingPart):
    """`profile`: trace folder to learn from; by default the replayed trace.

    `train`: the share of its requests to learn from, the first ones. The default is 0.5 of the
    replayed trace, or 1 of a profile. The run may not serve these requests.
    `depth`: number of later layers to prefetch for, or `all`. `experts`: number of experts to
    fetch for each layer; by default as many as the last layer event wanted, and the model's top-k
    at first.
    """

    profile: Path | None = None
    train: Annotated[float, Gt(0), Le(1)] | None = None
    depth: Annotated[int, Ge(1), Le(1000)] | Literal["all"] = 1
    experts: Annotated[int, Ge(1)] | None = None

    @property
    def ahead(self) -> int:
        """The number of later layers to prefetch for; more than any model has stands for all."""
        return 1000 if self.depth == "all" else self.depth


class Learned(Prefetch):
    """Base class of policies that learn from a trace and name the keys of later layers."""

    Options: ClassVar[type[Any]] = LearnedOptions

    @classmethod
    def inputs(cls, options: Any) -> Sequence[Input]:
        return [Input(options.profile, "profile", trace=True, part=(0.0, options.share))]

    @classmethod
    def note(cls, options: Any) -> str | None:
        where = "the replayed trace" if options.profile is None else f"the trace {options.profile}"
        return f"{cls.name} was learnt on the first {options.share:.0%} of the requests of {where}"

    def prepare(self, context: PrefetchContext) -> None:
        if context.lessons is None:
            raise UsageError(f"{self.name} learns from a trace, and there is none to learn from")
        self.num_layers, self.num_experts = context.num_layers, context.num_experts
        self._most = self.options.experts or context.top_k
        self.learn(context.lessons(self.inputs(self.options)[0]))

    @abstractmethod
    def learn(self, lessons: Lessons) -> None:
        """Learn the table, once before the run."""

    def observe(self, view: View) -> None:
        """Take note of the layer event that was just decided; by default nothing."""

    def wanted(self, view: View) -> Sequence[Key]:
        if self.options.experts is None and view.union:
            self._most = len(view.union)
        self.observe(view)
        return self.ranked(view)

    @abstractmethod
    def ranked(self, view: View) -> Sequence[Key]:
        """Return the keys to fetch now, most urgent first."""


class ScoredLayers(Learned):
    """Base class of learned policies that score the experts of each later layer."""

    def ranked(self, view: View) -> Sequence[Key]:
        """Return the best-scored keys of the next layers of the step, nearest layer first."""
        last = min(view.layer + self.options.ahead, self.num_layers - 1)
        return [
            layer * self.num_experts + expert
            for layer in range(view.layer + 1, last + 1)
            for expert in best(self.scores(layer, view), self._most)
        ]

    @abstractmethod
    def scores(self, layer: int, view: View) -> Scores:
        """Return a score of each expert of a later layer, of shape [experts]; 0 fetches none."""


def best(scores: Scores, most: int) -> list[int]:
    """Return the places of the highest positive scores, highest first; ties: the lower place."""
    order = np.argsort(-scores, kind="stable")[:most]
    return [int(place) for place in order if scores[place] > 0]


def rows_of(view: View, num_experts: int) -> Scores:
    """Return the rows of a layer event that want each expert, of shape [experts]."""
    rows_E = np.zeros(num_experts)
    rows_E[[key % num_experts for key in view.union]] = view.tokens
    return rows_E


def weighed(lessons: Lessons, num_experts: int) -> npt.NDArray[np.float64]:
    """Return the gate weight of each expert in each row, of shape [rows, layers, experts].

    Where the trace records no weights, each chosen expert has an equal share.
    """
    ids_BLK = lessons.ids
    rows, layers, _ = ids_BLK.shape
    used_BLK = ids_BLK >= 0
    share_BLK = used_BLK / np.maximum(used_BLK.sum(axis=-1, keepdims=True), 1)
    weights_BLK = share_BLK if lessons.weights is None else lessons.weights * used_BLK
    result = np.zeros((rows, layers, num_experts))
    row, layer = np.ogrid[:rows, :layers]
    for place in range(ids_BLK.shape[2]):
        expert_BL = np.where(used_BLK[..., place], ids_BLK[..., place], 0)
        result[row, layer, expert_BL] += weights_BLK[..., place]
    return result
