"""Unique experts per batch in Read-ME: calibrated on two baselines, predicted for its own policy.

    python studies/readme/unique_experts.py [--seeds 5] [--requests 100]

The paper serves Chatbot Arena on one A100-80GB and gives mean unique experts per batch: 5.08 with
decodes first, 5.21 with prompts first, 3.51 with expert-aware batching. The latter's normalised
latency (end to end / generated tokens) is 5.0 to 6.1 % lower in the mean and 9.5 to 10.0 % at p95.
Rate, batch cap, requests and popularity are not given. This was stated before any simulation:

- fitted: arrival rate, batch cap (tokens a step) and popularity skew, on the grid below, to the
  two baselines only: least (U - 5.08)^2 + (U - 5.21)^2 on separate seeds; the first of equals;
- predicted: expert-aware batching at that point on other seeds, and its gains over both baselines
  (defaults: queues counted in tokens, a prompt with the expert that most of its tokens want);
- assumed: Poisson arrivals; geometric lengths of mean 64 (prompt) and 124 (output, the length of
  the one request that the paper describes); a token takes its predecessor's expert in 71.3 %;
  one domain; 7 experts, all in GPU memory (35 GB of 80); at most 256 requests at once; costs of
  the profile a100-80gb, itself assumed, with the router's.

Two figures do not determine three parameters. So everything is also printed for all rates and caps
at the fitted skew, and with one thing changed at a time.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from typing import Any, Final

import numpy as np
from output import counted, interval, spread

from moesim.report.statistics import Estimate, difference, estimate
from moesim.report.tabular import Table, markdown
from moesim.scenario import Scenario
from moesim.simulate import prepare, result_of
from moesim.trace import DecoupledKnobs, Trace, synthesize_decoupled

PAPER: Final = {"decode_first": 5.08, "prefill_first": 5.21, "expert_aware": 3.51}
PAPER_GAINS: Final = {"mean": (-6.1, -5.0), "p95": (-10.0, -9.5)}
"""Change of normalised latency in percent: from one baseline to the other."""
BASELINES: Final = ("decode_first", "prefill_first")
WITHIN: Final = 0.15
RATES: Final = (2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
CAPS: Final = (8, 16, 32, 64)
SKEWS: Final = (0.0, 0.5, 1.0)
CALIBRATION_SEEDS: Final = (1000, 1001)
PERSISTENCE: Final = 0.713
WAITS: Final = ("wait_max_steps", "wait_max_ms", "pause_max_steps", "pause_max_ms")


@dataclass(frozen=True)
class Setting:
    """One workload and one machine. The first three are fitted, the others assumed."""

    rate_per_s: float
    cap: int
    skew: float
    requests: int = 100
    domains: int = 1
    prompt_tokens: int = 64
    output_tokens: int = 124
    slots: int = 7
    hardware: Mapping[str, Any] = field(default_factory=dict, hash=False)
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Of expert-aware batching."""

    def scenario(self, policy: str, seed: int) -> Scenario:
        batching = {"policy": policy, "token_budget": self.cap, "max_sequences": 256}
        if policy == "expert_aware":
            batching["options"] = dict(self.options)
        # If all experts have a slot, `static` loads them before the start.
        cache = "static" if self.slots == 7 else "lookahead"
        return Scenario.model_validate(
            {
                "trace": "in memory",
                "model": "readme-llama-2-7b",
                "hardware": {"profile": "a100-80gb", **self.hardware},
                "workload": {"arrivals": {"kind": "poisson", "rate_per_s": self.rate_per_s}},
                "batching": batching,
                "cache": {"policy": cache, "slots": f"{self.slots}/layer"},
                "bounds": False,
                "timeline": {"steps": 0},
                "seed": seed,
            }
        )


@dataclass(frozen=True, slots=True)
class Seen:
    """The result of one run: unique experts per batch, normalised latency, and longest waits.

    A wait is before a request's first step, a pause between two of its steps.
    """

    unique: float
    mean_ms: float
    p95_ms: float
    wait_steps: int
    wait_ms: float
    pause_steps: int
    pause_ms: float


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=100)
    options = parser.parse_args()
    seeds = range(options.seeds)
    grid = [
        Setting(rate, cap, skew, requests=options.requests)
        for skew, cap, rate in product(SKEWS, CAPS, RATES)
    ]
    uniques = {point: baselines(point) for point in counted(grid, "calibration")}
    best = fitted(uniques)
    print(markdown(calibration(uniques, best)), end="\n\n")
    if not is_near(uniques[best]):
        print(f"No point reaches both baselines within {WITHIN}.", end="\n\n")
    runs = {policy: [run(best, policy, seed) for seed in seeds] for policy in PAPER}
    print(markdown(prediction(runs)), end="\n\n")
    print(markdown(over_grid([p for p in grid if p.skew == best.skew])), end="\n\n")
    print(markdown(sensitivity(best, seeds[:2])), end="\n\n")
    print(markdown(waits(best, seeds)), end="\n\n")
    print(markdown(waits(binding(best), seeds)))


