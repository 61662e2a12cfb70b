"""Run directories computed from a formula, for tests of the report alone.

Their numbers have the pattern of real runs: hit rates grow with capacity and differ between
policies, stalls follow misses, and seeds scatter. They have no other meaning.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

SKILL = {
    "lru": 0.10, "lfu": 0.14, "lfu_in_cache": 0.12, "lfu_decay": 0.16, "fifo": 0.05,
    "random": 0.03, "static": 0.15, "min": 0.30,
}  # fmt: skip
LAYERS, EXPERTS, TOP_K = 12, 16, 2
MS = 1_000_000


def run_directory(
    folder: Path,
    *,
    policy: str = "lru",
    slots_per_layer: float = 8,
    seed: int = 0,
    requests: int = 40,
    output_tokens: int = 16,
    steps: int = 60,
    layers: int = LAYERS,
    trace: str = "shallow",
    hardware: str = "rtx-4090",
    prefetch: str = "none",
    point: dict[str, Any] | None = None,
    summary: dict[str, Any] | None = None,
) -> Path:
    """Write a run directory and return it. `output_tokens=1` leaves TPOT undefined."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng([seed, len(policy), int(slots_per_layer * 10)])
    share = slots_per_layer / EXPERTS
    skill = SKILL.get(policy, 0.08)
    best = min(0.985, share + 0.30 * (1 - share) ** 0.5 * share**0.25)
    hit = min(best, share + skill * (1 - share) ** 0.5 * share**0.25 + rng.normal(0, 0.006))
    late = 0.06 if prefetch != "none" else 0.0
    timeline, step_table, stalls = _machine(rng, steps, layers, hit, late)
    request_table = _requests(rng, requests, output_tokens, step_table["finish_ns"])
    layer_table = _layers(rng, layers, hit, late, stalls)
    for name, table in (
        ("timeline", timeline),
        ("steps", step_table),
        ("requests", request_table),
        ("layers", layer_table),
    ):
        pq.write_table(pa.table(table), folder / f"{name}.parquet")
    makespan = int(step_table["finish_ns"][-1])
    accesses = int(layer_table["accesses"].sum())
    misses, late_hits = int(layer_table["misses"].sum()), int(layer_table["late_hits"].sum())
    stall = {cause: value / 1e9 for cause, value in stalls.items()}
    values: dict[str, Any] = {
        "name": "fabricated", "trace": trace, "model": "mixtral-8x7b", "hardware": hardware,
        "cache_policy": policy, "cache_scope": "per_layer",
        "cache_slots": round(slots_per_layer * layers), "cache_slots_per_layer": slots_per_layer,
        "num_experts": EXPERTS, "num_layers": layers, "prefetch_policy": prefetch,
        "batching_policy": "decode_first", "routing": "recorded", "sizes": "own",
        "knows_the_future": _foreseeing(policy, prefetch), "seed": seed, "requests": requests,
        "finished": requests, "rejected": 0, "running": 0, "queued": 0, "preemptions": 0,
        "output_tokens": requests * output_tokens, "steps": steps, "layer_events": steps * layers,
        "makespan_s": makespan / 1e9,
        "output_tokens_per_s": requests * output_tokens / makespan * 1e9,
        "tokens_per_s": requests * output_tokens * 3 / makespan * 1e9,
        "requests_per_s": requests / makespan * 1e9,
        **_latencies(request_table, output_tokens),
        "expert_hit_rate": 1 - misses / accesses, "late_hit_rate": late_hits / accesses,
        "token_hit_rate": 1 - misses / accesses * 0.9, "accesses": accesses,
        "hits": accesses - misses - late_hits, "late_hits": late_hits, "misses": misses,
        "h2d_bytes": misses * 350_000_000, "demand_bytes": misses * 350_000_000,
        "prefetch_bytes": 0, "prefetch_useful_bytes": 0, "prefetch_late_bytes": 0,
        "prefetch_wasted_bytes": 0, "prefetch_unused_bytes": 0,
        "load_bytes": 10**9 if policy == "static" else 0, "d2h_bytes": 0,
        "gpu_busy_share": 1 - sum(stall.values()) * 1e9 / makespan, "h2d_busy_share": 0.6,
        "d2h_busy_share": 0.0, "stall_share": sum(stall.values()) * 1e9 / makespan,
        "stall_s": sum(stall.values()), "stall_demand_s": stall["demand"],
        "stall_late_s": stall["late"], "stall_readback_s": stall["readback"],
        "stall_other_s": stall["other"], "busy_s": makespan / 1e9 - sum(stall.values()),
        "idle_s": 0.0, "peak_vram_bytes": 22 * 2**30, "vram_bytes": 24 * 2**30,
        "fixed_bytes": 3 * 2**30, "kv_bytes": 4 * 2**30, "slots_bytes": 14 * 2**30,
        "staging_bytes": 2**29, "activations_bytes": 2**28,
        "free_bytes": 9 * 2**28, "peak_kv_blocks": 812,
        "waves_max": 3, "waves_mean": 1.2, "unique_experts_per_event_mean": 5.4,
        "tiled_share": 0.0, "min_hit_rate": best, "infinite_cache_hit_rate": 0.992,
        "infinite_cache_makespan_s": makespan / 1e9 * 0.3, "infinite_cache_e2e_p95_ms": 900.0,
        "infinite_link_makespan_s": makespan / 1e9 * 0.25, "infinite_link_e2e_p95_ms": 800.0,
        "verdict": "working set",
        "verdict_reason": "even MIN misses 21 % of accesses at this capacity",
        "wait_max_ms": 0.0, "wait_max_steps": 0, "pause_max_ms": 0.0, "pause_max_steps": 0,
        "cost_kind": "assumed", "notes": ["trace of shallow costed as mixtral-8x7b"],
        **(summary or {}),
    }  # fmt: skip
    _write_json(folder / "summary.json", values)
    scenario = {
        "name": "fabricated", "trace": trace, "model": {"shape": "mixtral-8x7b"},
        "hardware": {"profile": hardware}, "seed": seed,
        "cache": {"policy": policy, "options": {}, "slots": f"{share * 100:g}%"},
        "prefetch": {"policy": prefetch, "options": {}},
    }  # fmt: skip
    (folder / "scenario.yaml").write_text(yaml.safe_dump(scenario))
    _write_json(folder / "manifest.json", {"point": point or {}, "format": "moesim-run"})
    return folder


