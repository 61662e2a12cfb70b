"""The lanes of a run's machine and the causes of its stalls, in plain words.

A lane that the machine lacks has no busy share in `summary.json`. Runs of older versions know fewer
lanes and causes, so both are read from the run and never assumed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from moesim.report.runs import Run

__all__ = ["LANES", "STALL_CAUSES", "busy_key", "causes_of", "lanes_of"]

LANES: Final = {
    "gpu": "GPU\ncompute",
    "cpu": "CPU\ncompute",
    "h2d": "host to\nGPU copy",
    "d2h": "GPU to\nhost copy",
    "disk": "disk to\nhost read",
}
"""Labels of the lanes, in the order of figures."""
STALL_CAUSES: Final = {
    "demand": "demand copy",
    "late": "late prefetch",
    "readback": "router readback",
    "cpu": "CPU results",
    "disk": "disk read",
    "host": "host issue",
    "other": "other",
}
_OF_EVERY_RUN: Final = ("demand", "late", "readback", "other")


def busy_key(lane: str) -> str:
    """Return the summary key of a lane's busy share."""
    return f"{lane}_busy_share"


def lanes_of(run: Run) -> list[str]:
    """Return the lanes of a run's machine, in the order of `LANES`; unknown ones are last."""
    suffix = busy_key("")
    found = [
        key.removesuffix(suffix)
        for key, value in run.summary.items()
        if key.endswith(suffix) and value is not None
    ]
    return [lane for lane in (*LANES, *sorted(set(found) - LANES.keys())) if lane in found]


def causes_of(runs: Iterable[Run]) -> dict[str, str]:
    """Return the causes of stalls that matter in these runs, with their labels.

    Waiting for the CPU, the disk or the host is left out of machines that cannot wait for them.
    """
    present = {cause for run in runs for cause in STALL_CAUSES if _matters(cause, run)}
    return {cause: label for cause, label in STALL_CAUSES.items() if cause in present}


def _matters(cause: str, run: Run) -> bool:
    return cause in _OF_EVERY_RUN or cause in lanes_of(run) or run.value(f"stall_{cause}_s") > 0
