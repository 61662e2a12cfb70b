"""A sequential driver of the executor, without threads, caches or policies.

Each expert is copied into a buffer just before it is computed, in a random order from a seed. A
share of the experts can be computed on the CPU instead, from host memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from moesim.executor.batch import Batch, Span
from moesim.executor.executor import Executor
from moesim.hardware.ops import BatchShape, Dense, Experts, Front, Tail

BATCH = BatchShape(1, 1, 1, 1)


def run_step(
    executor: Executor,
    batch: Batch,
    model_layers: Sequence[int],
    num_layers: int,
    seed: int = 0,
    cpu_share: float = 0.0,
) -> list[int]:
    """Run a step of a model with `num_layers` layers; return the sampled tokens."""
    rng = np.random.default_rng(seed)
    executor.begin(batch)
    for layer in range(num_layers):
        if layer not in model_layers:
            executor.run(Dense(layer, BATCH))
            continue
        executor.run(Front(layer, BATCH))
        executor.fetch()
        run_experts(executor, model_layers.index(layer), rng, cpu_share)
    executor.run(Tail(BATCH))
    executor.fetch()
    return executor.sampled()


def run_experts(
    executor: Executor, layer: int, rng: np.random.Generator, cpu_share: float = 0.0
) -> None:
    """Run all experts of a layer in random order, in calls that fill the buffers."""
    ids = executor.ids(layer)
    wanted = np.unique(ids[ids >= 0])
    rng.shuffle(wanted)
    on_cpu = int(rng.binomial(len(wanted), cpu_share))
    if on_cpu:
        chosen, wanted = wanted[:on_cpu], wanted[on_cpu:]
        keys = tuple(layer * executor.num_experts + int(expert) for expert in chosen)
        tokens = tuple(int((ids == expert).sum()) for expert in chosen)
        executor.send_states(layer)
        executor.run_on_host(Experts(layer, keys, tokens))
        executor.return_states(layer)
    buffers = len(executor.buffers)
    for start in range(0, len(wanted), buffers):
        experts = [int(expert) for expert in wanted[start : start + buffers]]
        keys = tuple(layer * executor.num_experts + expert for expert in experts)
        places = rng.permutation(buffers)[: len(keys)].tolist()
        for key, place in zip(keys, places, strict=True):
            executor.buffers[place].copy_(executor.host_of(key))
        tokens = tuple(int((ids == expert).sum()) for expert in experts)
        executor.run(Experts(layer, keys, tokens), places)


class Sequences:
    """Greedy texts that tests compute in chunks of their choice; `logits` of each sampled token."""

    def __init__(
        self,
        executor: Executor,
        prompts: Sequence[Sequence[int]],
        layers: Sequence[int],
        total: int,
        cpu_share: float = 0.0,
    ) -> None:
        self.tokens = [list(prompt) for prompt in prompts]
        self.position = [0] * len(prompts)
        self.logits: list[list[Any]] = [[] for _ in prompts]
        self._executor = executor
        self._layers = (layers, total)
        self._cpu_share = cpu_share
        self._steps = 0

    def step(self, **chunks: int) -> None:
        """Compute `s0=4, s2=1`: four rows of sequence 0, one of sequence 2."""
        spans, ids = [], []
        for name, count in chunks.items():
            number = int(name[1:])
            start, tokens = self.position[number], self.tokens[number]
            assert start + count <= len(tokens)
            self.position[number] += count
            samples = self.position[number] == len(tokens)
            spans.append(Span(number, start, count, 64, samples))
            ids += tokens[start : start + count]
        self._steps += 1
        sampled = run_step(
            self._executor,
            Batch(tuple(spans), ids),
            *self._layers,
            seed=self._steps,
            cpu_share=self._cpu_share,
        )
        emitting = [span.sequence for span in spans if span.samples]
        for row, (number, token) in enumerate(zip(emitting, sampled, strict=True)):
            self.tokens[number].append(token)
            self.logits[number].append(torch.clone(self._executor.logits[row]))

    def preempt(self, number: int) -> None:
        """Make a sequence start again from its first token."""
        self.position[number] = 0
