"""Routers: finds the modules that choose experts, and reads each model family's choices.

A mixture-of-experts layer has a *router* (class `*TopKRouter`, `*TopkRouter`, `*Gate`, ...) beside
its *experts* (class `*Experts`). In transformers 5.23 a router returns (logits `[T, E]`, weights
`[T, k]`, indices `[T, k]`) for T = batch x columns, padding included. Two families differ. Switch
returns a one-hot dispatch mask, empty where the expert's capacity is used up. DBRX returns only
logits, and its block chooses. If no router can be read, the arguments of the experts can: they are
called as `experts(hidden, indices, weights)`. Then the choices are known, but not predictions.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from moesim.errors import UsageError

_ROUTER = re.compile(r"(Router|Gate|Gating)$")
_EXPERTS = re.compile(r"(?<!Shared)Experts$")


class Routing(NamedTuple):
    """One router's decision for T tokens."""

    ids: Tensor  # (T, k) integers, -1 where a place is unused
    weights: Tensor  # (T, k)
    logits: Tensor | None  # (T, E): logits, or probabilities if the family returns those


@dataclass(frozen=True, slots=True, eq=False)
class MoeLayer:
    """One mixture-of-experts layer of a model. `router` is None if only experts can be read."""

    name: str  # dotted path of the block in the model
    model_layer: int
    num_experts: int
    block: nn.Module
    router: nn.Module | None
    experts: nn.Module | None

    @property
    def expert_bytes(self) -> int | None:
        """Return bytes of one expert as loaded, or None if the layer has no module of experts."""
        if self.experts is None:
            return None
        total = sum(p.numel() * p.element_size() for p in self.experts.parameters())
        return total // self.num_experts

    def choose(self, hidden: Tensor) -> Routing:
        """Return this layer's choice for `hidden` (T or batch x columns, H) without any hook."""
        assert self.router is not None
        # `forward` instead of a call: a call would fire the recorder's own hook.
        return self.read(self.router.forward(hidden), hidden.numel() // hidden.shape[-1])

    def read(self, output: Any, num_tokens: int) -> Routing:
        """Return the decision in a router's output for `num_tokens` tokens."""
        block_chooses: Any = getattr(self.block, "route_tokens_to_experts", None)
        if block_chooses is not None:
            weights, ids = block_chooses(output)
            return Routing(ids, weights, output)
        tensors = _tensors(output)
        if type(self.router).__name__.endswith("Top1Router"):
            return _read_dispatch_mask(tensors, self.num_experts)
        return self._read_by_shape(tensors, num_tokens)

    def read_call(self, args: Iterable[Any], num_tokens: int) -> Routing:
        """Return the decision in the arguments of the experts, without the hidden state."""
        return self._read_by_shape(_tensors(args), num_tokens)

    def _read_by_shape(self, tensors: list[Tensor], num_tokens: int) -> Routing:
        flat = [t.reshape(-1, t.shape[-1]) for t in tensors if t.ndim >= 2]
        flat = [t for t in flat if t.shape[0] == num_tokens]
        floats = [t for t in flat if t.is_floating_point()]
        ids = next((t for t in flat if t.dtype in (torch.int32, torch.int64)), None)
        logits = next((t for t in floats if t.shape[1] == self.num_experts), None)
        if ids is not None and ids.shape[1] == self.num_experts > 2 and int(ids.max()) <= 1:
            raise UsageError(
                f"cannot read the routing of {type(self.router or self.experts).__name__} at "
                f"{self.name}: it shows a mask over all {self.num_experts} experts, where the ids "
                "of the chosen ones are needed"
            )
        if ids is not None:
            scores = [t for t in floats if t.shape == ids.shape]
            if scores:
                # If k is E, logits and weights have one shape; the logits come first.
                return Routing(ids, scores[-1], None if len(floats) == 1 else logits)
        shapes = [tuple(t.shape) for t in tensors]
        raise UsageError(
            f"cannot read the routing of {type(self.router or self.experts).__name__} at "
            f"{self.name}: for {num_tokens} tokens it returns {shapes}, but integer indices and "
            "weights of one shape (tokens, k) are needed"
        )

    def check_predictable(self) -> None:
        """Raise `UsageError` if the gate needs more than a hidden state to choose."""
        if self.router is None:
            raise UsageError(
                f"{type(self.block).__name__} at {self.name} has no router that can predict; "
                "record with a prediction depth of 0"
            )
        required = [
            p.name
            for p in inspect.signature(self.router.forward).parameters.values()
            if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        if len(required) > 1:
            raise UsageError(
                f"{type(self.router).__name__} at {self.name} needs {', '.join(required)}, not a "
                "hidden state alone; record with a prediction depth of 0"
            )


def find_moe_layers(model: nn.Module) -> list[MoeLayer]:
    """Return the mixture-of-experts layers in running order; of an encoder-decoder, the decoder's.

    Raise `UsageError` if there are none, or if they differ in their number of experts.
    """
    config = getattr(model, "config", None)
    decoder_only = not getattr(config, "is_encoder_decoder", False)
    layers = [
        layer
        for name, block in model.named_modules()
        if (decoder_only or "decoder" in name.split("."))
        and (layer := _layer_at(name, block)) is not None
    ]
    if not layers:
        raise UsageError(
            f"{type(model).__name__} has no mixture-of-experts layers: none of its modules holds a "
            "router (*TopKRouter, *TopkRouter, *Gate) beside its experts (*Experts)"
        )
    if len(sizes := {layer.num_experts for layer in layers}) > 1:
        raise UsageError(
            f"{type(model).__name__} has layers of {sorted(sizes)} experts; a trace holds one "
            "number of experts"
        )
    return layers


def _layer_at(name: str, block: nn.Module) -> MoeLayer | None:
    children = list(block.children())
    experts = next((c for c in children if _EXPERTS.search(type(c).__name__)), None)
    router = next((c for c in children if _ROUTER.search(type(c).__name__)), None)
    if experts is None:
        return None
    counts = (getattr(part, "num_experts", None) for part in (router, experts, block))
    num_experts = next((count for count in counts if isinstance(count, int)), None)
    if num_experts is None:
        raise UsageError(f"cannot tell how many experts {type(experts).__name__} at {name} has")
    number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
    return MoeLayer(name, int(number[1]) if number else 0, num_experts, block, router, experts)


def _tensors(output: Any) -> list[Tensor]:
    parts = output if isinstance(output, tuple | list) else (output,)
    return [part for part in parts if isinstance(part, Tensor)]


def _read_dispatch_mask(tensors: list[Tensor], num_experts: int) -> Routing:
    mask, probability, logits = tensors
    mask = mask.reshape(-1, num_experts)
    sent = mask.sum(dim=-1, keepdim=True) > 0
    ids = torch.where(sent, mask.argmax(dim=-1, keepdim=True), -1)
    weights = torch.where(sent, probability.reshape(-1, 1), 0)
    return Routing(ids, weights, logits.reshape(-1, num_experts))


def infer_scoring(routing: Routing) -> str:
    """Return how the family turns logits into scores: `probabilities`, `softmax` or `sigmoid`.

    The right one gives every row's weights up to one factor per row (renormalisation and scaling).
    If none fits (Phi-MoE's sparse mixer), return softmax.
    """
    if routing.logits is None:
        return "softmax"
    for scoring in ("probabilities", "softmax", "sigmoid"):
        scores = _SCORING[scoring](routing.logits.float())
        if scoring == "probabilities" and not torch.allclose(
            scores.sum(dim=-1), torch.ones(len(scores), device=scores.device), atol=1e-2
        ):
            continue
        chosen = scores.gather(1, routing.ids.clamp(min=0).long())
        ratio = routing.weights.float() / chosen.clamp(min=1e-20)
        ratio = torch.where(routing.ids >= 0, ratio, ratio[:, :1])  # unused places come last
        spread = ratio.amax(dim=-1) / ratio.amin(dim=-1).clamp(min=1e-20)
        if bool((spread < 1.05).float().mean() > 0.95):
            return scoring
    return "softmax"


def full_probabilities(logits: Tensor, scoring: str) -> Tensor:
    """Return a distribution over experts for each row of `logits` (..., E), as float32."""
    scores = _SCORING[scoring](logits.float())
    return scores / scores.sum(dim=-1, keepdim=True).clamp(min=1e-20)


_SCORING: dict[str, Callable[[Tensor], Tensor]] = {
    "probabilities": lambda logits: logits,
    "softmax": lambda logits: logits.softmax(dim=-1),
    "sigmoid": lambda logits: logits.sigmoid(),
}
