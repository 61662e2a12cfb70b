"""Big traces and many tokens: time and memory of drawing, opening and replaying.

A trace of 1,000,000 tokens, 32 MoE layers of 64 experts, top-8, is drawn by `moesim trace synth`,
opened, and served in short requests by batches of 32, without bounds and with them. Where the extra
`fast` is installed, the compiled back end serves all sizes.

Each measurement is a process of its own. Memory is the peak over that of the interpreter with all
imports. A process serves 1,000 tokens first, which loads numba and the compiled functions. The
times are those of the second run. The exponents are slopes of log time and log memory over log
tokens; their memory is what the second run adds to the peak of the first. 1 is linear, and less
than 1 says that a constant part still counts. So there is an exponent of the longer runs, too.

    python benchmarks/scale.py
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from figures import Figure, main, peak_bytes

PROMPT, OUTPUT = 65, 36
ROWS_EACH = PROMPT + OUTPUT - 1
BACK_END = "compiled" if find_spec("numba") else "reference"
SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
KNOBS = ["--layers", "32", "--experts", "64", "--top-k", "8"]
ROUNDS = 5
FIRST, LONG = 1_000, 100_000


def draw(folder: Path, tokens: int) -> tuple[float, float]:
    """Draw a trace; return the CPU seconds and the peak memory in MB."""
    command = [sys.executable, "-m", "moesim", "trace", "synth", str(folder), *KNOBS]
    command += ["--requests", str(tokens // ROWS_EACH)]
    command += ["--prompt-tokens", str(PROMPT), "--output-tokens", str(OUTPUT)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    usage = waited(process)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6


def waited(process: subprocess.Popen[bytes]) -> resource.struct_rusage:
    """Wait for a child and return what it used. Raise `CalledProcessError` if it failed."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return usage


def in_child(what: str, trace: Path, tokens: int = 0, *, bounds: bool = False) -> dict[str, float]:
    """Measure `what` in a process of its own."""
    command = [sys.executable, __file__, "child", what, str(trace), str(tokens), str(bounds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def opened(trace: Path) -> dict[str, float]:
    """Open a trace; return the seconds by the clock and the memory in MB."""
    import pyarrow.parquet

    from moesim.trace import load_trace

    assert pyarrow
    before, start_s = peak_bytes(), time.perf_counter()
    load_trace(trace)
    return {"s": time.perf_counter() - start_s, "mb": (peak_bytes() - before) / 1e6}


def replayed(trace: Path, tokens: int, bounds: bool) -> dict[str, float]:
    """Serve some tokens of a trace; return the CPU seconds and the memory in MB.

    `added` is the memory that a run of FIRST tokens in the same process did not need.
    """
    import pyarrow.parquet
    import simpy

    from moesim.simulate import run

    assert pyarrow
    assert simpy
    scenario: dict[str, Any] = {
        "name": "big",
        "trace": str(trace),
        "model": {"shape": "hunyuan-a13b", "expert_bits": 4},
        "hardware": "rtx-4090",
        "workload": {"requests": tokens // ROWS_EACH},
        "batching": {"max_sequences": 32},
        "cache": {"policy": "lru", "slots": "24/layer"},
        "bounds": bounds,
        "simulation": BACK_END,
    }
    with tempfile.TemporaryDirectory() as folder:
        before = peak_bytes()
        first = {**scenario, "workload": {"requests": FIRST // ROWS_EACH}}
        run(first, out=Path(folder) / "first")
        loaded, start_s = peak_bytes(), time.process_time()
        run(scenario, out=Path(folder) / "run")
        spent_s = time.process_time() - start_s
    return {
        "s": spent_s,
        "mb": (peak_bytes() - before) / 1e6,
        "added": (peak_bytes() - loaded) / 1e6,
    }


def exponent(tokens: list[int], values: list[float]) -> float:
    """Return the slope of log value over log tokens."""
    return float(np.polyfit(np.log(tokens), np.log(np.maximum(values, 1e-9)), 1)[0])


def of_replays(replays: dict[int, dict[str, float]], bounds: bool) -> list[Figure]:
    """Return the figures of replays, by tokens; with bounds those of the largest alone."""
    sizes, also = list(replays), " with bounds" if bounds else ""
    figures = []
    for tokens, found in replays.items():
        if bounds and tokens != sizes[-1]:
            continue
        what = f"replaying {tokens:,} tokens{also}"
        target = "under 1500" if tokens == sizes[-1] else ""
        figures.append(Figure.of(what, [found["s"]], "CPU s"))
        figures.append(Figure.of(f"{what}, memory", [found["mb"]], "MB", target))
    for word, key in (("time", "s"), ("memory", "added")):
        values = [found[key] for found in replays.values()]
        name = f"exponent of replay {word} in tokens{also}, {BACK_END}"
        figures.append(Figure.of(name, [exponent(sizes, values)], "", "at most 1.1"))
        last = max(2, sum(tokens >= LONG for tokens in sizes))
        slope = exponent(sizes[-last:], values[-last:])
        figures.append(Figure.of(f"{name}, from {sizes[-last]:,} on", [slope], "", "0.9 to 1.1"))
    return figures


def measure(quick: bool) -> list[Figure]:
    """Return the figures of drawing, opening and replaying."""
    sizes = [2_000, 6_000] if quick else list(SIZES)
    largest = sizes[-1]
    of = f"{largest:,} tokens"
    with tempfile.TemporaryDirectory() as name:
        trace = Path(name) / "trace"
        draw_s, draw_mb = draw(trace, largest)
        openings = [in_child("open", trace) for _ in range(2 if quick else ROUNDS)]
        replays = {
            bounds: {tokens: in_child("replay", trace, tokens, bounds=bounds) for tokens in sizes}
            for bounds in (False, True)
        }
    figures = [
        Figure.of(f"drawing a trace of {of}", [draw_s], "CPU s"),
        Figure.of(f"drawing a trace of {of}, peak memory", [draw_mb], "MB"),
        Figure.of(f"opening a trace of {of}", [each["s"] for each in openings], "s", "under 2"),
        Figure.of(f"opening a trace of {of}, memory", [each["mb"] for each in openings], "MB"),
    ]
    return figures + [
        each for bounds, found in replays.items() for each in of_replays(found, bounds)
    ]


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        _, _, what, trace_name, count, bounded = sys.argv
        path = Path(trace_name)
        found = opened(path) if what == "open" else replayed(path, int(count), bounded == "True")
        print(json.dumps(found))
    else:
        main(__doc__, measure)
