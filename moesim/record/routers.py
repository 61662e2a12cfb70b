"""Finds the mixture-of-experts layers of a model: the module of experts, and the gate beside it.

A layer's choices are read where its experts are called, not where its gate returns: only the call
says what runs. Experts of transformers 5 are called as `experts(hidden, ids, weights)`, with ids
and weights `[T, k]` for T = batch x columns, padding included, whichever implementation runs them.
`calls.py` reads the families with another interface, or refuses them by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import signature
from typing import Any

from torch import Tensor, nn

from moesim.errors import UsageError
from moesim.record.calls import (
    ADAPTERS,
    GATES,
    IGNORED_BLOCKS,
    REFUSED_EXPERTS,
    Adapter,
    Routing,
    parameters,
    takes_ids,
)

__all__ = ["MoeLayer", "find_moe_layers"]

_GATE = re.compile(r"(Router|Gate|Gating)$")
_EXPERTS = re.compile(r"Experts$")


@dataclass(frozen=True, slots=True, eq=False)
class MoeLayer:
    """One mixture-of-experts layer of a model.

    `adapter` reads the choices; None: from the call of `experts`. `router` is None if the block
    chooses by itself, and `experts` is None if no single module holds them.
    """

    name: str  # dotted path of the block in the model
    model_layer: int
    num_experts: int
    block: nn.Module
    router: nn.Module | None
    experts: nn.Module | None
    adapter: Adapter | None = None

    @property
    def expert_bytes(self) -> int | None:
        """Return bytes of one expert as loaded, or None if no module holds the experts' weights."""
        if self.experts is None:
            parts = [p for p in self.block.parameters() if p.ndim > 2]
        else:
            parts = list(self.experts.parameters())
        own = set() if self.experts is None else set(self.experts.parameters(recurse=False))
        # A stack of matrices may have rows for classes beyond the experts, as LongCat's does.
        counts = [len(p) if p in own and p.ndim > 2 else self.num_experts for p in parts]
        total = sum(p.numel() * p.element_size() / n for p, n in zip(parts, counts, strict=True))
        return round(total) if parts else None

    @property
    def watched(self) -> str:
        """Return the class of the module whose choices are read, for messages."""
        module = self.router if self.experts is None else self.experts
        return type(self.block if module is None else module).__name__

    @property
    def stack(self) -> str:
        """Return the path of the list of layers that this layer is in, for telling towers apart."""
        parts = self.name.split(".")
        numbers = [place for place, part in enumerate(parts) if part.isdigit()]
        return ".".join(parts[: numbers[0]]) if numbers else ""

    def choose(self, hidden: Tensor) -> Routing:
        """Return this layer's choice for `hidden` (T or batch x columns, H) without any hook.

        Only for gates that `check_predictable` accepts.
        """
        assert self.router is not None
        # `forward` instead of a call: a call would fire the recorder's own hook.
        return self.read_gate(self.router.forward(hidden, **self._own_arguments()))

    def read_gate(self, output: Any) -> Routing:
        """Return the decision that the output of the gate states, by transformers' conventions.

        Raise `UsageError` if there is none.
        """
        if self.adapter is not None and self.adapter.at_gate:
            return self.adapter.routing(output)
        reads = GATES.get(type(self.router).__name__)
        if reads is not None:
            return Routing(*reads(output))
        block_chooses: Any = getattr(self.block, "route_tokens_to_experts", None)
        if block_chooses is not None and len(signature(block_chooses).parameters) == 1:
            weights, ids = block_chooses(output)
            return Routing(ids, weights)
        if isinstance(output, tuple) and len(output) >= 3:
            _, weights, ids = output[:3]
            if _is_ids(ids, weights):
                return Routing(ids.reshape(-1, ids.shape[-1]), weights.reshape(-1, ids.shape[-1]))
        raise UsageError(
            f"{type(self.router).__name__} at {self.name} does not return the ids that its experts "
            "are called with; record with a prediction depth of 0"
        )

    def check_predictable(self) -> None:
        """Raise `UsageError` if the gate needs more than a hidden state and parts of its block."""
        self.check_gated()
        lacking = self._unknown_arguments()
        if lacking:
            raise UsageError(
                f"{type(self.router).__name__} at {self.name} needs {', '.join(lacking)}, not a "
                "hidden state alone; record with a prediction depth of 0"
            )

    def check_gated(self) -> None:
        """Raise `UsageError` if the layer has no gate that could predict."""
        if self.router is None:
            raise UsageError(
                f"{type(self.block).__name__} at {self.name} has no router that can predict; "
                "record with a prediction depth of 0"
            )

    def _extra_names(self) -> list[str]:
        assert self.router is not None
        return [p.name for p in parameters(self.router)[1:]]

    def _own_arguments(self) -> dict[str, Any]:
        """Return the arguments of the gate that its block holds, like a bias of the selection."""
        return {name: getattr(self.block, name) for name in self._extra_names() if self._has(name)}

    def _unknown_arguments(self) -> list[str]:
        return [name for name in self._extra_names() if not self._has(name)]

    def _has(self, name: str) -> bool:
        return hasattr(self.block, name)


