"""How late do real copies land, and how long does `moesim validate` take? For an idle machine.

python benchmarks/real_time.py

Prints how much longer than its emulated link copies take, and the time and the error of
validations of `scenarios/validate.yaml`. Tests assert neither: both depend on the machine's load.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from figures import Figure, main

from moesim.executor.cpu import CpuDevice
from moesim.hardware.hardware import Link
from moesim.hardware.topology import H2D

SCENARIO = Path(__file__).resolve().parents[1] / "scenarios/validate.yaml"
ROUNDS = 3
COPIES = 40
COPY_NS = 5_000_000


def lateness_ns() -> list[int]:
    """How late each of some copies lands that follow each other over an emulated link."""
    bandwidth = 4096 * 10**9 // (COPY_NS - 1_000_000)
    device = CpuDevice(h2d=Link(1_000_000, bandwidth, bandwidth))
    start_ns = time.monotonic_ns()
    marks = [
        device.submit(H2D, lambda: None, nbytes=4096, ready_ns=start_ns) for _ in range(COPIES)
    ]
    return [
        mark.finish_ns - start_ns - number * COPY_NS for number, mark in enumerate(marks, start=1)
    ]


def validation() -> tuple[float, float]:
    """Seconds of one `moesim validate`, and the error of the total time in percent."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "moesim", "validate", str(SCENARIO)]
        command += ["--json", "--out", f"{folder}/out"]
        began_s = time.monotonic()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        spent_s = time.monotonic() - began_s
    return spent_s, float(json.loads(done.stdout)["total_time_error_pct"])


def measure(quick: bool) -> list[Figure]:
    """Return how late copies land, and the time and the error of validations."""
    late_us = [late / 1e3 for late in lateness_ns()]
    runs = [validation() for _ in range(1 if quick else ROUNDS)]
    return [
        Figure.of(f"delay of a {COPY_NS / 1e6:g} ms copy over an emulated link", late_us, "us"),
        Figure.of("`moesim validate scenarios/validate.yaml`", [spent for spent, _ in runs], "s"),
        Figure.of("error of its total time", [error for _, error in runs], "%"),
    ]


if __name__ == "__main__":
    main(__doc__, measure)
