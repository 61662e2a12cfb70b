"""The dial: a synthetic predictor of a given recall and precision.

It shows what accuracy a predictor needs to pay on a machine. It reads the true experts of later
layers and spoils them at random, so it knows the future, as `oracle` does.

Each true expert of a layer event is predicted with probability `recall`. Wrong experts are added at
random, so that a share `precision` of all predicted experts is right on average. Events in which
most experts are wanted have too few wrong ones; then more than this share is right.

A layer event is predicted once. A deeper look shows the same prediction earlier. Recall 1 and
precision 1 equal `oracle`; recall 0 equals `none`.

The accuracies of `adapmoe` are those of AdapMoE's next gate on Mixtral-8x7B (arXiv 2408.10284).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

import numpy as np
from annotated_types import Ge, Gt, Le

from moesim.policies.prefetch.base import Prefetch, PrefetchContext
from moesim.policies.registry import register
from moesim.policies.view import Key, View

PRESETS: Final = {
    "adapmoe": (
        0, 0.566, 0.721, 0.789, 0.866, 0.859, 0.830, 0.840, 0.849, 0.801, 0.898, 0.898, 0.893,
        0.910, 0.925, 0.881, 0.915, 0.939, 0.905, 0.879, 0.876, 0.893, 0.879, 0.876, 0.888, 0.884,
        0.922, 0.913, 0.886, 0.900, 0.903, 0.850,
    ),
}  # fmt: skip
"""Published accuracies of predictors that name top-k experts: recall and precision, by layer."""

Recall = Annotated[float, Ge(0), Le(1)]
Precision = Annotated[float, Gt(0), Le(1)]


@dataclass(frozen=True, slots=True)
class DialOptions:
    """`recall`, `precision`: of all layers, or a list with one for each MoE layer.

    `depth`: number of later layers to prefetch for. `preset`: published accuracies, which replace
    both shares; `adapmoe` has 32 layers.
    """

    recall: Recall | tuple[Recall, ...] = 1.0
    precision: Precision | tuple[Precision, ...] = 1.0
    depth: Annotated[int, Ge(1), Le(1000)] = 1
    preset: Literal["adapmoe"] | None = None

    def __post_init__(self) -> None:
        if self.preset is not None and (self.recall, self.precision) != (1.0, 1.0):
            raise ValueError("preset replaces recall and precision; leave both out, or preset")

    def shares(self) -> dict[str, float | tuple[float, ...]]:
        """Return recall and precision, of all layers or by layer."""
        if self.preset is None:
            return {"recall": self.recall, "precision": self.precision}
        # A layer of recall 0 is never predicted, so its precision does not matter.
        both = PRESETS[self.preset]
        return {"recall": both, "precision": tuple(share or 1.0 for share in both)}


@dataclass(slots=True)
class _Guess:
    """The prediction of one layer event: its true keys that were drawn, and all predicted ones."""

    drawn: set[Key] = field(default_factory=set)
    named: list[Key] = field(default_factory=list)


@register("prefetch", "dial")
class Dial(Prefetch):
    """Fetch the true experts of later layers with a given recall and precision: a bound."""

    clairvoyant = True
    Options = DialOptions

    @classmethod
    def mistakes(cls, options: Any, context: PrefetchContext) -> Sequence[tuple[str, str]]:
        lengths = {
            "preset" if options.preset else name: len(share)
            for name, share in options.shares().items()
            if isinstance(share, tuple) and len(share) != context.num_layers
        }
        return [
            (
                name,
                f"has length {length}; the trace has {context.num_layers} MoE layers; give one "
                "number for all layers, or a list with one for each",
            )
            for name, length in lengths.items()
        ]

    def prepare(self, context: PrefetchContext) -> None:
        self._context = context
        shares = by_layer(self.options, context.num_layers)
        self._recall_L, self._precision_L = shares["recall"], shares["precision"]
        self._guesses: dict[int, _Guess] = {}
        self._step = -1

    def wanted(self, view: View) -> Sequence[Key]:
        layers = self._context.num_layers
        self._step += view.layer < 0
        now = self._step * layers + view.layer
        for past in [event for event in self._guesses if event <= now]:
            del self._guesses[past]
        return [
            key
            for depth in range(1, self.options.depth + 1)
            for key in self._predicted(now + depth, view.exact(depth))
        ]

    def _predicted(self, event: int, truth: Sequence[Key]) -> Sequence[Key]:
        """Return the prediction of a layer event, of which `truth` is known now."""
        guess, layer = self._guesses.setdefault(event, _Guess()), event % self._context.num_layers
        # At the end of a step, some experts of the next one may not be known yet.
        new = [key for key in truth if key not in guess.drawn]
        if new:
            guess.drawn.update(new)
            self._draw(guess, layer, new, truth)
        if self._precision_L[layer] == 1:  # in the order of `oracle`
            named = set(guess.named)
            return [key for key in truth if key in named]
        return guess.named

    def _draw(self, guess: _Guess, layer: int, new: Sequence[Key], truth: Sequence[Key]) -> None:
        """Add to a prediction the right and wrong keys that stand for `new` true ones."""
        rng, recall, experts = self._context.rng, self._recall_L[layer], self._context.num_experts
        kept = rng.random(len(new)) < recall
        guess.named += [key for key, keep in zip(new, kept, strict=True) if keep]
        mean = len(new) * recall * (1 / self._precision_L[layer] - 1)
        count = int(mean) + int(rng.random() < mean % 1)
        if not count:
            return
        known = {*truth, *guess.named}
        others = [key for key in range(layer * experts, (layer + 1) * experts) if key not in known]
        wrong = rng.permutation(others)[:count].tolist()
        # A real predictor does not know which ones are wrong, so these do not come last.
        guess.named = rng.permutation([*guess.named, *wrong]).astype(int).tolist()


def by_layer(options: DialOptions, layers: int) -> dict[str, np.ndarray[Any, Any]]:
    """Return recall and precision, each of shape [layers]."""
    return {name: np.broadcast_to(share, layers) for name, share in options.shares().items()}
