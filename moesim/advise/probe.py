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
from threading import Barrier
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from moesim.advise.detect import Found
    from moesim.progress import Progress

__all__ = ["Bounds", "Copies", "Reached", "Rounds", "probe", "probe_copies"]

Clock = Callable[[], float]
"""Return seconds from any start, like `time.perf_counter`."""

_PROBING: Final = "probing this machine"


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long and with how much memory a machine is probed.

    A round of reads takes `round_s`. `caches` times the size of all caches are read, at least
    `least_bytes`, and at most `most_bytes` and `most_share` of free memory. A copy has `copy_bytes`.
    """

    round_s: float = 0.6
    rounds: int = 6
    core_rounds: int = 4
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
    """The rates of several rounds in bytes/s, by `threads` threads together."""

    threads: int
    bytes_per_s: tuple[float, ...]

    @property
    def best(self) -> float:
        """The rate of the best round."""
        return max(self.bytes_per_s)

    @property
    def worst(self) -> float:
        """The rate of the worst round."""
        return min(self.bytes_per_s)


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
    bounds: Bounds = Bounds(),  # noqa: B008  # it is frozen
    clock: Clock = time.perf_counter,
    progress: Progress | None = None,
) -> Reached:
    """Return what this machine reaches. `card` is the name of the GPU that is copied to.

    What fails is left out, with a note.
    """
    total = bounds.rounds + bounds.core_rounds + (1 if card else 0)
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(_PROBING, done, total)

    reads = core = copies = None
    notes: list[str] = []
    try:
        size = bounds.nbytes(found)
        reads = _reads(found.cores, bounds.rounds, size, bounds.round_s, clock, step)
        core = _reads(1, bounds.core_rounds, size, bounds.round_s, clock, step)
    except (MemoryError, RuntimeError, ValueError) as error:  # no memory, or no thread more
        notes.append(f"reads of memory could not be measured: {error or type(error).__name__}")
    if card:
        copies, why = probe_copies(card, bounds=bounds, clock=clock)
        notes += why
        step()
    return Reached(reads, core, copies, tuple(notes))


def _reads(
    threads: int, rounds: int, nbytes: int, round_s: float, clock: Clock, step: Callable[[], None]
) -> Rounds:
    """Return the rates of reads by threads that start each round together.

    Each thread fills its own buffer first, which puts the pages into the memory next to it. A rate
    is that of whole passes over the buffer, in the thread's own time.
    """
    import numpy as np

    each = nbytes // threads // 8
    start = Barrier(threads)

    def thread(number: int) -> list[float]:
        rates = []
        try:
            buffer = np.ones(each, np.int64)
            for _ in range(rounds):
                start.wait()
                began, passes = clock(), 0
                now = began
                while now - began < round_s:
                    buffer.max()
                    passes += 1
                    now = clock()
                rates.append(passes * buffer.nbytes / (now - began))
                if number == 0:
                    step()
        except BaseException:
            start.abort()  # else the other threads wait for ever
            raise
        return rates

    with ThreadPoolExecutor(threads) as pool:
        by_thread = list(pool.map(thread, range(threads)))
    return Rounds(threads, tuple(map(sum, zip(*by_thread, strict=True))))


def probe_copies(
    card: str,
    *,
    bounds: Bounds = Bounds(),  # noqa: B008  # it is frozen
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
    for _ in range(bounds.copies + 1):
        torch.cuda.synchronize(device)
        began = clock()
        target.copy_(source, non_blocking=pinned)
        torch.cuda.synchronize(device)
        times.append(clock() - began)
    return float(bounds.copy_bytes / min(times[1:]))  # the first one makes the context
