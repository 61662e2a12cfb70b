"""Speed of the event loop: layer events per second, as a share of raw SimPy timeouts.

The workload is a batch-1 offloaded decode in Mixtral's shape (32 layers of 8 experts, top-2), with
4 of 8 slots a layer, LRU, all metrics on. Its synthetic trace has the adjacent-token overlap of
real traces. For comparison there are raw SimPy timeouts, and a bare Python loop that only does the
same LRU look-ups. Rounds are interleaved in one process and CPU time is counted, so that a busy
machine disturbs all three alike. The median ratio is printed, then its spread.

    python benchmarks/events.py
"""

from __future__ import annotations

import tempfile
import time
from collections import OrderedDict
from pathlib import Path

import simpy
from figures import Figure, main

from moesim.scenario import Scenario
from moesim.simulate import Plan, prepare, simulate, summarise
from moesim.trace import SyntheticKnobs, Trace, synthesize

ROUNDS = 7
TIMEOUTS = 200_000
KNOBS = SyntheticKnobs(
    requests=4,
    prompt_tokens=1,
    output_tokens=256,
    num_layers=32,
    num_experts=8,
    top_k=2,
    skew=0.4,
    stickiness=0.25,
)


def timeouts_per_s() -> float:
    """Return the rate of raw SimPy: one process that only waits."""

    def waiter(env: simpy.Environment) -> simpy.events.ProcessGenerator:
        for _ in range(TIMEOUTS):
            yield env.timeout(1)

    env = simpy.Environment()
    env.process(waiter(env))
    start = time.process_time()
    env.run()
    return TIMEOUTS / (time.process_time() - start)


def layer_events_per_s(plan: Plan) -> float:
    """Return the rate of the simulator with all its metrics."""
    start = time.process_time()
    summary = summarise(simulate(plan))
    spent = time.process_time() - start
    return float(summary["layer_events"] / spent)


def lookups_per_s(trace: Trace, capacity: int) -> float:
    """Return the rate of a bare loop over the same ids with an LRU per layer: Python's own cost."""
    rows = trace.expert_ids[:].tolist()
    start = time.process_time()
    caches: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(trace.num_layers)]
    hits = events = 0
    for row in rows:
        for cache, union in zip(caches, row, strict=True):
            for expert in union:
                if expert in cache:
                    hits += 1
                cache[expert] = None
                cache.move_to_end(expert)
            while len(cache) > capacity:
                cache.popitem(last=False)
            events += 1
    return events / (time.process_time() - start)


def make_plan(folder: Path) -> Plan:
    """Return the plan of the benchmark's scenario."""
    synthesize(KNOBS).save(folder / "trace")
    scenario = Scenario.model_validate(
        {
            "trace": str(folder / "trace"),
            "model": {"shape": "mixtral-8x7b", "expert_bits": 4},
            "hardware": "rtx-4090",
            "batching": {"max_sequences": 1},
            "cache": {"policy": "lru", "slots": "4/layer"},
        }
    )
    return prepare(scenario)


def measure(quick: bool) -> list[Figure]:
    """Return the ratio to raw SimPy, and the three rates."""
    ratios, ours, raw, bare = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(Path(folder))
        for _ in range(2 if quick else ROUNDS):
            raw.append(timeouts_per_s())
            # One after another in each round, so that a slow moment hits all three.
            ours.append(layer_events_per_s(plan))
            bare.append(lookups_per_s(plan.trace, 4))
            ratios.append(ours[-1] / raw[-1])
    return [
        Figure.of("layer events of one user's decode over raw SimPy timeouts", ratios),
        Figure.of("layer events of one user's decode", ours, "a CPU second"),
        Figure.of("raw SimPy timeouts", raw, "a CPU second"),
        Figure.of("bare Python look-ups, layer events", bare, "a CPU second"),
    ]


if __name__ == "__main__":
    main(__doc__, measure)
