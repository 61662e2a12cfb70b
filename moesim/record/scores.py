"""The scores that a gate gives all experts, as its family scores them.

A gate returns logits, or scores, or neither. Which function scores is found by watching the gate's
own computation once: the function whose input or output is what the gate returns. If the gate
scores elsewhere, the chosen weights must be the scores up to one factor a row. If neither tells,
the family is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from moesim.record.calls import Routing

__all__ = ["SCORING", "Scores", "find_scores", "full_probabilities", "infer_scoring"]

SCORING: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "probabilities": lambda logits: logits,
    "softmax": lambda logits: logits.softmax(dim=-1),
    "sigmoid": lambda logits: logits.sigmoid(),
    "sqrtsoftplus": lambda logits: torch.nn.functional.softplus(logits).sqrt(),
}
"""How logits become scores; `probabilities` are scores already."""

_KNOWN: Final = {
    "Llama4Router": (1, "sigmoid"),  # of the logits, not of those it masks
    "PhimoeTopKRouter": (0, "softmax"),  # before the sparse mixer's mask
}


@dataclass(frozen=True, slots=True)
class Scores:
    """Where a gate's scores are: a place in what it returns, and the function that scores."""

    place: int
    scoring: str

    def of(self, output: Any, num_experts: int) -> Tensor:
        """Return the scores' source `[T, E]`, without classes beyond the experts."""
        full: Tensor = outputs(output)[self.place]
        return full.reshape(-1, full.shape[-1])[:, :num_experts]


def outputs(output: Any) -> list[Any]:
    """Return what a gate returns as a list."""
    return list(output) if isinstance(output, tuple | list) else [output]


def find_scores(
    gate: Any, args: Any, kwargs: Any, output: Any, routing: Routing, num_experts: int
) -> Scores | None:
    """Return where the scores of a gate are, by one more run of it; None if nothing tells.

    `args` and `kwargs` are what it was called with, `output` what it returned, `routing` what its
    experts were called with.
    """
    known = _KNOWN.get(type(gate).__name__)
    if known is not None:
        return Scores(*known)
    full = list(_full_outputs(output, routing, num_experts))
    with _Watch() as watch, torch.no_grad():
        gate.forward(*args, **kwargs)
    for scoring, before, after in watch.steps:
        for place, out in full:
            if _same(out, before):
                return Scores(place, scoring)
            if _same(out, after):
                return Scores(place, "probabilities")
    for place, out in full:
        if (fits := infer_scoring(routing._replace(logits=out[:, :num_experts]))) is not None:
            return Scores(place, fits)
    return None


def _full_outputs(output: Any, routing: Routing, num_experts: int) -> Iterator[tuple[int, Tensor]]:
    """Yield the places and rows of outputs with a number for each token and class."""
    for place, out in enumerate(outputs(output)):
        if isinstance(out, Tensor) and out.is_floating_point() and out.ndim > 1:
            rows = out.reshape(-1, out.shape[-1])
            weights = rows.shape == routing.weights.shape and torch.equal(rows, routing.weights)
            if len(rows) == len(routing.ids) and rows.shape[1] >= num_experts and not weights:
                yield place, rows


def infer_scoring(routing: Routing) -> str | None:
    """Return the function that makes the weights of logits, up to one factor a row.

    The factor is of a renormalisation or a scale. If rows have one place, the factor must be the
    same in all rows, because any function would fit otherwise. None if no function fits.
    """
    if routing.logits is None:
        return None
    for scoring, function in SCORING.items():
        scores = function(routing.logits.float())
        if scoring == "probabilities" and not _are_distributions(scores):
            continue
        chosen = scores.gather(1, routing.ids.clamp(min=0).long())
        ratio = routing.weights.float() / chosen.clamp(min=1e-20)
        ratio = torch.where(routing.ids >= 0, ratio, ratio[:, :1])  # unused places come last
        if ratio.shape[1] == 1:
            ratio = ratio[routing.ids[:, 0] >= 0].reshape(1, -1)
            if ratio.numel() < 2:
                continue
        spread = ratio.amax(dim=-1) / ratio.amin(dim=-1).clamp(min=1e-20)
        if bool((spread < 1.05).float().mean() > 0.95):
            return scoring
    return None


def full_probabilities(logits: Tensor, scoring: str) -> Tensor:
    """Return a distribution over experts for each row of `logits` (..., E), as float32."""
    scores = SCORING[scoring](logits.float())
    return scores / scores.sum(dim=-1, keepdim=True).clamp(min=1e-20)


def _are_distributions(scores: Tensor) -> bool:
    ones = torch.ones(len(scores), device=scores.device)
    return bool((scores >= 0).all()) and torch.allclose(scores.sum(dim=-1), ones, atol=1e-2)


class _Watch(TorchFunctionMode):
    """Notes every scoring function that runs: its name, what it took and what it gave."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[str, Tensor, Tensor]] = []
        self._softplus: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        taken = args[0] if args else None
        if isinstance(result, Tensor) and isinstance(taken, Tensor):
            if name in ("softmax", "sigmoid"):
                self.steps.append((name, taken, result))
            elif name == "softplus":
                self._softplus.append((taken, result))
            elif name == "sqrt":
                found = [before for before, after in self._softplus if after is taken]
                self.steps += [("sqrtsoftplus", before, result) for before in found]
        return result


def _same(out: Tensor, watched: Tensor) -> bool:
    """Return whether a tensor of the gate's computation is what it returns, up to further classes.

    The narrower may lack columns of classes that are no routed experts, like shared ones.
    """
    rows = watched.reshape(-1, watched.shape[-1])
    width = min(out.shape[1], rows.shape[1])
    if len(out) != len(rows) or width < 2 or rows.shape[1] < out.shape[1]:
        return False
    return torch.allclose(out[:, :width].float(), rows[:, :width].float(), rtol=1e-2, atol=1e-4)
