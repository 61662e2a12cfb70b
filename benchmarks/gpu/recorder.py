"""Measurements as lines of JSON, on disk as soon as each is known."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

__all__ = ["Recorder", "machine_details", "machine_facts"]

_QUERY: Final = "driver_version,pcie.link.gen.current,pcie.link.width.current,clocks.sm,clocks.mem"


class Recorder:
    """Appends measurements to a file.

    Every line has the machine's `facts`, the date, and the seconds since the start, so that a line
    can be read without the others.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        self._path = path
        self._facts = dict(facts)
        self._began_s = time.monotonic()

    def put(self, measurement: str, value: float | None, unit: str, **what: Any) -> None:
        """Write one measurement; `what` says of what. None: it failed or was left out."""
        line = {
            "measurement": measurement,
            "value": value,
            "unit": unit,
            **what,
            "elapsed_s": round(time.monotonic() - self._began_s, 2),
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **self._facts,
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())  # a machine that is taken away loses no finished line


def machine_facts(device: str) -> dict[str, Any]:
    """Return what names the machine in every line."""
    gpu = torch.cuda.get_device_name() if device == "cuda" else "none"
    driver = _output("nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader")
    return {
        "device": gpu if device == "cuda" else "cpu",
        "driver": driver.split(",")[0].strip() if device == "cuda" and driver else "unknown",
        "torch": str(torch.__version__),
    }


def machine_details(device: str) -> dict[str, Any]:
    """Return what is said once: the processor, memory, and the state of the GPU."""
    details: dict[str, Any] = {
        "lscpu": _output("lscpu"),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": " ".join(os.uname()),
        "cuda": torch.version.cuda,
    }
    if device == "cuda":
        details["smi"] = _output("nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader")
        details["smi_fields"] = _QUERY
        properties: Any = torch.cuda.get_device_properties(0)
        details["properties"] = str(properties)
    return details


def _output(*command: str) -> str:
    """Return what a command prints, or nothing where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
