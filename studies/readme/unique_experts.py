"""Unique experts per batch in Read-ME: calibrated on two baselines, predicted for its own policy.

    python studies/readme/unique_experts.py [--seeds 5] [--requests 100]

The paper serves Chatbot Arena on one A100-80GB and gives mean unique experts per batch: 5.08 with
decodes first, 5.21 with prompts first, 3.51 with expert-aware batching, whose normalised latency
(end to end / generated tokens) is 5.0 to 6.1 % lower in the mean and 9.5 to 10.0 % at p95. Rate,
batch cap, requests and popularity are not given. Stated before anything was simulated:

- fitted: arrival rate, batch cap (tokens a step) and popularity skew, on the grid below, to the
  two baselines only: least (U - 5.08)^2 + (U - 5.21)^2 on seeds of its own; the earliest of equals;
- predicted: expert-aware batching (its defaults: queues counted in tokens, a prompt with the expert
  that most of its tokens want) at that point on other seeds, and its gains over both baselines;
- assumed: Poisson arrivals; geometric lengths of mean 64 (prompt) and 124 (output, the length of
  the one request that the paper describes); a token follows its predecessor's expert in 71.3 %;
  one domain; 7 experts, all of them in GPU memory (35 GB of 80); no other limit on requests at
  once than 256; costs of the profile a100-80gb, itself assumed, the router's in them.

Two figures do not settle three knobs. So everything is also printed for all rates and caps at the
fitted skew, and one thing at a time is changed.
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
        # With a slot for all, `static` has them there from the start.
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
    """What one run came to: unique experts per batch, normalised latency, and the longest that a
    request was passed over, before its first step (wait) and between two (pause)."""

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
    found = {policy: [run(best, policy, seed) for seed in seeds] for policy in PAPER}
    print(markdown(prediction(found)), end="\n\n")
    print(markdown(over_grid([p for p in grid if p.skew == best.skew])), end="\n\n")
    print(markdown(sensitivity(best, seeds[:2])), end="\n\n")
    print(markdown(waits(best, seeds)), end="\n\n")
    print(markdown(waits(binding(best), seeds)))


def baselines(setting: Setting) -> tuple[float, float]:
    """Mean unique experts per batch of the two baselines, on the seeds of the calibration."""
    decode, prefill = (
        float(np.mean([run(setting, policy, seed).unique for seed in CALIBRATION_SEEDS]))
        for policy in BASELINES
    )
    return decode, prefill


def loss(unique: tuple[float, float]) -> float:
    """The objective of the calibration: it sees the baselines and nothing else."""
    return sum((ours - PAPER[p]) ** 2 for ours, p in zip(unique, BASELINES, strict=True))


def fitted(uniques: Mapping[Setting, tuple[float, float]]) -> Setting:
    """The point of least loss."""
    return min(uniques, key=lambda point: loss(uniques[point]))


def is_near(unique: tuple[float, float]) -> bool:
    """Whether both baselines are about the paper's."""
    pairs = zip(unique, BASELINES, strict=True)
    return all(abs(ours - PAPER[policy]) <= WITHIN for ours, policy in pairs)


@cache
def run(setting: Setting, policy: str, seed: int) -> Seen:
    """Serve the workload of a seed, the same for all policies."""
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
    """The fitted baselines, and how much the grid could have been."""
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


def gains(found: Mapping[str, Sequence[Seen]], baseline: str) -> tuple[Estimate, Estimate]:
    """Change of mean and p95 normalised latency from a baseline to expert-aware batching, paired
    by seed; 0.1 is 10 % slower."""
    pairs = [[seen[policy] for policy in ("expert_aware", baseline)] for seen in _by_seed(found)]
    return (
        difference([ours.mean_ms for ours, _ in pairs], [base.mean_ms for _, base in pairs]),
        difference([ours.p95_ms for ours, _ in pairs], [base.p95_ms for _, base in pairs]),
    )


def _by_seed(found: Mapping[str, Sequence[Seen]]) -> list[dict[str, Seen]]:
    return [dict(zip(found, seen, strict=True)) for seen in zip(*found.values(), strict=True)]


