"""How one GPU memory should be divided between KV blocks and expert slots, and slots over layers.

    python studies/split/split.py runs/split

The first part simulates an even grid of divisions, as `moesim split` does, for contexts and loads.
The second part compares the splits of slots over layers (`cache.split`), learnt on the first half
of a trace and used on the second. Results are kept in `results.json` of the output folder, so that
a second call continues. The report is `split.md` with its plots.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from split_report import write_report

from moesim.cli.ending import run_to_its_end
from moesim.files import write_json
from moesim.scenario import Scenario
from moesim.scenario.sweep import with_values
from moesim.serving.budget import split_slots
from moesim.simulate import prepare, result_of
from moesim.simulate.split import cheapest_split, lru_hits, popular_uses
from moesim.sweep.division import COARSE, room_of
from moesim.trace import Trace, load_trace
from moesim.trace.importers import from_esft

ROOT: Final = Path(__file__).resolve().parents[2]
ESFT: Final = "data/routing/esft_deepseek_v2_lite"
OUTPUT: Final = 32
COMPUTED: Final = 64
"""Tokens of a prompt that are computed; the KV entries of the others exist before."""
KEYS: Final = (
    "output_tokens_per_s",
    "ttft_p95_ms",
    "e2e_p95_ms",
    "on_time_hit_rate",
    "preemptions",
)
TASKS: Final = ("intent", "law", "summary", "translation")


@dataclass(frozen=True, slots=True)
class Case:
    """A model on a machine, and the routing that it replays."""

    name: str
    trace: str
    model: Mapping[str, Any]
    hardware: Mapping[str, Any]

    def scenario(self, context: int, clients: int, seed: int, shared: Path) -> Scenario:
        """Return the scenario of `clients` users, each with requests of `context` tokens."""
        return Scenario.model_validate(
            {
                "trace": str(ROOT / "traces/deep" if self.trace == "deep" else shared / ESFT),
                "model": dict(self.model),
                "hardware": dict(self.hardware),
                "bounds": False,
                "seed": seed,
                "workload": {
                    "requests": max(6, 3 * clients // 2),
                    "order": "shuffled",
                    "arrivals": {"kind": "closed", "clients": clients},
                    "lengths": {"prompt": context, "output": OUTPUT},
                    "cached_prefix": max(0, context - COMPUTED),
                },
                "batching": {"token_budget": 512, "max_sequences": clients},
            }
        )

    def load(self, shared: Path) -> Trace:
        """Return the trace that the case replays."""
        if self.trace == "deep":
            return load_trace(ROOT / "traces/deep")
        return from_esft(shared / ESFT / f"{self.trace}.npz")


CASES: Final = (
    Case(
        "Mixtral-8x7B, 4-bit experts, RTX 4090 (24 GiB)",
        "deep",
        {"shape": "mixtral-8x7b", "expert_bits": 4},
        {"profile": "rtx-4090"},
    ),
    Case(
        "DeepSeek-V2-Lite, 16 bits, RTX 3060 (12 GiB)",
        "law",
        {"shape": "deepseek-v2-lite"},
        {"profile": "rtx-3060-12gb"},
    ),
)


def divisions(
    case: Case, trace: Trace, context: int, clients: int, seeds: Sequence[int], shared: Path
) -> dict[str, Any]:
    """Return the numbers of each division of the grid, and of `memory.kv: auto`, by seed."""
    scenarios = [case.scenario(context, clients, seed, shared) for seed in seeds]
    room = room_of(scenarios[0], trace)
    steps = min(COARSE, room.most - room.least + 1)
    grid = sorted(
        {
            room.least + round((room.most - room.least) * place / max(1, steps - 1))
            for place in range(steps)
        }
    )
    rows = [
        {
            "slots": slots,
            "share": room.share(slots),
            "kv_tokens": room.blocks(slots) * room.block_tokens,
            "seeds": [_numbers(each, trace, room.values(slots)) for each in scenarios],
        }
        for slots in grid
    ]
    auto = [_numbers(each, trace, {}) for each in scenarios]
    return {
        "case": case.name,
        "context": context,
        "clients": clients,
        "useful_tokens": room.useful_blocks * room.block_tokens,
        "experts": trace.num_layers * trace.num_experts,
        "rows": rows,
        "auto": {"share": auto[0]["kv_bytes"] / room.free_bytes, "seeds": auto},
    }


def _numbers(scenario: Scenario, trace: Trace, values: Mapping[str, Any]) -> dict[str, float]:
    summary = result_of(prepare(with_values(scenario, values), trace)).summary
    return {key: summary[key] for key in (*KEYS, "kv_bytes", "cache_slots")}


def replayed_splits(shared: Path, sizes: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yield the hits of splits of slots over layers, on real routing of DeepSeek-V2-Lite.

    Splits learn from the first half of the rows and are replayed on the second, one token a step.
    """
    for task in TASKS:
        trace = from_esft(shared / ESFT / f"{task}.npz")
        ids_BLK = np.asarray(trace.expert_ids[:]).astype(np.int64)
        half = len(ids_BLK) // 2
        learnt, used = ids_BLK[:half], ids_BLK[half:]
        layers, experts = range(trace.num_layers), trace.num_experts
        needs = {
            "lru": np.stack([lru_hits(learnt[:, layer], experts) for layer in layers]),
            "popularity": np.stack([popular_uses(learnt[:, layer], experts) for layer in layers]),
        }
        hits = np.stack([lru_hits(used[:, layer], experts) for layer in layers])
        static = np.stack(
            [static_hits(learnt[:, layer], used[:, layer], experts) for layer in layers]
        )
        for size in sizes:
            total = size * len(layers)
            splits = {"uniform": split_slots(total, len(layers), experts)}
            splits |= {
                f"demand, need {need}": cheapest_split(-table, total, least=1)
                for need, table in needs.items()
            }
            for name, slots in splits.items():
                yield {
                    "task": task,
                    "slots": size,
                    "split": name,
                    "least": min(slots),
                    "most": max(slots),
                    "lru": float(hits[layers, slots].sum() / used.size),
                    "static": float(static[layers, slots].sum() / used.size),
                }


