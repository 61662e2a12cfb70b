"""Layer-ahead prefetch against loading on demand, over expert slots of a layer (Read-ME, figure 6).

    python studies/readme/prefetch.py [--seeds 5]

The paper plots latency for 2 to 5 slots on an A100-80GB. Prefetching is always better, by up to
about 30 %. Batch, link and eviction of the plot are not given. Nothing here is fitted. All results
are predicted from assumptions: the profile a100-80gb (PCIe 4 at 25 GB/s), the shape of Read-ME's
Llama-2-7B (135 MB an expert), and a decoupled router over 7 experts, uniform, where a token takes
its predecessor's expert in 71.3 %. Each seed serves 16 requests that arrive at once, of 32 prompt
and 32 output tokens, 1, 4 or 8 at a time and 32 tokens a step.

The roofline computes a layer six times as fast as the paper (Table 8: 1.27 ms at batch 5). The
overlap depends on this time, so everything runs twice: with the profile's costs, and with an
overhead of 430 us an operation, which makes layers as slow as Table 8's.

The closed form is shown too. Let one token pass L layers that each compute in c and load in l, with
nothing resident. It takes L(c + l) on demand and c + l + (L - 1) max(c, l) ahead.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

from output import counted, spread

from moesim.hardware import ModelShape, load_hardware, named_shape
from moesim.hardware.cost import CostModel
from moesim.hardware.ops import BatchShape
from moesim.report.statistics import difference, estimate
from moesim.report.tabular import Table, markdown
from moesim.scenario import Scenario
from moesim.simulate import prepare, result_of
from moesim.trace import DecoupledKnobs, Trace, synthesize_decoupled

SLOTS: Final = (2, 3, 4, 5)
CACHES: Final = {
    "lru": {"policy": "lru", "admission": "always"},
    "lookahead": {"policy": "lookahead", "admission": "always"},
    "lookahead, bypass": {"policy": "lookahead", "admission": "bypass"},
}
"""A loaded expert takes a slot, unless bypass may drop it at once."""
SEQUENCES: Final = (1, 4, 8)
BANDWIDTHS: Final = ("6GB/s", "12GB/s", "25GB/s", "50GB/s", "100GB/s", "400GB/s")
LAYERS: Final = 32
PAPER_LAYER_MS: Final = 40.55 / LAYERS
OVERHEADS: Final = (None, "430us")
_MS: Final = 1e6


@dataclass(frozen=True, slots=True)
class Seen:
    """Mean step latency of one run, its misses and its unique experts."""

    step_ms: float
    misses: float
    """Share of accesses that were neither resident nor on their way."""
    unique: float


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    print(markdown(by_capacity(seeds)), end="\n\n")
    print(markdown(by_bandwidth(seeds[:3])), end="\n\n")
    print(markdown(closed_form()))


def run(
    prefetch: str,
    *,
    slots: int,
    cache: str,
    sequences: int,
    seed: int,
    bandwidth: str = "25GB/s",
    overhead: str | None = None,
) -> Seen:
    """Serve a seed's workload, which is the same for all policies."""
    hardware: dict[str, Any] = {"profile": "a100-80gb", "h2d": {"bandwidth": bandwidth}}
    if overhead is not None:
        hardware["kernel_overhead"] = overhead
    scenario = Scenario.model_validate(
        {
            "trace": "in memory",
            "model": "readme-llama-2-7b",
            "hardware": hardware,
            "batching": {"token_budget": 32, "max_sequences": sequences},
            "cache": {**CACHES[cache], "slots": f"{slots}/layer"},
            "prefetch": prefetch,
            "bounds": False,
            "timeline": {"steps": 0},
            "seed": seed,
        }
    )
    result = result_of(prepare(scenario, _trace(seed)))
    steps, summary = result.columns["steps"], result.summary
    latency_ms = (steps["finish_ns"] - steps["start_ns"]).mean() / _MS
    return Seen(
        float(latency_ms),
        summary["misses"] / summary["accesses"],
        summary["unique_experts_per_event_mean"],
    )


@functools.cache
def _trace(seed: int) -> Trace:
    knobs = DecoupledKnobs(
        requests=16, prompt_tokens=32, output_tokens=32, num_layers=LAYERS, seed=seed
    )
    return synthesize_decoupled(knobs)


