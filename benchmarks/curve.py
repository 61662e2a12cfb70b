"""Speed of whole curves: all capacities in one pass, against libcachesim at eight capacities.

The first ratio says how many times faster LRU's curve at every capacity is. Ours is the whole call
of `curve` on a trace in memory, checks of its ids included. libcachesim runs its own loop over an
open binary trace of each layer, once for each of eight capacities; opening and writing these files
is not counted. The others compare MIN with libcachesim's Belady, by the compiled loop (numba, the
extra `fast`) and by numpy alone. libcachesim replays ids one by one, which takes as many accesses.
Rounds are interleaved in one process, and CPU time is counted, so that a busy machine disturbs all
alike. A first round, which loads numba, does not count.

The routing is that of DeepSeek-V2-Lite (`law.npz` of deepseek-ai/ESFT). The variable LAW_NPZ gives
the file, or that of another routing or trace folder; else it is in `../shared`. Without it a
synthetic trace of the same sizes is replayed.

    python benchmarks/curve.py
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import libcachesim as lib
import numpy as np
from events import law_npz
from figures import Figure, main

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


def measure(quick: bool) -> list[Figure]:
    """Return the ratios of libcachesim's CPU time to ours, and the times."""
    file = law_npz()
    trace = routing(file)
    priority._compiled_loop()  # where it is loaded already, it runs for short replays, too
    step = max(1, trace.num_experts // CAPACITIES)
    capacities = range(step, trace.num_experts + 1, step)
    with tempfile.TemporaryDirectory() as folder:
        readers = open_layers(trace, Path(folder))
        works: dict[str, Callable[[], Any]] = {
            "libcachesim LRU": lambda: replayed(lib.LRU, readers, capacities),
            "LRU": lambda: curve(trace, ["lru"]),
            "libcachesim Belady": lambda: replayed(lib.Belady, readers, capacities),
            "MIN by numpy": lambda: by_numpy(trace),
        }
        if find_spec("numba"):
            works["MIN"] = lambda: curve(trace, ["min"])
        for work in works.values():
            cpu_s(work)
        times: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(2 if quick else ROUNDS):
            for name, work in works.items():
                times[name].append(cpu_s(work))
    of = "law.npz" if file is not None else "synthetic routing"
    pairs = {
        f"all capacities of LRU: libcachesim's time for {len(capacities)} over ours, {of}": (
            "libcachesim LRU", "LRU", "at least 4",
        ),
        "all capacities of MIN: libcachesim's Belady over the compiled loop": (
            "libcachesim Belady", "MIN", "more than 1",
        ),
        "all capacities of MIN: libcachesim's Belady over numpy alone": (
            "libcachesim Belady", "MIN by numpy", "",
        ),
    }  # fmt: skip
    ratios = [
        Figure.of(
            name,
            [their / our for their, our in zip(times[theirs], times[ours], strict=True)],
            "",
            target,
        )
        for name, (theirs, ours, target) in pairs.items()
        if ours in times
    ]
    ours = [name for name in works if not name.startswith("libcachesim")]
    return ratios + [
        Figure.of(f"all capacities of {name}", [s * 1e3 for s in times[name]], "CPU ms")
        for name in ours
    ]


if __name__ == "__main__":
    main(__doc__, measure)
