"""The CPU as a device: two pools of host memory, a thread for each lane, and emulated links.

Copies between the pools release the interpreter lock, so they run beside the computation. A CPU
lane, if there is one, computes from the host's pool, beside the lane that replaces the GPU. An
*emulated link* withholds the completion of a copy until its latency and its bytes' time have
passed, and so does an emulated disk. So any machine can run the ratios of PCIe. A copy that follows
another is timed from the nominal end of the one before, so that late wake-ups do not add up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from moesim.cost.roofline import copy_ns, read_ns
from moesim.executor.device import Done, one_thread
from moesim.hardware.hardware import Disk, Link
from moesim.hardware.topology import D2H, DISK, H2D, Lane

__all__ = ["CpuDevice"]


class CpuDevice:
    """A device that works in the lane's own thread: a mark is done when `submit` returns."""

    name = "cpu"
    torch_device = "cpu"
    pins = False
    outstanding = 1
    outstanding_bytes = 0
    clock_error_ns = 0

    def __init__(
        self, *, h2d: Link | None = None, d2h: Link | None = None, disk: Disk | None = None
    ) -> None:
        self._links = {H2D: h2d, D2H: d2h, DISK: disk}
        self._free_ns = dict.fromkeys(self._links, 0)

    def add_lanes(self, lanes: Sequence[Lane]) -> None:
        """Let torch compute in one thread a lane, so that lanes do not take each other's cores."""
        one_thread()

    def submit(
        self,
        lane: str,
        work: Callable[[], None],
        *,
        nbytes: int = 0,
        is_continuation: bool = False,
        ready_ns: int = 0,
    ) -> Done:
        start = time.monotonic_ns()
        work()
        link = self._links.get(lane)
        if link is not None and nbytes:
            takes = _duration_ns(link, nbytes) - (link.latency_ns if is_continuation else 0)
            due = max(self._free_ns[lane], ready_ns) + takes
            self._free_ns[lane] = due
            # The copy itself has taken a part of the link's time; only the rest is waited for.
            left = due - time.monotonic_ns()
            if left > 0:
                time.sleep(left / 1e9)
        return Done(start, time.monotonic_ns())

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


def _duration_ns(link: Link | Disk, nbytes: int) -> int:
    """Return the nanoseconds that a copy over an idle link, or a read, takes."""
    if isinstance(link, Disk):
        return read_ns(link, nbytes)
    return copy_ns(link, nbytes, pinned=True)
