"""The cost model: how long an operation or a copy takes on a machine, in whole nanoseconds.

An operation on the GPU takes the longer of two times: its arithmetic at the reached compute rate,
or its bytes at the reached memory bandwidth (`moesim.cost.loads`). A fixed overhead is added.
Results are integers, rounded up, so that a sum does not depend on the order of its terms.
"""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar, Final, TypeVar

import numpy as np
import numpy.typing as npt

from moesim.cost.loads import Loads, Rates
from moesim.engines.engine import IDEAL, Engine
from moesim.hardware.hardware import Disk, Hardware, Link
from moesim.hardware.ops import BatchShape, Dense, Experts, Front, Op, Tail
from moesim.hardware.topology import D2H, DISK, H2D
from moesim.model.shapes import ModelShape

__all__ = ["CostModel", "copy_ns", "read_ns", "remember"]

_K = TypeVar("_K")
_V = TypeVar("_V")

_SECOND_NS: Final = 10**9
_MEMO_LIMIT: Final = 1 << 16  # entries of one memo


class CostModel:
    """Durations of the operations and copies of one model on one machine.

    Durations depend on the arguments alone; the memos change none.
    """

    sums_experts: ClassVar[bool] = True
    """Whether a grouped call takes `call_ns` and the sum of `expert_ns`, in whole nanoseconds."""
    landing_ns: int = 0
    """Nanoseconds from the end of a copy until a computation that waited for it may start."""

    def __init__(
        self,
        hardware: Hardware,
        shape: ModelShape,
        *,
        pinned: bool = True,
        engine: Engine = IDEAL,
    ) -> None:
        """Prepare the sums that no batch changes.

        `pinned`: the experts lie in page-locked host memory. Of an engine, this class takes the
        times of a step and of a switch between processors; `EngineCost` takes its kernels too.
        """
        self.engine = engine
        self.hardware = hardware
        self.shape = shape
        self.pinned = pinned
        self.expert_bytes = shape.expert_bytes
        self.loads = Loads(shape)
        self.rates = Rates(
            max(1, round(hardware.flops_per_s * hardware.compute_efficiency)),
            max(1, round(hardware.memory_bytes_per_s * hardware.memory_efficiency)),
        )
        self._windowed = self.loads.windowed
        self._dense = frozenset(shape.dense_layers)
        kinds = [self._layer_kind(layer) for layer in range(shape.num_layers)]
        self._first_of_kind = [kinds.index(kind) for kind in kinds]  # for each layer
        self._first_layers = sorted(set(self._first_of_kind))
        self._experts_memo: dict[tuple[int, ...], int] = {}
        self._expert_memo: dict[int, int] = {}
        self._layer_memo: dict[tuple[int, BatchShape], int] = {}
        self._tail_memo: dict[BatchShape, int] = {}

    def compute_ns(self, op: Op) -> int:
        """Return how long the GPU is busy with `op`, in nanoseconds."""
        if isinstance(op, Experts):
            tokens = op[2]  # by number: this is the most frequent call, and a name takes longer
            duration_ns = self._experts_memo.get(tokens)
            if duration_ns is None:
                duration_ns = self.experts_ns(tokens)
            return duration_ns + self.fetch_ns(op[4]) if op[3] else duration_ns
        if isinstance(op, Front):
            return self.front_ns(op.layer, op.batch)
        if isinstance(op, Dense):
            return self.dense_ns(op.layer, op.batch)
        assert isinstance(op, Tail), f"{op} is no computation"
        return self.tail_ns(op.batch)

    def experts_ns(self, tokens: tuple[int, ...], nbytes: tuple[int, ...] | None = None) -> int:
        """Return the nanoseconds of one grouped call, whose i-th expert computes `tokens[i]` rows.

        Each expert takes the longer of reading its weights and 2·rows·(3·hidden·FFN) operations.
        The call takes their sum and one overhead; without experts it takes 0. `nbytes[i]` is the
        stored size of an expert, where experts differ in it.
        """
        if nbytes is not None:
            loads = map(self.loads.expert, tokens, nbytes)
            return sum(map(self.rates.duration_ns, loads)) + self.call_ns if tokens else 0
        duration_ns = self._experts_memo.get(tokens)
        if duration_ns is None:
            sum_ns = sum(self.expert_ns(count) for count in tokens)
            duration_ns = sum_ns + self.call_ns if tokens else 0
            remember(self._experts_memo, tokens, duration_ns)
        return duration_ns

    @property
    def call_ns(self) -> int:
        """The nanoseconds that one call over several experts takes beside its experts."""
        return self.hardware.kernel_overhead_ns

    def front_ns(self, layer: int, batch: BatchShape) -> int:
        """Return the nanoseconds of norms, attention, router and shared experts of an MoE layer.

        Weights are read once and take 2·tokens·weights operations; attention adds the rest.
        """
        return self._layer_ns(layer, batch)

    def dense_ns(self, layer: int, batch: BatchShape) -> int:
        """Return the nanoseconds of a layer without routed experts: as `front_ns`, with its FFN."""
        return self._layer_ns(layer, batch)

    def layers_ns(self, batch: BatchShape) -> list[int]:
        """Return the nanoseconds of each model layer without its routed experts."""
        durations_ns = {}
        for first in self._first_layers:
            dense = first in self._dense
            durations_ns[first] = (
                self.dense_ns(first, batch) if dense else self.front_ns(first, batch)
            )
        return [durations_ns[first] for first in self._first_of_kind]

    def steps_ns(self, batch: BatchShape) -> npt.NDArray[np.int64]:
        """Return the nanoseconds of steps outside of their layer events, [steps].

        KV entries and pairs of the batch are arrays [steps]. Each value is the sum of `layers_ns`
        and `tail_ns`.
        """
        total = self.tails_ns(batch)
        for number, layer_ns in enumerate(self.kinds_ns(batch)):
            total = total + self.kind_of_layer.count(number) * layer_ns
        return np.broadcast_to(total, np.shape(batch.kv_tokens))

    @cached_property
    def kind_of_layer(self) -> list[int]:
        """The kind of each model layer: layers of one kind take the same time."""
        return [self._first_layers.index(first) for first in self._first_of_kind]

    def kinds_ns(self, batch: BatchShape) -> list[npt.NDArray[np.int64]]:
        """Return the nanoseconds of a layer of each kind, without its routed experts, in each step.

        The batch is as in `steps_ns`; so is the shape of each array, or () if the steps are alike.
        """
        overhead_ns, rates, loads = self.hardware.kernel_overhead_ns, self.rates, self.loads
        return [
            rates.durations_ns(loads.layer(first, batch)) + overhead_ns
            for first in self._first_layers
        ]

    def tails_ns(self, batch: BatchShape) -> npt.NDArray[np.int64]:
        """Return `tail_ns` of each step; the batch is as in `steps_ns`."""
        overhead_ns, rates, loads = self.hardware.kernel_overhead_ns, self.rates, self.loads
        total = rates.durations_ns(loads.tail(batch)) + overhead_ns + self.engine.step_ns
        router = loads.router(batch)
        if router is not None:
            total = total + rates.durations_ns(router) + overhead_ns
        return total

    def tail_ns(self, batch: BatchShape) -> int:
        """Return the nanoseconds of the work that a step does once.

        This is reading the embedding rows, the LM head (2·sampled·hidden·vocabulary operations) if
        rows are sampled, and a decoupled router if the model has one (`router_ns`).
        """
        duration_ns = self._tail_memo.get(batch)
        if duration_ns is None:
            duration_ns = self.rates.duration_ns(self.loads.tail(batch))
            duration_ns += self.hardware.kernel_overhead_ns + self.router_ns(batch)
            duration_ns += self.engine.step_ns
            remember(self._tail_memo, batch, duration_ns)
        return duration_ns

    def router_ns(self, batch: BatchShape) -> int:
        """Return the nanoseconds of a decoupled router over all rows of a step; 0 without one."""
        load = self.loads.router(batch)
        if load is None:
            return 0
        return self.rates.duration_ns(load) + self.hardware.kernel_overhead_ns

    def pageable(self) -> CostModel:
        """Return the same costs with experts in pageable host memory."""
        return CostModel(self.hardware, self.shape, pinned=False, engine=self.engine)

    def fetch_ns(self, copied: int) -> int:
        """Return what a call after its expert's copy takes longer than another, in nanoseconds.

        `copied` is that of `Experts`. A datasheet has no such figure: 0.
        """
        return 0

    def copy_ns(self, lane: str, nbytes: int) -> int:
        """Return the nanoseconds of one copy of `nbytes` on a lane that is otherwise idle.

        The lane `disk` reads into host memory; the hardware must have a disk then. In unified
        memory nothing moves between host and GPU.
        """
        if lane == DISK:
            assert self.hardware.disk is not None, "topology_of refuses this machine"
            return read_ns(self.hardware.disk, nbytes)
        if self.hardware.unified:
            return 0
        link = self.hardware.h2d if lane == H2D else self.hardware.d2h
        return copy_ns(link, nbytes, pinned=self.pinned)

    def states_ns(self, lane: str, nbytes: int) -> int:
        """Return the nanoseconds of bringing hidden states to another processor."""
        return self.copy_ns(lane, nbytes) + self.engine.switch_ns

    def readback_ns(self, nbytes: int) -> int:
        """Return the nanoseconds until `nbytes` of ids from the GPU can be read on the host."""
        return self.hardware.readback_latency_ns + self.copy_ns(D2H, nbytes)

    def chunk_bytes(self, lane: str) -> int | None:
        """Return the largest piece of a copy in bytes; None: copies are never cut."""
        if lane == DISK:
            return None  # a queue of reads has one latency, which cut reads would multiply
        link = self.hardware.h2d if lane == H2D else self.hardware.d2h
        return link.chunk_bytes

    def _layer_kind(self, layer: int) -> tuple[int, ...]:
        """Return the kind of a layer; layers of one kind take the same time."""
        return (self.loads.kind_of[layer],)

    def _layer_ns(self, layer: int, batch: BatchShape) -> int:
        key = (self.loads.kind_of[layer], batch)
        duration_ns = self._layer_memo.get(key)
        if duration_ns is None:
            load = self.loads.layer(layer, batch)
            duration_ns = self.rates.duration_ns(load) + self.hardware.kernel_overhead_ns
            remember(self._layer_memo, key, duration_ns)
        return duration_ns

    def expert_ns(self, count: int) -> int:
        """Return the nanoseconds of one expert with `count` rows, within a call."""
        duration_ns = self._expert_memo.get(count)
        if duration_ns is None:
            duration_ns = self.rates.duration_ns(self.loads.expert(count))
            # No limit: there are at most as many keys as a step has rows.
            self._expert_memo[count] = duration_ns
        return duration_ns


def copy_ns(link: Link, nbytes: int, *, pinned: bool) -> int:
    """Return the nanoseconds of one copy over an idle `link`: latency + bytes / bandwidth."""
    rate = link.pinned_bytes_per_s if pinned else link.pageable_bytes_per_s
    return link.latency_ns - (-nbytes * _SECOND_NS // rate)


def read_ns(disk: Disk, nbytes: int) -> int:
    """Return the nanoseconds of one read: latency / queue depth + bytes / bandwidth, rounded up."""
    return -(-disk.latency_ns // disk.queue_depth) - (-nbytes * _SECOND_NS // disk.bytes_per_s)


def remember(memo: dict[_K, _V], key: _K, value: _V) -> None:
    """Store `value` under `key`; empty the memo first if it is full."""
    # Batches of a long run seldom repeat, so keeping the newest entries would help little.
    if len(memo) >= _MEMO_LIMIT:
        memo.clear()
    memo[key] = value
