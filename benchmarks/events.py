"""Speed of the event loop: layer events per second, as a share of raw SimPy timeouts.

Offloaded decode with LRU, all metrics on, no files. The traces are synthetic, with the overlap of
adjacent tokens that real ones have, except for the last:

- one user, Mixtral's shape (32 layers of 8 experts, top-2), 4 of 8 slots: a million layer events.
  This is the ratio on the first line. Beside it, the same loop of LRU look-ups in bare Python;
- one user, OLMoE's shape (64 experts, top-8), half of the slots;
- as the first, with predicted prefetch;
- a batch of 32 on routing of DeepSeek-V2-Lite (deepseek-ai/ESFT), 16 of 64 slots. The variable
  LAW_NPZ gives the file `law.npz`, else it is in `../shared`. Without it the figure is left out.

The compiled back end runs where the extra `fast` is installed. A first round, which loads it, does
not count. Rounds are interleaved in one process and CPU time is counted, so that a busy machine
disturbs all alike.

    python benchmarks/events.py
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import simpy
from figures import ROOT, Figure, main

from moesim.scenario import Scenario
from moesim.simulate import Plan, prepare, simulate, summarise
from moesim.trace import SyntheticKnobs, Trace, synthesize
from moesim.trace.importers import from_esft

ROUNDS = 7
TIMEOUTS = 200_000
MIXTRAL = {"num_layers": 32, "num_experts": 8, "top_k": 2, "skew": 0.4, "stickiness": 0.25}
OLMOE = {"num_layers": 16, "num_experts": 64, "top_k": 8, "skew": 0.4, "stickiness": 0.25}
TOKENS = 256
BACK_END = "compiled" if find_spec("numba") else "reference"


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


def plan_of(trace: Trace, folder: Path, simulation: str, **sections: Any) -> Plan:
    """Return the plan of a scenario on a trace, which is saved first."""
    trace.save(folder)
    return prepare(
        Scenario.model_validate(
            {
                "trace": str(folder),
                "hardware": "rtx-4090",
                "batching": {"max_sequences": 1},
                "bounds": False,
                "simulation": simulation,
                **sections,
            }
        )
    )


def decode(layout: dict[str, Any], requests: int) -> Trace:
    """Return a synthetic trace of one-token prompts."""
    knobs = SyntheticKnobs(requests=requests, prompt_tokens=1, output_tokens=TOKENS, **layout)
    return synthesize(knobs)


def law_npz() -> Path | None:
    """Return the file of DeepSeek-V2-Lite's routing; None where it is absent."""
    named = os.environ.get("LAW_NPZ")
    shared = ROOT.parent / "shared/data/routing/esft_deepseek_v2_lite/law.npz"
    file = Path(named) if named else shared
    return file if file.exists() else None


def plans(folder: Path, quick: bool) -> dict[str, tuple[Plan, str]]:
    """Return the plans by the name of their figure, each with its target."""
    mixtral: dict[str, Any] = {
        "model": {"shape": "mixtral-8x7b", "expert_bits": 4},
        "cache": {"policy": "lru", "slots": "4/layer"},
    }
    prefetch = {"policy": "predicted", "options": {"depth": 1}}
    many, few = (4, 2) if quick else (123, 16)
    found = {
        f"one user, 2 of 8 experts, {BACK_END}": (
            plan_of(decode(MIXTRAL, many), folder / "k2", BACK_END, **mixtral),
            "at least 5",
        ),
        f"one user, 8 of 64 experts, {BACK_END}": (
            plan_of(
                decode(OLMOE, many),
                folder / "k8",
                BACK_END,
                model={"shape": "olmoe-1b-7b"},
                cache={"policy": "lru", "slots": "32/layer"},
            ),
            "at least 1",
        ),
        f"one user, predicted prefetch, {BACK_END}": (
            plan_of(
                decode({**MIXTRAL, "prediction_depth": 1}, many if find_spec("numba") else few),
                folder / "predicted",
                BACK_END,
                prefetch=prefetch,
                **mixtral,
            ),
            "at least 1",
        ),
    }
    if (law := law_npz()) is None:
        print("no law.npz: name it with LAW_NPZ", file=sys.stderr)
        return found
    lengths = {"prompt": 16, "output": 64 if quick else 512}
    workload = {"prefill": "skip", "order": "resampled", "requests": 256, "lengths": lengths}
    found[f"batch of 32, DeepSeek-V2-Lite, {BACK_END}"] = (
        plan_of(
            from_esft(law),
            folder / "law",
            BACK_END,
            model={"shape": "deepseek-v2-lite", "expert_bits": 4},
            batching={"max_sequences": 32},
            cache={"policy": "lru", "slots": "16/layer"},
            workload=workload,
        ),
        "at least 0.3",
    )
    return found


def measure(quick: bool) -> list[Figure]:
    """Return the ratios to raw SimPy, and the rates of the first workload."""
    with tempfile.TemporaryDirectory() as folder:
        found = plans(Path(folder), quick)
        ratios: dict[str, list[float]] = {name: [] for name in found}
        first = next(iter(found))
        ours, raw, bare = [], [], []
        for name, (plan, _) in found.items():
            if BACK_END in name:
                layer_events_per_s(plan)  # loads and compiles
        trace = found[first][0].trace
        for _ in range(2 if quick else ROUNDS):
            raw.append(timeouts_per_s())
            # One after another in each round, so that a slow moment hits all.
            for name, (plan, _) in found.items():
                rate = layer_events_per_s(plan)
                ratios[name].append(rate / raw[-1])
                if name == first:
                    ours.append(rate)
            bare.append(lookups_per_s(trace, 4))
    figures = [
        Figure.of(f"layer events over raw SimPy timeouts: {name}", ratios[name], "", target)
        for name, (_, target) in found.items()
    ]
    return [
        *figures,
        Figure.of("layer events of the first", ours, "a CPU second"),
        Figure.of("raw SimPy timeouts", raw, "a CPU second"),
        Figure.of("bare Python look-ups, layer events", bare, "a CPU second"),
    ]


def measured(quick: bool) -> list[Figure]:
    """Measure, and print the first ratio before all others."""
    figures = measure(quick)
    if "--json" not in sys.argv:
        print(f"ratio {figures[0].median:.3f}")
    return figures


if __name__ == "__main__":
    main(__doc__, measured)
