"""What the recorder learns of a layer while it runs: its gate's last call, and how to ask it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from moesim.errors import UsageError
from moesim.record.calls import Routing, called_with, parameters, real
from moesim.record.routers import MoeLayer
from moesim.record.scores import Scores, find_scores, outputs

__all__ = ["GateCall", "LayerState"]


class GateCall(NamedTuple):
    """One call of a gate: what it took and what it returned."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any

    @property
    def hidden(self) -> Tensor:
        """Return the first argument, the hidden states."""
        hidden: Tensor = self.args[0] if self.args else next(iter(self.kwargs.values()))
        return hidden

    def about(self, hidden: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of this call with other hidden states."""
        if self.args:
            return (hidden.reshape(self.hidden.shape), *self.args[1:]), dict(self.kwargs)
        first = next(iter(self.kwargs))
        return (), {**self.kwargs, first: hidden.reshape(self.hidden.shape)}

    @property
    def others(self) -> list[Any]:
        """Return the arguments beside the hidden states."""
        return [*self.args, *self.kwargs.values()][1:]


class _ExpertsReachedError(Exception):
    """Ends a block where it calls its experts."""

    def __init__(self, routing: Routing) -> None:
        super().__init__()
        self.routing = routing


@contextmanager
def _without_hooks(block: nn.Module) -> Iterator[None]:
    """Set the hooks of a block's modules aside: a call that asks must reach none of them."""
    names = ("_forward_hooks", "_forward_pre_hooks")
    kept = [(module, {name: getattr(module, name) for name in names}) for module in block.modules()]
    for module, hooks in kept:
        for name in hooks:
            setattr(module, name, OrderedDict())
    try:
        yield
    finally:
        for module, hooks in kept:
            for name, own in hooks.items():
                setattr(module, name, own)


class LayerState:
    """A layer while it is recorded. `call` is its gate's call in the current pass."""

    def __init__(self, layer: MoeLayer) -> None:
        self.layer = layer
        self.call: GateCall | None = None
        self.handed: list[Any] = []  # what the gate returned, which the next gate may get
        self.scores: Scores | None = None
        self.seen = False
        # Whether the gate has classes beyond the experts; None: not known before it runs.
        self.further: bool | None = False if layer.router is None else None
        self._predictable = False
        self._by_block = False  # predicted by the whole block, up to its experts

    def look(self) -> None:
        """Learn from the gate's call what later calls need."""
        if self.further is None:
            self.further = self.call is not None and self._has_further(self.call.output)
        if self.call is not None:
            self.handed = outputs(self.call.output)

    def real(self, called: Routing) -> Routing:
        """Return a decision with -1 in the places that chose no expert."""
        return real(called, self.layer.num_experts, further=bool(self.further))

    def _has_further(self, output: Any) -> bool:
        """Return whether the gate scores more classes than there are experts."""
        scores = outputs(output)[0]
        if not isinstance(scores, Tensor) or scores.ndim < 2 or not scores.is_floating_point():
            return False
        return scores.shape[-1] > self.layer.num_experts

    def logits(self, called: Routing) -> Tensor:
        """Return the scores' source `[T, E]`. Raise `UsageError` if it cannot be told."""
        layer, call = self.layer, self.call
        if self.scores is None and call is not None:
            routing = self.real(called)
            self.scores = find_scores(
                layer.router, call.args, call.kwargs, call.output, routing, layer.num_experts
            )
        if self.scores is None or call is None:
            raise UsageError(
                f"{type(layer.router or layer.block).__name__} at {layer.name} does not return "
                "scores of all experts; record without probabilities"
            )
        return self.scores.of(call.output, layer.num_experts)

    def seen_by_gate(self, called: Routing) -> Tensor:
        """Return the states that the gate saw, after checking that its output can be read."""
        self._check(called)
        assert self.call is not None
        return self.call.hidden.detach()

    def predict(
        self, hidden: Tensor, called: Routing, *, ahead: int, previous: LayerState
    ) -> Tensor:
        """Return the ids `[T, k]` that the gate would choose for states of `ahead` layers before.

        Raise `UsageError` if the gate needs something that was not known there.
        """
        self._check(called)
        assert self.call is not None
        if self._by_block:
            return self._chosen_by_block(hidden).ids
        # Places without an expert are marked at the end of the pass, unless only weights tell them.
        self._check_others(self.call, ahead, previous)
        args, kwargs = self.call.about(hidden)
        layer: Any = self.layer
        made = self.layer.read_gate(layer.router.forward(*args, **kwargs))
        return self.real(made).ids if self.further else made.ids

    def _check(self, called: Routing) -> None:
        """Raise `UsageError` if the gate's output does not show what the experts are called with.

        It is compared in the first pass only: each comparison waits for the device.
        """
        if self._predictable:
            return
        layer = self.layer
        if self.call is None:
            raise UsageError(
                f"{type(layer.router).__name__} at {layer.name} did not run before its experts; "
                "record with a prediction depth of 0"
            )
        try:
            self._compare(layer.read_gate(self.call.output), called)
        except UsageError:
            if not self._block_takes_states():
                raise
            # The block chooses from what its gate returns, so it is asked as a whole.
            self._compare(self._chosen_by_block(self.call.hidden), called)
            self._by_block = True
        self._predictable = True

    def _compare(self, made: Routing, called: Routing) -> None:
        layer, ids, chosen = self.layer, self.real(called).ids, self.real(made).ids
        if not torch.equal(chosen.to(ids), ids):
            raise UsageError(
                f"{type(layer.router).__name__} at {layer.name} returns other ids than its experts "
                "are called with; record with a prediction depth of 0"
            )

    def _block_takes_states(self) -> bool:
        needed = [p for p in parameters(self.layer.block) if p.default is p.empty]
        return self.layer.experts is not None and len(needed) == 1

    def _chosen_by_block(self, hidden: Tensor) -> Routing:
        """Return what the block would call its experts with, without running them."""
        layer: Any = self.layer

        def stop(experts: Any, args: Any, kwargs: Any) -> None:
            if layer.adapter is None:
                raise _ExpertsReachedError(called_with(experts, args, kwargs))
            raise _ExpertsReachedError(layer.adapter.routing(*args, **kwargs))

        with _without_hooks(layer.block):
            handle = layer.experts.register_forward_pre_hook(stop, with_kwargs=True)
            try:
                layer.block.forward(hidden.reshape(1, -1, hidden.shape[-1]))
            except _ExpertsReachedError as reached:
                return self.real(reached.routing)
            finally:
                handle.remove()
        raise UsageError(
            f"{type(layer.block).__name__} at {layer.name} did not call its experts; record with a "
            "prediction depth of 0"
        )

    def _check_others(self, call: GateCall, ahead: int, previous: LayerState) -> None:
        """Raise `UsageError` for an argument that depends on states between the two layers."""
        for other in call.others:
            if not isinstance(other, Tensor) or not other.is_floating_point():
                continue  # a setting, or ids of tokens
            if any(other is own for own in self._own_tensors()):
                continue
            # The state that the gate before hands on is known one layer ahead, and not earlier.
            if ahead == 1 and any(other is handed for handed in previous.handed):
                continue
            deepest = "1 or 0" if any(other is handed for handed in previous.handed) else "0"
            raise UsageError(
                f"{type(self.layer.router).__name__} at {self.layer.name} gets states of the "
                f"layers between; record with a prediction depth of {deepest}"
            )

    def _own_tensors(self) -> list[Tensor]:
        block = self.layer.block
        return [*block.parameters(), *block.buffers()]
