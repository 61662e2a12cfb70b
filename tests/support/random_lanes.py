"""Random small cases with experts on the CPU and on disk, and a host that takes time."""

from __future__ import annotations

import random
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from costed_traces import costed_trace
from workloads import REFACTORED_CONFIG, plan_of, random_case

from moesim.machine.sim import SimMachine
from moesim.trace import Trace

__all__ = ["ENGINE", "QUIET", "Walking", "random_lanes_case", "random_placement"]

ENGINE = str(Path(__file__).with_name("random_engine.yaml"))
"""The path of an engine's profile with every figure."""
QUIET = str(Path(__file__).with_name("quiet_engine.yaml"))
"""The path of the profile of an engine whose host takes no time."""

NUM_LAYERS, NUM_EXPERTS = 4, 8


class Walking(SimMachine):
    """The simulated machine without a twin, so that no step can be timed at once."""

    twin = None  # type: ignore[assignment]


def random_lanes_case(seed: int, *, at_once: bool = False) -> tuple[dict[str, Any], Trace]:
    """Return a random case of a machine with any placement, CPU, host memory, disk and engine.

    The rest is as in `random_case` of the same seed. `at_once` makes all requests arrive at once.
    """
    scenario, trace = random_case(seed, at_once=at_once)
    # From another generator, so that the cases of `random_case` stay the same.
    rng = random.Random(f"lanes {seed}")
    policy = rng.choice(["copy", "cpu_layers", "cpu_experts", "cost", "two_queue"])
    dense: tuple[int, ...] = ()
    if rng.random() < 0.25 and scenario["cache"]["policy"] != "min":
        dense = (0, 3) if rng.random() < 0.5 else ()
        trace = _with_gaps(trace, seed, dense)
        if scenario["prefetch"]["policy"] == "predicted":  # the new trace has no predictions
            scenario["prefetch"]["policy"] = "oracle"
    elif rng.random() < 0.2 and scenario["cache"]["policy"] != "min":
        trace = _refactored(trace)
        if scenario["prefetch"]["policy"] == "predicted":
            scenario["prefetch"]["policy"] = "oracle"
    scenario["placement"], needed = random_placement(rng, policy, dense)
    if policy in ("cpu_layers", "cpu_experts"):  # they fix which experts are in GPU memory
        scenario["prefetch"] = {"policy": "none"}
    if scenario["cache"]["slots"] < needed:
        scenario["cache"]["slots"] = rng.randint(needed, NUM_LAYERS * NUM_EXPERTS)
    scenario["engine"] = _random_engine(rng) | _random_profile(seed)
    scenario["hardware"] |= _random_host(rng)
    link = scenario["hardware"]["h2d"]
    link["pinned_bandwidth"] = link.pop("bandwidth")
    link["pageable_bandwidth"] = link["pinned_bandwidth"] * rng.randint(3, 10) // 10
    scenario["memory"] |= {"pinned": rng.choice(["auto", "all", "none", "50%", "9MB"])}
    if rng.random() < 0.5:
        _add_disk(rng, scenario, trace)
    if rng.random() < 0.3:
        _simplify(scenario)
    return scenario, trace


def random_placement(
    rng: random.Random, policy: str, dense: Collection[int]
) -> tuple[dict[str, Any], int]:
    """Return a placement with random options, and slots that suffice for it.

    `dense` are the model layers without experts.
    """
    model_layers = NUM_LAYERS + len(dense)
    options: dict[str, Any] = {}
    needed = 0
    if policy == "cpu_layers":
        on_cpu = rng.choice(["auto", "auto", "all", 0, 1, 2, 4])
        whole = rng.choice([0, 0, 1, 2, model_layers, "all"])
        options = {"layers": on_cpu, "whole_layers": whole}
        options["copy_rows"] = rng.choice([None, 1, 3, 6, 32])
        if isinstance(on_cpu, int):
            needed = (NUM_LAYERS - on_cpu) * NUM_EXPERTS
            end = whole if isinstance(whole, int) else model_layers
            in_whole = sum(layer not in dense for layer in range(end))
            options["layers"] = max(on_cpu, in_whole)  # fewer are refused
    if policy == "cpu_experts":
        options = {"by": rng.choice(["uniform", "front", "random", "frequency"])}
    return {"policy": policy, "options": options}, needed


