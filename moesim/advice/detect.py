"""What this machine is: its processor, its memory and its graphics cards, as the system says it.

psutil gives sizes and counts where it is installed. Without it the standard library reads the same
from the system's files and tools. Linux files are read below a root, which tests replace.

A process may have fewer cores and less memory than the machine: its affinity and its control
groups (containers) limit both. The limits count, because an engine would have the same ones.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from math import ceil
from pathlib import Path
from typing import Any, Final

from moesim.advice.cards import FoundCard, found_cards, output_of

__all__ = ["Found", "Limits", "detect", "limits_in", "linux", "macos", "modules_in"]

_KIB: Final = 1024
_UNLIMITED_BYTES: Final = 1 << 60  # control groups of version 1 write a number near 2^63
_AMD: Final = "0x1002"
_LEAST_CARD_BYTES: Final = 2 * 2**30  # less is the share of a GPU inside a processor


@dataclass(frozen=True, slots=True)
class Found:
    """What was found of a machine; "" and None stand for what cannot be read.

    `cores` are physical cores that this process may use. `memory` is type, speed and channels of
    host memory as far as they can be read, like `DDR5-5600 2ch`. `cache_bytes` is the sum of all
    last-level caches. `notes` say what limits the process or could not be asked.
    """

    cpu: str = ""
    cores: int = 1
    sockets: int = 1
    cache_bytes: int | None = None
    memory_bytes: int | None = None
    free_bytes: int | None = None
    memory: str = ""
    cards: tuple[FoundCard, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """What control groups leave to a process: processors, which may be a fraction, and bytes."""

    cpus: float | None = None
    memory_bytes: int | None = None


def detect() -> Found:
    """Return what this machine is. Nothing is written, and what fails is left out."""
    if sys.platform.startswith("linux"):
        found = linux(Path("/"), os.sched_getaffinity(0))
    elif sys.platform == "darwin":
        found = macos(output_of(["sysctl", "-a"]))
    else:
        found = Found(cpu=_windows_cpu() or platform.processor(), cores=os.cpu_count() or 1)
    if not sys.platform.startswith("linux"):
        found = _with_psutil(found)
    cards, why = found_cards()
    return replace(found, cards=cards, notes=(*found.notes, *why))


# Linux


def linux(root: Path, allowed: set[int]) -> Found:
    """Return what the files below `root` say; `allowed` are the processors of this process."""
    name, cores, sockets = _processors(_text(root / "proc/cpuinfo"), allowed)
    limits, notes = limits_in(root), []
    if limits.cpus is not None and ceil(limits.cpus) < cores:
        cores = max(1, ceil(limits.cpus))
        notes.append(f"a control group limits this process to {limits.cpus:g} processors")
    sizes = _memory_sizes(_text(root / "proc/meminfo"))
    total, free = sizes.get("MemTotal"), sizes.get("MemAvailable")
    most = limits.memory_bytes
    if most is not None and (total is None or most < total):
        total, free = most, None if free is None else min(free, most)
        notes.append("a control group limits the memory of this process")
    return Found(
        cpu=name,
        cores=cores,
        sockets=sockets,
        cache_bytes=_cache_bytes(root / "sys/devices/system/cpu"),
        memory_bytes=total,
        free_bytes=free,
        memory=modules_in(_text(root / "run/udev/data/+dmi:id")),
        notes=(*notes, *_other_cards(root / "sys/class/drm")),
    )


def _processors(cpuinfo: str, allowed: set[int]) -> tuple[str, int, int]:
    """Return the name, and the physical cores and sockets of the allowed processors.

    Processors of one core share `physical id` and `core id`. Arm systems give neither of them, and
    no name: each processor is a core there.
    """
    blocks = [
        dict(re.findall(r"^(\w[^\t:]*?)\s*:[ \t]*(.*)$", block, re.MULTILINE))
        for block in re.split(r"\n\s*\n", cpuinfo)
    ]
    blocks = [each for each in blocks if each.get("processor", "").isdigit()]
    used = [each for each in blocks if int(each["processor"]) in allowed] or blocks
    cores = {(each.get("physical id"), each.get("core id", each["processor"])) for each in used}
    sockets = {each.get("physical id") for each in used}
    name = used[0].get("model name", "") if used else ""
    return name, max(1, len(cores) or len(allowed)), max(1, len(sockets))


def _memory_sizes(meminfo: str) -> dict[str, int]:
    """Return the sizes of /proc/meminfo in bytes."""
    lines = re.findall(r"^(\w+):\s+(\d+) kB$", meminfo, re.MULTILINE)
    return {name: int(number) * _KIB for name, number in lines}


def _cache_bytes(cpus: Path) -> int | None:
    """Return the sum of the last-level caches; a cache is listed at each processor it serves."""
    caches: dict[tuple[int, str], int] = {}
    for index in cpus.glob("cpu[0-9]*/cache/index[0-9]*"):
        size = re.fullmatch(r"(\d+)([KM])", _text(index / "size").strip())
        level = _text(index / "level").strip()
        if size and level.isdigit():
            nbytes = int(size[1]) * (_KIB if size[2] == "K" else _KIB**2)
            caches[int(level), _text(index / "shared_cpu_list").strip()] = nbytes
    last = max((level for level, _ in caches), default=0)
    return sum(nbytes for (level, _), nbytes in caches.items() if level == last) or None


def modules_in(udev: str) -> str:
    """Return type, speed and channels of the modules that udev has found, like `DDR4-3200 2ch`.

    systemd reads the tables of the firmware at start, so no privileges are needed here. Channels
    count only if the name of each module has its channel. Types that it does not know are left out.
    """
    lines = re.findall(r"^E:MEMORY_DEVICE_(\d+)_(\w+)=(.*)$", udev, re.MULTILINE)
    modules: dict[str, dict[str, str]] = {}
    for number, key, value in lines:
        modules.setdefault(number, {})[key] = value.strip()
    there = [each for each in modules.values() if each.get("PRESENT") != "0" and "SIZE" in each]
    types = {each.get("TYPE", "") for each in there}
    speeds = {each.get("CONFIGURED_SPEED_MTS") or each.get("SPEED_MTS", "") for each in there}
    if len(speeds) != 1 or not (speed := speeds.pop()).isdigit():
        return ""
    kind = types.pop() if len(types) == 1 else ""
    known = re.fullmatch(r"(?:LP)?DDR[345]X?", kind) is not None
    text = f"{kind}-{speed}" if known else f"{speed} MT/s"
    channels = [_channel_of(each) for each in there]
    return text if None in channels else f"{text} {len(set(channels))}ch"


def _channel_of(module: dict[str, str]) -> str | None:
    """Return the socket and channel in the name of a module, like `P0 CHANNEL A`; None if absent.

    Controllers number their channels from the first, so their number belongs to the name.
    """
    text = f"{module.get('BANK_LOCATOR', '')} {module.get('LOCATOR', '')}"
    channel = re.search(r"CHANNEL[ _-]?([A-P]|\d{1,2})(?![A-Z\d])", text, re.IGNORECASE)
    if channel is None:
        return None
    parents = re.findall(r"(?:CONTROLLER|NODE|CPU|P)[ _-]?\d+", text, re.IGNORECASE)
    return " ".join((*parents, channel[1])).upper()


def _other_cards(drm: Path) -> list[str]:
    """Return a sentence about each card of AMD: the kernel knows its memory, but not its name."""
    sizes = [
        _text(device / "mem_info_vram_total").strip()
        for device in sorted(drm.glob("card[0-9]*/device"))
        if _text(device / "vendor").strip() == _AMD
    ]
    return [
        f"a card of AMD with {int(size) / 2**30:.0f} GiB is not used, because its name cannot be "
        "read: name it with --gpu"
        for size in sizes
        if size.isdigit() and int(size) >= _LEAST_CARD_BYTES
    ]


def limits_in(root: Path) -> Limits:
    """Return the limits of the control groups of this process and of all groups above it."""
    cpus: list[float] = []
    sizes: list[int] = []
    for folder in _groups(root):
        quota = _text(folder / "cpu.max").split() or [
            _text(folder / "cpu.cfs_quota_us").strip(),
            _text(folder / "cpu.cfs_period_us").strip(),
        ]
        if len(quota) == 2 and all(each.isdigit() and int(each) for each in quota):
            cpus.append(int(quota[0]) / int(quota[1]))
        for name in ("memory.max", "memory.limit_in_bytes"):
            size = _text(folder / name).strip()
            if size.isdigit() and 0 < int(size) < _UNLIMITED_BYTES:
                sizes.append(int(size))
    return Limits(min(cpus, default=None), min(sizes, default=None))


def _groups(root: Path) -> list[Path]:
    """Return the folders of this process's control groups, of both versions, and those above."""
    mount, folders = root / "sys/fs/cgroup", []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if names and not {"cpu", "memory"} & set(names.split(",")):
            continue
        base = mount / names if names else mount
        inner = base / path.strip("/")
        folders += [inner, *(each for each in inner.parents if each.is_relative_to(base))]
    return folders


