"""Which models the real machine runs: decoders whose sequences meet only in attention."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from moesim.errors import UsageError
from moesim.record.calls import ADAPTERS
from moesim.record.header import TOP_K, stated_top_k
from moesim.record.routers import MoeLayer, check_alike

__all__ = ["check_run_by_layers", "top_k_of"]

_INDEXED = re.compile(r"(Indexer|Compressor)$")


def check_run_by_layers(model: nn.Module, layers: Sequence[MoeLayer]) -> None:
    """Raise `UsageError` for a model whose experts or sequences cannot be taken apart."""
    kind = type(model).__name__
    check_alike(model, list(layers))
    for layer in layers:
        if layer.experts is None or layer.adapter is not None or _adapted(layer):
            raise UsageError(
                f"{kind} cannot be run: {layer.watched} at {layer.name} is not called with ids and "
                "weights, so its experts cannot be computed one by one"
            )
    numbers = [(layer.stack, layer.model_layer) for layer in layers]
    if len(set(numbers)) < len(numbers) or len({stack for stack, _ in numbers}) > 1:
        raise UsageError(f"{kind} cannot be run: a layer of it has several banks of experts")
    stack = model.get_submodule(layers[0].stack)
    for name, module in stack.named_modules():
        if isinstance(module, nn.Conv1d):
            raise UsageError(
                f"{kind} cannot be run: {layers[0].stack}.{name} is a convolution along the "
                "sequence, and sequences are packed into one row; only attention is kept apart"
            )
        if _INDEXED.search(type(module).__name__):
            raise UsageError(
                f"{kind} cannot be run: {layers[0].stack}.{name} ({type(module).__name__}) keeps "
                "entries of earlier tokens beside keys and values, and only those are kept apart"
            )


def top_k_of(model: Any) -> int:
    """Return the number of experts of a token. Raise `UsageError` if no key says it."""
    if (top_k := stated_top_k(model)) is not None:
        return top_k
    raise UsageError(
        f"{type(model).__name__} does not say how many experts a token gets (one of the keys "
        f"{', '.join(TOP_K)} in its configuration)"
    )


def _adapted(layer: MoeLayer) -> bool:
    return type(layer.router).__name__ in ADAPTERS
