"""This machine and its terminal: memory, disk, folders, text, torch, and the nearest profile."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from moesim.config.units import format_bytes
from moesim.doctor.check import Check

if TYPE_CHECKING:
    from moesim.advice.detect import Found

__all__ = ["machine_checks", "numba_check", "terminal_check", "torch_check", "writable_check"]

_LEAST_MEMORY_BYTES: Final = 1 << 30  # free; a run of the shipped traces takes a third of it
_LEAST_DISK_BYTES: Final = 1 << 30
_DRAWN: Final = "│▇─×→"  # what tables and progress bars may hold


def machine_checks(found: Found | None = None) -> list[Check]:
    """Return the checks of the processor, memory and graphics card, and what to name for them."""
    from moesim.advice.detect import detect
    from moesim.advice.this_machine import described

    found = detect() if found is None else found
    here = described(found)
    lines = [line for line in here.lines if line]
    if here.parts.gpu == "none":
        reasons = "; ".join(line for line in lines if "no NVIDIA card" in line)
        gpu = Check("GPU", "absent", reasons or "none was found", _FOR_A_GPU)
    else:
        gpu = _card(here.parts.gpu)
    cpu = Check("CPU", "ok", lines[0] if lines else "unknown")
    return [cpu, _memory(found), gpu]


_MEASURE: Final = "`moesim calibrate --device cuda` measures it"
_UNLISTED: Final = (
    f"{_MEASURE}; or describe it: `hardware: {{profile: rtx-4090, vram: 24GiB, "
    "memory_bandwidth: 936GB/s}`"
)
_FOR_A_GPU: Final = "moesim simulates any card without one: `moesim list gpus`"


def _card(gpu: str) -> Check:
    """Return how a scenario names the card: as a shipped profile, or as a card of the catalogue."""
    from moesim.errors import UsageError
    from moesim.hardware.hardware import hardware_names
    from moesim.hardware.parts import gpu_named

    try:
        card = gpu_named(gpu).card
    except UsageError:
        return Check("GPU", "warning", f"{gpu}, which the catalogue lacks", _UNLISTED)
    name = gpu if card is None else card.name
    kind = f"hardware: {name}" if name in hardware_names() else f"hardware: {{gpu: {name}}}"
    return Check("GPU", "ok", gpu, f"in a scenario: `{kind}`; {_MEASURE}")


def _memory(found: Found) -> Check:
    if found.free_bytes is None:
        return Check("memory", "warning", "its size cannot be read", "see `extra machine`")
    total = format_bytes(found.memory_bytes or found.free_bytes)
    said = f"{format_bytes(found.free_bytes)} free of {total}"
    if found.free_bytes < _LEAST_MEMORY_BYTES:
        return Check("memory", "warning", said, "end other programs, or use --workers 1")
    return Check("memory", "ok", said)


def writable_check(name: str, folder: Path, remedy: str) -> Check:
    """Return whether a file can be written to a folder, and whether its disk has room."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"moesim")
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Check(name, "warning", f"{folder}: {error.strerror or error}", remedy)
    said = f"{folder.absolute()} is writable, {format_bytes(free)} free"
    return Check(name, "ok" if free >= _LEAST_DISK_BYTES else "warning", said)


def terminal_check(encoding: str | None = None) -> Check:
    """Return whether the output can show the characters of tables and progress bars."""
    encoding = encoding or getattr(sys.stdout, "encoding", None) or "ascii"
    try:
        _DRAWN.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        remedy = "set LC_ALL=C.UTF-8 (or PYTHONUTF8=1); until then some signs are shown as ?"
        return Check("terminal", "warning", f"its encoding is {encoding}, not UTF-8", remedy)
    return Check("terminal", "ok", f"its encoding is {encoding}")


def torch_check() -> Check:
    """Return the version of torch and its device; absent if torch is not installed."""
    if find_spec("torch") is None:
        return Check("torch", "absent", "not installed", "see `extra torch`")
    try:
        import torch

        device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu only"
    except Exception as error:  # a broken installation raises errors of many types
        said = f"cannot be used: {type(error).__name__}: {error}"
        return Check("torch", "warning", said, "install the extra torch again")
    return Check("torch", "ok", f"{torch.__version__}, device: {device}")


def numba_check() -> Check:
    """Return where numba keeps machine code; absent if numba is not installed."""
    if find_spec("numba") is None:
        return Check("numba cache", "absent", "numba is not installed", "see `extra fast`")
    try:
        from moesim.serving.compiled.keep import kept

        folder = kept(_next).stats.cache_path
    except Exception as error:  # numba refuses versions of numpy and Python with many errors
        said = f"numba cannot be used: {type(error).__name__}: {error}"
        return Check("numba cache", "warning", said, "install the extra fast again")
    if folder is None or not _can_write(Path(folder)):
        remedy = "set NUMBA_CACHE_DIR to a folder that can be written"
        return Check("numba cache", "warning", "nothing is kept: each process compiles", remedy)
    return Check("numba cache", "ok", f"machine code is kept in {folder}")


def _next(number: int) -> int:
    return number + 1


def _can_write(folder: Path) -> bool:
    while not folder.exists():
        folder = folder.parent
    return os.access(folder, os.W_OK)
