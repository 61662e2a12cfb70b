"""A script that serves greedy texts on the real machine and splits each layer's experts at random.

A wanted expert runs on the GPU if it is resident, or is copied to a buffer first, or runs on the
CPU. The seed decides, not a policy. Buffers keep their experts between layers and steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np

from moesim.executor.batch import Batch, Span
from moesim.executor.executor import Executor
from moesim.executor.machine import RealMachine
from moesim.hardware.ops import (
    BatchShape,
    Copy,
    Dense,
    Experts,
    Front,
    Op,
    Readback,
    States,
    Tail,
)
from moesim.hardware.topology import CPU, D2H, GPU, H2D, HOST, HOST_BANDWIDTH, Lane, Topology
from moesim.machine.work import Work

__all__ = ["WITH_CPU", "PlacedTexts"]

WITH_CPU: Final = Topology(
    (*Topology.single_gpu().lanes, Lane(CPU, HOST, HOST)), {HOST_BANDWIDTH: 10**10}
)
_BATCH: Final = BatchShape(1, 1, 1, 1)
_NBYTES: Final = 64  # whatever the link would be told; links are not emulated here


class PlacedTexts:
    """Greedy texts of `new` tokens for each prompt, computed in chunks of at most `chunk` rows.

    `cpu_share` is the probability that an expert runs on the CPU; without buffers all do. `tokens`
    and `logits` hold the texts afterwards, `counts` the experts that ran on each lane.
    """

    def __init__(
        self,
        executor: Executor,
        machine: RealMachine,
        prompts: Sequence[Sequence[int]],
        *,
        new: int,
        cpu_share: float = 0.5,
        chunk: int = 3,
        seed: int = 0,
    ) -> None:
        self.tokens: list[list[int]] = [[] for _ in prompts]
        self.logits: list[list[Any]] = [[] for _ in prompts]
        self.counts = {"resident": 0, "copied": 0, "cpu": 0}
        self._prompts = prompts
        self._new = new
        self._chunk = chunk
        self._executor = executor
        self._machine = machine
        self._cpu_share = cpu_share
        self._rng = np.random.default_rng(seed)
        self._resident: dict[int, int] = {}  # the key in each buffer
        self._users: dict[int, Work] = {}  # the last work that reads a buffer

    def run(self) -> Iterable[Any]:
        """Compute all texts; use it as the server of a machine."""
        room = [len(prompt) + self._new for prompt in self._prompts]
        position = [0] * len(self._prompts)
        while any(len(tokens) < self._new for tokens in self.tokens):
            spans, ids = [], []
            for number, prompt in enumerate(self._prompts):
                text = [*prompt, *self.tokens[number]]
                if len(self.tokens[number]) == self._new:
                    continue
                start = position[number]
                stop = min(start + self._chunk, len(text))
                samples = stop == len(text)
                spans.append(Span(number, start, stop - start, room[number], samples))
                ids += text[start:stop]
                position[number] = stop
            yield from self._step(Batch(tuple(spans), ids))

    def _step(self, batch: Batch) -> Iterable[Any]:
        executor = self._executor
        executor.begin(batch)
        last: Sequence[Work] = ()
        for layer in range(executor.num_model_layers):
            if layer not in executor.model_layers:
                last = (self._issue(GPU, Dense(layer, _BATCH), last),)
                continue
            front = self._issue(GPU, Front(layer, _BATCH), last)
            ids = self._issue(D2H, Readback(_NBYTES), (front,))
            yield from self._machine.wait_any((ids,))
            last = self._layer(
                executor.model_layers.index(layer), len(batch.token_ids or ()), front
            )
        tail = self._issue(GPU, Tail(_BATCH), last)
        sampled = self._issue(D2H, Readback(_NBYTES), (tail,))
        yield from self._machine.wait_any((sampled,))
        emitting = [span.sequence for span in batch.spans if span.samples]
        for row, (number, token) in enumerate(zip(emitting, executor.sampled(), strict=True)):
            self.tokens[number].append(token)
            self.logits[number].append(executor.logits[row].clone())

    def _layer(self, layer: int, rows: int, front: Work) -> Sequence[Work]:
        """Issue a layer's experts; return the works that the next layer waits for."""
        ids, first = self._executor.ids(layer), layer * self._executor.num_experts
        counts = {first + int(e): int((ids == e).sum()) for e in np.unique(ids[ids >= 0])}
        keys = [int(key) for key in self._rng.permutation(list(counts))]
        on_cpu = [key for key in keys if self._is_for_cpu()]
        on_gpu = [key for key in keys if key not in on_cpu]
        on_gpu.sort(key=lambda key: key not in self._resident.values())  # residents may leave later
        works = list(self._on_cpu(layer, rows, front, on_cpu, counts))
        for key in on_gpu:
            works.append(self._on_gpu(layer, key, counts[key]))
        return works

    def _is_for_cpu(self) -> bool:
        return not len(self._executor.buffers) or self._rng.random() < self._cpu_share

    def _on_cpu(
        self, layer: int, rows: int, front: Work, keys: Sequence[int], counts: dict[int, int]
    ) -> Iterable[Work]:
        """Issue one or two grouped computations on the CPU; return the copies of their outputs."""
        self.counts["cpu"] += len(keys)
        if not keys:
            return
        states = self._issue(D2H, States(layer, rows, _NBYTES), (front,))
        cut = int(self._rng.integers(len(keys)))
        groups = [group for group in (keys[:cut], keys[cut:]) if group]
        computed = []
        for group in groups:
            tokens = tuple(counts[key] for key in group)
            computed.append(self._issue(CPU, Experts(layer, tuple(group), tokens), (states,)))
            # All outputs in one copy, or those of each computation as soon as it is done.
            if group is groups[-1] or self._rng.random() < 0.5:
                outputs = sum(counts[key] for key in group)
                yield self._issue(H2D, States(layer, outputs, _NBYTES), tuple(computed))

    def _on_gpu(self, layer: int, key: int, tokens: int) -> Work:
        places = {held: place for place, held in self._resident.items()}
        after: Sequence[Work] = ()
        if key in places:
            place = places[key]
            self.counts["resident"] += 1
        else:
            self.counts["copied"] += 1
            place = int(self._rng.integers(len(self._executor.buffers)))
            user = self._users.get(place)
            copy = Copy(key, self._executor.expert_bytes)
            after = (self._issue(H2D, copy, () if user is None else (user,), place),)
            self._resident[place] = key
        work = self._issue(GPU, Experts(layer, (key,), (tokens,)), after)
        self._users[place] = work
        return work

    def _issue(self, lane: str, op: Op, after: Sequence[Work] = (), buffer: int = -1) -> Work:
        work = Work(lane, op, after, buffer=buffer)
        self._machine.submit(work)
        return work
