"""Speed of whole curves: all capacities in one pass, against libcachesim at eight capacities.

The ratio says how many times faster LRU's curve at every capacity is. Ours is the whole call of
`curve` on a trace in memory, checks of its ids included. libcachesim runs its own loop over an open
binary trace of each layer, once for each of eight capacities; opening and writing these files is
not counted. The other line compares MIN with libcachesim's Belady, by the compiled loop (numba, the
extra `fast`) and by numpy alone. libcachesim replays ids one by one, which takes as many accesses.
Rounds are interleaved in one process, and CPU time is counted, so that a busy machine disturbs all
alike.

    python benchmarks/curve.py [ROUTING.npz or trace folder]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import libcachesim as lib
import numpy as np

from moesim.simulate import priority
from moesim.simulate.curve import curve
from moesim.trace import SyntheticKnobs, Trace, load_trace, synthesize
from moesim.trace.importers import from_esft

ROUNDS: Final = 9
CAPACITIES: Final = 8
HASHPOWER: Final = 12  # the fastest; the default table takes a second to clear
RECORD: Final = np.dtype([("time", "<u4"), ("key", "<u8"), ("size", "<u4"), ("next", "<i8")])


def routing(path: Path | None) -> Trace:
    """Return the trace of a path; without one, synthetic routing of DeepSeek-V2-Lite's sizes."""
    if path is None:
        return synthesize(
            SyntheticKnobs(
                requests=33, prompt_tokens=252, output_tokens=1, num_layers=26, num_experts=64,
                top_k=6,
            )
        )  # fmt: skip
    return from_esft(path) if path.suffix == ".npz" else load_trace(path)


def open_layers(trace: Trace, folder: Path) -> list[Any]:
    """Write the accesses of each layer as libcachesim's own binary trace, and open it."""
    readers = []
    for layer in range(trace.num_layers):
        ids = np.asarray(trace.expert_ids[:])[:, layer].ravel()
        keys = ids[ids != trace.meta.unused].astype(np.int64)
        order = np.argsort(keys, kind="stable")
        again = keys[order[1:]] == keys[order[:-1]]
        records = np.zeros(len(keys), RECORD)
        records["time"], records["key"], records["size"] = np.arange(len(keys)), keys + 1, 1
        records["next"] = -1
        records["next"][order[:-1][again]] = order[1:][again] + 1
        path = folder / f"{layer}.oracleGeneral"
        records.tofile(path)
        readers.append(lib.TraceReader(str(path), lib.TraceType.ORACLE_GENERAL_TRACE))
    return readers


def replayed(kind: Any, readers: Sequence[Any], capacities: Sequence[int]) -> None:
    """Replay each layer once for each capacity in libcachesim."""
    for reader in readers:
        for capacity in capacities:
            reader.reset()
            kind(capacity, hashpower=HASHPOWER).process_trace(reader)


def cpu_s(work: Callable[[], Any]) -> float:
    """Return the CPU seconds that `work` takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def by_numpy(trace: Trace) -> None:
    """Compute MIN's curve without the compiled loop."""
    loop = priority._compiled_loop
    priority._compiled_loop = lambda: None
    try:
        curve(trace, ["min"])
    finally:
        priority._compiled_loop = loop


def main() -> None:
    """Measure and print; the ratio first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", type=Path, nargs="?", help="Routing in .npz, or a trace folder.")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="Rounds of each.")
    arguments = parser.parse_args()
    trace = routing(arguments.trace)
    priority._compiled_loop()  # where it is loaded already, it runs for short replays, too
    step = max(1, trace.num_experts // CAPACITIES)
    capacities = range(step, trace.num_experts + 1, step)
    with tempfile.TemporaryDirectory() as folder:
        readers = open_layers(trace, Path(folder))
        works: dict[str, Callable[[], Any]] = {
            "libcachesim LRU": lambda: replayed(lib.LRU, readers, capacities),
            "LRU": lambda: curve(trace, ["lru"]),
            "libcachesim Belady": lambda: replayed(lib.Belady, readers, capacities),
            "MIN": lambda: curve(trace, ["min"]),
            "MIN by numpy": lambda: by_numpy(trace),
        }
        first = {name: cpu_s(work) for name, work in works.items()}
        times = {name: [] for name in works}  # type: dict[str, list[float]]
        for _ in range(arguments.rounds):
            for name, work in works.items():
                times[name].append(cpu_s(work))
    pairs = {
        "": ("libcachesim LRU", "LRU"),
        "MIN ": ("libcachesim Belady", "MIN"),
        "MIN by numpy ": ("libcachesim Belady", "MIN by numpy"),
    }
    for label, (theirs, ours) in pairs.items():
        ratios = [their / our for their, our in zip(times[theirs], times[ours], strict=True)]
        print(f"{label}ratio {statistics.median(ratios):.2f}")
        print(f"{label}ratio over {len(ratios)} rounds: {min(ratios):.2f} to {max(ratios):.2f}")
    print(f"{trace}; libcachesim {lib.__version__} at {len(capacities)} capacities, ours at all")
    for name, spent in times.items():
        print(f"{name}: {statistics.median(spent) * 1e3:.0f} ms; first {first[name] * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