def outside(value: float, between: tuple[float, float]) -> float:
    """How far a value is from an interval; 0 inside."""
    least, most = between
    return max(value - most, 0.0) + min(value - least, 0.0)


def prediction(found: Mapping[str, Sequence[Seen]]) -> Table:
    """Paper, ours and gap of all that is published."""
    count = len(found["expert_aware"])
    table = Table(f"Prediction (95 % intervals over {count} seeds)", ["", "paper", "ours", "gap"])
    for policy, seen in found.items():
        ours = estimate(run.unique for run in seen)
        gap = f"{ours.mean - PAPER[policy]:+.2f}"
        kind = "predicted" if policy == "expert_aware" else "fitted"
        table.add(f"unique experts, {policy} ({kind})", f"{PAPER[policy]}", spread(ours), gap)
    for baseline in BASELINES:
        for (name, paper), gain in zip(PAPER_GAINS.items(), gains(found, baseline), strict=True):
            table.add(
                f"{name} normalised latency against {baseline} (%, predicted)",
                interval(paper, digits=1),
                spread(gain, digits=1, scale=100, sign=True),
                f"{outside(100 * gain.mean, paper):+.1f}",
            )
    for policy, seen in found.items():
        mean, p95 = estimate(run.mean_ms for run in seen), estimate(run.p95_ms for run in seen)
        both = f"{spread(mean, digits=1)}; {spread(p95, digits=1)}"
        table.add(f"normalised latency, {policy}: mean; p95 (ms a token)", "-", both, "")
    return table


_COLUMNS: Final = (
    *("decode_first", "prefill_first", "expert_aware"),
    *("mean % vs decode", "p95 %", "mean % vs prefill", "p95 %"),
)


def _row(setting: Setting, seeds: Sequence[int]) -> list[str]:
    found = {policy: [run(setting, policy, seed) for seed in seeds] for policy in PAPER}
    unique = [f"{estimate(run.unique for run in seen).mean:.2f}" for seen in found.values()]
    changes = [f"{100 * gain.mean:+.1f}" for base in BASELINES for gain in gains(found, base)]
    return [*unique, *changes]


def over_grid(points: Sequence[Setting]) -> Table:
    """What the policies do at other rates and caps, on one seed of the calibration."""
    table = Table(
        f"All rates and caps at skew {points[0].skew:g} (1 seed)", ["rate, cap", *_COLUMNS]
    )
    for point in counted(points, "rates and caps"):
        table.add(f"{point.rate_per_s:g}/s, {point.cap}", *_row(point, CALIBRATION_SEEDS[:1]))
    return table


def binding(setting: Setting) -> Setting:
    """The same with a quarter of the batch cap."""
    return replace(setting, cap=max(1, setting.cap // 4))


def sensitivity(best: Setting, seeds: Sequence[int]) -> Table:
    """One thing changed at a time; rules also where the cap is a quarter, so that it binds."""
    rules: dict[str, Mapping[str, Any]] = {
        "": {},
        ", unit: requests": {"unit": "requests"},
        ", prefill: every": {"prefill": "every"},
        ", both": {"unit": "requests", "prefill": "every"},
        ", max_wait: 16": {"max_wait": 16},
    }
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
    """The longest waits of each policy, with and without ageing; the most of all seeds."""
    table = Table(
        f"Cap {setting.cap}: longest before a first step (wait) and between two (pause), "
        f"most of {len(seeds)} seeds",
        ["policy", "wait, steps", "wait, ms", "pause, steps", "pause, ms"],
    )
    ageing = {f"expert_aware, max_wait {n}": {"max_wait": n} for n in (16, 4)}
    for name in (*PAPER, *ageing):
        aged = replace(setting, options=ageing.get(name, {}))
        found = [run(aged, name.partition(",")[0], seed) for seed in seeds]
        table.add(
            name,
            f"{max(seen.wait_steps for seen in found)}",
            f"{max(seen.wait_ms for seen in found):.0f}",
            f"{max(seen.pause_steps for seen in found)}",
            f"{max(seen.pause_ms for seen in found):.0f}",
        )
    return table


if __name__ == "__main__":
    main()