def baselines(setting: Setting) -> tuple[float, float]:
    """Return the mean unique experts per batch of the baselines, on the calibration's seeds."""
    decode, prefill = (
        float(np.mean([run(setting, policy, seed).unique for seed in CALIBRATION_SEEDS]))
        for policy in BASELINES
    )
    return decode, prefill


def loss(unique: tuple[float, float]) -> float:
    """Return the objective of the calibration, which depends on the baselines only."""
    return sum((ours - PAPER[p]) ** 2 for ours, p in zip(unique, BASELINES, strict=True))


def fitted(uniques: Mapping[Setting, tuple[float, float]]) -> Setting:
    """Return the point of least loss."""
    return min(uniques, key=lambda point: loss(uniques[point]))


def is_near(unique: tuple[float, float]) -> bool:
    """Return whether both baselines are close to the paper's."""
    pairs = zip(unique, BASELINES, strict=True)
    return all(abs(ours - PAPER[policy]) <= WITHIN for ours, policy in pairs)


@cache
def run(setting: Setting, policy: str, seed: int) -> Seen:
    """Serve a seed's workload, which is the same for all policies."""
    knobs = DecoupledKnobs(
        requests=setting.requests,
        prompt_tokens=setting.prompt_tokens,
        output_tokens=setting.output_tokens,
        geometric=True,
        num_layers=32,
        domains=setting.domains,
        skew=setting.skew,
        persistence=PERSISTENCE,
        seed=seed,
    )
    summary = result_of(prepare(setting.scenario(policy, seed), _trace(knobs))).summary
    return Seen(
        summary["unique_experts_per_event_mean"],
        summary["normalised_mean_ms"],
        summary["normalised_p95_ms"],
        *(summary[key] for key in WAITS),
    )


@cache
def _trace(knobs: DecoupledKnobs) -> Trace:
    return synthesize_decoupled(knobs)


def calibration(uniques: Mapping[Setting, tuple[float, float]], best: Setting) -> Table:
    """Return the fitted baselines, and their range over the grid."""
    table = Table(
        f"Calibration: rate {best.rate_per_s:g}/s, cap {best.cap}, skew {best.skew:g} "
        f"(of {len(uniques)} points, {sum(map(is_near, uniques.values()))} within {WITHIN})",
        ["fitted", "paper", "ours", "gap", "over the grid"],
    )
    for place, policy in enumerate(BASELINES):
        ours, paper = uniques[best][place], PAPER[policy]
        reach = interval(unique[place] for unique in uniques.values())
        table.add(policy, f"{paper:.2f}", f"{ours:.2f}", f"{ours - paper:+.2f}", reach)
    return table


def gains(runs: Mapping[str, Sequence[Seen]], baseline: str) -> tuple[Estimate, Estimate]:
    """Return the change of mean and p95 normalised latency from a baseline to expert-aware.

    Runs are paired by seed; 0.1 is 10 % slower.
    """
    pairs = [[seen[policy] for policy in ("expert_aware", baseline)] for seen in _by_seed(runs)]
    return (
        difference([ours.mean_ms for ours, _ in pairs], [base.mean_ms for _, base in pairs]),
        difference([ours.p95_ms for ours, _ in pairs], [base.p95_ms for _, base in pairs]),
    )


def _by_seed(runs: Mapping[str, Sequence[Seen]]) -> list[dict[str, Seen]]:
    return [dict(zip(runs, seen, strict=True)) for seen in zip(*runs.values(), strict=True)]


def outside(value: float, bounds: tuple[float, float]) -> float:
    """Return how far a value is from an interval; 0 inside."""
    least, most = bounds
    return max(value - most, 0.0) + min(value - least, 0.0)


