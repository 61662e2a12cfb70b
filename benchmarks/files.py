"""The cost of a run outside its event loops: CPU time, as a share of raw SimPy timeouts.

The run serves a thousand short requests from a synthetic trace on disk. The measured part is
reading scenario and trace, checks, the workload, metrics and bounds, and writing the run directory.
The unit is 500,000 raw SimPy timeouts in the same process. Rounds are interleaved and the median is
printed. Imports and plots are reported apart.

    python benchmarks/files.py
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from figures import Figure, main

ROUNDS = 5
TIMEOUTS = 500_000
SCENARIO = """
name: files
trace: trace
model: {shape: mixtral-8x7b, expert_bits: 4}
hardware: rtx-4090
cache: {policy: lru, slots: 4/layer}
"""


def import_everything() -> float:
    """Import what a run needs; return the CPU seconds."""
    start = time.process_time()
    import pyarrow.parquet
    import simpy
    import yaml

    import moesim.machine.sim
    import moesim.policies.eviction
    import moesim.simulate
    import moesim.simulate.bounds
    import moesim.simulate.curve
    import moesim.simulate.rundir
    import moesim.trace

    assert all((pyarrow, simpy, yaml, moesim))
    return time.process_time() - start


def timeouts_s() -> float:
    """Return the CPU seconds of raw SimPy timeouts."""
    import simpy

    def waiter(env: simpy.Environment) -> simpy.events.ProcessGenerator:
        for _ in range(TIMEOUTS):
            yield env.timeout(1)

    env = simpy.Environment()
    env.process(waiter(env))
    start = time.process_time()
    env.run()
    return time.process_time() - start


class Stopwatch:
    """A wrapper of a function that adds up its CPU time."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.spent_s = 0.0

    def __call__(self, *args: Any, **options: Any) -> Any:
        start = time.process_time()
        try:
            return self.function(*args, **options)
        finally:
            self.spent_s += time.process_time() - start


def beside_the_loop_s(folder: Path, *, draw: bool = False) -> tuple[float, float]:
    """Return the CPU seconds of one run outside and inside its event loops.

    Building a server and its final checks count as outside.
    """
    from moesim.simulate import build as wiring
    from moesim.simulate import simulation as running

    parts = (running.simulate, wiring.build_server, running.finish)
    simulate, build, finish = map(Stopwatch, parts)
    # Functions are replaced where they are looked up, so that the run itself stays unchanged.
    running.simulate, wiring.build_server, running.finish = simulate, build, finish
    try:
        start = time.process_time()
        running.run(folder / "files.yaml", out=folder / "run", force=True, draw=draw)
        whole = time.process_time() - start
    finally:
        running.simulate, running.finish = simulate.function, finish.function
        wiring.build_server = build.function
    inside = simulate.spent_s - build.spent_s - finish.spent_s
    return whole - inside, inside


def prepare(folder: Path) -> None:
    """Write the trace and the scenario."""
    from moesim.trace import SyntheticKnobs, synthesize

    knobs = SyntheticKnobs(
        requests=1000,
        prompt_tokens=8,
        output_tokens=8,
        num_layers=32,
        num_experts=8,
        top_k=2,
        skew=0.4,
        stickiness=0.25,
    )
    synthesize(knobs).save(folder / "trace")
    (folder / "files.yaml").write_text(SCENARIO, encoding="utf-8")


def measure(quick: bool) -> list[Figure]:
    """Return the ratio to raw SimPy, and the CPU seconds of each part."""
    imports = import_everything()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        beside, inside, unit = [], [], []
        for _ in range(2 if quick else ROUNDS):
            unit.append(timeouts_s())
            outside, loop = beside_the_loop_s(folder)
            beside.append(outside)
            inside.append(loop)
        plots = beside_the_loop_s(folder, draw=True)[0] - statistics.median(beside)
    ratios = [spent / timeouts for spent, timeouts in zip(beside, unit, strict=True)]
    of = "a run of 1,000 short requests"
    return [
        Figure.of(f"{of}, beside its event loops, over {TIMEOUTS:,} SimPy timeouts", ratios),
        Figure.of(f"{of}, beside its event loops", beside, "CPU s"),
        Figure.of(f"{of}, event loops of the run and its bounds", inside, "CPU s"),
        Figure.of("imports of a run, once", [imports], "CPU s"),
        Figure.of(f"plots of {of}, with their imports", [plots], "CPU s"),
    ]


if __name__ == "__main__":
    main(__doc__, measure)
