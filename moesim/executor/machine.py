"""The real machine: lanes of a device, driven by the same server as the simulated machine.

The server says which buffer each copy fills. From the issue of a copy on, the machine remembers
which expert is in which buffer, independently of the server's own record. A buffer also has the key
of the expert that has landed in it. So an expert that is computed from the wrong bytes, or
overwritten during its computation, is an error.

A topology with a CPU lane gives the machine a second compute lane. Its experts are computed from
host memory. `States` works move their inputs and outputs. The forward pass itself runs on the GPU
lane only, because all its segments must run in one thread.

Host memory has all experts. With a disk it has those that the server's `HostMemory` holds, and a
read from disk brings another one (`host_rows.py`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from moesim.errors import DeviceError, InvariantError, UsageError
from moesim.executor.device import Device
from moesim.executor.host_rows import HostRows, Row
from moesim.executor.lanes import Job, Lane, Piece
from moesim.hardware.ops import Copy, Experts, Op, Readback, States
from moesim.hardware.topology import DISK, GPU, HOST, Topology
from moesim.machine.threads import drive
from moesim.machine.work import Work
from moesim.serving.experts.host_memory import HostMemory

if TYPE_CHECKING:
    from moesim.executor.executor import Executor
    from moesim.serving.server import Server

__all__ = ["RealMachine"]

# What a lane does: its source and its target memory.
_ON_GPU: Final = (GPU, GPU)
_ON_CPU: Final = (HOST, HOST)
_TO_GPU: Final = (HOST, GPU)
_TO_HOST: Final = (GPU, HOST)
_FROM_DISK: Final = (DISK, HOST)
_ROUTES: Final = (_ON_GPU, _ON_CPU, _TO_GPU, _TO_HOST, _FROM_DISK)


class RealMachine:
    """Runs one server in real time, with `serve`.

    `topology` names the lanes (None: one GPU with a copy engine for each direction).
    `chunk_bytes`: longer copies are cut. `patience_s`: a wait of this length without any finished
    work is treated as a hang.

    Raises `UsageError` for a topology with a lane that it does not have.
    """

    def __init__(
        self,
        executor: Executor,
        device: Device,
        *,
        topology: Topology | None = None,
        chunk_bytes: int | None = None,
        patience_s: float = 60.0,
    ) -> None:
        self.now_ns = 0
        self._executor = executor
        self._device = device
        self._topology = topology or Topology.single_gpu()
        self._routes = {lane.name: (lane.source, lane.target) for lane in self._topology.lanes}
        _check_routes(self._routes)
        self._chunk_bytes = chunk_bytes
        self._patience_s = patience_s
        self._place: dict[int, int] = {}  # the buffer of each key, from the issue of its copy on
        self._holds: dict[int, int] = {}  # the key whose bytes are all in a buffer
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        self._awaited: Sequence[Work] = ()
        self._progress_s = time.monotonic()
        self._failure: DeviceError | InvariantError | UsageError | None = None
        self._origin_ns = 0
        self._lanes: dict[str, Lane] = {}
        self._rows: HostRows | None = None  # where experts are on disk

    def serve(self, server: Server) -> None:
        """Run a server on this machine to its end, then close the machine."""
        try:
            if (memory := server.caches[0].host) is not None:  # all caches share it
                self.keep_on_disk(memory)
            # A static placement is loaded before time zero, as in the simulation.
            for cache in dict.fromkeys(server.caches):
                for key, slot in cache.slots.items():
                    self.preload(key, slot.number)
            self.start()
            drive(server.run())
        finally:
            self.close()

    def start(self) -> None:
        """Set time zero and start the lanes."""
        self._device.add_lanes(self._topology.lanes)
        self._origin_ns = time.monotonic_ns()
        self._lanes = {
            name: Lane(name, self._device, self._lock, self._origin_ns, self._settled, self._failed)
            for name in self._topology.names
        }

    def keep_on_disk(self, memory: HostMemory) -> None:
        """Keep in host memory only what `memory` holds, and all experts in a file on disk.

        Raise `UsageError` if there is no room for the file.
        """
        self._rows = HostRows(self._executor.host, memory)

    def preload(self, key: int, slot: int) -> None:
        """Put an expert into its buffer before the run starts."""
        self._executor.buffers[slot].copy_(self._executor.host_of(key))
        self._place[key] = slot
        self._holds[slot] = key

    # --- the members of a machine ---

    def submit(self, work: Work) -> None:
        pieces, what = self._pieces(work)
        work.job = Job(work, pieces, what, time.monotonic_ns() - self._origin_ns)
        with self._lock:
            self._lanes[work.lane].put(work.job, work.urgency)

    def promote(self, work: Work) -> None:
        with self._lock:
            self._lanes[work.lane].promote(work.job)

    def cancel(self, work: Work) -> bool:
        with self._lock:
            return self._lanes[work.lane].cancel(work.job)

    def done(self, work: Work) -> bool:
        return work.finish_ns <= self.now_ns

    def wait_any(self, works: Sequence[Work], until_ns: int | None = None) -> Iterable[Any]:
        if self._rows is not None:
            self._rows.settle()  # the server issues all that it has decided before it waits
        with self._lock:
            self._awaited = works
            self._progress_s = time.monotonic()
            while True:
                if self._failure is not None:
                    raise self._failure
                self.now_ns = max(self.now_ns, time.monotonic_ns() - self._origin_ns)
                if any(work.finish_ns <= self.now_ns for work in works):
                    return ()
                if until_ns is not None and until_ns <= self.now_ns:
                    return ()
                self._news.wait(self._doze_s(until_ns))

    def close(self) -> None:
        with self._lock:
            for lane in self._lanes.values():
                lane.close()
        for lane in self._lanes.values():
            lane.join(timeout_s=5.0)  # a thread that hangs is a daemon and ends with the process
        with self._lock:
            for lane in self._lanes.values():
                lane.forget()
        if self._rows is not None:
            self._rows.close()

    # --- behind it ---

    def _doze_s(self, until_ns: int | None) -> float:
        """Return how long to wait for finished work. Raise `InvariantError` after `patience_s`."""
        if until_ns is not None and not self._pending():
            return (until_ns - self.now_ns) / 1e9
        left = self._progress_s + self._patience_s - time.monotonic()
        if left <= 0:
            pending = ", ".join(self._pending()) or "nothing"
            raise InvariantError(
                14,
                f"nothing got done on {self._device.name} for {self._patience_s:g} s; "
                f"pending: {pending}",
            )
        return left if until_ns is None else min(left, (until_ns - self.now_ns) / 1e9)

    def _pending(self) -> list[str]:
        return [what for lane in self._lanes.values() for what in lane.pending]

    def _pieces(self, work: Work) -> tuple[list[Piece], str]:
        """Return the pieces of a work, and its description for errors.

        Raise `UsageError` or `InvariantError` for a work that its lane cannot do.
        """
        op, route = work.op, self._routes[work.lane]
        if isinstance(op, Readback) and route == _TO_HOST:
            return [Piece(self._executor.fetch)], "readback"
        if isinstance(op, Copy) and route in (_TO_GPU, _TO_HOST):
            what = f"copy of key {op.key} {work.lane} with buffer {work.buffer}"
            if route == _TO_GPU:
                self._place[op.key] = work.buffer
                return self._to_gpu(self._row(op.key), work.buffer), what
            host, buffer = self._executor.host_of(op.key), self._executor.buffers[work.buffer]
            return self._chunks(host, buffer), what
        if isinstance(op, Copy) and route == _FROM_DISK and self._rows is not None:
            reading = self._rows.read(op.key, op.nbytes)
            return [Piece(reading, op.nbytes)], f"read of key {op.key} {work.lane}"
        what = f"{type(op).__name__} of layer {getattr(op, 'layer', '-')}"
        if isinstance(op, States) and route in (_TO_GPU, _TO_HOST):
            executor = self._executor
            move = executor.return_states if route == _TO_GPU else executor.send_states
            return [Piece(partial(move, op.layer), op.nbytes)], f"{what} {work.lane}"
        if isinstance(op, Experts) and route == _ON_CPU:
            rows = [self._row(key) for key in op.keys]
            return [Piece(partial(self._compute_on_host, op, rows))], f"{what} on the CPU"
        if isinstance(op, Experts) and route == _ON_GPU:
            # Now, at issue: later copies may move other keys before this work runs.
            places = tuple([self._place[key] for key in op.keys])
            return [Piece(partial(self._compute_experts, op, places))], what
        if not isinstance(op, Experts | Copy | Readback | States) and route == _ON_GPU:
            return [Piece(partial(self._executor.run, op))], what
        raise _refusal(op, work.lane, route)

    def _row(self, key: int) -> Row:
        """Return the row of an expert in host memory, for work that is issued now."""
        if self._rows is not None:
            return self._rows.use(key)
        return Row(key, self._executor.host_of(key))

    def _to_gpu(self, row: Row, slot: int) -> list[Piece]:
        """Return the pieces of an expert's copy to a buffer; the last one marks the buffer."""
        pieces = self._chunks(self._executor.buffers[slot], row.tensor)
        last = pieces[-1]
        return [
            piece._replace(work=partial(self._fill, slot, row, piece.work, piece is last))
            for piece in pieces
        ]

    def _chunks(self, target: Any, source: Any) -> list[Piece]:
        """Return the pieces of a copy between two tensors of equal length."""
        size, item = len(target), target.element_size()
        step = size if self._chunk_bytes is None else max(1, self._chunk_bytes // item)
        pieces = []
        for start in range(0, size, step):
            stop = min(start + step, size)
            move = partial(target[start:stop].copy_, source[start:stop], non_blocking=True)
            pieces.append(Piece(move, (stop - start) * item, start > 0))
        return pieces

    def _fill(self, slot: int, row: Row, move: Callable[[], Any], whole: bool) -> None:
        """Overwrite a part of a buffer from a row; after the last chunk it has the `whole` row."""
        self._holds.pop(slot, None)
        row.check()
        move()
        if whole:
            self._holds[slot] = row.key

    def _compute_on_host(self, op: Experts, rows: Sequence[Row]) -> None:
        for row in rows:
            row.check()
        self._executor.run_on_host(op, [row.tensor for row in rows])

    def _compute_experts(self, op: Experts, places: Sequence[int]) -> None:
        self._check(op, places, 4, "is computed before it landed")
        self._executor.run(op, places)
        self._check(op, places, 5, "is overwritten while it is computed")

    def _check(self, op: Experts, places: Sequence[int], rule: int, wrong: str) -> None:
        for key, place in zip(op.keys, places, strict=True):
            if self._holds.get(place) != key:
                raise InvariantError(rule, f"key {key} in buffer {place} {wrong}")

    def _settled(self, job: Job) -> None:
        self._progress_s = time.monotonic()
        for lane in self._lanes.values():
            lane.heard(job.work)
        if job.work in self._awaited:
            self._news.notify()

    def _failed(self, job: Job, error: BaseException) -> None:
        if self._failure is None:
            if isinstance(error, InvariantError | UsageError):  # the device is not to blame
                self._failure = error
            else:
                self._failure = DeviceError(self._device.name, job.what, error)
        self._news.notify()


def _check_routes(routes: Mapping[str, tuple[str, str]]) -> None:
    for name, (source, target) in routes.items():
        if (source, target) not in _ROUTES:
            raise UsageError(
                f"the real machine has no lane like {name!r}, from {source!r} to {target!r}; it "
                "computes on one GPU and on the CPU, and copies between their memories"
            )


def _refusal(op: Op, lane: str, route: tuple[str, str]) -> Exception:
    """Return the error for an operation that a lane cannot do."""
    if route == _FROM_DISK and isinstance(op, Copy):
        return UsageError(
            f"the real machine cannot read key {op.key} from disk: the server has no host memory "
            "that says what is there"
        )
    if route == _ON_CPU and not isinstance(op, Copy | Readback | States):
        return UsageError(
            f"{type(op).__name__} cannot run on lane {lane!r}: the real machine runs whole layers "
            "on the GPU lane only; place only experts on the CPU"
        )
    return InvariantError(4, f"lane {lane!r} from {route[0]!r} to {route[1]!r} cannot do {op}")
