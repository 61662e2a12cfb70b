"""The recorder: hooks that read every routing decision of a running model and change none.

    with Recorder(model, prediction_depth=2) as recorder:
        tokens = model.generate(**inputs)
        recording = recorder.take()

One forward pass adds its columns (a prompt's tokens at once, then one token each) for every
sequence of the batch. Padding and finished sequences are included; the caller knows the lengths
and cuts them. Predictions call `forward` of the later gates directly, without hooks. The model is
in evaluation mode, so no router draws random numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from moesim.errors import TraceError, UsageError
from moesim.record.routers import (
    MoeLayer,
    Routing,
    find_moe_layers,
    full_probabilities,
    infer_scoring,
)


@dataclass(frozen=True, slots=True)
class Recording:
    """Routing of a batch: B sequences, C columns, L layers, k places, d layers ahead, E experts."""

    expert_ids: npt.NDArray[np.int32]  # (B, C, L, k), -1 where a place is unused
    gate_weights: npt.NDArray[np.float32]  # (B, C, L, k)
    predictions: npt.NDArray[np.int32] | None  # (B, C, L, d, k), -1 past the last layer
    probabilities: npt.NDArray[np.float16] | None  # (B, C, L, E)

    @property
    def num_columns(self) -> int:
        return int(self.expert_ids.shape[1])


class Recorder:
    """A context manager that records `model` while it is open.

    Raises `UsageError` for a model in training mode or without readable layers (it names the
    class). Raises `TraceError` if a forward pass did not route every token once per layer.
    """

    def __init__(
        self, model: nn.Module, *, prediction_depth: int = 0, probabilities: bool = False
    ) -> None:
        self.layers: list[MoeLayer] = find_moe_layers(model)
        if not 0 <= prediction_depth < len(self.layers):
            raise UsageError(
                f"prediction depth ({prediction_depth}) must be at least 0 and less than the "
                f"number of mixture-of-experts layers ({len(self.layers)})"
            )
        if prediction_depth:
            for layer in self.layers:
                layer.check_predictable()
        self.prediction_depth = prediction_depth
        self.probabilities = probabilities
        self.scoring: str | None = None  # how logits become probabilities; set by the first pass
        self._model = model
        self._handles: list[RemovableHandle] = []
        self._shape = (0, 0)
        self._routing: dict[int, Routing] = {}
        self._predictions: dict[int, list[Tensor]] = {}
        self._forwards: list[Recording] = []

    def __enter__(self) -> Self:
        if self._model.training:
            raise UsageError(
                f"{type(self._model).__name__} is in training mode, where routers draw random "
                "numbers; call model.eval() first"
            )
        try:
            self._attach()
        except BaseException:
            self._detach()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._detach()

    def take(self) -> Recording:
        """Return the recording since the last call, columns in running order.

        Raise `TraceError` if no forward pass ran.
        """
        forwards, self._forwards = self._forwards, []
        if not forwards:
            raise TraceError("", type(self._model).__name__, "no forward pass was recorded")
        return _concatenate(forwards)

    def _attach(self) -> None:
        model = self._model
        self._handles = [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            model.register_forward_hook(self._end),
        ]
        for index, layer in enumerate(self.layers):
            self._handles.append(self._hook(index, layer))

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._routing, self._predictions = {}, {}

    def _hook(self, index: int, layer: MoeLayer) -> RemovableHandle:
        # A router's output has the logits too; the experts' arguments are the fallback.
        if layer.router is not None:

            def after_router(_: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
                hidden = args[0] if args else next(iter(kwargs.values()))
                self._add(index, layer.read(output, self._num_tokens), hidden)

            return layer.router.register_forward_hook(after_router, with_kwargs=True)
        assert layer.experts is not None

        def before_experts(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
            call = (*args, *kwargs.values())
            self._add(index, layer.read_call(call[1:], self._num_tokens), call[0])

        return layer.experts.register_forward_pre_hook(before_experts, with_kwargs=True)

    @property
    def _num_tokens(self) -> int:
        return self._shape[0] * self._shape[1]

    def _begin(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._routing, self._predictions = {}, {}
        names = ("decoder_input_ids", "input_ids", "inputs_embeds")
        fed = [kwargs[name] for name in names if kwargs.get(name) is not None]
        batch, columns = (fed or args)[0].shape[:2]
        self._shape = (batch, columns)

    def _add(self, index: int, routing: Routing, hidden: Tensor) -> None:
        if index in self._routing:
            raise self._broken(index, "routed twice in one forward pass")
        if routing.ids.shape[0] != self._num_tokens:
            raise self._broken(
                index, f"routed {routing.ids.shape[0]} tokens where {self._num_tokens} were fed"
            )
        logits = None if routing.logits is None else routing.logits.detach()
        self._routing[index] = Routing(routing.ids, routing.weights.detach(), logits)
        # Ask the later gates now: `hidden` is gone when those layers run.
        following = self.layers[index + 1 : index + 1 + self.prediction_depth]
        with torch.no_grad():
            self._predictions[index] = [layer.choose(hidden).ids for layer in following]

    def _end(self, *_: Any) -> None:
        for index in range(len(self.layers)):
            if index not in self._routing:
                raise self._broken(index, "did not run in a forward pass")
        self._forwards.append(self._gather([self._routing[i] for i in range(len(self.layers))]))
        self._routing, self._predictions = {}, {}

    def _broken(self, index: int, reason: str) -> TraceError:
        return TraceError("", f"layer {index} ({self.layers[index].name})", reason)

    def _gather(self, routing: list[Routing]) -> Recording:
        if len(widths := {r.ids.shape[1] for r in routing}) > 1:
            raise UsageError(f"layers choose {sorted(widths)} experts; a trace holds one top-k")
        return Recording(
            self._array(torch.stack([r.ids for r in routing], dim=1).int()),
            self._array(torch.stack([r.weights.float() for r in routing], dim=1)),
            self._gather_predictions(routing[0].ids) if self.prediction_depth else None,
            self._gather_probabilities(routing) if self.probabilities else None,
        )

    def _gather_predictions(self, like: Tensor) -> npt.NDArray[Any]:
        # Past the last layer there is nothing to predict.
        nothing = torch.full_like(like, -1)
        per_layer = [
            torch.stack(
                (self._predictions[i] + [nothing] * self.prediction_depth)[: self.prediction_depth],
                dim=1,
            )
            for i in range(len(self.layers))
        ]
        return self._array(torch.stack(per_layer, dim=1).int())

    def _gather_probabilities(self, routing: list[Routing]) -> npt.NDArray[Any]:
        if any(r.logits is None for r in routing):
            raise UsageError(
                f"the routers of {type(self._model).__name__} do not return scores of all "
                "experts; record without probabilities"
            )
        if self.scoring is None:
            self.scoring = infer_scoring(routing[0])
        stacked = torch.stack([r.logits for r in routing if r.logits is not None], dim=1)
        return self._array(full_probabilities(stacked, self.scoring).half())

    def _array(self, stacked: Tensor) -> npt.NDArray[Any]:
        array: npt.NDArray[Any] = stacked.cpu().numpy()
        return array.reshape(*self._shape, *array.shape[1:])


def _concatenate(forwards: list[Recording]) -> Recording:
    def join(name: str) -> Any:
        parts = [getattr(forward, name) for forward in forwards]
        return None if parts[0] is None else np.concatenate(parts, axis=1)

    return Recording(*(join(name) for name in Recording.__slots__))
