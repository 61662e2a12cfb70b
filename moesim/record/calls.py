"""What a layer's experts are called with: ids and weights, read by position and never by shape.

Experts of transformers take (hidden `[T, H]`, ids `[T, k]`, weights `[T, k]`). An id that names no
expert with weights of its own (a zero-computation or identity expert, a sentinel) leaves its place
unused, and so does a place that the gate has emptied for a class beyond the experts (skip).

Families whose experts get no ids are read by an `Adapter` in `ADAPTERS`. A model of one's own can
be read by an `Adapter` too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from moesim.errors import UsageError

__all__ = ["Adapter", "Routing", "called_with"]


class Routing(NamedTuple):
    """One layer's decision for T tokens."""

    ids: Tensor  # (T, k) integers, -1 where a place is unused
    weights: Tensor  # (T, k)
    logits: Tensor | None = None  # (T, C): scores of C >= E classes, before or after scoring


@dataclass(frozen=True, slots=True)
class Adapter:
    """Says where the choices of a model's layers are, and how to read them.

    `module` is the class name of the module to watch. `read` gets what it is called with, or what
    it returns `at_gate`, and returns (ids, weights), each `[T, k]`. `num_experts` is needed if no
    attribute of that name says it.

        Adapter("MyExperts", lambda hidden, choice: (choice.ids, choice.weights))
    """

    module: str
    read: Callable[..., tuple[Tensor, Tensor]]
    at_gate: bool = False
    num_experts: int | None = None

    def routing(self, *args: Any, **kwargs: Any) -> Routing:
        """Return what `read` finds. Raise `UsageError` if it is no pair of ids and weights."""
        found: Any = self.read(*args, **kwargs)
        if not (isinstance(found, tuple) and len(found) == 2):
            raise UsageError(
                f"the adapter of {self.module} must return (ids, weights), "
                f"not {type(found).__name__}"
            )
        return checked(self.module, *found)


def checked(kind: str, ids: Any, weights: Any) -> Routing:
    """Return ids and weights as rows. Raise `UsageError` if they are none."""
    for name, value in (("ids", ids), ("weights", weights)):
        if not isinstance(value, Tensor) or value.ndim < 1:
            raise UsageError(f"{kind} was given {type(value).__name__} as {name}, not a tensor")
    if ids.is_floating_point() or ids.dtype == torch.bool or not weights.is_floating_point():
        raise UsageError(
            f"{kind} was given ids of {_type(ids)} and weights of {_type(weights)}; integers and "
            "floats are needed"
        )
    if ids.shape != weights.shape:
        raise UsageError(
            f"{kind} was given ids {tuple(ids.shape)} and weights {tuple(weights.shape)}; both "
            "must be (tokens, k)"
        )
    return Routing(ids.reshape(-1, ids.shape[-1]), weights.reshape(-1, ids.shape[-1]))


def called_with(experts: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Routing:
    """Return the decision in a call of experts that take (hidden, ids, weights)."""
    given = args
    if len(given) < 3:
        bound = _signature(type(experts).forward).bind(experts, *args, **kwargs)
        given = tuple(bound.arguments.values())[1:]
    return checked(type(experts).__name__, given[1], given[2])


def real(routing: Routing, num_experts: int, *, further: bool) -> Routing:
    """Return a decision with -1 and weight 0 in the places of no real expert.

    With `further` classes the gate marks a place that chose none of the experts by weight 0.
    """
    ids, weights = routing.ids, routing.weights
    idle = (ids < 0) | (ids >= num_experts)
    if further:
        idle = idle | (weights == 0)
    return Routing(ids.masked_fill(idle, -1), weights.masked_fill(idle, 0), routing.logits)


def repeats(ids: Tensor) -> bool:
    """Return whether a row names an expert twice, as rows of a mask or of counts do."""
    ordered = ids.sort(dim=-1).values
    return bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any())


def takes_ids(experts: nn.Module) -> bool:
    """Return whether a module's forward takes three arguments: hidden, ids and weights."""
    return len(parameters(experts)) >= 3


def parameters(module: nn.Module) -> list[inspect.Parameter]:
    """Return the parameters of a module's forward without `self`."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p for p in _signature(type(module).forward).parameters.values() if p.kind in kinds][1:]


@cache
def _signature(forward: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(forward)


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


# --- families whose experts are called in another way ---


def _dispatch_mask(_: Tensor, mask: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Read Switch's one-hot mask `[T, 1, E]`; a row is empty beyond the expert's capacity."""
    mask = mask.reshape(-1, mask.shape[-1])
    sent = mask.sum(dim=-1, keepdim=True) > 0
    ids = torch.where(sent, mask.argmax(dim=-1, keepdim=True), -1)
    return ids, torch.where(sent, weights.reshape(-1, 1), 0)


def _switch_gate(output: Any) -> tuple[Tensor, Tensor]:
    return _dispatch_mask(output[1], output[0], output[1])


def _masked_scores(output: Any) -> tuple[Tensor, Tensor]:
    """Read Llama 4's scores `[T, E]`, which are 0 but for the chosen experts."""
    scores, logits = output
    k = int((scores > 0).sum(dim=-1).max())
    # Large logits have one and the same sigmoid, so they are ordered before it; ties by id.
    chosen = logits.masked_fill(scores == 0, float("-inf"))
    best, order = chosen.sort(dim=-1, descending=True, stable=True)
    ids, best = order[:, : max(1, k)], best[:, : max(1, k)]
    return ids.masked_fill(best == float("-inf"), -1), scores.gather(-1, ids)


def _sorted_lists(output: Any) -> tuple[Tensor, Tensor]:
    """Read JetMoE's flat lists: places in order of their experts, weights, and rows an expert."""
    places, _, weights, sizes, logits = output
    k = len(places) // len(logits)
    experts = torch.arange(len(sizes), device=places.device)
    in_order = experts.repeat_interleave(torch.tensor(sizes, device=places.device))
    ids, gates = torch.empty_like(places), torch.empty_like(weights)
    ids[places], gates[places] = in_order, weights
    return ids.reshape(-1, k), gates.reshape(-1, k)


ADAPTERS: Final[Mapping[str, Adapter]] = {
    adapter.module: adapter
    for adapter in (
        Adapter("SwitchTransformersExperts", _dispatch_mask),
        # Llama 4 runs all experts on all tokens, so only the scores say which count.
        Adapter("Llama4Router", _masked_scores, at_gate=True),
        Adapter("JetMoeTopKGating", _sorted_lists, at_gate=True),
    )
}
"""Adapters of the families whose experts are not called with ids, by class."""

GATES: Final[Mapping[str, Callable[[Any], tuple[Tensor, Tensor]]]] = {
    "SwitchTransformersTop1Router": _switch_gate,
}
"""How to read a choice from the output of a gate that returns no ids, by class."""

IGNORED_BLOCKS: Final = ("JetMoeMoA",)
"""Blocks whose experts are parts of the attention, which no trace holds."""

REFUSED_EXPERTS: Final[Mapping[str, str]] = {
    "NllbMoeExperts": (
        "NLLB-MoE calls its experts with a mask over all experts, which they read as ids, so that "
        "the experts that run are not those that the router chose"
    ),
}
"""Experts that cannot be recorded, by class, and why."""
