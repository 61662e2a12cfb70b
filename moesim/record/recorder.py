"""The recorder: hooks that read every routing decision of a running model and change none.

    with Recorder(model, prediction_depth=2) as recorder:
        tokens = model.generate(**inputs)
        recording = recorder.take()

Ids and weights are those that the experts of each layer are called with. One forward pass adds its
columns (a prompt's tokens at once, then one token each) for every sequence of the batch. Padding
and finished sequences are included; the caller knows the lengths and cuts them.

Predictions ask a layer's gate, when it runs, about the states that earlier gates saw. So the gate
has all arguments that its block gives it. They call its `forward`, without hooks. The model is in
evaluation mode, so no gate draws random numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from moesim.errors import TraceError, UsageError
from moesim.record.calls import Adapter, Routing, called_with, repeats
from moesim.record.layer_state import GateCall, LayerState
from moesim.record.routers import MoeLayer, check_alike, find_moe_layers
from moesim.record.scores import full_probabilities
from moesim.record.wrappers import Uncompiled, unwrapped


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

    A model in a wrapper (torch.compile, PEFT) is recorded inside of it, and runs uncompiled while
    the recorder is open. Layers that did not run in the first pass are left out if they belong to
    another part of the model, like experts for images. An `adapter` reads a model of one's own.

    Raises `UsageError` for a model in training mode or without readable layers (it names the
    class). Raises `TraceError` if a forward pass did not route every token once per layer.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        prediction_depth: int = 0,
        probabilities: bool = False,
        adapter: Adapter | None = None,
    ) -> None:
        self._model = unwrapped(model)
        self.layers: list[MoeLayer] = find_moe_layers(self._model, adapter)
        self.idle: list[str] = []  # names of layers that are left out; set by the first pass
        self.prediction_depth = prediction_depth
        self.probabilities = probabilities
        self._check_depth(self.layers)
        if prediction_depth:
            for layer in self.layers:
                layer.check_gated()
        self._states = [LayerState(layer) for layer in self.layers]
        self._running: list[LayerState] | None = None  # those that run, in order
        self._handles: list[RemovableHandle] = []
        self._uncompiled = Uncompiled()
        self._shape = (0, 0)
        self._open = False  # whether a forward pass of the model runs
        self._routing: dict[LayerState, Routing] = {}
        self._hidden: list[Tensor] = []  # what the gates of this pass saw, in order
        self._predictions: list[list[Tensor]] = []
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

    @property
    def scoring(self) -> str | None:
        """Return how logits become probabilities; None before the first pass that records them."""
        found = [state.scores.scoring for state in self._states if state.scores is not None]
        return found[0] if found else None

    def take(self) -> Recording:
        """Return the recording since the last call, columns in running order.

        Raise `TraceError` if no forward pass ran.
        """
        forwards, self._forwards = self._forwards, []
        if not forwards:
            raise TraceError(
                "",
                type(self._model).__name__,
                "no forward pass was recorded; give the module whose forward runs",
            )
        return _concatenate(forwards)

    def _check_depth(self, layers: list[MoeLayer]) -> None:
        if not 0 <= self.prediction_depth < len(layers):
            raise UsageError(
                f"prediction depth ({self.prediction_depth}) must be at least 0 and less than the "
                f"number of mixture-of-experts layers ({len(layers)})"
            )

    def _attach(self) -> None:
        model = self._model
        self._uncompiled.begin()
        self._handles = [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            model.register_forward_hook(self._end),
        ]
        for state in self._states:
            self._handles += self._hook(state)

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._uncompiled.end()
        self._forget()

    def _forget(self) -> None:
        self._open = False
        self._routing, self._hidden, self._predictions = {}, [], []
        for state in self._states:
            state.call, state.handed = None, []

    def _hook(self, state: LayerState) -> list[RemovableHandle]:
        layer, handles = state.layer, []
        at_gate = layer.adapter is not None and layer.adapter.at_gate
        # The gate is only watched where it is needed: each hook takes time.
        if layer.router is not None and (
            at_gate or self.prediction_depth or self.probabilities or state.further is None
        ):

            def after_gate(_: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
                state.call = GateCall(args, kwargs, output)
                if at_gate:
                    assert layer.adapter is not None
                    self._add(state, layer.adapter.routing(output))

            handles.append(layer.router.register_forward_hook(after_gate, with_kwargs=True))
        if not at_gate and layer.experts is not None:

            def before_experts(experts: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
                if layer.adapter is None:
                    self._add(state, called_with(experts, args, kwargs))
                else:
                    self._add(state, layer.adapter.routing(*args, **kwargs))

            handles.append(
                layer.experts.register_forward_pre_hook(before_experts, with_kwargs=True)
            )
        return handles

    @property
    def _num_tokens(self) -> int:
        return self._shape[0] * self._shape[1]

    def _begin(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._forget()
        names = ("decoder_input_ids", "input_ids", "inputs_embeds")
        fed = [kwargs[name] for name in names if kwargs.get(name) is not None]
        batch, columns = (fed or args)[0].shape[:2]
        self._shape = (batch, columns)
        self._open = True

    def _add(self, state: LayerState, called: Routing) -> None:
        """Keep a layer's decision, and ask its gate about what earlier gates saw.

        Calls outside of a forward pass of the model are not its decisions.
        """
        if not self._open:
            return
        if self._running is not None and state not in self._running:
            raise self._broken(state, "did not run in the first forward pass, but in a later one")
        if state in self._routing:
            raise self._broken(state, "routed twice in one forward pass")
        if len(called.ids) != self._num_tokens:
            raise self._broken(
                state, f"routed {len(called.ids)} tokens where {self._num_tokens} were fed"
            )
        state.look()
        routing = Routing(called.ids.detach(), called.weights.detach())
        if self.probabilities:
            routing = routing._replace(logits=state.logits(routing).detach())
        if not state.seen:
            state.seen = True
            if repeats(state.real(routing).ids):
                raise UsageError(
                    f"what {state.layer.watched} at {state.layer.name} is called with names an "
                    "expert twice for a token, so it is a mask or a count and no list of ids. Give "
                    "an Adapter that reads it (docs/record.md)"
                )
        self._routing[state] = routing
        if self.prediction_depth:
            self._predict(state, called)
        state.call = None  # states and logits would be kept to the end of the pass

    def _predict(self, state: LayerState, called: Routing) -> None:
        depth = self.prediction_depth
        earlier = self._hidden[-depth:]
        with torch.no_grad():
            for ahead, hidden in zip(range(len(earlier), 0, -1), earlier, strict=True):
                previous = list(self._routing)[-2]
                ids = state.predict(hidden, called, ahead=ahead, previous=previous)
                self._predictions[-ahead].append(ids)
        self._hidden = [*earlier, state.seen_by_gate(called)][-depth:]
        self._predictions.append([])

    def _end(self, *_: Any) -> None:
        ran = list(self._routing)
        if self._running is None:
            self._settle(ran)
        for state in self._running or ():
            if state not in self._routing:
                raise self._broken(state, "did not run in a forward pass")
        self._forwards.append(self._gather(list(self._routing.values())))
        self._forget()

    def _settle(self, ran: list[LayerState]) -> None:
        """Decide, after the first pass, which layers there are.

        A layer that did not run is left out if no layer of its tower ran (layers for images), or if
        another bank of experts of the same model layer ran. Otherwise something is missing.
        """
        stacks = {state.layer.stack for state in ran}
        numbers = {(state.layer.stack, state.layer.model_layer) for state in ran}
        for state in self._states:
            layer = state.layer
            expected = layer.stack in stacks and (layer.stack, layer.model_layer) not in numbers
            if state not in self._routing and (expected or not ran):
                raise self._broken(state, "did not run in a forward pass")
        self.layers = [state.layer for state in ran]
        check_alike(self._model, self.layers)
        self._check_depth(self.layers)
        self.idle = [s.layer.name for s in self._states if s not in self._routing]
        self._running = ran

    def _broken(self, state: LayerState, reason: str) -> TraceError:
        index = self._states.index(state)
        return TraceError("", f"layer {index} ({state.layer.name})", reason)

    def _gather(self, routing: list[Routing]) -> Recording:
        if len(widths := {r.ids.shape[1] for r in routing}) > 1:
            raise UsageError(f"layers choose {sorted(widths)} experts; a trace holds one top-k")
        ids = self._array(torch.stack([r.ids for r in routing], dim=1).int())
        weights = self._array(_stacked([r.weights for r in routing]).float())
        predictions = self._gather_predictions(routing[0].ids) if self.prediction_depth else None
        # Marked here for all layers at once: on a GPU every small operation of a layer takes time.
        num_experts = self.layers[0].num_experts
        idle = (ids < 0) | (ids >= num_experts)
        further = np.array([bool(state.further) for state in self._routing])
        if further.any():
            idle |= further[:, None] & (weights == 0)
        ids[idle], weights[idle] = -1, 0
        if predictions is not None:
            predictions[predictions >= num_experts] = -1
        return Recording(
            ids,
            weights,
            predictions,
            self._gather_probabilities(routing) if self.probabilities else None,
        )

    def _gather_predictions(self, like: Tensor) -> npt.NDArray[Any]:
        # Past the last layer there is nothing to predict.
        nothing = [torch.full_like(like, -1)] * self.prediction_depth
        per_layer = [
            torch.stack([*made, *nothing][: self.prediction_depth], dim=1)
            for made in self._predictions
        ]
        return self._array(torch.stack(per_layer, dim=1).int())

    def _gather_probabilities(self, routing: list[Routing]) -> npt.NDArray[Any]:
        full = [
            full_probabilities(r.logits, state.scores.scoring)
            for state, r in zip(self._routing, routing, strict=True)
            if r.logits is not None and state.scores is not None
        ]
        return self._array(torch.stack(full, dim=1).half())

    def _array(self, stacked: Tensor) -> npt.NDArray[Any]:
        array: npt.NDArray[Any] = stacked.cpu().numpy()
        return array.reshape(*self._shape, *array.shape[1:])


def _stacked(parts: list[Tensor]) -> Tensor:
    """Return `[T, layers, k]`; layers may differ in the type of their weights."""
    if len({part.dtype for part in parts}) > 1:
        parts = [part.float() for part in parts]
    return torch.stack(parts, dim=1)


def _concatenate(forwards: list[Recording]) -> Recording:
    def join(name: str) -> Any:
        parts = [getattr(forward, name) for forward in forwards]
        return None if parts[0] is None else np.concatenate(parts, axis=1)

    return Recording(*(join(name) for name in Recording.__slots__))
