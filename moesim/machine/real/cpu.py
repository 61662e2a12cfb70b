"""The CPU as a device: two pools of host memory, a thread for each lane, a link on demand.

Copies between the pools release the interpreter lock, so they run beside the computation. An
*emulated link* holds back the news of a copy until its latency and its bytes' time have passed:
so the ratios of PCIe can be run anywhere. Copies that follow each other are timed from the
moment the one before should have ended, so that late wake-ups do not add up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from moesim.hardware.cost import copy_ns
from moesim.hardware.hardware import Link
from moesim.machine.base import D2H, H2D

__all__ = ["CpuDevice", "Done"]


class Done(NamedTuple):
    """The mark of work that is over."""

    start_ns: int
    finish_ns: int

    def done(self) -> bool:
        return True


class CpuDevice:
    """Works in the lane's own thread: a mark is done when `submit` returns."""

    name = "cpu"
    torch_device = "cpu"
    pins = False
    outstanding = 1

    def __init__(self, *, h2d: Link | None = None, d2h: Link | None = None) -> None:
        self._links = {H2D: h2d, D2H: d2h}
        self._free_ns = {H2D: 0, D2H: 0}

    def submit(
        self,
        lane: str,
        work: Callable[[], None],
        *,
        nbytes: int = 0,
        goes_on: bool = False,
        ready_ns: int = 0,
    ) -> Done:
        start = time.monotonic_ns()
        work()
        link = self._links.get(lane)
        if link is not None and nbytes:
            takes = copy_ns(link, nbytes, pinned=True) - (link.latency_ns if goes_on else 0)
            due = max(self._free_ns[lane], ready_ns) + takes
            self._free_ns[lane] = due
            left = due - time.monotonic_ns()
            if left > 0:
                time.sleep(left / 1e9)
        return Done(start, time.monotonic_ns())

    def close(self) -> None:
        """Nothing to let go of."""
