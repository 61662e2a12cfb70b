"""The probe: what this machine's memory and link reach, measured in about ten seconds.

- Reads: each thread takes the greatest number of its own buffer again and again. All buffers
  together are larger than the caches. Other processes only slow a read down, so the best of several
  rounds counts.
- One core's reads: the same with one thread.
- Copies to the GPU: from page-locked and from ordinary memory, through torch.

Nothing is written to a file, and all memory is given back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from threading import Barrier, BrokenBarrierError
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from moesim.advice.detect import Found
    from moesim.progress import Progress

__all__ = ["Bounds", "Copies", "Reached", "Rounds", "probe", "probe_copies"]

Clock = Callable[[], float]
"""Return seconds from any start, like `time.perf_counter`."""

_PROBING: Final = "probing this machine"
_WORD_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long and with how much memory a machine is probed.

    A round of reads takes `round_s`: a short one is more likely to find a quiet moment. No round
    starts later than `reads_s` (one core: `core_s`) after the first. `caches` times the size of
    all caches are read, at least `least_bytes`, and at most `most_bytes` and `most_share` of free
    memory. A copy has `copy_bytes`.
    """

    round_s: float = 0.2
    rounds: int = 20
    core_rounds: int = 10
    reads_s: float = 4.0
    core_s: float = 2.0
    caches: int = 4
    least_bytes: int = 512 * 2**20
    most_bytes: int = 4 * 2**30
    most_share: float = 0.25
    copy_bytes: int = 256 * 2**20
    copies: int = 8

    def nbytes(self, found: Found) -> int:
        """Return the bytes of all buffers together."""
        wanted = max(self.least_bytes, self.caches * (found.cache_bytes or 0))
        free = found.free_bytes or found.memory_bytes
        most = self.most_bytes if free is None else int(free * self.most_share)
        return min(wanted, self.most_bytes, most)


@dataclass(frozen=True, slots=True)
class Rounds:
    """The rates of several rounds in bytes/s, by `threads` threads together.

    `cpu_share` of the rounds' time the threads had a processor; other processes had the rest.
    """

    threads: int
    bytes_per_s: tuple[float, ...]
    cpu_share: float = 1.0

    @property
    def best(self) -> float:
        """The rate of the best round."""
        return max(self.bytes_per_s)


@dataclass(frozen=True, slots=True)
class Copies:
    """The best rate of copies to the GPU in bytes/s, from page-locked and from ordinary memory."""

    pinned_bytes_per_s: float
    pageable_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Reached:
    """What was measured; None is what was not. `notes` say why."""

    reads: Rounds | None = None
    core: Rounds | None = None
    copies: Copies | None = None
    notes: tuple[str, ...] = ()


def probe(
    found: Found,
    card: str | None = None,
    *,
    reads: bool = True,
    bounds: Bounds = Bounds(),
    clock: Clock = time.perf_counter,
    progress: Progress | None = None,
) -> Reached:
    """Return what this machine reaches in `reads` of memory and copies to the GPU `card`.

    What fails is left out, with a note.
    """
    total = (bounds.rounds + bounds.core_rounds if reads else 0) + (1 if card else 0)
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(_PROBING, done, total)

    every = core = copies = None
    notes: list[str] = []
    if reads:
        size = bounds.nbytes(found)
        if size < 2 * (found.cache_bytes or 0):
            notes.append("little memory is free: the reads are partly those of caches")
        try:
            threads = _Reads(found.cores, size, bounds.round_s, clock, step)
            every = threads.rates(bounds.rounds, bounds.reads_s)
            size = min(size, bounds.least_bytes)  # a core has few of the caches
            one = _Reads(1, size, bounds.round_s, clock, step)
            core = one.rates(bounds.core_rounds, bounds.core_s)
        except (MemoryError, RuntimeError) as error:  # no memory, or no more threads
            said = str(error) or type(error).__name__
            notes.append(f"reads of memory are not measured: {said}")
    if card:
        copies, why = probe_copies(card, bounds=bounds, clock=clock)
        notes += why
        step()
    return Reached(every, core, copies, tuple(notes))