def prediction(runs: Mapping[str, Sequence[Seen]]) -> Table:
    """Return paper, ours and gap of all published figures."""
    count = len(runs["expert_aware"])
    table = Table(f"Prediction (95 % intervals over {count} seeds)", ["", "paper", "ours", "gap"])
    for policy, seen in runs.items():
        ours = estimate(run.unique for run in seen)
        gap = f"{ours.mean - PAPER[policy]:+.2f}"
        kind = "predicted" if policy == "expert_aware" else "fitted"
        table.add(f"unique experts, {policy} ({kind})", f"{PAPER[policy]}", spread(ours), gap)
    for baseline in BASELINES:
        for (name, paper), gain in zip(PAPER_GAINS.items(), gains(runs, baseline), strict=True):
            table.add(
                f"{name} normalised latency against {baseline} (%, predicted)",
                interval(paper, digits=1),
                spread(gain, digits=1, scale=100, sign=True),
                f"{outside(100 * gain.mean, paper):+.1f}",
            )
    for policy, seen in runs.items():
        mean, p95 = estimate(run.mean_ms for run in seen), estimate(run.p95_ms for run in seen)
        both = f"{spread(mean, digits=1)}; {spread(p95, digits=1)}"
        table.add(f"normalised latency, {policy}: mean; p95 (ms a token)", "-", both, "")
    return table


_COLUMNS: Final = (
    *("decode_first", "prefill_first", "expert_aware"),
    *("mean % vs decode", "p95 %", "mean % vs prefill", "p95 %"),
)


def _row(setting: Setting, seeds: Sequence[int]) -> list[str]:
    runs = {policy: [run(setting, policy, seed) for seed in seeds] for policy in PAPER}
    unique = [f"{estimate(run.unique for run in seen).mean:.2f}" for seen in runs.values()]
    changes = [f"{100 * gain.mean:+.1f}" for base in BASELINES for gain in gains(runs, base)]
    return [*unique, *changes]


def over_grid(points: Sequence[Setting]) -> Table:
    """Return the policies' results at other rates and caps, on one seed of the calibration."""
    table = Table(
        f"All rates and caps at skew {points[0].skew:g} (1 seed)", ["rate, cap", *_COLUMNS]
    )
    for point in counted(points, "rates and caps"):
        table.add(f"{point.rate_per_s:g}/s, {point.cap}", *_row(point, CALIBRATION_SEEDS[:1]))
    return table


def binding(setting: Setting) -> Setting:
    """Return the same setting with a quarter of the batch cap."""
    return replace(setting, cap=max(1, setting.cap // 4))


def sensitivity(best: Setting, seeds: Sequence[int]) -> Table:
    """Return results with one thing changed at a time.

    Rules are also changed at a quarter of the cap, where it binds.
    """
    rules: dict[str, Mapping[str, Any]] = {
        "": {},
        ", unit: requests": {"unit": "requests"},
        ", prefill: every": {"prefill": "every"},
        ", both": {"unit": "requests", "prefill": "every"},
        ", max_wait: 16": {"max_wait": 16},
    }
    # Where the cap does not bind, all queued tokens fit, and no rule changes anything.
    tight = binding(best)
    changes: dict[str, Setting] = {
        **{f"as calibrated{rule}": replace(best, options=how) for rule, how in rules.items()},
        **{f"cap {tight.cap}{rule}": replace(tight, options=how) for rule, how in rules.items()},
        **{f"skew {skew:g}": replace(best, skew=skew) for skew in SKEWS if skew != best.skew},
        "7 domains, skew 1": replace(best, domains=7, skew=1.0),
        "5 slots a layer": replace(best, slots=5),
        "overhead 430 us": replace(best, hardware={"kernel_overhead": "430us"}),
    }
    table = Table(f"Sensitivity ({len(seeds)} seeds)", ["changed", *_COLUMNS])
    for name in counted(list(changes), "sensitivity"):
        table.add(name, *_row(changes[name], seeds))
    return table


def waits(setting: Setting, seeds: Sequence[int]) -> Table:
    """Return the longest waits of each policy, with and without ageing, over all seeds."""
    table = Table(
        f"Cap {setting.cap}: longest before a first step (wait) and between two (pause), "
        f"most of {len(seeds)} seeds",
        ["policy", "wait, steps", "wait, ms", "pause, steps", "pause, ms"],
    )
    ageing = {f"expert_aware, max_wait {n}": {"max_wait": n} for n in (16, 4)}
    for name in (*PAPER, *ageing):
        aged = replace(setting, options=ageing.get(name, {}))
        runs = [run(aged, name.partition(",")[0], seed) for seed in seeds]
        table.add(
            name,
            f"{max(seen.wait_steps for seen in runs)}",
            f"{max(seen.wait_ms for seen in runs):.0f}",
            f"{max(seen.pause_steps for seen in runs)}",
            f"{max(seen.pause_ms for seen in runs):.0f}",
        )
    return table


if __name__ == "__main__":
    main()
