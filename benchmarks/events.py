"""Speed of the event loop: layer events per second, as a share of raw SimPy timeouts.

The workload is a batch-1 offloaded decode in Mixtral's shape (32 layers of 8 experts, top-2), with
4 of 8 slots a layer, LRU, all metrics on. Its synthetic trace has the adjacent-token overlap of
real traces. For comparison there are raw SimPy timeouts, and a bare Python loop that only does the
same LRU look-ups. Rounds are interleaved in one process and CPU time is counted, so that a busy
machine disturbs all three alike. The median ratio is printed, then its spread.

    python benchmarks/events.py
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import OrderedDict
from pathlib import Path

import simpy

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


def layer_events_per_s(plan: Plan) -> tuple[float, float]:
    """Return the rate of the simulator with all its metrics, and the hit rate."""
    start = time.process_time()
    summary = summarise(simulate(plan))
    spent = time.process_time() - start
    return summary["layer_events"] / spent, summary["expert_hit_rate"]


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


def main() -> None:
    """Measure and print; the ratio first."""
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(Path(folder))
        ratios, ours, raw, bare = [], [], [], []
        hit_rate = 0.0
        for _ in range(ROUNDS):
            raw.append(timeouts_per_s())
            # One after another in each round, so that a slow moment hits all three.
            speed, hit_rate = layer_events_per_s(plan)
            ours.append(speed)
            bare.append(lookups_per_s(plan.trace, 4))
            ratios.append(speed / raw[-1])
    print(f"ratio {statistics.median(ratios):.3f}")
    print(f"ratio over {ROUNDS} rounds: {min(ratios):.3f} to {max(ratios):.3f}")
    print(f"layer events per second: {statistics.median(ours):,.0f}, hit rate {hit_rate:.3f}")
    print(f"raw SimPy timeouts per second: {statistics.median(raw):,.0f}")
    print(f"bare Python look-ups, layer events per second: {statistics.median(bare):,.0f}")


if __name__ == "__main__":
    main()
