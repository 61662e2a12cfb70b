"""The probe: rates of reads and copies, by clocks that the tests hold."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import count
from threading import Thread, active_count
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from moesim.advice.detect import Found
from moesim.advice.probe import Bounds, Copies, Reached, probe, probe_copies

SMALL = Bounds(round_s=0.0, rounds=3, core_rounds=2, least_bytes=4096, copy_bytes=1000, copies=3)


class Ticks:
    """A clock that gains some seconds whenever it is read."""

    def __init__(self, *steps_s: float) -> None:
        self.now, self.read = 0.0, 0
        self._steps = iter(steps_s[:-1])
        self._last = steps_s[-1]

    def __call__(self) -> float:
        self.read += 1
        self.now += next(self._steps, self._last)
        return self.now


def one_core(bounds: Bounds, clock: Ticks | None = None, **more: Any) -> Reached:
    return probe(Found(cores=1), bounds=bounds, clock=clock or Ticks(0.25), **more)


# Reads


def test_a_rate_is_bytes_of_passes_by_the_time_they_take() -> None:
    done = one_core(replace(SMALL, round_s=1.0))
    assert done.reads is not None
    assert done.reads.bytes_per_s == (4096 * 4 / 1.0,) * 3  # four readings of the clock a second
    assert done.core is not None
    assert (done.core.threads, done.core.bytes_per_s) == (1, (4096 * 4 / 1.0,) * 2)
    assert done.notes == ()


def test_the_best_round_counts() -> None:
    # A look before each round, the start of the round, and the end of its only pass.
    clock = Ticks(1, 1, 2, 1, 1, 0.5, 1, 1, 4, 1)
    reads = one_core(replace(SMALL, core_rounds=1, reads_s=100), clock).reads
    assert reads is not None
    assert (*reads.bytes_per_s, reads.best) == (2048, 8192, 1024, 8192)


def test_no_round_starts_after_the_time_that_is_given() -> None:
    slow = replace(SMALL, rounds=1000, core_rounds=1000, reads_s=10.0, core_s=5.0)
    clock = Ticks(1.0)
    done = one_core(slow, clock)
    assert done.reads is not None
    assert done.core is not None
    # A round reads the clock three times, and so does the look before it.
    assert len(done.reads.bytes_per_s) == 4
    assert len(done.core.bytes_per_s) == 2
    assert clock.now < slow.reads_s + slow.core_s + 8


def test_one_round_takes_place_however_late_it_is() -> None:
    done = one_core(replace(SMALL, reads_s=0.0, core_s=0.0), Ticks(60.0))
    assert done.reads is not None
    assert done.core is not None
    assert (len(done.reads.bytes_per_s), len(done.core.bytes_per_s)) == (1, 1)


def test_all_cores_read_at_the_same_time_and_their_rates_add_up() -> None:
    before = active_count()
    done = probe(Found(cores=3), bounds=SMALL)
    assert done.reads is not None
    assert (done.reads.threads, len(done.reads.bytes_per_s)) == (3, 3)
    assert all(rate > 0 for rate in done.reads.bytes_per_s)
    assert 0 <= done.reads.cpu_share <= 1
    assert active_count() == before


def test_a_clock_that_stands_still_ends_nothing_and_divides_by_nothing() -> None:
    """Some systems count in steps of 16 ms, in which many passes take no time."""
    clock = Ticks(*([0.0] * 50), 0.016)
    done = one_core(replace(SMALL, rounds=1, core_rounds=1), clock)
    assert done.reads is not None
    assert 0 < done.reads.best < float("inf")


@pytest.mark.parametrize("cores", [1, 2])
def test_too_little_memory_leaves_the_rate_out_and_says_so(cores: int) -> None:
    before = active_count()
    huge = replace(SMALL, least_bytes=2**60, most_bytes=2**60)
    done = probe(Found(cores=cores), bounds=huge)
    assert (done.reads, done.core) == (None, None)
    (note,) = done.notes
    assert "not measured" in note
    assert "Unable to allocate" in note
    assert active_count() == before


def test_the_thread_that_fails_is_told_and_not_those_that_end_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, before = np.ones, active_count()
    calls = count()

    def ones(*arguments: Any) -> Any:
        if next(calls) == 1:
            raise MemoryError("no more memory")
        return made(*arguments)

    monkeypatch.setattr(np, "ones", ones)
    done = probe(Found(cores=2), bounds=SMALL)
    assert done.notes == ("reads of memory are not measured: no more memory",)
    assert active_count() == before


def test_a_thread_that_cannot_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    started, before = Thread.start, active_count()
    calls = count()

    def start(thread: Thread) -> None:
        if next(calls) == 1:
            raise RuntimeError("can't start new thread")
        started(thread)

    monkeypatch.setattr(Thread, "start", start)
    done = probe(Found(cores=2), bounds=SMALL)
    assert done.notes == ("reads of memory are not measured: can't start new thread",)
    assert active_count() == before


def test_an_error_of_the_progress_ends_the_threads() -> None:
    def fail(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    before = active_count()
    with pytest.raises(KeyboardInterrupt):
        probe(Found(cores=2), bounds=SMALL, progress=fail)
    assert active_count() == before


def test_progress_counts_each_round_to_its_total() -> None:
    seen: list[tuple[str, int, int]] = []
    one_core(SMALL, progress=lambda *told: seen.append(told))
    assert [done for _, done, _ in seen] == [1, 2, 3, 4, 5]
    assert {total for _, _, total in seen} == {5}


@pytest.mark.parametrize(
    ("found", "nbytes"),
    [
        (Found(), 512),  # the least
        (Found(cache_bytes=200), 800),
        (Found(cache_bytes=10_000), 2048),  # the most
        (Found(cache_bytes=200, free_bytes=2000), 500),  # a quarter of what is free
        (Found(cache_bytes=200, memory_bytes=1200), 300),
    ],
)
def test_buffers_exceed_the_caches_and_leave_memory_free(found: Found, nbytes: int) -> None:
    assert Bounds(least_bytes=512, most_bytes=2048).nbytes(found) == nbytes


def test_reads_that_may_be_those_of_caches_are_told() -> None:
    done = probe(Found(cores=1, cache_bytes=4096, free_bytes=8192), bounds=SMALL, clock=Ticks(0.25))
    assert done.reads is not None
    assert "caches" in done.notes[0]


def test_only_what_is_asked_is_measured() -> None:
    assert one_core(SMALL, reads=False) == Reached()


# Copies


class Torch:
    """A stand-in for torch with GPUs; a copy moves the clock by its time."""

    uint8 = "uint8"

    def __init__(self, *devices: tuple[str, int], pinned_s: float = 0.5) -> None:
        self.clock, self.copied_to = 0.0, list[str]()
        self.times = {True: pinned_s, False: 2.0}
        self.first_s = 100.0
        properties = [SimpleNamespace(name=name, total_memory=size) for name, size in devices]
        self.cuda = SimpleNamespace(
            is_available=lambda: bool(devices),
            device_count=lambda: len(properties),
            get_device_properties=properties.__getitem__,
            synchronize=lambda device: None,
        )

    def ones(self, size: int, *, dtype: str, pin_memory: bool) -> Any:
        return SimpleNamespace(nbytes=size, pinned=pin_memory)

    def empty(self, size: int, *, dtype: str, device: str) -> Any:
        takes = count()

        def copy(source: Any, *, non_blocking: bool) -> None:
            self.copied_to.append(device)
            self.clock += self.first_s if next(takes) == 0 else self.times[source.pinned]

        return SimpleNamespace(copy_=copy)


def copied(torch: Any, card: str = "RTX") -> tuple[Copies | None, Any]:
    def load(name: str) -> Any:
        return torch

    return probe_copies(card, bounds=SMALL, clock=lambda: torch.clock, load=load)


def test_the_best_copy_from_each_kind_of_memory_counts() -> None:
    copies, notes = copied(Torch(("RTX", 24)))
    assert copies == Copies(1000 / 0.5, 1000 / 2.0)
    assert notes == ()


def test_torch_finds_the_card_by_its_name_and_memory() -> None:
    torch = Torch(("other", 80), ("RTX", 12), ("RTX", 24))
    copied(torch)
    assert set(torch.copied_to) == {"cuda:2"}


@pytest.mark.parametrize("torch", [Torch(), Torch(("other", 80))])
def test_a_card_that_torch_cannot_use_is_not_measured(torch: Torch) -> None:
    copies, (note,) = copied(torch)
    assert copies is None
    assert "torch cannot use it" in note


def test_an_error_of_the_driver_is_told_in_one_line() -> None:
    torch = Torch(("RTX", 24))

    def fail(device: int) -> None:
        raise RuntimeError("CUDA error:\n out of memory")

    torch.cuda.synchronize = fail
    copies, (note,) = copied(torch)
    assert copies is None
    assert note.endswith("CUDA error: out of memory")


def test_without_torch_no_copy_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moesim.advice.probe.find_spec", lambda name: None)
    done = one_core(SMALL, reads=False, card="RTX")
    assert done.copies is None
    assert "torch is not installed" in done.notes[0]


def test_torch_that_cannot_be_loaded_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr("moesim.advice.probe.find_spec", lambda name: object())
    copies, (note,) = probe_copies("RTX", bounds=SMALL)
    assert copies is None
    assert "not measured" in note
