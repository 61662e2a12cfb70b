"""The rest of a step: attention, router, projections, the end of a step, memory of the device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention

from .bench import Bench

__all__ = ["attention", "ends"]


class Heads(NamedTuple):
    """Sizes of a model's layers outside of its experts."""

    name: str
    hidden: int
    heads: int
    kv_heads: int
    width: int
    experts: int
    top_k: int
    vocabulary: int


_MODELS: Final = (
    Heads("qwen3-30b-a3b", 2048, 32, 4, 128, 128, 8, 151936),
    Heads("mixtral-8x7b", 4096, 32, 8, 128, 8, 2, 32000),
)
_TINY: Final = (Heads("tiny", 64, 4, 2, 16, 8, 2, 100),)
_DECODE: Final = (
    *((1, 128), (1, 2048), (8, 512), (1, 16384), (32, 512), (8, 4096), (1, 512), (32, 4096)),
)
_MEMORY_BYTES: Final = 2 << 30
_PREFILL: Final = (512, 2048, 128, 8192)


def attention(bench: Bench) -> None:
    """Measure attention of one layer: decode by batch and depth, prefill by length."""
    for model in bench.cases("attention by model", _models(bench)):
        decode = _DECODE if bench.on_gpu else ((1, 16),)
        for batch, depth in bench.cases(f"decode of {model.name}", decode):
            _attend(bench, model, batch, 1, depth)
        for tokens in bench.cases(f"prefill of {model.name}", _PREFILL if bench.on_gpu else (16,)):
            _attend(bench, model, 1, tokens, tokens)


def _models(bench: Bench) -> tuple[Heads, ...]:
    return _MODELS if bench.on_gpu else _TINY


def _attend(bench: Bench, model: Heads, batch: int, tokens: int, depth: int) -> None:
    query = bench.random(batch, model.heads, tokens, model.width)
    keys = bench.random(batch, model.kv_heads, depth, model.width)
    values = bench.random(batch, model.kv_heads, depth, model.width)
    causal = tokens > 1

    def call() -> Any:
        return scaled_dot_product_attention(query, keys, values, is_causal=causal, enable_gqa=True)

    what: dict[str, Any] = {
        "model": model.name,
        "batch": batch,
        "tokens": tokens,
        "depth": depth,
        "nbytes": 2 * keys.numel() * keys.element_size(),
    }
    bench.put_times("attention", bench.timed(call), **what)
    if not causal:
        bench.put_times("attention in a graph", bench.graphed(call), **what)


def ends(bench: Bench) -> None:
    """Measure the device's memory, LM head, projections and router, by rows."""
    _memory(bench)
    for model in bench.cases("ends by model", _models(bench)):
        head = bench.random(model.hidden, model.vocabulary)
        wide = (model.heads + 2 * model.kv_heads) * model.width
        projection = bench.random(model.hidden, wide)
        gate = bench.random(model.hidden, model.experts)
        for rows in bench.cases(f"rows of {model.name}", (1, 8, 64, 512) if bench.on_gpu else (1,)):
            states = bench.random(rows, model.hidden)
            what: dict[str, Any] = {"model": model.name, "rows": rows}
            calls: dict[str, tuple[Callable[[], Any], int]] = {
                "LM head": (partial(torch.matmul, states, head), head.nbytes),
                "projection of queries, keys and values": (
                    partial(torch.matmul, states, projection),
                    projection.nbytes,
                ),
                "router": (partial(_route, states, gate, model.top_k), gate.nbytes),
            }
            for name, (call, nbytes) in calls.items():
                bench.put_times(name, bench.timed(call), nbytes=nbytes, **what)


def _route(states: torch.Tensor, gate: torch.Tensor, top_k: int) -> Any:
    return torch.topk(torch.softmax((states @ gate).float(), dim=-1), top_k)


def _memory(bench: Bench) -> None:
    nbytes = _MEMORY_BYTES if bench.on_gpu else 1 << 22
    one = torch.zeros(nbytes, dtype=torch.uint8, device=bench.device)
    two = torch.zeros_like(one)
    times = bench.timed(lambda: two.copy_(one))
    bench.put_times(
        "copy within the device",
        times,
        nbytes=nbytes,
        gbytes_per_s=round(2 * nbytes / times.device_us / 1e3, 1),
    )
