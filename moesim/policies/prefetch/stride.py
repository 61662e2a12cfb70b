"""Stride prefetch: at each layer, predict the experts of one layer that is `stride` layers ahead.

ProMoE (arXiv 2410.22134) has a small network for each layer i, which predicts the experts of layer
i + K from the hidden states of layer i. The layers between were predicted before, from other
layers. A stride of 1 is its best trade-off. Its chunked copies, which a missing expert overtakes,
are `hardware.h2d.chunk` here.

Traces hold no hidden states, so the network cannot be learnt. Two predictors stand for it:

- `table`: a learned table of which experts follow those of this layer, `stride` layers on; see
  `moesim/policies/prefetch/transitions.py`. It predicts worse than a network on hidden states.
- `recorded`: the trace's predictions, of the later gate on this layer's hidden state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from moesim.policies.base import Input
from moesim.policies.prefetch.base import Lessons, PrefetchContext
from moesim.policies.prefetch.learned import Learned, TrainingPart, best, rows_of
from moesim.policies.prefetch.transitions import Rule, Transitions
from moesim.policies.registry import register
from moesim.policies.view import Key, View


@dataclass(frozen=True, slots=True)
class StrideOptions(TrainingPart):
    """`stride`: number of layers from a layer to the one that is predicted at it.

    `predictor`: `table` is learnt from a trace; `recorded` uses the predictions of the trace.
    `profile`: trace folder to learn from; by default the replayed trace. `train`: the share of its
    requests to learn from, the first ones: by default 0.5 of the replayed trace, or 1 of a profile.
    `combine`: `sum` over the rows of an event, or `bayes`, which is better for one row at a time.
    These three are of the table. `experts`: number of experts to fetch; by default as many as the
    last layer event wanted, or all that are recorded.
    """

    stride: Annotated[int, Ge(1), Le(1000)] = 1
    predictor: Literal["table", "recorded"] = "table"
    profile: Path | None = None
    train: Annotated[float, Gt(0), Le(1)] | None = None
    combine: Rule = "sum"
    experts: Annotated[int, Ge(1)] | None = None

    def __post_init__(self) -> None:
        learns = [name for name in ("profile", "train") if getattr(self, name) is not None]
        if self.predictor == "recorded" and learns:
            raise ValueError(f"{learns[0]} is of predictor: table; recorded predictions need none")


@register("prefetch", "stride", "promoe")
class Stride(Learned):
    """Fetch the experts that are predicted for the layer `stride` layers ahead, and for no other.
    Nothing is fetched for the first `stride` layers.
    """

    Options = StrideOptions

    @classmethod
    def prediction_depth(cls, options: StrideOptions) -> int:
        return options.stride if options.predictor == "recorded" else 0

    @classmethod
    def mistakes(cls, options: Any, context: PrefetchContext) -> Sequence[tuple[str, str]]:
        if options.stride < context.num_layers:
            return ()
        most = f"it must be below {context.num_layers}, the MoE layers of the trace"
        return [("stride", f"is {options.stride}; {most}")]

    @classmethod
    def inputs(cls, options: Any) -> Sequence[Input]:
        return super().inputs(options) if options.predictor == "table" else ()

    @classmethod
    def note(cls, options: Any) -> str | None:
        if options.predictor == "recorded":
            return None
        return f"{super().note(options)}; its table stands for a network on hidden states"

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.needs_predictions = self.options.predictor == "recorded"  # type: ignore[misc]

    def prepare(self, context: PrefetchContext) -> None:
        if not self.needs_predictions:
            super().prepare(context)

    def learn(self, lessons: Lessons) -> None:
        stride = self.options.stride
        self._tables = [
            Transitions(
                lessons.ids[:, before],
                lessons.ids[:, before + stride],
                self.num_experts,
                self.options.combine,
            )
            for before in range(self.num_layers - stride)
        ]

    def ranked(self, view: View) -> Sequence[Key]:
        stride = self.options.stride
        if self.needs_predictions:
            return view.predicted(stride)[: self.options.experts]
        if not 0 <= view.layer < len(self._tables):
            return ()
        scores = self._tables[view.layer].scores(rows_of(view, self.num_experts))
        first = (view.layer + stride) * self.num_experts
        return [first + expert for expert in best(scores, self._most)]
