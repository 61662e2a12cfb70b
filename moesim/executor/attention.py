"""Attention over a packed batch, with a KV store, as continuous batching needs it.

The tokens of all sequences of a step are packed into one row. All operations but attention treat
each token by itself. Attention is a function of this module: it appends keys and values to the
store, and each sequence attends to its own past. A sequence that starts again at position 0
overwrites its old entries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from moesim.errors import InvariantError, UsageError
from moesim.executor.batch import Span

__all__ = ["KvStore", "attach", "checked_config"]

_NAME = "moesim"  # the name of this attention in transformers' registry
_STORE = "moesim_kv"  # the attribute of an attention module that holds the store


class KvStore:
    """Keys and values `[KV heads, capacity, head width]` for each sequence and layer."""

    def __init__(self) -> None:
        self.layers_attended = 0
        self._spans: Sequence[Span] = ()
        self._kept: dict[int, dict[int, tuple[Tensor, Tensor]]] = {}
        self._masks: dict[tuple[int, int | None], Tensor | None] = {}

    def begin(self, spans: Sequence[Span]) -> None:
        """Begin a step: its rows are those of `spans`, one after another."""
        self._spans = spans
        self._masks.clear()
        self.layers_attended = 0

    def release(self, sequence: int) -> None:
        """Forget a sequence; nothing happens if it is unknown."""
        self._kept.pop(sequence, None)

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float | None,
        window: int | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """Store `key` and `value [KV heads, T, width]`, then attend with `query [heads, T, width]`.

        Each sequence attends to all its stored entries, within `window`. Return
        `[T, heads, value width]`.
        """
        self.layers_attended += 1
        out = query.new_empty(query.shape[1], query.shape[0], value.shape[-1])
        # Sequences have different lengths, so each attends in a call of its own.
        start = 0
        for span in self._spans:
            stop = start + span.tokens
            keys, values = self._extend(layer, span, key[:, start:stop], value[:, start:stop])
            mask = self._mask(span, window, query.device)
            rows = query[:, start:stop]
            if sinks is None:
                part = _attention(rows, keys, values, mask, scaling)
            else:
                part = _sink_attention(rows, keys, values, mask, scaling, sinks)
            out[start:stop] = part.transpose(0, 1)
            start = stop
        return out

    def _extend(self, layer: int, span: Span, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values; return all that the span's sequence has stored."""
        layers = self._kept.setdefault(span.sequence, {})
        end = span.position + span.tokens
        room = layers[layer][0].shape[1] if layer in layers else 0
        # Room for the whole sequence at once: growing would copy all entries in every step.
        if span.position == 0 and room < span.capacity:
            room = span.capacity
            layers[layer] = (_room(key, span.capacity), _room(value, span.capacity))
        if end > room:
            raise InvariantError(
                3, f"sequence {span.sequence} has no room for rows {span.position} to {end - 1}"
            )
        keys, values = layers[layer]
        keys[:, span.position : end] = key
        values[:, span.position : end] = value
        return keys[:, :end], values[:, :end]

    def _mask(self, span: Span, window: int | None, device: torch.device) -> Tensor | None:
        """Return which stored rows each of the span's rows sees, `[tokens, stored]`; None: all."""
        end = span.position + span.tokens
        if window is not None and window >= end:
            window = None
        if span.tokens == 1 and window is None:
            return None
        place = (span.sequence, window)  # the same in every layer of a step, so build it once
        if place not in self._masks:
            rows = torch.arange(span.position, end, device=device)[:, None]
            columns = torch.arange(end, device=device)[None, :]
            seen = columns <= rows
            if window is not None:
                seen &= columns > rows - window
            self._masks[place] = seen
        return self._masks[place]


def attach(model: nn.Module, store: KvStore) -> Callable[[], None]:
    """Make a Hugging Face model attend only through `store`; return a function that undoes it.

    Raise `UsageError` if the model's attention cannot be replaced.
    """
    AttentionInterface.register(_NAME, _attend)
    chosen: Any = model
    before = chosen.config._attn_implementation
    chosen.set_attn_implementation(_NAME)
    if chosen.config._attn_implementation != _NAME:
        raise UsageError(f"{type(model).__name__} does not allow its attention to be replaced")
    layers = [module for module in model.modules() if hasattr(module, "layer_idx")]
    for module in layers:
        setattr(module, _STORE, store)

    def detach() -> None:
        chosen.set_attn_implementation(before)
        for module in layers:
            delattr(module, _STORE)

    return detach


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend; transformers calls it with `query`, `key`, `value [1, heads, T, width]`."""
    if options.get("softcap") is not None:
        raise UsageError(f"{type(module).__name__} caps its scores, which is not supported")
    window = sliding_window or getattr(module, "sliding_window", None) or None
    store: KvStore = getattr(module, _STORE)
    layer: Any = module.layer_idx
    return store.attend(layer, query[0], key[0], value[0], scaling, window, s_aux)[None], None


def _room(like: Tensor, capacity: int) -> Tensor:
    return like.new_empty(like.shape[0], capacity, like.shape[2])


def _attention(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float | None
) -> Tensor:
    groups = query.shape[0] // keys.shape[0]
    if query.shape[1] == 1 and groups > 1:  # treat heads that share keys as rows: no key is copied
        rows = query.reshape(keys.shape[0], groups, query.shape[2])
        out = functional.scaled_dot_product_attention(rows, keys, values, mask, scale=scaling)
        return out.reshape(query.shape[0], 1, -1)
    return functional.scaled_dot_product_attention(
        query[None], keys[None], values[None], mask, scale=scaling, enable_gqa=groups > 1
    )[0]


def _sink_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    sinks: Tensor,
) -> Tensor:
    """Attend with an additional score for each head that has no value (GPT-OSS)."""
    groups = query.shape[0] // keys.shape[0]
    keys = keys.repeat_interleave(groups, dim=0)
    values = values.repeat_interleave(groups, dim=0)
    scores = (
        query @ keys.transpose(1, 2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    )
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    nowhere = sinks.to(scores.dtype)[:, None, None].expand(-1, scores.shape[1], 1)
    scores = torch.cat([scores, nowhere], dim=-1)
    return scores.softmax(dim=-1)[..., :-1].to(values.dtype) @ values


def checked_config(model: nn.Module) -> Any:
    """Return the model's configuration. Raise `UsageError` if its sequences cannot be packed."""
    config: Any = getattr(model, "config", None)
    if config is None or config.is_encoder_decoder:
        raise UsageError(
            f"{type(model).__name__} is not a Hugging Face decoder; only those can be run"
        )
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kind = str(rope.get("rope_type", "default")) if isinstance(rope, dict) else "default"
    if "dynamic" in kind or kind == "longrope":
        raise UsageError(
            f"{type(model).__name__} has {kind} rotary embeddings, which depend on the longest "
            "sequence of a batch; supported are those that depend on the position alone"
        )
    return config
