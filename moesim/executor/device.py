"""The interface of a device: lanes that take work and report when it is done.

Work is a function. It may be done when `submit` returns (the CPU, which works in the lane's own
thread) or much later (a GPU); the *mark* tells which. Within a lane, work is done in order. Between
lanes no order is guaranteed, so code that depends on some work waits for its mark.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from moesim.cost.roofline import CostModel
from moesim.errors import UsageError
from moesim.hardware.hardware import Disk, Link
from moesim.hardware.topology import Lane

__all__ = ["DEVICES", "Device", "Done", "Mark", "emulated", "one_thread", "open_device"]

DEVICES = ("cpu", "cuda", "fake")


class Mark(Protocol):
    """The end of a piece of work. Times are those of `time.monotonic_ns`, known once it is done."""

    @property
    def start_ns(self) -> int: ...

    @property
    def finish_ns(self) -> int: ...

    def done(self) -> bool:
        """Return whether the work is done and its effects are visible. Raise the work's error."""

    def wait(self) -> None:
        """Return once the work is done, as `done` says. Raise the work's error."""


class Done(NamedTuple):
    """The mark of finished work."""

    start_ns: int
    finish_ns: int

    def done(self) -> bool:
        return True

    def wait(self) -> None:
        """Return at once."""


class Device(Protocol):
    """One GPU and its two copy engines, or a substitute, and the host's lanes beside it."""

    name: str
    torch_device: str
    """The torch device of expert buffers and the model's other weights."""
    pins: bool
    """Whether page-locked host memory makes a difference."""
    outstanding: int
    """How many pieces of work a lane may hand in before the first of them is done."""
    outstanding_bytes: int
    """Copies beyond `outstanding` are handed in too while all in flight have at most these bytes.

    Many small chunks then keep a fast link busy, and an urgent copy still waits for few bytes."""

    @property
    def clock_error_ns(self) -> int:
        """How far two times of its marks can be wrong against each other, and against the host's.

        0 if it takes times from the host's clock."""

    def add_lanes(self, lanes: Sequence[Lane]) -> None:
        """Make these lanes ready beside those of one GPU, which are there from the beginning."""

    def submit(
        self,
        lane: str,
        work: Callable[[], None],
        *,
        nbytes: int = 0,
        is_continuation: bool = False,
        ready_ns: int = 0,
    ) -> Mark:
        """Hand in work for a lane; one thread makes all calls for a lane.

        `nbytes` cross the link (0: too few to count), and could have from `ready_ns` on. With
        `is_continuation` they are the next chunk of the copy before, which has paid the latency.
        """

    def close(self) -> None:
        """Release threads and memory."""


def emulated(cost: CostModel) -> dict[str, Any]:
    """Return the links and the disk that emulate a machine, as arguments of `open_device`."""
    links = {"h2d": cost.hardware.h2d, "d2h": cost.hardware.d2h}
    if not cost.pinned:
        # An emulated copy has one rate, here that of ordinary host memory.
        links = {
            name: replace(link, pinned_bytes_per_s=link.pageable_bytes_per_s)
            for name, link in links.items()
        }
    return {**links, "disk": cost.hardware.disk}


def open_device(
    name: str, *, h2d: Link | None = None, d2h: Link | None = None, disk: Disk | None = None
) -> Device:
    """Open a device by name; `h2d`, `d2h` and `disk` are emulated, on the CPU only.

    For cpu and fake, torch computes in one thread from now on. Raise `UsageError` for an unknown
    name, and for cuda without a GPU.
    """
    # Imports are here, because torch takes seconds to import and may not be installed.
    if name in ("cpu", "fake"):
        one_thread()
    if name == "cpu":
        from moesim.executor.cpu import CpuDevice

        return CpuDevice(h2d=h2d, d2h=d2h, disk=disk)
    if name == "cuda":
        from moesim.executor.cuda import CudaDevice

        return CudaDevice()
    if name == "fake":
        from moesim.executor.fake import FakeDevice

        return FakeDevice()
    raise UsageError(f"there is no device {name!r}; there are {', '.join(DEVICES)}")


def one_thread() -> None:
    """Make torch compute in one thread on the CPU.

    The other processors are then free for copies, as with a copy engine. It also makes a measured
    duration valid on the same machine wherever it is used.
    """
    import torch

    torch.set_num_threads(1)