def _foreseeing(policy: str, prefetch: str) -> str:
    """Return `knows_the_future` as a run writes it; `static` without a profile is hindsight."""
    eviction = [f"eviction {policy}"] if policy in ("min", "static") else []
    return ", ".join([*eviction, *(["prefetch oracle"] if prefetch == "oracle" else [])])


def _machine(
    rng: np.random.Generator, steps: int, layers: int, hit: float, late: float
) -> tuple[dict[str, Any], dict[str, Any], dict[str, int]]:
    """Return the timeline of a batch of 4: fronts, readbacks, copies, and expert computations."""
    rows: list[tuple[str, str, int, int, int, int, int]] = []
    stalls = dict.fromkeys(("demand", "late", "readback", "other"), 0)
    table: dict[str, list[int]] = {key: [] for key in _STEP_COLUMNS}
    now = link = 0
    for step in range(steps):
        begin, step_stall, misses = now, 0, 0
        for layer in range(layers):
            rows.append(("gpu", "front", now, now + MS // 5, step, layer, -1))
            now += MS // 5
            rows.append(("d2h", "readback", now, now + MS // 40, step, layer, -1))
            now += MS // 40
            stalls["readback"] += MS // 40
            experts = rng.choice(EXPERTS, size=5, replace=False)
            missing = [int(e) for e in experts if rng.random() > hit]
            landed = []
            for expert in missing:
                start = max(link, now)
                link = start + int(MS * 0.45)
                kind = "prefetch" if rng.random() < late * 4 else "demand"
                rows.append(("h2d", kind, start, link, step, layer, expert))
                landed.append((link, expert))
            if len(missing) < 5:
                rows.append(("gpu", "experts", now, now + MS // 4, step, layer, -1))
                now += MS // 4
            for ready, expert in landed:
                wait = max(0, ready - now)
                stalls["late" if rng.random() < late * 4 else "demand"] += wait
                step_stall += wait
                now = max(now, ready)
                rows.append(("gpu", "experts", now, now + MS // 12, step, layer, expert))
                now += MS // 12
            misses += len(missing)
        rows.append(("gpu", "tail", now, now + MS // 4, step, -1, -1))
        now += MS // 4
        accesses, late_hits = 5 * layers, round(late * misses)
        values = (
            step, begin, now, 4, 0, 4, 4, accesses, accesses - misses - late_hits, late_hits,
            misses, misses * 350_000_000, step_stall, 1, 200,
        )  # fmt: skip
        for key, value in zip(_STEP_COLUMNS, values, strict=True):
            table[key].append(value)
    names = ("lane", "kind", "start_ns", "finish_ns", "step", "layer", "expert")
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    return columns, {key: np.array(value) for key, value in table.items()}, stalls


_STEP_COLUMNS = (
    "step", "start_ns", "finish_ns", "tokens", "prefill_tokens", "decode_tokens", "sequences",
    "accesses", "hits", "late_hits", "misses", "h2d_bytes", "stall_ns", "waves", "kv_blocks",
)  # fmt: skip


def _requests(
    rng: np.random.Generator, count: int, tokens: int, finish_ns: np.ndarray
) -> dict[str, Any]:
    first = np.sort(rng.integers(0, max(1, len(finish_ns) - tokens), count))
    times = [[int(finish_ns[(f + i) % len(finish_ns)]) for i in range(tokens)] for f in first]
    arrival = np.maximum(0, np.array([t[0] for t in times], int) - rng.integers(5, 80, count) * MS)
    return {
        "request": np.arange(count), "domain": [f"d{i % 3}" for i in range(count)],
        "arrival_ns": arrival, "scheduled_ns": arrival + MS,
        "first_token_ns": [t[0] for t in times], "finish_ns": [t[-1] for t in times],
        "prompt_tokens": np.full(count, 32), "output_tokens": np.full(count, tokens),
        "preemptions": np.zeros(count, int), "tiled_rows": np.zeros(count, int),
        "status": ["finished"] * count, "token_ns": times,
    }  # fmt: skip


def _layers(
    rng: np.random.Generator, layers: int, hit: float, late: float, stalls: dict[str, int]
) -> dict[str, Any]:
    accesses = np.full(layers, 5 * 60)
    misses = np.rint(accesses * (1 - np.clip(hit + rng.normal(0, 0.03, layers), 0, 1))).astype(int)
    late_hits = np.rint(late * misses).astype(int)
    weight = misses / max(1, misses.sum())
    return {
        "layer": np.arange(layers), "model_layer": np.arange(layers) + 1,
        "events": np.full(layers, 60), "accesses": accesses,
        "hits": accesses - misses - late_hits, "late_hits": late_hits, "misses": misses,
        "tokens": np.full(layers, 480), "token_hits": np.rint(480 * hit) * np.ones(layers, int),
        "unique_experts_mean": np.full(layers, 5.0),
        **{f"stall_{cause}_ns": np.rint(total * weight).astype(int)
           for cause, total in stalls.items()},
        "demand_bytes": misses * 350_000_000, "prefetch_bytes": np.zeros(layers, int),
    }  # fmt: skip


def _latencies(table: dict[str, Any], tokens: int) -> dict[str, float | None]:
    arrival, first = np.array(table["arrival_ns"]), np.array(table["first_token_ns"])
    finish = np.array(table["finish_ns"])
    begun = np.array(table["scheduled_ns"])
    samples = {
        "ttft": first - arrival,
        "ttft_queue": begun - arrival,
        "ttft_service": first - begun,
        "tpot": (finish - first) / (tokens - 1) if tokens > 1 else np.empty(0),
        "itl": np.diff(np.array(table["token_ns"]).reshape(-1, tokens), axis=1).ravel(),
        "e2e": finish - arrival,
    }
    made: dict[str, float | None] = {}
    for name, sample in samples.items():
        made[f"{name}_mean_ms"] = float(sample.mean()) / MS if len(sample) else None
        for q in (50, 90, 95, 99):
            value = float(np.percentile(sample, q)) / MS if len(sample) else None
            made[f"{name}_p{q}_ms"] = value
    speeds = (tokens - 1) * 1e9 / (finish - first) if tokens > 1 else np.empty(0)
    for q in (50, 10, 5, 1):
        value = float(np.percentile(speeds, q)) if len(speeds) else None
        made[f"decode_p{q}_tokens_per_s"] = value
    made["decode_mean_tokens_per_s"] = float(speeds.mean()) if len(speeds) else None
    return made


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=1) + "\n")
