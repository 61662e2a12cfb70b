"""The machine under calibration: serves designed workloads and returns the works of each."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, Protocol

from moesim.calibrate.design import STAGING, Design, Limits, Subject, design_plan
from moesim.config.units import format_bytes
from moesim.errors import BudgetError, MissingExtra
from moesim.hardware.hardware import Hardware, Link, load_hardware
from moesim.serving.run_log import Issued

if TYPE_CHECKING:
    from moesim.executor.device import Device
    from moesim.executor.executor import Executor

__all__ = ["Bench", "DeviceBench", "machine_facts"]

_SHARE_OF_MEMORY: Final = 0.4  # that expert slots may take
_NO_LINK: Final = Link(0, 10**15, 10**15)


class Bench(Protocol):
    """The part of a machine that calibration needs."""

    limits: Limits
    """The requested limits, with the number of expert slots that fit into memory."""
    link: Link | None
    """The emulated link from host to device; None if copies run at the machine's own speed."""

    def serve(self, design: Design) -> Sequence[Issued]:
        """Serve a workload and return its works, in the order of issue."""

    def close(self) -> None:
        """Release threads and memory."""


class DeviceBench:
    """A real device, with one executor for all workloads."""

    def __init__(
        self,
        subject: Subject,
        device: str,
        limits: Limits,
        *,
        h2d: Link | None = None,
        d2h: Link | None = None,
        executor: Executor | None = None,
    ) -> None:
        """Build the model and its executor on a device, or borrow an executor of the model.

        Raise `UsageError` without such a device, `BudgetError` if memory is short, `MissingExtra`
        without torch.
        """
        if find_spec("torch") is None:
            raise MissingExtra("torch", "calibration")
        from moesim.executor.run import executor_for

        self._subject = subject
        self._name = device
        # Only the CPU emulates links; a GPU has real ones.
        emulates = device == "cpu"
        self._h2d, self._d2h = (h2d, d2h) if emulates else (None, None)
        self.link = self._h2d
        self._hardware = _hardware(self.link)
        self._owned: Executor | None = None
        if executor is not None:
            self._executor = executor
            room = len(executor.buffers) - STAGING
            self.limits = replace(limits, slots=min(limits.slots, room))
            return
        opened = self.open()
        try:
            slots = _slots_with_room(subject, opened)
            self.limits = replace(limits, slots=min(limits.slots, slots))
            largest = Design(1, 1, (1,), (1,), self.limits.slots_of(subject.shape), 0.0, 0)
            plan = design_plan(largest, subject, self._hardware)
            self._executor = self._owned = executor_for(plan, opened)
        finally:
            opened.close()

    def open(self) -> Device:
        """Open the device; the caller closes it."""
        from moesim.executor.device import open_device

        return open_device(self._name, h2d=self._h2d, d2h=self._d2h)

    def serve(self, design: Design) -> Sequence[Issued]:
        from moesim.executor.run import run_real

        plan = design_plan(design, self._subject, self._hardware)
        with closing(self.open()) as opened:
            return run_real(plan, self._executor, opened).works

    def close(self) -> None:
        if self._owned is not None:
            self._owned.close()


def _hardware(link: Link | None) -> Hardware:
    """Return a machine for plans: a real device takes only the size of a chunk from it."""
    card = load_hardware("a100-80gb")
    return replace(card, h2d=link or _NO_LINK, d2h=_NO_LINK)


def _slots_with_room(subject: Subject, device: Device) -> int:
    """Return how many expert slots fit into a share of the free memory."""
    free = _free_bytes(device)
    slots = int(free * _SHARE_OF_MEMORY) // subject.shape.expert_bytes
    if slots < subject.shape.top_k:
        raise BudgetError(
            f"an expert of {subject.shape.name} has {format_bytes(subject.shape.expert_bytes)}; "
            f"the device has {format_bytes(free)} of free memory, too little for a few experts"
        )
    return slots


def _free_bytes(device: Device) -> int:
    if device.torch_device == "cpu":
        from moesim.executor.run import free_memory

        return free_memory()
    from moesim.executor.run import free_gpu_memory

    return free_gpu_memory()


def total_bytes(device: Device) -> int:
    """Return the memory of the device; for a processor, that of the machine."""
    if device.torch_device == "cpu":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    import torch

    return int(torch.cuda.mem_get_info()[1])


def machine_facts(device: str) -> dict[str, str | int | float]:
    """Return the machine as its system describes it; figures hold only for an equal machine."""
    import torch

    from moesim import __version__

    facts: dict[str, str | int | float] = {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "moesim": __version__,
    }
    if device == "cuda" and torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def today() -> str:
    """Return the date in the form of a profile."""
    return time.strftime("%Y-%m-%d", time.gmtime())


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
