"""Figures of benchmarks: what was measured, in which unit, over how many rounds, and its target.

Each script of this folder has `measure(quick)`, which returns its figures. `main` prints them as a
table, or as JSON for `python -m benchmarks`. `quick` asks for fewer rounds and smaller sizes: it
tries a script, and its numbers mean little.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["ROOT", "Figure", "Measure", "child_cpu_s", "device", "main", "peak_bytes", "table"]

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure: the median of some rounds, with the lowest and the highest.

    `unit` is empty for a ratio. `target` says in words what the figure should be; it is empty where
    there is no target.
    """

    name: str
    median: float
    unit: str = ""
    low: float = 0.0
    high: float = 0.0
    rounds: int = 1
    target: str = ""

    @classmethod
    def of(cls, name: str, values: Sequence[float], unit: str = "", target: str = "") -> Figure:
        """Return the figure of the values of several rounds."""
        middle = statistics.median(values)
        return cls(name, middle, unit, min(values), max(values), len(values), target)

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """The name, the median, the spread and the target as texts."""
        unit = f" {self.unit}" if self.unit else ""
        spread = f"{_short(self.low)} to {_short(self.high)} ({self.rounds} rounds)"
        return (
            self.name,
            f"{_short(self.median)}{unit}",
            spread if self.rounds > 1 else "one round",
            self.target or "–",
        )


Measure = Callable[[bool], list[Figure]]
"""`measure(quick)` returns the figures of a script."""


def _short(value: float) -> str:
    if abs(value) < 0.0005:  # below what clocks resolve
        return "0"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def table(groups: Mapping[str, Iterable[Figure]]) -> str:
    """Return figures as a Markdown table, with the name of the script that measured each."""
    lines = ["| what | figure | spread | target | script |", "|---|--:|---|---|---|"]
    for script, figures in groups.items():
        lines += [f"| {' | '.join(each.cells)} | `{script}` |" for each in figures]
    return "\n".join(lines)


def main(description: str | None, measure: Measure) -> None:
    """Measure and print: the entry point of each script."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")
    parser.add_argument("--quick", action="store_true", help="Few rounds and small sizes.")
    options = parser.parse_args()
    figures = measure(options.quick)
    if options.json:
        print(json.dumps([asdict(each) for each in figures]))
    else:
        print(table({Path(sys.argv[0]).stem: figures}))


def device() -> dict[str, Any]:
    """Return the machine in words, without its name."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        models = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory_bytes / 2**30),
        "python": platform.python_version(),
    }


def peak_bytes() -> int:
    """Return the largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def child_cpu_s(run: Callable[[], object]) -> float:
    """Return the CPU seconds of the child processes that `run` waits for."""
    before = os.times()
    run()
    after = os.times()
    user_s = after.children_user - before.children_user
    return user_s + after.children_system - before.children_system
