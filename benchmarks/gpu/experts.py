"""Experts of real shapes by rows: eager, grouped, in a CUDA graph; and beside a copy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import cycle
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import silu

from .bench import Bench

__all__ = ["beside_copies", "experts"]


class Shape(NamedTuple):
    """An expert of three matrices: two `[ffn, hidden]` in one, and `[hidden, ffn]`."""

    name: str
    hidden: int
    ffn: int
    experts: int


# The two that the validations run come first.
_SHAPES: Final = (
    Shape("qwen3-30b-a3b", 2048, 768, 128),
    Shape("mixtral-8x7b", 4096, 14336, 8),
    Shape("deepseek-v2-lite", 2048, 1408, 64),
    Shape("gpt-oss-20b", 2880, 2880, 32),
)
_TINY: Final = (Shape("tiny", 64, 128, 8),)
_ROWS: Final = (1, 8, 64, 512, 2, 4, 16, 32, 128, 256)
_COPY_BYTES: Final = 1 << 30
_BEYOND_CACHE: Final = 512 << 20  # bytes of weights used in turn, so that no cache holds them


class _Weights:
    """Some experts of a shape, used in turn."""

    def __init__(self, bench: Bench, shape: Shape) -> None:
        nbytes = 3 * shape.hidden * shape.ffn * bench.dtype.itemsize
        self.nbytes = nbytes
        self.count = min(shape.experts, max(2, _BEYOND_CACHE // nbytes if bench.on_gpu else 2))
        self.up = [bench.random(2 * shape.ffn, shape.hidden) for _ in range(self.count)]
        self.down = [bench.random(shape.hidden, shape.ffn) for _ in range(self.count)]
        self._turn = cycle(range(self.count))

    def next(self, states: Tensor) -> Tensor:
        """Compute the next expert."""
        return self._compute(states, next(self._turn))

    def every(self, states: Tensor) -> None:
        """Compute all experts, one after another."""
        for number in range(self.count):
            self._compute(states, number)

    def _compute(self, states: Tensor, number: int) -> Tensor:
        gate, up = (states @ self.up[number].T).chunk(2, dim=-1)
        return (silu(gate) * up) @ self.down[number].T


def experts(bench: Bench) -> None:
    """Measure one expert, by shape and rows."""
    for shape in bench.cases("experts by shape", _shapes(bench)):
        weights = _Weights(bench, shape)
        for rows in bench.cases(f"rows of {shape.name}", _rows(bench)):
            _by_rows(bench, shape, weights, rows)
        _grouped(bench, shape, weights)
        del weights
        if bench.on_gpu:
            torch.cuda.empty_cache()


def _shapes(bench: Bench) -> tuple[Shape, ...]:
    return _SHAPES if bench.on_gpu else _TINY


def _rows(bench: Bench) -> tuple[int, ...]:
    return _ROWS if bench.on_gpu else (1, 4)


def _by_rows(bench: Bench, shape: Shape, weights: _Weights, rows: int) -> None:
    states = bench.random(rows, shape.hidden)
    what: dict[str, Any] = {"shape": shape.name, "rows": rows, "nbytes": weights.nbytes}
    bench.put_times("expert", bench.timed(lambda: weights.next(states)), how="eager", **what)
    all_of_them = bench.graphed(lambda: weights.every(states))
    if all_of_them is not None:
        each_us = all_of_them.device_us / weights.count
        bench.recorder.put(
            "expert",
            round(each_us, 3),
            "us",
            how="graph",
            gbytes_per_s=round(weights.nbytes / each_us / 1e3, 1),
            tflops=round(6 * rows * shape.hidden * shape.ffn / each_us / 1e6, 3),
            **what,
        )


def _grouped(bench: Bench, shape: Shape, weights: _Weights) -> None:
    """Measure one call over all experts, as vLLM and others do."""
    grouped: Any = getattr(torch.nn.functional, "grouped_mm", None) or getattr(
        torch, "_grouped_mm", None
    )
    if grouped is None or not bench.on_gpu:
        return
    up = torch.stack([each.T.contiguous() for each in weights.up])
    down = torch.stack([each.T.contiguous() for each in weights.down])
    for rows in bench.cases(f"grouped {shape.name}", (8, 64, 1, 512)):
        states = bench.random(weights.count * rows, shape.hidden)
        ends = torch.arange(1, weights.count + 1, device=bench.device, dtype=torch.int32) * rows

        def call(states: Tensor = states, ends: Tensor = ends) -> None:
            gate, inner = grouped(states, up, offs=ends).chunk(2, dim=-1)
            grouped((silu(gate) * inner).contiguous(), down, offs=ends)

        what: dict[str, Any] = {"shape": shape.name, "rows": rows, "experts": weights.count}
        try:
            bench.put_times("grouped experts", bench.timed(call), **what)
        except RuntimeError as error:  # rows or types that this version does not take
            bench.recorder.put("grouped experts", None, "us", error=str(error)[:300], **what)


def beside_copies(bench: Bench) -> None:
    """Measure an expert while a copy runs, and the copy while experts run."""
    nbytes = _COPY_BYTES if bench.on_gpu else 1 << 22
    here = torch.zeros(nbytes, dtype=torch.uint8, pin_memory=bench.on_gpu)
    there = torch.zeros(nbytes, dtype=torch.uint8, device=bench.device)
    stream = bench.stream()
    for shape in bench.cases("beside copies", _shapes(bench)):
        weights = _Weights(bench, shape)
        for direction in ("h2d", "d2h"):
            target, source = (there, here) if direction == "h2d" else (here, there)
            for rows in (1, 64):
                states = bench.random(rows, shape.hidden)
                compute = partial(weights.next, states)
                copy = partial(target.copy_, source, non_blocking=True)
                what = {"shape": shape.name, "rows": rows, "direction": direction}
                _beside(bench, compute, copy, stream, {**what, "nbytes": nbytes})


def _beside(
    bench: Bench,
    compute: Callable[[], Any],
    copy: Callable[[], Any],
    stream: Any,
    what: dict[str, Any],
) -> None:
    """Time computations and a copy alone and together; the copy lasts longer than they do."""
    alone = bench.timed(compute)
    copied = bench.timed(copy, stream=stream, batches=2)
    count = max(5, min(200, int(0.5 * copied.device_us / alone.device_us)))
    begin, end, first, last = (bench.event() for _ in range(4))
    bench.synchronize()
    with bench.on(stream):
        begin.record()
        copy()
        end.record()
    first.record()
    for _ in range(count):
        compute()
    last.record()
    bench.synchronize()
    together_us = first.elapsed_time(last) / count * 1e3
    copy_us = begin.elapsed_time(end) * 1e3
    put = bench.recorder.put
    put("expert beside a copy", round(together_us / alone.device_us, 4), "times as long", **what)
    put("copy beside experts", round(copy_us / copied.device_us, 4), "times as long", **what)