def static_hits(learnt_BK: Any, used_BK: Any, experts: int) -> Any:
    """Return the uses in `used_BK` of the 0 to E experts that `learnt_BK` uses most."""
    best = np.argsort(-np.bincount(learnt_BK.ravel(), minlength=experts), kind="stable")
    uses = np.bincount(used_BK.ravel(), minlength=experts)[best]
    return np.concatenate([[0], np.cumsum(uses)])


def simulated_splits(sizes: Sequence[int], seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yield splits over the 32 layers of `traces/deep`, one user, with and without prefetch."""
    trace = load_trace(ROOT / "traces/deep")
    for size in sizes:
        for prefetch in ("none", "predicted"):
            for split in ("uniform", "demand", "adapmoe"):
                scenarios = [
                    Scenario.model_validate(
                        {
                            "trace": str(ROOT / "traces/deep"),
                            "model": {"shape": "mixtral-8x7b", "expert_bits": 4},
                            "hardware": "rtx-4090",
                            "bounds": False,
                            "seed": seed,
                            "workload": {"requests": 8, "order": "shuffled", "part": [0.5, 1]},
                            "batching": {"max_sequences": 1},
                            "prefetch": prefetch,
                            "cache": {
                                "slots": f"{size}/layer",
                                "split": split,
                                "split_options": {"train": 0.5},
                            },
                        }
                    )
                    for seed in seeds
                ]
                plans = [prepare(each, trace) for each in scenarios]
                results = [result_of(plan).summary for plan in plans]
                yield {
                    "slots": size,
                    "prefetch": prefetch,
                    "split": split,
                    "first": plans[0].slots[0],
                    "least": min(plans[0].slots),
                    "most": max(plans[0].slots),
                    "seeds": [{key: each[key] for key in KEYS} for each in results],
                }


def main() -> None:
    """Run what is missing in the output folder, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--clients", type=int, nargs="+", default=[2, 8, 32])
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 4, 6])
    parser.add_argument(
        "--cases", type=int, nargs="+", default=[0, 1], help="0 Mixtral, 1 DeepSeek"
    )
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    seeds = range(given.seeds)
    kept = given.out / "results.json"
    results: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    for case in [CASES[number] for number in given.cases]:
        trace = case.load(given.shared)
        for context in given.contexts:
            for clients in given.clients:
                name = f"{case.name}, {context} tokens, {clients} clients"
                if name not in results:
                    print(name, file=sys.stderr)
                    results[name] = divisions(case, trace, context, clients, seeds, given.shared)
                    write_json(kept, results)
    if "replayed" not in results:
        results["replayed"] = list(replayed_splits(given.shared, [8, 16, 32, 48]))
    if "simulated" not in results:
        results["simulated"] = list(simulated_splits(given.sizes, seeds))
        write_json(kept, results)
    write_report(
        given.out,
        [value for key, value in results.items() if key not in ("replayed", "simulated")],
        results["replayed"],
        results["simulated"],
    )


if __name__ == "__main__":
    run_to_its_end(main)