def find_moe_layers(model: nn.Module, adapter: Adapter | None = None) -> list[MoeLayer]:
    """Return the mixture-of-experts layers in order; of an encoder-decoder, the decoder's.

    With an `adapter`, they are the modules that it names. Layers of other parts than text are among
    them; the recorder leaves out those that never run.

    Raise `UsageError` if there are none, or if a family is known to be unreadable.
    """
    config = getattr(model, "config", None)
    decoder_only = not getattr(config, "is_encoder_decoder", False)
    layers = [
        layer
        for name, block in model.named_modules()
        if decoder_only or "decoder" in name.split(".")
        for layer in _layers_at(name, block, adapter)
    ]
    if not layers:
        wanted = (
            "none of its modules is called Experts and takes (hidden, ids, weights)"
            if adapter is None
            else f"none of its modules is a {adapter.module}"
        )
        raise UsageError(
            f"{type(model).__name__} has no mixture-of-experts layers: {wanted}. "
            "A model of your own may need an Adapter (docs/record.md)"
        )
    return layers


def check_alike(model: nn.Module, layers: list[MoeLayer]) -> None:
    """Raise `UsageError` if layers differ in their number of experts."""
    if len(sizes := {layer.num_experts for layer in layers}) > 1:
        raise UsageError(
            f"{type(model).__name__} has layers of {sorted(sizes)} experts; a trace holds one "
            "number of experts"
        )


def _layers_at(name: str, block: nn.Module, adapter: Adapter | None) -> Iterator[MoeLayer]:
    """Yield the layer whose block is `block`, if it is one."""
    if type(block).__name__ in IGNORED_BLOCKS:
        return
    children = dict(block.named_children())
    gate = _gate_among(children)
    if adapter is not None:
        for child in children.values():
            if type(child).__name__ == adapter.module:
                router = child if adapter.at_gate else gate
                experts = None if adapter.at_gate else child
                yield _layer(name, block, router, experts, adapter)
        return
    known = ADAPTERS.get(type(gate).__name__)
    found = _experts_among(name, children)
    if known is not None and known.at_gate:
        yield _layer(name, block, gate, found[0] if len(found) == 1 else None, known)
    elif found:
        experts = found[0]
        kind = type(experts).__name__
        if kind in REFUSED_EXPERTS:
            raise UsageError(f"{kind} at {name} cannot be recorded: {REFUSED_EXPERTS[kind]}")
        reads = ADAPTERS.get(kind)
        if reads is None and not takes_ids(experts):
            raise UsageError(
                f"cannot read what {kind} at {name} is called with: its forward takes "
                f"({', '.join(p.name for p in parameters(experts))}), where (hidden, ids, weights) "
                "are needed. Give an Adapter that reads it (docs/record.md)"
            )
        yield _layer(name, block, gate, experts, reads)


def _experts_among(path: str, children: dict[str, nn.Module]) -> list[nn.Module]:
    """Return the routed experts of a block; shared ones have a class of the same ending.

    Several modules hold a matrix of each expert; none of them is called with ids.
    """
    named = {k: c for k, c in children.items() if _EXPERTS.search(type(c).__name__)}
    routed = [c for c in named.values() if takes_ids(c)]
    if len(routed) > 1:
        raise UsageError(f"{path} holds {len(routed)} modules of routed experts; one is supported")
    others = [c for k, c in named.items() if "shared" not in k and not takes_ids(c)]
    return routed or others


def _gate_among(children: dict[str, nn.Module]) -> nn.Module | None:
    named = [children[key] for key in ("gate", "router") if key in children]
    return next(
        (c for c in [*named, *children.values()] if _GATE.search(type(c).__name__)),
        named[0] if named else None,
    )


def _layer(
    name: str,
    block: nn.Module,
    router: nn.Module | None,
    experts: nn.Module | None,
    adapter: Adapter | None,
) -> MoeLayer:
    given = None if adapter is None else adapter.num_experts
    count = given or _count(experts, router, block)
    if count is None:
        kind = type(experts or router).__name__
        raise UsageError(f"cannot tell how many experts {kind} at {name} has")
    number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
    return MoeLayer(name, int(number[1]) if number else 0, count, block, router, experts, adapter)


def _count(experts: Any, router: Any, block: Any) -> int | None:
    """Return the number of experts with weights of their own.

    Attributes may count classes that have none, so the smallest stack of matrices limits them.
    """
    stated = [
        value
        for part in (experts, router, block)
        for name in ("num_experts", "num_routed_experts")
        if isinstance(value := getattr(part, name, None), int)
    ]
    own = [] if experts is None else experts.parameters(recurse=False)
    stacks = [p.shape[0] for p in own if p.ndim > 2]
    return min([*stated[:1], *stacks], default=None)


def _is_ids(ids: Any, weights: Any) -> bool:
    return (
        isinstance(ids, Tensor)
        and isinstance(weights, Tensor)
        and not ids.is_floating_point()
        and weights.is_floating_point()
        and ids.shape == weights.shape
    )
