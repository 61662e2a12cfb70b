"""Small random workloads, and functions that run them on simulated machines."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import simpy

from moesim.hardware.topology import Topology
from moesim.machine.events import EventMachine
from moesim.machine.sim import SimMachine
from moesim.scenario import Scenario
from moesim.simulate import Outcome, Plan, build_server, finish, prepare
from moesim.trace import SyntheticKnobs, Trace, synthesize

TINY_CONFIG = {
    "model_type": "mixtral",
    "hidden_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 1024,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 1000,
}

REFACTORED_CONFIG = {
    "model_type": "moesim_readme",
    "base": {**TINY_CONFIG, "model_type": "llama"},
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "expert_ffn": 1024,
    "shared_ffn": 0,
    "routing": "decoupled",
    "router": {"hidden": 64, "heads": 4, "ffn": 64, "mlp": "silu"},
}
"""The same sizes with a decoupled router."""

Make = Callable[..., Any]


def tiny_trace(**knobs: Any) -> Trace:
    """Return a synthetic trace of 4 layers of 8 experts, top-2, whose sizes can be costed."""
    shape = {"num_layers": 4, "num_experts": 8, "top_k": 2, **knobs}
    depth = min(2, shape["num_layers"] - 1)  # the last layer has nothing to predict
    predictions = {"prediction_depth": depth, "prediction_accuracy": 0.5}
    trace = synthesize(SyntheticKnobs(**{**predictions, **shape}))
    return trace.with_meta(model_config=TINY_CONFIG)


def whole_and_cut_trace(home: Path) -> None:
    """Write the trace `trace` into a folder, and `cut`, the same with a file that is too short."""
    for name in ("trace", "cut"):
        tiny_trace(requests=2).save(home / name)
    ids = home / "cut" / "expert_ids-00000.npy"
    ids.write_bytes(ids.read_bytes()[:-7])


def scored_trace(trace: Trace, seed: int = 0) -> Trace:
    """Return the trace with random probabilities of all experts."""
    assert trace.predictions is not None
    assert trace.gate_weights is not None
    ids, guesses = np.asarray(trace.expert_ids[:]).astype(int), np.asarray(trace.predictions[:])
    shape = (trace.num_rows, trace.num_layers, trace.num_experts)
    return Trace.from_arrays(
        expert_ids=np.where(ids == trace.meta.unused, -1, ids),
        predictions=np.where(guesses == trace.meta.unused, -1, guesses.astype(int)),
        gate_weights=trace.gate_weights[:],
        probabilities=np.random.default_rng(seed).random(shape),
        seq_len=trace.requests["num_rows"],
        prompt_tokens=trace.requests["prompt_tokens"],
        domain=trace.requests["domain"].tolist(),
        arrival_s=trace.requests["arrival_s"],
        num_experts=trace.num_experts,
        model_config=trace.meta.model_config,
    )


def static_trace(trace: Trace, tasks: int = 1) -> Trace:
    """Return the trace with a static router and its requests dealt to `tasks` tasks in turn.

    All rows of a task get the experts of the first row of its first request.
    """
    task_B = np.repeat(np.arange(trace.num_requests) % tasks, trace.requests["num_rows"])
    first = [int(np.argmax(task_B == task)) for task in range(tasks)]
    ids = np.asarray(trace.expert_ids[:])[first][task_B]
    return Trace.from_arrays(
        expert_ids=ids,
        seq_len=trace.requests["num_rows"],
        prompt_tokens=trace.requests["prompt_tokens"],
        domain=[f"task {number % tasks}" for number in range(trace.num_requests)],
        num_experts=trace.num_experts,
        router="static",
        model_config=trace.meta.model_config,
    )


def tiny_scenario(**changes: Any) -> dict[str, Any]:
    """Return a scenario as plain data; `changes` replaces whole sections of the defaults."""
    return {"trace": "in memory", "hardware": "rtx-4090", "bounds": False, **changes}


def plan_of(scenario: dict[str, Any], trace: Trace) -> Plan:
    """Return the plan of a scenario for a trace in memory."""
    return prepare(Scenario.model_validate(scenario), trace)


def run_on(plan: Plan, make: Make = SimMachine, **options: Any) -> Outcome:
    """Serve a plan on the machine that `make` builds; options are those of `build_server`."""
    env = simpy.Environment()
    if plan.places.topology == Topology.single_gpu():
        machine = make(env, plan.prices())
    else:
        machine = make(env, plan.prices(), plan.places.topology)
    server = build_server(plan, machine, **options)
    env.run(until=env.process(server.run()))
    return finish(plan, server, machine.now_ns)


def shuffled(seed: int) -> Make:
    """Return a maker of event machines that order simultaneous events of a class at random."""
    return lambda env, prices, topology=None: EventMachine(
        env, prices, topology, rng=np.random.default_rng(seed)
    )


NEWER_EVICTIONS = [
    "activation_matrix", "arc", "least_stale", "lfru", "lirs", "s3_fifo", "sieve",
]  # fmt: skip


def random_case(
    seed: int, *, at_once: bool = False, newer: bool = False
) -> tuple[dict[str, Any], Trace]:
    """Return a random scenario and trace: any policies, scopes, capacities, links and arrivals.

    `at_once` makes all requests arrive at once. `newer` takes an eviction policy that the cases of
    stored outcomes do not have, which stay the same.
    """
    rng = random.Random(seed)
    trace = tiny_trace(
        requests=rng.randint(1, 6),
        prompt_tokens=rng.randint(1, 9),
        output_tokens=rng.randint(1, 8),
        seed=seed,
        stickiness=rng.choice([0, 0.3, 0.8]),
    )
    link: dict[str, Any] = {
        "bandwidth": rng.choice([1, 3, 20, 200]) * 10**9,
        "latency": f"{rng.randint(0, 30)}us",
    }
    if rng.random() < 0.5:
        link["chunk"] = rng.choice(["100kB", "1MB"])
    eviction = rng.choice(
        ["lru", "lfu", "fifo", "random", "static", "lfu_decay", "lfu_in_cache", "min"]
    )
    cache: dict[str, Any] = {
        "policy": eviction,
        "scope": rng.choice(["per_layer", "global"]),
        "slots": rng.randint(0, 32),
    }
    if eviction != "static":
        cache["admission"] = rng.choice(["bypass", "always"])
        cache["write_back"] = rng.random() < 0.3
    prefetch: dict[str, Any] = {"policy": rng.choice(["none", "predicted", "oracle"])}
    if prefetch["policy"] != "none":
        depth = rng.randint(1, 3)
        recorded = trace.meta.prediction_depth  # a deeper prediction would be refused
        deepest = recorded if prefetch["policy"] == "predicted" else depth
        prefetch["options"] = {"depth": min(depth, deepest)}
    arrivals: Any = "all_at_once"
    if not at_once and eviction != "min" and rng.random() < 0.5:
        arrivals = {"kind": "poisson", "rate_per_s": rng.choice([10, 300, 3000])}
        # From another generator, so that all other choices of this seed stay the same.
        other = random.Random(-1 - seed)
        if other.random() < 0.4:
            arrivals = {"kind": "closed", "clients": other.randint(1, 4)}
            mean = other.choice(["0s", "3us", "1ms"])
            distribution = other.choice(["constant", "exponential"])
            arrivals["think"] = {"mean": mean, "distribution": distribution}
    scenario = tiny_scenario(
        hardware={
            "profile": "rtx-4090",
            "h2d": link,
            "kernel_overhead": f"{rng.randint(0, 20)}us",
        },
        memory={
            "staging": rng.randint(1, 3),
            "kv_block_tokens": rng.choice([1, 4]),
            "kv": "auto" if rng.random() < 0.5 else rng.randint(18, 40) * 16384,
        },
        batching={
            "policy": rng.choice(["decode_first", "prefill_first", "fcfs"]),
            "token_budget": rng.randint(1, 12),
            "max_sequences": rng.randint(1, 5),
        },
        cache=cache,
        prefetch=prefetch,
        replay=rng.choice(["atomic", "atomic", "sequential"]),
        workload={"arrivals": arrivals},
        timeline={"steps": 1000},
    )
    scenario["batching"]["chunked_prefill"] = rng.random() < 0.6
    if newer:
        by_scores = ["mrs", "fmoe"] if scenario["replay"] == "atomic" else []
        cache["policy"] = random.Random(-1 - seed).choice([*NEWER_EVICTIONS, *by_scores])
    return scenario, trace


def buffered_case(seed: int, *, at_once: bool = False) -> tuple[dict[str, Any], Trace]:
    """Return a random case whose copies ahead go to one to five buffers of their own."""
    scenario, trace = random_case(7000 + seed, at_once=at_once, newer=seed % 2 == 0)
    if scenario["prefetch"]["policy"] == "none":
        guesses = {"depth": 1 + seed % 3, "recall": 0.6, "precision": 0.5}
        scenario["prefetch"] = {"policy": "dial", "options": guesses}
    scenario["prefetch"]["buffers"] = random.Random(seed).randint(1, 5)
    if seed % 5 == 0:
        by_layer = {"shape": "trace", "expert_bits_by": {"layer": {"0": 8}}}
        scenario |= {"model": by_layer, "cache": scenario["cache"] | {"policy": "lru"}}
    return scenario, trace


def everything(outcome: Outcome) -> tuple[Any, ...]:
    """Return all that a run records, times included."""
    ledger = outcome.ledger
    return (
        outcome.now_ns,
        ledger.hits,
        ledger.late_hits,
        ledger.stall_ns,
        ledger.steps,
        [request.token_ns for request in outcome.requests],
        [(each.wait_steps, each.pause_steps, each.pause_ns) for each in outcome.requests],
        sorted(ledger.timeline),
        ledger.busy_ns,
        ledger.moved_bytes,
        ledger.prefetch_cancelled,
        (ledger.prefetch_useful, ledger.prefetch_late, ledger.prefetch_wasted),
    )


def decisions(outcome: Outcome) -> tuple[Any, ...]:
    """Return what a run decided, without times: its steps, misses, evictions and copies."""
    ledger = outcome.ledger
    hits = [on_time + late for on_time, late in zip(ledger.hits, ledger.late_hits, strict=True)]
    steps = [(*row[3:8], row[10], row[11], row[14]) for row in ledger.steps]
    caches = [list(cache.slots) for cache in outcome.caches]
    copies = (ledger.demand_copies, ledger.prefetch_copies, ledger.prefetch_wasted)
    return hits, steps, caches, copies, list(ledger.layer_events())