def _random_engine(rng: random.Random) -> dict[str, Any]:
    """Return where tokens are sorted and, in half of the cases, times of 0 to 50 us each."""
    engine: dict[str, Any] = {"sorting": rng.choice(["host", "device"])}
    if rng.random() < 0.5:
        for key in ("launch", "copy_launch", "layer_event"):
            engine[key] = rng.choice([0, 1, 137, 5_000, rng.randint(0, 50_000)])
    return engine


def _random_profile(seed: int) -> dict[str, Any]:
    """Return an engine with kernels of its own in two of five cases, else the ideal one."""
    # From a generator of its own, so that other draws stay the same.
    rng = random.Random(f"engine {seed}")
    ideal: list[dict[str, Any]] = [{}] * 3
    own = {"profile": ENGINE, "interface": rng.choice(["cuda", "vulkan"])}
    return rng.choice([*ideal, {"profile": QUIET}, own])


def _random_host(rng: random.Random) -> dict[str, Any]:
    """Return figures of a CPU and its memory, from far slower to far faster than the link."""
    return {
        "cpu_flops": f"{rng.choice([2, 50, 700, 20_000])}GFLOPS",
        "cpu_cores": 8,
        "cpu_threads": rng.choice([1, 3, 8]),
        "cpu_overhead": f"{rng.choice([0, 3, 20])}us",
        "host_memory_bandwidth": f"{rng.choice([2, 11, 60, 500])}GB/s",
        "host_memory_efficiency": rng.choice(["73%", "100%"]),
    }


def _add_disk(rng: random.Random, scenario: dict[str, Any], trace: Trace) -> None:
    """Give the machine a disk, and host memory for some of the experts."""
    experts = NUM_LAYERS * NUM_EXPERTS
    scenario["hardware"]["disk"] = {
        "latency": f"{rng.choice([0, 10, 80])}us",
        "bandwidth": f"{rng.choice([1, 3, 14])}GB/s",
        "queue_depth": rng.choice([1, 4]),
    }
    scenario["memory"]["pinned"] = "none"
    # Layers on the CPU and their KV entries take host memory of their own.
    host = plan_of(scenario, trace).places.host
    held = rng.randint(1, experts + 2)
    size = host.experts_bytes // experts
    slack = rng.randrange(size)
    scenario["memory"] |= {
        "host": host.weights_bytes + host.kv_bytes + held * size + slack,
        "host_cache": rng.choice(["expert", "page"]),
        "pinned": rng.choice(["none", "auto", f"{100 * rng.randrange(held) // experts}%"])
        if held < experts
        else rng.choice(["none", "auto", "all", "40%"]),
    }


def _simplify(scenario: dict[str, Any]) -> None:
    """Change the case so that its steps can be timed at once, if its placement allows that."""
    scenario |= {"prefetch": {"policy": "none"}, "replay": "atomic"}
    no_time = dict.fromkeys(("launch", "copy_launch", "layer_event"), 0)
    scenario["engine"] |= {"sorting": "host", **no_time}
    scenario["cache"].pop("write_back", None)


def _refactored(trace: Trace) -> Trace:
    """Return the trace as that of a decoupled router, whose ids are known in advance."""
    refactored = trace.with_meta(model_config=REFACTORED_CONFIG)
    return refactored.with_meta(router="decoupled")


def _with_gaps(trace: Trace, seed: int, dense: tuple[int, ...]) -> Trace:
    """Return the trace with unused places, sometimes all of a layer, and with `dense` layers."""
    rng = np.random.default_rng(seed)
    ids = np.asarray(trace.expert_ids[:]).astype(int)
    ids[rng.random(ids.shape) < 0.2] = -1
    ids[rng.random(ids.shape[:2]) < 0.3] = -1
    return costed_trace(
        ids,
        dense=dense,
        seq_len=trace.requests["num_rows"],
        prompt_tokens=trace.requests["prompt_tokens"],
    )
