"""All checks of the installation and of this machine, in the order in which they are shown."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from moesim.doctor.check import Check
from moesim.doctor.machine import (
    machine_checks,
    numba_check,
    terminal_check,
    torch_check,
    writable_check,
)
from moesim.doctor.packages import extra_checks, package_checks, requirements
from moesim.doctor.self_check import check_self

__all__ = ["examine"]


def examine() -> Iterator[Check]:
    """Yield each check as it is done. Nothing is changed, and no check raises."""
    needed = requirements()
    yield from package_checks(needed)
    yield from extra_checks(needed)
    yield torch_check()
    yield numba_check()
    yield writable_check("this folder", Path.cwd(), "run moesim elsewhere, or give --out")
    yield writable_check("temporary folder", Path(tempfile.gettempdir()), "set TMPDIR")
    yield terminal_check()
    yield from machine_checks()
    yield check_self()
