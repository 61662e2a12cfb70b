"""Big traces and many tokens: time and memory of drawing, opening and replaying.

A trace of 1,000,000 tokens, 32 MoE layers of 64 experts, top-8, is drawn by `moesim trace synth`,
opened, and served in short requests by batches of 32. Each measurement is a process of its own.
Memory is that over the interpreter with all imports. The exponents are slopes of log time and log
memory over log tokens: 1 is linear, and less than 1 says that a constant part still counts.

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
from pathlib import Path
from typing import Any

import numpy as np
from figures import Figure, main, peak_bytes

PROMPT, OUTPUT = 65, 36
ROWS_EACH = PROMPT + OUTPUT - 1
SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
KNOBS = ["--layers", "32", "--experts", "64", "--top-k", "8"]
ROUNDS = 5


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


def in_child(what: str, trace: Path, tokens: int = 0) -> dict[str, float]:
    """Measure `what` in a process of its own."""
    command = [sys.executable, __file__, "child", what, str(trace), str(tokens)]
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


def replayed(trace: Path, tokens: int) -> dict[str, float]:
    """Serve some tokens of a trace; return the CPU seconds and the memory in MB."""
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
        "bounds": False,
    }
    with tempfile.TemporaryDirectory() as folder:
        before, start_s = peak_bytes(), time.process_time()
        run(scenario, out=Path(folder) / "run")
        spent_s = time.process_time() - start_s
    return {"s": spent_s, "mb": (peak_bytes() - before) / 1e6}


def exponent(tokens: list[int], values: list[float]) -> float:
    """Return the slope of log value over log tokens."""
    return float(np.polyfit(np.log(tokens), np.log(np.maximum(values, 1e-9)), 1)[0])


def measure(quick: bool) -> list[Figure]:
    """Return the figures of drawing, opening and replaying."""
    sizes = [2_000, 6_000] if quick else list(SIZES)
    largest = sizes[-1]
    of = f"{largest:,} tokens"
    with tempfile.TemporaryDirectory() as name:
        trace = Path(name) / "trace"
        draw_s, draw_mb = draw(trace, largest)
        openings = [in_child("open", trace) for _ in range(2 if quick else ROUNDS)]
        replays = [in_child("replay", trace, tokens) for tokens in sizes]
    times, memories = ([each[key] for each in replays] for key in ("s", "mb"))
    figures = [
        Figure.of(f"drawing a trace of {of}", [draw_s], "CPU s"),
        Figure.of(f"drawing a trace of {of}, peak memory", [draw_mb], "MB"),
        Figure.of(f"opening a trace of {of}", [each["s"] for each in openings], "s", "under 2"),
        Figure.of(f"opening a trace of {of}, memory", [each["mb"] for each in openings], "MB"),
    ]
    for tokens, spent, memory in zip(sizes, times, memories, strict=True):
        figures.append(Figure.of(f"replaying {tokens:,} tokens", [spent], "CPU s"))
        target = "under 1500" if tokens == largest else ""
        figures.append(Figure.of(f"replaying {tokens:,} tokens, memory", [memory], "MB", target))
    return [
        *figures,
        Figure.of("exponent of replay time in tokens", [exponent(sizes, times)], "", "0.9 to 1.1"),
        Figure.of("exponent of replay memory in tokens", [exponent(sizes, memories)], "",
                  "at most 1.1"),
    ]  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        _, _, what, trace_name, count = sys.argv
        path = Path(trace_name)
        print(json.dumps(opened(path) if what == "open" else replayed(path, int(count))))
    else:
        main(__doc__, measure)
