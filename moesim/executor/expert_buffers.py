"""Offloaded experts: all weights of the routed experts on the host, a few experts in buffers.

An expert is one row: its tensors, flat, one after another. A module replaces the model's own
experts and stops the forward pass there. The server then copies experts into buffers, and computes
them from there, or on the CPU from host memory (`layer_event.py`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from moesim.errors import UsageError
from moesim.executor.pinned import page_locked

__all__ = ["Early", "Pool", "StandIn", "Weights", "fill_randomly", "swiglu"]

_KINDS: Final = ("gate_up_proj", "up_proj", "down_proj")
_KNOWN: Final = {name + suffix for name in _KINDS for suffix in ("", "_bias")}
# Random numbers drawn once and repeated. Not a power of two, so that rows of a matrix differ.
_BLOCK: Final = 1_000_003
_SCALE: Final = 0.02


class Weights(NamedTuple):
    """Views of one expert's row, in the shapes of its model family."""

    up: Tensor
    down: Tensor
    up_bias: Tensor | None
    down_bias: Tensor | None


class Pool:
    """`host [distinct experts, elements]` and `buffers [buffers, elements]` on the device.

    `experts` are a model's modules in order of its MoE layers. Their weights move to `host`, and
    the modules keep a view of it. Modules without weights (on torch's meta device) stay so, and all
    layers share `distinct` random experts. With `pinned`, `host` is page-locked memory. `close`
    releases all of it.

    Raises `UsageError` for an unknown kind of experts.
    """

    def __init__(
        self,
        experts: Sequence[nn.Module],
        num_experts: int,
        *,
        buffers: int,
        device: torch.device,
        distinct: int | None = None,
        pinned: bool = False,
        seed: int = 0,
    ) -> None:
        like: Any = experts[0]
        tensors = dict(like.named_parameters(recurse=False))
        _check(like, tensors, num_experts)
        self._shapes = {name: tuple(tensor.shape[1:]) for name, tensor in tensors.items()}
        self._up = "gate_up_proj" if like.has_gate else "up_proj"
        sizes = [prod(shape) for shape in self._shapes.values()]
        self._edges = list(pairwise(np.cumsum([0, *sizes]).tolist()))
        imaginary = any(tensor.is_meta for tensor in tensors.values())
        every = len(experts) * num_experts
        rows = min(distinct or every, every) if imaginary else every
        dtype = tensors[self._up].dtype
        self._unlock: Callable[[], Any] | None = None
        if pinned:
            self.host, unlock = page_locked((rows, sum(sizes)), dtype)
            # Also where the pool is dropped without `close`: locked memory must not be freed.
            self._unlock = finalizer = weakref.finalize(self, unlock)
            finalizer.atexit = False  # the end of the process unlocks it anyway
        else:
            self.host = torch.empty(rows, sum(sizes), dtype=dtype)
        if imaginary:
            fill_randomly(self.host, torch.Generator().manual_seed(seed))
        for layer, module in enumerate(experts):
            own = self.host[layer * num_experts : (layer + 1) * num_experts]
            for name, (start, stop) in zip(self._shapes, self._edges, strict=True):
                if not imaginary:
                    theirs = getattr(module, name)
                    own[:, start:stop].copy_(theirs.detach().flatten(1))
                    # A view, so that memory holds the weights once.
                    theirs.data = own[:, start:stop].view(num_experts, *self._shapes[name])
        self.buffers = torch.empty(buffers, sum(sizes), dtype=dtype, device=device)
        self._views = [self.weights_of(row) for row in self.buffers]

    def close(self) -> None:
        """Release host memory and buffers; a module that has a view of `host` keeps that memory.

        It is explicit, because objects that refer to each other may hold it until
        the garbage collector runs, and two pools seldom fit into memory.
        """
        if self._unlock is not None:
            self._unlock()
        self._views.clear()
        self.host = self.buffers = torch.empty(0, 0)

    @property
    def expert_bytes(self) -> int:
        """Return the bytes of one expert."""
        return self.host.shape[1] * self.host.element_size()

    def host_of(self, key: int) -> Tensor:
        """Return the row of an expert on the host, `[elements]`."""
        return self.host[key % len(self.host)]

    def weights_in(self, place: int) -> Weights:
        """Return a buffer's content as an expert's weights."""
        return self._views[place]

    def weights_of(self, row: Tensor) -> Weights:
        """Return a row `[elements]` as an expert's weights."""
        views = {
            name: row[start:stop].view(shape)
            for (name, shape), (start, stop) in zip(self._shapes.items(), self._edges, strict=True)
        }
        biases = (views.get(name + "_bias") for name in (self._up, "down_proj"))
        return Weights(views[self._up], views["down_proj"], *biases)


class StandIn(nn.Module):
    """The replacement of a model's experts; it passes their arguments to `reached`."""

    def __init__(self, reached: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self._reached = reached

    def forward(self, hidden_TH: Tensor, ids_Tk: Tensor, weights_Tk: Tensor) -> Tensor:
        return self._reached(hidden_TH, ids_Tk, weights_Tk)


class Early(nn.Module):
    """Shared experts that are computed before the routed ones, even if the model does it after.

    So they run while routed experts are being copied. A model that asks for them before its routed
    experts gets them at once, and they are not computed again.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self._result: Tensor | None = None
        self._given = False

    def compute(self, hidden_TH: Tensor) -> None:
        if not self._given:
            self._result = self.inner(hidden_TH)
        self._given = False

    def forward(self, hidden: Tensor) -> Tensor:
        result, self._result = self._result, None
        if result is None:
            self._given = True
            own: Tensor = self.inner(hidden)
            return own
        return result.view_as(hidden)


def fill_randomly(tensor: Tensor, generator: torch.Generator, scale: float = _SCALE) -> None:
    """Fill with normally distributed numbers that repeat after about a million."""
    flat = tensor.view(-1)
    count = min(_BLOCK, flat.numel())
    block = torch.randn(count, generator=generator, dtype=torch.float32) * scale
    block = block.to(flat.device, flat.dtype)
    for start in range(0, flat.numel(), _BLOCK):
        part = flat[start : start + _BLOCK]
        part.copy_(block[: part.numel()])


def swiglu(template: Any, states: Tensor, weights: Weights) -> Tensor:
    """Compute one expert, in the steps of transformers' own loop over experts."""
    inner = _project(template, states, weights.up, weights.up_bias)
    inner = template._apply_gate(inner) if template.has_gate else template.act_fn(inner)
    return _project(template, inner, weights.down, weights.down_bias)


def _project(template: Any, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not template.is_transposed:
        return functional.linear(states, weight, bias)
    out = states @ weight
    return out if bias is None else out + bias


def _check(experts: Any, tensors: dict[str, nn.Parameter], num_experts: int) -> None:
    kind = type(experts).__name__
    described = ("has_gate", "has_bias", "is_transposed", "_apply_gate")
    generic = all(hasattr(experts, name) for name in described)
    if not generic or getattr(experts, "has_post_expert_norm", False) or set(tensors) - _KNOWN:
        raise UsageError(
            f"experts of class {kind} cannot be run from buffers; supported are those that "
            "transformers describes generically (Mixtral, Qwen2/3-MoE, OLMoE, DeepSeek V2/V3, "
            "GPT-OSS, GraniteMoE, ...)"
        )
    if any(len(tensor) != num_experts for tensor in tensors.values()):
        raise UsageError(f"{kind} has weights that are not {num_experts} experts' one by one")