# Other systems


def macos(sysctl: str) -> Found:
    """Return what `sysctl -a` of macOS says."""
    values = dict(re.findall(r"^([\w.]+): (.*)$", sysctl, re.MULTILINE))

    def number(name: str) -> int | None:
        text = values.get(name, "").strip()
        return int(text) if text.isdigit() and int(text) else None

    return Found(
        cpu=values.get("machdep.cpu.brand_string", "").strip(),
        cores=number("hw.physicalcpu") or os.cpu_count() or 1,
        sockets=number("hw.packages") or 1,
        memory_bytes=number("hw.memsize"),
    )


def _windows_cpu() -> str:
    """Return the name of the processor in the registry of Windows; "" elsewhere."""
    if sys.platform == "win32":
        path = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
        try:
            import winreg

            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, path) as key:
                return str(winreg.QueryValueEx(key, "ProcessorNameString")[0]).strip()
        except (ImportError, OSError):
            pass
    return ""


def _with_psutil(found: Found, load: Callable[[str], Any] = import_module) -> Found:
    """Return what was found with psutil's cores and sizes; without psutil, a note says so."""
    try:
        psutil = load("psutil")
        cores, memory = psutil.cpu_count(logical=False), psutil.virtual_memory()
        total, free = int(memory.total), int(memory.available)
    except Exception as error:  # not installed, or not able to ask this system
        if found.memory_bytes is not None:
            return found
        note = f"the size of memory cannot be read without psutil ({type(error).__name__})"
        return replace(found, notes=(*found.notes, note))
    return replace(found, cores=cores or found.cores, memory_bytes=total, free_bytes=free)


def _text(path: Path) -> str:
    """Return the text of a file; "" if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return ""
