"""Wait for what another process does."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(true: Callable[[], bool], patience_s: float = 120, pause_s: float = 0.02) -> None:
    """Return once `true()` holds. Fail if it does not become so."""
    deadline = time.monotonic() + patience_s
    while not (holds := true()) and time.monotonic() < deadline:
        time.sleep(pause_s)
    assert holds, "waited in vain"
