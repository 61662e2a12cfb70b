"""Measure an NVIDIA GPU for moesim: `python -m benchmarks.gpu --out gpu-results`.

Parts run most valuable first. Each has a share of the budget; what a part leaves goes to the next.
A part that fails is recorded, and the others run.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import torch

from .bench import Bench
from .commands import calibration, validation
from .experts import beside_copies, experts
from .hand_over import clocks, hand_over
from .host import host
from .layers import attention, ends
from .links import links
from .recorder import Recorder, machine_details, machine_facts

__all__ = ["PARTS", "Part", "main", "run_parts"]


class Part(NamedTuple):
    """A group of measurements, and its share of the budget."""

    name: str
    share: float
    run: Callable[[Bench], None]


PARTS: Final = (
    Part("hand-over", 0.04, hand_over),
    Part("clocks", 0.01, clocks),
    Part("links", 0.08, links),
    Part("experts", 0.13, experts),
    Part("validate link_bound", 0.15, partial(validation, name="link_bound")),
    Part("validate host_bound", 0.15, partial(validation, name="host_bound")),
    Part("beside copies", 0.04, beside_copies),
    Part("attention", 0.06, attention),
    Part("ends", 0.04, ends),
    Part("validate resident", 0.13, partial(validation, name="resident")),
    Part("host", 0.07, host),
    Part("calibrate", 0.10, calibration),
)
_TRIAL: Final = {"validate host_bound", "validate resident"}  # too large to try on a CPU


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; return 0 if no part failed, 1 if one did, 2 without such a device."""
    options = _parser().parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no GPU; --device cpu tries the script without one")
        return 2
    wanted = options.parts.split(",") if options.parts else [part.name for part in PARTS]
    if unknown := set(wanted) - {part.name for part in PARTS}:
        print(f"no such part: {', '.join(unknown)}; parts are {', '.join(p.name for p in PARTS)}")
        return 2
    parts = [part for part in PARTS if part.name in wanted]
    if options.device == "cpu":
        parts = [part for part in parts if part.name not in _TRIAL]
    options.out.mkdir(parents=True, exist_ok=True)
    recorder = Recorder(options.out / "results.jsonl", machine_facts(options.device))
    work = options.work or options.out
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.device, recorder, work)
    recorder.put("machine", None, "none", **machine_details(options.device))
    failed = run_parts(parts, bench, options.budget)
    print(options.out / "results.jsonl")
    return 1 if failed else 0


def run_parts(parts: Sequence[Part], bench: Bench, budget_s: float) -> list[str]:
    """Run parts within the budget; return the names of those that failed."""
    whole = sum(part.share for part in parts)
    deadline_s = time.monotonic()
    failed = []
    for part in parts:
        began_s = time.monotonic()
        # From the planned end of the part before, so that time left over is used later.
        deadline_s += budget_s * part.share / whole
        bench.deadline_s = deadline_s
        print(f"{part.name}: {bench.left_s:.0f} s", flush=True)
        try:
            if bench.left_s <= 0:
                bench.recorder.put("left out", 1, "cases", part=part.name)
            else:
                with torch.inference_mode():
                    part.run(bench)
        except Exception as error:  # the other parts are still worth their time
            failed.append(part.name)
            bench.recorder.put("failed", None, "none", part=part.name, error=repr(error)[:2000])
        bench.recorder.put("part", round(time.monotonic() - began_s, 2), "s", part=part.name)
        if bench.on_gpu:
            torch.cuda.empty_cache()
    return failed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--budget", type=float, default=560.0, help="seconds for all parts")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="the folder to write")
    parser.add_argument("--work", type=Path, help="the folder for all but results.jsonl (--out)")
    parser.add_argument("--parts", default="", help="names of parts, separated by commas")
    return parser


if __name__ == "__main__":
    sys.exit(main())
