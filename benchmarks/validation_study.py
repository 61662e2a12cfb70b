"""The validation study of docs/validation.md: many configurations, simulated and real.

    python benchmarks/validation_study.py DIR [--device cpu|cuda]

Configurations differ in model, cache size, batch, link speed, eviction policy and prefetch; those
that differ in policies only form a group, within which policies are ranked. A third of each
model's, drawn by the hashes of their names, are calibration configurations; the others are held
out. Costs are measured once for each model and link; the calibration configurations fit two
numbers more. Runs are interleaved over all configurations and kept as they finish: after an
interruption the same command goes on.

On a CPU links are emulated: copies take 1 to 4 ms, so that the jitter of a sleep is small beside
them, or as long as they do (`free`). On a GPU links are what they are, and host memory is
page-locked or not.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from moesim.calibration.bench import machine_facts
from moesim.calibration.calibrate import calibrate_plan
from moesim.cli.progress import progress
from moesim.errors import MoesimError
from moesim.files import write_json
from moesim.report.study import configuration_table, verdict_table, write_study
from moesim.report.tabular import write_tables
from moesim.scenario import Scenario, load_scenario
from moesim.validate.correction import Correction, corrected, fit_correction
from moesim.validate.runs import RealBench, ready_torch, simulate_observed
from moesim.validate.study import Configuration, Study, rankings, split, verdict
from moesim.validate.validation import Validation
from moesim.wiring import Plan, prepare

ROOT = Path(__file__).resolve().parents[1]
MODELS = {
    "deep": {"trace": str(ROOT / "traces/deep")},
    "wide": {
        "trace": str(ROOT / "traces/shallow"),
        "model": {"shape": str(ROOT / "benchmarks/wide.json")},
    },
}
EXPERT_BYTES = {"deep": 49_152, "wide": 4_718_592}
COPY_LATENCY_US = 50


class Group(NamedTuple):
    """What the policies of one ranking have in common."""

    model: str
    slots: int
    batch: int
    link: str
    arrivals: str = "at once"

    @property
    def name(self) -> str:
        open_ = "" if self.arrivals == "at once" else "-open"
        return f"{self.model}-{self.slots}slots-b{self.batch}-{self.link}{open_}"


GROUPS = (
    Group("deep", 2, 1, "1ms"),
    Group("deep", 6, 4, "1ms"),
    Group("deep", 5, 1, "2ms"),
    Group("deep", 6, 8, "2ms"),
    Group("wide", 4, 1, "4ms"),
    Group("wide", 10, 4, "4ms"),
    Group("wide", 13, 8, "4ms"),
    Group("wide", 14, 4, "1.5ms"),
)
POLICIES = (("lru", "none"), ("lfu", "none"), ("fifo", "none"), ("lru", "predicted"))
APART = (
    Group("deep", 4, 4, "free"),
    Group("wide", 8, 4, "free"),
    Group("wide", 10, 4, "4ms", "open"),
)
"""Regimes of their own, reported beside the others: links that nothing holds back, where copies and
computation fight for memory and interpreter; and open arrivals, replayed."""


def main() -> None:
    options = parse()
    ready_torch(options.device)
    machine = machine_facts(options.device)
    groups = [*GROUPS, *APART]
    made = [one for group in groups for one in configurations(group, options.device)]
    judged = [(name, group.model) for name, group, _ in made if group in GROUPS]
    chosen: set[str] = set()
    for model in MODELS:
        chosen |= split([name for name, of in judged if of == model])
    members = [
        Configuration(
            name,
            group.name,
            scenario,
            held_out=group in GROUPS and name not in chosen,
            calibrates=name in chosen,
        )
        for name, group, scenario in made
    ]
    by_name = {name: group for name, group, _ in made}
    study = Study(
        options.folder, members, device=options.device, machine=machine, runs=options.runs
    )
    with progress() as show:
        plans = costed(study, by_name, options, show)
        if not options.report:
            with closing(RealBench(options.device, list(plans.values()))) as bench:
                study.measure(plans, bench, progress=show or say)
    report(study, plans, by_name, machine)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda", "fake"), default="cpu")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--calibration-s", type=float, default=45.0, help="a profile")
    parser.add_argument("--report", action="store_true", help="from finished runs only")
    return parser.parse_args()


def configurations(group: Group, device: str) -> list[tuple[str, Group, Scenario]]:
    """The members of a group: one workload under each policy."""
    made = []
    for policy, prefetch in POLICIES[:4] if group in GROUPS else (POLICIES[0], POLICIES[3]):
        name = f"{group.name}-{policy}" + ("" if prefetch == "none" else f"-{prefetch}")
        made.append((name, group, load_scenario(plain(group, policy, prefetch, device, name))))
    return made


def plain(group: Group, policy: str, prefetch: str, device: str, name: str) -> dict[str, Any]:
    """A scenario as plain data; the profile is replaced by the measured one."""
    requests = {1: 3, 4: 8, 8: 12}[group.batch]
    hardware: dict[str, Any] = {"profile": "t4"}
    if device == "cuda":
        hardware["pinned"] = group.link != "4ms"
    elif group.link == "free":
        hardware["h2d"] = {"latency": "0us", "bandwidth": "8GB/s"}
    else:
        copy_us = 1000 * float(group.link.removesuffix("ms")) - COPY_LATENCY_US
        rate = round(EXPERT_BYTES[group.model] / copy_us * 1e6)
        hardware["h2d"] = {"latency": f"{COPY_LATENCY_US}us", "bandwidth": rate}
    arrivals: Any = "all_at_once"
    if group.arrivals == "open":
        arrivals = {"kind": "poisson", "rate_per_s": 8.0}
    return {
        "name": name,
        **MODELS[group.model],
        "hardware": hardware,
        "workload": {
            "requests": requests,
            "order": "shuffled",
            "lengths": {"prompt": 12, "output": 10},
            "arrivals": arrivals,
        },
        "batching": {"token_budget": 24, "max_sequences": group.batch},
        "cache": {"policy": policy, "slots": f"{group.slots}/layer"},
        "prefetch": {"policy": prefetch},
        "memory": {"staging": 2},
        "bounds": False,
    }


def costed(
    study: Study, groups: dict[str, Group], options: argparse.Namespace, show: Any
) -> dict[str, Plan]:
    """The plans with measured costs: those of an earlier start, or measured now."""
    plans: dict[str, Plan] = {}
    files = {one.name: profile_of(study, groups[one.name]) for one in study.configurations}
    for file in dict.fromkeys(files.values()):
        if not file.exists():
            alike = [one for one in study.configurations if files[one.name] == file]
            largest = max(alike, key=lambda one: groups[one.name].batch)
            say(f"calibrating {file.stem}", 0, 0)
            made = calibrate_plan(
                prepare(largest.scenario),
                device=options.device,
                budget_s=options.calibration_s,
                progress=show,
            )
            made.write(file)
    for one in study.configurations:
        profile = str(files[one.name].resolve())
        hardware = one.scenario.hardware.model_copy(update={"profile": profile})
        plans[one.name] = prepare(one.scenario.model_copy(update={"hardware": hardware}))
    return plans


def profile_of(study: Study, group: Group) -> Path:
    """Where the costs of a group are kept: one profile a model and link."""
    return study.folder / f"profiles/{group.model}-{group.link}.yaml"


def report(
    study: Study, plans: dict[str, Plan], groups: dict[str, Group], machine: dict[str, Any]
) -> None:
    """Tables and figures of what is finished."""
    plain_ = study.assess(plans)
    fitted = fit(study, plans, plain_)
    made = study.assess({name: corrected(plan, fitted) for name, plan in plans.items()})
    for folder, kind in ((study.folder, GROUPS), (study.folder / "apart", APART)):
        members = [one for one in study.configurations if groups[one.name] in kind]
        rows = [
            {
                "configuration": one.name,
                "group": one.group,
                "held_out": one.held_out,
                "calibrates": one.calibrates,
                **made[one.name].summary,
                "uncorrected_bias_pct": plain_[one.name].summary["total_time_bias_pct"],
                "uncorrected_step_error_pct": plain_[one.name].summary[
                    "step_time_error_median_pct"
                ],
            }
            for one in members
            if one.name in made
        ]
        results, before = (
            {one.name: which[one.name].comparison for one in members if one.name in which}
            for which in (made, plain_)
        )
        pairs = [{**asdict(p), "agrees": p.agrees} for p in rankings(results, members)]
        said, uncorrected = asdict(verdict(results, members)), asdict(verdict(before, members))
        facts = ", ".join(f"{key} {value}" for key, value in machine.items())
        notes = [
            f"measured on {study.device}: {facts}",
            f"{study.runs} runs each, interleaved, after a warm-up that does not count",
            f"fitted to the calibration configurations: computation takes "
            f"{fitted.compute_factor:.3f} times as long as calibrated, and starts on an expert "
            f"that has just landed {fitted.landing_ns / 1000:.0f} µs later",
        ]
        folder.mkdir(exist_ok=True)
        title = "Validation study" if kind is GROUPS else "Free links, and open arrivals"
        write_study(folder, rows, said, pairs, title=title, notes=notes, uncorrected=uncorrected)
        write_json(
            folder / "verdict.json",
            {"verdict": said, "nothing_fitted": uncorrected, "fitted": asdict(fitted)},
        )
        write_tables([configuration_table(rows), verdict_table(said)])


def fit(study: Study, plans: dict[str, Plan], assessed: dict[str, Validation]) -> Correction:
    """The two numbers, from calibration configurations that are finished and testable."""
    chosen = [
        one.name
        for one in study.configurations
        if one.calibrates and one.name in assessed and assessed[one.name].summary["testable"]
    ]
    if not chosen:
        return Correction()
    return fit_correction(
        [plans[name] for name in chosen],
        [assessed[name].summary["real_total_s"] * 1e9 for name in chosen],
        lambda plan: simulate_observed(plan).makespan_ns,
    )


def say(what: str, done: int, total: int) -> None:
    print(f"{what} {done}/{total}" if total else what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except MoesimError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted: finished runs are kept; the same command goes on", file=sys.stderr)
        sys.exit(130)
