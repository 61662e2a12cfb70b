"""What it takes to hand work to a GPU and to learn that it is done; and the drift of its clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch

from moesim.executor.state_copies import staged

from .bench import Bench

__all__ = ["clocks", "hand_over"]

_REPEATS: Final = 200
_POLL_S: Final = 20e-6


def hand_over(bench: Bench) -> None:
    """Measure launches, round trips of a few ids, small copies, threads that wake each other."""
    parts: list[Callable[[Bench], None]] = [_launches, _round_trips, _small_copies, _threads]
    for part in bench.cases("hand-over", parts):
        part(bench)


def _launches(bench: Bench) -> None:
    numbers = torch.ones(8, device=bench.device)
    bench.put_times("launch", bench.timed(lambda: numbers.add_(1)), call="add_ of 8 floats")
    bench.put_times("launch in a graph", bench.graphed(lambda: numbers.add_(1)), call="add_")

    def with_events() -> None:
        first, last = bench.event(), bench.event()
        first.record()
        numbers.add_(1)
        last.record()

    bench.put_times("launch", bench.timed(with_events), call="add_ between two events")


def _round_trips(bench: Bench) -> None:
    """From a launch to its result on the host, with each way to wait."""
    numbers = torch.ones(8, device=bench.device)
    cuda: Any = torch.cuda
    there = torch.empty(8, pin_memory=bench.on_gpu)
    ways: dict[str, Callable[[Any], None]] = {"spin": lambda event: event.synchronize()}
    if bench.on_gpu:
        ways["sleep until the end"] = lambda event: event.synchronize()
        ways["poll every 20 us"] = _poll
    other = bench.stream()
    for way, wait in ways.items():
        for streams in ("one stream", "two streams") if bench.on_gpu else ("one stream",):
            waits = []
            for _ in range(_REPEATS):
                event = (
                    cuda.Event(blocking=way.startswith("sleep")) if bench.on_gpu else bench.event()
                )
                time.sleep(200e-6)  # the GPU is idle, as it is before a layer's experts
                began_s = time.perf_counter()
                numbers.add_(1)
                if streams == "two streams":
                    other.wait_stream(cuda.current_stream())
                with bench.on(other if streams == "two streams" else None):
                    there.copy_(numbers, non_blocking=True)
                    event.record()
                wait(event)
                waits.append((time.perf_counter() - began_s) * 1e6)
            bench.put_spread("round trip", waits, wait=way, streams=streams)


def _poll(event: Any) -> None:
    while not event.query():
        time.sleep(_POLL_S)


def _small_copies(bench: Bench) -> None:
    """Small numbers to the device, by each kind of host memory: device and host time."""
    for count in (8, 512, 8192):
        plain = torch.zeros(count, dtype=torch.int64)
        ways = {"pageable": partial(plain.to, bench.device, non_blocking=True)}
        if bench.on_gpu:
            ways["pinned for it"] = partial(staged, plain, torch.device("cuda"))
        for memory, call in ways.items():
            times = bench.timed(call)
            bench.put_times("numbers to the device", times, memory=memory, nbytes=plain.nbytes)


def _threads(bench: Bench) -> None:
    """How late a sleep ends, and how long a thread takes to wake another."""
    late = []
    for _ in range(_REPEATS):
        began_s = time.perf_counter()
        time.sleep(_POLL_S)
        late.append((time.perf_counter() - began_s) * 1e6)
    bench.put_spread("sleep of 20 us", late)
    news = threading.Condition()
    sent: list[float] = []
    woken: list[float] = []

    def receive() -> None:
        with news:
            while len(woken) < _REPEATS:
                if len(sent) == len(woken):
                    news.wait()
                else:
                    woken.append((time.perf_counter() - sent[-1]) * 1e6)

    receiver = threading.Thread(target=receive, daemon=True)
    receiver.start()
    for _ in range(_REPEATS):
        time.sleep(300e-6)
        with news:
            if len(sent) == len(woken):
                sent.append(time.perf_counter())
            news.notify()
    with news:
        news.notify()
    receiver.join(1)
    if woken:
        bench.put_spread("wake-up of a thread", woken)


def clocks(bench: Bench) -> None:
    """Measure the drift of the device's clock, and the error of tying it to the host's."""
    origin, origin_ns, _ = _tied(bench)
    for number in range(8 if bench.on_gpu else 2):
        if bench.left_s <= 0:
            return
        time.sleep(0.5 if bench.on_gpu else 0.05)
        event, host_ns, error_ns = _tied(bench)
        ahead_us = origin.elapsed_time(event) * 1e3 - (host_ns - origin_ns) / 1e3
        bench.recorder.put(
            "clock ahead of the host's",
            round(ahead_us, 3),
            "us",
            after_s=round((host_ns - origin_ns) / 1e9, 3),
            error_us=round(error_ns / 1e3, 3),
            number=number,
        )


def _tied(bench: Bench) -> tuple[Any, int, int]:
    """Return an event, its time on the host's clock, and the error of that, both in ns."""
    best: tuple[Any, int, int] | None = None
    for _ in range(10):
        event = bench.event()
        before_ns = time.monotonic_ns()
        event.record()
        event.synchronize()
        after_ns = time.monotonic_ns()
        if best is None or after_ns - before_ns < 2 * best[2]:
            best = event, (before_ns + after_ns) // 2, (after_ns - before_ns) // 2
    assert best is not None
    return best
