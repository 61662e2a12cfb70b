"""What a device is to the real machine: lanes that take work and say when it is done.

Work is a function. A device may be done with it when `submit` returns (the CPU, which works in
the lane's own thread) or much later (a GPU): the *mark* tells. Within a lane work is done in
order; between lanes nothing is promised, so whoever depends on something waits for its mark.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from moesim.errors import UsageError
from moesim.hardware.hardware import Link

__all__ = ["DEVICES", "Device", "Mark", "one_thread", "open_device"]

DEVICES = ("cpu", "cuda", "fake")


class Mark(Protocol):
    """The end of a piece of work. Times are those of `time.monotonic_ns`, known once it is done."""

    @property
    def start_ns(self) -> int: ...

    @property
    def finish_ns(self) -> int: ...

    def done(self) -> bool:
        """Whether the work is done and all can see what it did. Raises what it raised."""


class Device(Protocol):
    """One GPU and its two copy engines, or what stands for them."""

    name: str
    torch_device: str
    """Where expert buffers and the model's other weights live."""
    pins: bool
    """Whether page-locked host memory makes a difference."""
    outstanding: int
    """Pieces of work that a lane may hand in before the first of them is done."""

    def submit(
        self,
        lane: str,
        work: Callable[[], None],
        *,
        nbytes: int = 0,
        goes_on: bool = False,
        ready_ns: int = 0,
    ) -> Mark:
        """Hand in work for a lane; always called by the same thread for a lane. `nbytes` cross
        the link (0: nothing of weight), and could have from `ready_ns` on; `goes_on`: they
        are the next chunk of the copy before, and pay no latency of their own."""

    def close(self) -> None:
        """Let go of threads and memory."""


def open_device(name: str, *, h2d: Link | None = None, d2h: Link | None = None) -> Device:
    """A device by name; `h2d` and `d2h` emulate links of such speeds, on the CPU only, where from
    now on torch computes in one thread.

    Raises `UsageError` for an unknown name, and for cuda where there is no GPU.
    """
    if name in ("cpu", "fake"):
        one_thread()
    if name == "cpu":
        from moesim.machine.real.cpu import CpuDevice

        return CpuDevice(h2d=h2d, d2h=d2h)
    if name == "cuda":
        from moesim.machine.real.cuda import CudaDevice

        return CudaDevice()
    if name == "fake":
        from moesim.machine.real.fake import FakeDevice

        return FakeDevice()
    raise UsageError(f"there is no device {name!r}; there are {', '.join(DEVICES)}")


def one_thread() -> None:
    """Compute in one thread on the CPU: copies have the other processors to themselves, as with a
    copy engine, and a measured duration means the same wherever it is used."""
    import torch

    torch.set_num_threads(1)