class _Reads:
    """Threads that read at the same time, each a buffer of its own.

    A thread fills its buffer first, which puts the pages into the memory next to it. All start a
    round together, and each times its own whole passes over the buffer.
    """

    def __init__(
        self, threads: int, nbytes: int, round_s: float, clock: Clock, step: Callable[[], None]
    ) -> None:
        self.threads, self.round_s, self.clock, self.step = threads, round_s, clock, step
        self._numbers = max(1, nbytes // threads // _WORD_BYTES)
        self._start = Barrier(threads, action=self._look)
        self._started = self._rounds = 0
        self._seconds = self._first = 0.0
        self._over = False

    def rates(self, rounds: int, seconds: float) -> Rounds:
        """Return the rates of at most `rounds` rounds that start within some seconds."""
        self._rounds, self._seconds = rounds, seconds
        with ThreadPoolExecutor(self.threads) as pool:
            try:
                running = [pool.submit(self._thread, n) for n in range(self.threads)]
                errors = [each.exception() for each in running]
            except BaseException:
                self._start.abort()  # a thread that could not start, or an interrupt
                raise
        for error in errors:
            # The others only report that one has failed.
            if error is not None and not isinstance(error, BrokenBarrierError):
                raise error
        results = [each.result() for each in running]
        rates = tuple(map(sum, zip(*(rates for rates, _ in results), strict=True)))
        return Rounds(self.threads, rates, sum(share for _, share in results) / self.threads)

    def _look(self) -> None:
        """Decide for all threads whether another round starts; one of them calls it."""
        now = self.clock()
        if not self._started:
            self._first = now
        self._over = self._started == self._rounds or now - self._first > self._seconds
        self._started += 1

    def _thread(self, number: int) -> tuple[list[float], float]:
        """Return the rates of a thread, and the share of the time that it had a processor."""
        import numpy as np

        rates: list[float] = []
        wall_s = cpu_s = 0.0
        try:
            buffer = np.ones(self._numbers, np.int64)
            buffer.max()  # the first call of a type loads code
            while True:
                self._start.wait()
                if self._over:
                    return rates, min(1.0, cpu_s / wall_s) if wall_s else 1.0
                cpu_s -= time.thread_time()
                passes, took_s = self._round(buffer)
                cpu_s += time.thread_time()
                wall_s += took_s
                rates.append(passes * buffer.nbytes / took_s)
                if number == 0:
                    self.step()
        except BaseException:
            self._start.abort()  # else the other threads never end
            raise

    def _round(self, buffer: Any) -> tuple[int, float]:
        """Return the passes of one round over a buffer, and the seconds they took."""
        began, passes, took_s = self.clock(), 0, 0.0
        while took_s < self.round_s or not took_s:
            buffer.max()
            passes += 1
            took_s = self.clock() - began
        return passes, took_s


def probe_copies(
    card: str,
    *,
    bounds: Bounds = Bounds(),
    clock: Clock = time.perf_counter,
    load: Callable[[str], Any] | None = None,
) -> tuple[Copies | None, Sequence[str]]:
    """Return the rates of copies to a GPU through torch; without them, a sentence about why.

    `load` imports torch.
    """
    if load is None and find_spec("torch") is None:
        return None, ("copies to the GPU are not measured: torch is not installed",)
    try:
        torch = (load or import_module)("torch")
        device = _device_of(torch, card)
        if device is None:
            return None, ("copies to the GPU are not measured: torch cannot use it",)
        pinned, pageable = (
            _copy_rate(torch, device, bounds, clock, pinned=kind) for kind in (True, False)
        )
    except Exception as error:  # the driver, the GPU and torch have errors of their own
        said = " ".join(str(error).split())[:200] or type(error).__name__
        return None, (f"copies to the GPU are not measured: {said}",)
    return Copies(pinned, pageable), ()


def _device_of(torch: Any, card: str) -> int | None:
    """Return torch's number of the card, which may differ from NVML's; None without it.

    Of several cards of this name, that with most memory counts.
    """
    if not torch.cuda.is_available():
        return None
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    sizes = {i: each.total_memory for i, each in enumerate(devices) if each.name == card}
    return max(sizes, key=lambda i: sizes[i]) if sizes else None


def _copy_rate(torch: Any, device: int, bounds: Bounds, clock: Clock, *, pinned: bool) -> float:
    """Return the best rate of copies in bytes/s."""
    source = torch.ones(bounds.copy_bytes, dtype=torch.uint8, pin_memory=pinned)
    target = torch.empty(bounds.copy_bytes, dtype=torch.uint8, device=f"cuda:{device}")
    times = []
    for _ in range(bounds.copies):
        torch.cuda.synchronize(device)
        began = clock()
        target.copy_(source, non_blocking=pinned)
        torch.cuda.synchronize(device)
        times.append(clock() - began)
    return float(bounds.copy_bytes / min(times))