def _compare(seeds: Sequence[int], **setting: Any) -> tuple[list[Seen], list[str]]:
    """Return the runs on demand with the profile's costs, and the table cells of all runs."""
    cells: list[str] = []
    verdicts: list[str] = []
    profiled: list[Seen] = []
    for overhead in OVERHEADS:
        demand, ahead = (
            [run(prefetch, seed=seed, overhead=overhead, **setting) for seed in seeds]
            for prefetch in ("none", "layer_ahead")
        )
        # Misses do not depend on the costs, so those of the first overhead stand for all.
        profiled = profiled or demand
        before, after = [seen.step_ms for seen in demand], [seen.step_ms for seen in ahead]
        gain = difference(after, before)
        cells += [
            spread(estimate(before), digits=1),
            spread(estimate(after), digits=1),
            spread(gain, digits=1, scale=100, sign=True),
        ]
        verdicts.append("worse" if gain.low > 0 else "over 30" if gain.high < -0.3 else "-")
    return profiled, [*cells, "; ".join(verdicts)]


_COLUMNS: Final = (
    *("on demand (ms)", "ahead (ms)", "change (%)"),
    *("on demand, slow layers", "ahead", "change (%)", "outside the paper's"),
)


def by_capacity(seeds: Sequence[int]) -> Table:
    """Return the mean latency of a step with and without prefetch, and misses on demand."""
    table = Table(
        f"Mean step latency (95 % intervals over {len(seeds)} seeds; paper: 0 to about -30 %)",
        ["cache, sequences, slots", "unique", "misses on demand (%)", *_COLUMNS],
    )
    cases = list(product(CACHES, SEQUENCES, SLOTS))
    for cache, sequences, slots in counted(cases, "capacities"):
        demand, cells = _compare(seeds, slots=slots, cache=cache, sequences=sequences)
        unique = estimate(seen.unique for seen in demand)
        misses = estimate(seen.misses for seen in demand)
        name = f"{cache}, {sequences}, {slots}"
        table.add(name, f"{unique.mean:.2f}", f"{100 * misses.mean:.1f}", *cells)
    return table


def by_bandwidth(seeds: Sequence[int]) -> Table:
    """Return the same over links, for one sequence and LRU: the closed form's case, with hits."""
    table = Table(f"Over links: lru, 1 sequence ({len(seeds)} seeds)", ["link, slots", *_COLUMNS])
    cases = list(product(BANDWIDTHS, (SLOTS[0], SLOTS[-1])))
    for bandwidth, slots in counted(cases, "links"):
        _, cells = _compare(seeds, slots=slots, cache="lru", sequences=1, bandwidth=bandwidth)
        table.add(f"{bandwidth}, {slots}", *cells)
    return table


def closed_form() -> Table:
    """Return the saving of a layer ahead if nothing is resident, and if a fifth of layers load."""
    shape = named_shape("readme-llama-2-7b")
    table = Table(
        f"Closed form: change in %, layers computing in {PAPER_LAYER_MS:.2f} ms (paper) or "
        f"{_layer_ms(shape):.2f} ms (roofline)",
        [
            "link",
            "load of an expert (ms)",
            "paper, all load",
            "a fifth",
            "roofline, all",
            "a fifth",
        ],
    )
    for bandwidth in BANDWIDTHS:
        hardware = load_hardware("a100-80gb", {"h2d": {"bandwidth": bandwidth}})
        load_ms = CostModel(hardware, shape).copy_ns("h2d", shape.expert_bytes) / _MS
        changes = [
            f"{100 * saved(compute, load_ms, share):+.1f}"
            for compute in (PAPER_LAYER_MS, _layer_ms(shape))
            for share in (1.0, 0.2)
        ]
        table.add(bandwidth, f"{load_ms:.2f}", *changes)
    return table


def _layer_ms(shape: ModelShape) -> float:
    """Return the time of one token of a sequence of 64 in one layer and one expert."""
    cost = CostModel(load_hardware("a100-80gb"), shape)
    return (cost.front_ns(0, BatchShape(1, 64, 64, 1, 1)) + cost.experts_ns((1,))) / _MS


def saved(compute: float, load: float, share: float = 1.0, layers: int = LAYERS) -> float:
    """Return the relative change of mean latency if all layers of a share of steps load.

    With overlap such a step takes c + l + (L - 1) max(c, l) instead of L(c + l).
    """
    on_demand = layers * (compute + share * load)
    ahead = compute + load + (layers - 1) * max(compute, load)
    return (share * ahead + (1 - share) * layers * compute) / on_demand - 1


if __name__ == "__main__":
    main()
