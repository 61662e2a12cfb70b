"""All checks of the installation and of this machine, in the order in which they are shown."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
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
    yield from _guarded("packages", lambda: package_checks(requirements()))
    yield from _guarded("extras", lambda: extra_checks(requirements()))
    yield from _guarded("torch", lambda: [torch_check()])
    yield from _guarded("numba cache", lambda: [numba_check()])
    here, temporary = Path(os.curdir), Path(tempfile.gettempdir())
    yield writable_check("this folder", here, "run moesim elsewhere, or give --out")
    yield writable_check("temporary folder", temporary, "set TMPDIR")
    yield terminal_check()
    yield from _guarded("machine", machine_checks)
    yield check_self()


def _guarded(name: str, checks: Callable[[], list[Check]]) -> list[Check]:
    """Return checks, or one that says why they could not be made."""
    try:
        return checks()
    except Exception as error:  # a machine may say what no code expects
        return [Check(name, "warning", f"{type(error).__name__}: {error}", "please report this")]
