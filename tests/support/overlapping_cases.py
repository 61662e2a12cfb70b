"""Random cases in which copies ahead, or a host that takes time, make layer events overlap."""

from __future__ import annotations

import random
from typing import Any

from timed_cases import with_gaps
from workloads import random_case, static_trace, tiny_trace

from moesim.trace import Trace

KNOWN = ("lru", "fifo", "lfu", "lfu_in_cache", "lfu_decay", "lfru", "least_stale", "min", "static")
"""The eviction policies with compiled functions, and one that needs none."""
OPTIONS: dict[str, Any] = {
    "lfu_decay": lambda rng: {"decay": rng.choice([0.5, 0.9, 1.0])},
    "lfru": lambda rng: {"ticks": rng.randint(1, 9)},
    "least_stale": lambda rng: {"age": rng.choice(["load", "use"])},
}


def overlapping(seed: int) -> tuple[dict[str, Any], Trace]:
    """Return a random case that the compiled back end knows."""
    scenario, trace = random_case(seed)
    rng = random.Random(-seed)
    scenario |= {"replay": "atomic", "timeline": {"steps": rng.choice([0, 3, 1000])}}
    if rng.random() < 0.3:  # answers so long that stretches have many steps
        trace = tiny_trace(requests=4, prompt_tokens=3, output_tokens=30, seed=seed)
        scenario["memory"] = {"kv_block_tokens": 4, "kv": rng.randint(24, 70) * 16384}
    cache = scenario["cache"]
    cache.pop("write_back", None)
    cache["policy"] = policy = rng.choice(KNOWN)
    cache["options"] = OPTIONS.get(policy, lambda _: {})(rng)
    if policy == "min":
        scenario["workload"]["arrivals"] = "all_at_once"
    if policy == "static":
        cache["admission"] = "bypass"
    if rng.random() < 0.2:
        cache["initial_layers"] = 1
        cache["slots"] = min(32, 8 + cache["slots"])
    router = rng.choice(["layerwise", "layerwise", "pregated", "decoupled", "static"])
    if router == "static":
        trace = static_trace(trace, rng.randint(1, 3))
    elif rng.random() < 0.3 and policy != "min":
        trace = with_gaps(trace, seed)
    trace = trace.with_meta(router=router)
    scenario["prefetch"] = _prefetch(rng, router, trace)
    on_cpu = rng.random() < 0.5
    if on_cpu:
        _place_on_cpu(rng, scenario)
    if rng.random() < 0.3:
        names = rng.sample(["launch", "copy_launch", "layer_event"], rng.randint(1, 3))
        scenario["engine"] = {name: f"{rng.randint(1, 90)}us" for name in names}
    elif not on_cpu and scenario["prefetch"]["policy"] == "none" and router != "pregated":
        scenario["engine"] = {"launch": "1us"}
    return scenario, trace


def _place_on_cpu(rng: random.Random, scenario: dict[str, Any]) -> None:
    """Let experts run on the CPU, which is from far slower to far faster than the link."""
    policy, options = rng.choice(["cost", "cost", "cpu_layers", "cpu_experts"]), {}
    if policy == "cpu_layers":
        options = {"layers": "auto", "copy_rows": rng.choice([None, 1, 3, 6, 32])}
    if policy == "cpu_experts":
        options = {"by": rng.choice(["uniform", "front", "random", "frequency"])}
    if policy != "cost":  # experts do not move
        scenario["prefetch"] = {"policy": "none"}
    scenario["placement"] = {"policy": policy, "options": options}
    scenario["hardware"] |= {
        "cpu_flops": f"{rng.choice([2, 50, 700, 20_000])}GFLOPS",
        "cpu_cores": 8,
        "cpu_threads": rng.choice([1, 3, 8]),
        "cpu_overhead": f"{rng.choice([0, 3, 20])}us",
        "host_memory_bandwidth": f"{rng.choice([2, 11, 60, 500])}GB/s",
        "host_memory_efficiency": rng.choice(["73%", "100%"]),
        "pinned": rng.random() < 0.5,
    }


def _prefetch(rng: random.Random, router: str, trace: Trace) -> dict[str, Any]:
    reach = {"layerwise": 0, "pregated": 1}.get(router, 4)
    policy = rng.choice(["none", "predicted", "oracle", *["layer_ahead"] * 3 * bool(reach)])
    depth = rng.randint(1, 4)
    if policy == "predicted":
        if not trace.meta.prediction_depth:
            policy = "oracle"
        else:
            depth = min(depth, trace.meta.prediction_depth)
    if policy == "layer_ahead":
        depth = min(depth, reach)
    if policy == "none":
        return {"policy": "none"}
    options: dict[str, Any] = {"depth": depth}
    if policy == "predicted" and rng.random() < 0.4:
        options["experts"] = rng.randint(1, 3)
    return {"policy": policy, "options": options}
