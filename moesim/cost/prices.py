"""The prices of a simulated machine, from the cost models of its lanes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from moesim.cost.choice import cpu_cost_of
from moesim.cost.cpu import CpuCost
from moesim.cost.roofline import CostModel, remember
from moesim.hardware.ops import BatchShape, Copy, Experts, Front, Op, Readback, States
from moesim.hardware.topology import CPU, DISK, GPU, HOST_BANDWIDTH, Topology
from moesim.machine.prices import Durations
from moesim.machine.work import Cost

__all__ = ["SimPrices", "flow"]

_SECOND_NS: Final = 10**9


class SimPrices(Durations):
    """The prices of a simulated machine; times in ns, sizes in bytes.

    What shares host memory (CPU work, copies of weights, reads from disk) takes alone exactly as
    long as without sharing. Hidden states and ids are small beside weights, and share nothing. A
    copy from or to pageable memory counts its bytes once, because the driver's own buffer stays in
    the cache of the CPU.

    In unified memory, computations on the GPU move their bytes through host memory too, and copies
    between host and GPU take no time.

    With `free_link`, copies between host and GPU take no time: the bound of an infinite link. These
    are the copies of weights and of hidden states. Ids still take the latency of their readback
    and hidden states the engine's switch, which are no bandwidth, and reads from disk take their
    time.

    `bytes_of(key)` is the stored size of an expert; None: all have the same. `is_pinned(key)` says
    whether an expert is page-locked; None: as the cost model says.
    """

    def __init__(
        self,
        cost: CostModel,
        *,
        free_link: bool = False,
        topology: Topology | None = None,
        bytes_of: Callable[[int], int] | None = None,
        is_pinned: Callable[[int], bool] | None = None,
    ) -> None:
        topology = topology or Topology.single_gpu()
        # Bound once: the machine reads these millions of times in a run.
        self.compute_ns = cost.compute_ns
        self.experts_ns: Callable[[tuple[int, ...]], int] = cost.experts_ns
        self.landing_ns: int = cost.landing_ns
        self.layers_ns: Callable[[BatchShape], Sequence[int]] = cost.layers_ns
        self.cpu = cpu_cost_of(cost) if CPU in topology.names else None
        self._cost = cost
        self._free_link = free_link
        self._shared = HOST_BANDWIDTH in topology.resources
        self._unified = self._shared and cost.hardware.unified
        self._bytes_of = bytes_of
        self._is_pinned = is_pinned
        self._pageable: SimPrices | None = None
        if is_pinned is not None:
            self._pageable = SimPrices(cost.pageable(), free_link=free_link, topology=topology)
        self._experts: dict[tuple[int, ...], tuple[Cost, ...]] = {}
        self._sized: dict[tuple[str, tuple[int, ...], tuple[int, ...] | None], tuple[Cost, ...]]
        self._sized = {}
        self._copied: dict[tuple[str, int], Sequence[Cost]] = {}
        self._readbacks: dict[int, tuple[Cost, ...]] = {}
        self._computed: dict[int, tuple[Cost, ...]] = {}
        self._batch: BatchShape | None = None  # of the last front
        self._layers: Sequence[tuple[Cost, ...]] = ()  # of that batch, by model layer

    def copy_ns(self, lane: str, nbytes: int) -> int:
        if self._free_link and lane != DISK:
            return 0
        return self._cost.copy_ns(lane, nbytes)

    def readback_ns(self, nbytes: int) -> int:
        return self._cost.readback_ns(nbytes)

    def chunk_bytes(self, lane: str) -> int | None:
        return self._cost.chunk_bytes(lane)

    def pieces(self, lane: str, op: Op) -> Sequence[Cost]:
        """See `Prices.pieces`. Pieces are remembered, because the same ones are asked for again."""
        # Types are compared by identity, the most frequent ones first.
        if type(op) is Experts:
            if lane != GPU or self._bytes_of is not None:
                return self._sized_experts(lane, op)
            if op[3]:
                return self._whole(self.compute_ns(op))
            tokens = op[2]  # by number, as in `CostModel.compute_ns`
            pieces = self._experts.get(tokens)
            if pieces is None:
                pieces = (self._on_gpu(op, self.compute_ns(op)),)
                remember(self._experts, tokens, pieces)
            return pieces
        if type(op) is Front and lane == GPU:
            layer, batch = op
            if batch is not self._batch:
                self._batch, self._layers = batch, self._fronts(batch)
            return self._layers[layer]
        if type(op) is Copy:
            if self._is_pinned is not None and not self._is_pinned(op.key):
                assert self._pageable is not None
                return self._pageable.pieces(lane, op)
            copied = self._copied.get((lane, op.nbytes))
            if copied is None:
                copied = self._copy(lane, op)
                remember(self._copied, (lane, op.nbytes), copied)
            return copied
        if type(op) is Readback:
            read_back = self._readbacks.get(op.nbytes)
            if read_back is None:
                read_back = (Cost(self.readback_ns(op.nbytes)),)
                remember(self._readbacks, op.nbytes, read_back)
            return read_back
        if isinstance(op, States):
            # Synchronising is no bandwidth, so a free link does not save it.
            switch_ns = self._cost.engine.switch_ns
            free = self._free_link
            return (Cost(switch_ns if free else self._cost.states_ns(lane, op.nbytes)),)
        if lane == CPU:
            return (flow(*self._on_cpu().call(op)),)
        if self._unified:
            return (self._on_gpu(op, self.compute_ns(op)),)
        return self._whole(self.compute_ns(op))

    def _fronts(self, batch: BatchShape) -> Sequence[tuple[Cost, ...]]:
        """Return the piece of each model layer's front on the GPU."""
        durations_ns = self.layers_ns(batch)
        if not self._unified:
            return list(map(self._whole, durations_ns))
        fronts = (Front(layer, batch) for layer in range(len(durations_ns)))
        return [
            (self._on_gpu(front, duration_ns),)
            for front, duration_ns in zip(fronts, durations_ns, strict=True)
        ]

    def _on_gpu(self, op: Op, duration_ns: int, sizes: tuple[int, ...] | None = None) -> Cost:
        """Return the piece of a computation on the GPU that takes `duration_ns` alone."""
        if not self._unified:
            return Cost(duration_ns)
        fixed_ns = min(self._cost.call_ns, duration_ns)
        nbytes = self._cost.loads.nbytes(op, sizes)
        return flow(fixed_ns, duration_ns - fixed_ns, nbytes)

    def _whole(self, duration_ns: int) -> tuple[Cost, ...]:
        """Return the piece of a work that takes `duration_ns`; layers share most durations."""
        computed = self._computed.get(duration_ns)
        if computed is None:
            computed = (Cost(duration_ns),)
            remember(self._computed, duration_ns, computed)
        return computed

    def _on_cpu(self) -> CpuCost:
        assert self.cpu is not None, "topology_of gives every machine with this lane a CPU"
        return self.cpu

    def _sized_experts(self, lane: str, op: Experts) -> Sequence[Cost]:
        """Return the piece of a call on the CPU, or of experts that differ in size."""
        sizes = None if self._bytes_of is None else tuple(map(self._bytes_of, op.keys))
        key = lane, op.tokens, sizes
        pieces = self._sized.get(key)
        if pieces is None:
            if lane == CPU:
                pieces = (flow(*self._on_cpu().experts(op.tokens, sizes)),)
            else:
                duration_ns = self._cost.experts_ns(op.tokens, sizes)
                pieces = (self._on_gpu(op, duration_ns, sizes),)
            remember(self._sized, key, pieces)
        return pieces

    def _copy(self, lane: str, op: Copy) -> Sequence[Cost]:
        """Return the pieces of a copy of weights, each a flow where host memory is shared.

        The latency is in the first piece.
        """
        pieces = super().pieces(lane, op)
        if not self._shared:
            return pieces
        latency_ns = self.copy_ns(lane, 0)
        chunk, flows, begin = self.chunk_bytes(lane) or op.nbytes, [], 0
        for piece in pieces:
            end = min(begin + chunk, op.nbytes)
            fixed_ns = latency_ns if begin == 0 else 0
            flows.append(flow(fixed_ns, piece.fixed_ns - fixed_ns, end - begin))
            begin = end
        return flows


def flow(fixed_ns: int, moving_ns: int, nbytes: int) -> Cost:
    """Return the cost of `fixed_ns`, and then of moving `nbytes` through host memory.

    Alone it takes exactly `fixed_ns + moving_ns`. Its own rate is bytes / time, rounded up to whole
    bytes/s, so that the bytes take `moving_ns` or less. What they take less is added to the fixed
    time: at most 1 ns + `moving_ns` / rate.
    """
    if not nbytes or not moving_ns:
        return Cost(fixed_ns + moving_ns)
    rate = -(-nbytes * _SECOND_NS // moving_ns)
    rest_ns = moving_ns - -(-nbytes * _SECOND_NS // rate)
    return Cost(fixed_ns + rest_ns, nbytes, rate, ((HOST_BANDWIDTH, nbytes),))
