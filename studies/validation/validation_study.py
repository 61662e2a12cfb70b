"""The validation study of docs/validation.md: many configurations, simulated and real.

    python studies/validation/validation_study.py DIR [--device cpu|cuda]

Configurations differ in model, cache size, batch, link speed, eviction policy and prefetch. Those
that differ in policies only form a group, within which policies are ranked. A third of each
model's, drawn by the hashes of their names, are calibration configurations; the others are held
out. Costs are measured for each group, with workloads that calibration designs. The calibration
configurations fit two more numbers. Runs are interleaved over all configurations, with a slice of
calibration before each round, and stored as they finish. After an interruption the same command
resumes the study.

On a CPU links are emulated. Copies take 1 to 4 ms, so that the jitter of a sleep is small compared
with them, or run at memory speed (`free`). On a GPU links are real, and host memory is page-locked
or not.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from moesim.calibrate.bench import machine_facts
from moesim.calibrate.calibrate import Slices, calibrate_plan
from moesim.calibrate.samples import Samples
from moesim.calibrate.store import load_samples, save_samples
from moesim.cli.progress import progress
from moesim.config.yaml_document import dump_document, load_document
from moesim.errors import MoesimError
from moesim.files import output_errors, write_json
from moesim.hardware.hardware import load_hardware
from moesim.report.study import configuration_table, verdict_table, write_study
from moesim.report.tabular import write_tables
from moesim.scenario import Scenario, load_scenario
from moesim.simulate.build import Plan, prepare
from moesim.validate.correction import Correction, corrected, fit_correction
from moesim.validate.runs import RealBench, ready_torch, simulate_observed
from moesim.validate.study import Configuration, Study, rankings, split, verdict
from moesim.validate.validation import Validation

ROOT = Path(__file__).resolve().parents[2]
MODELS = {
    "deep": {
        "trace": str(ROOT / "traces/deep"),
        "model": {"shape": str(ROOT / "studies/validation/deep.json")},
    },
    "wide": {
        "trace": str(ROOT / "traces/shallow"),
        "model": {"shape": str(ROOT / "studies/validation/wide.json")},
    },
}
EXPERT_BYTES = {"deep": 1_572_864, "wide": 4_718_592}
REQUESTS = {"deep": {1: 2, 4: 6, 8: 10}, "wide": {1: 5, 4: 14, 8: 24}}
"""By batch: a run takes one to three seconds, so that short disturbances matter little."""
COPY_LATENCY_US = 50


class Group(NamedTuple):
    """The settings that the policies of one ranking share."""

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
    Group("deep", 5, 1, "4ms"),
    Group("deep", 6, 8, "4ms"),
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
"""Two regimes that are reported apart. On links without a limit, copies and computation compete for
memory and interpreter. The other regime is open arrivals, replayed."""


def main() -> None:
    options = parse()
    ready_torch(options.device)
    machine = machine_facts(options.device)
    groups = [*GROUPS, *APART]
    defined = [each for group in groups for each in configurations(group, options.device)]
    judged = [(name, group.model) for name, group, _ in defined if group in GROUPS]
    # Model by model, so that both models have calibration configurations.
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
        for name, group, scenario in defined
    ]
    by_name = {name: group for name, group, _ in defined}
    study = Study(
        options.folder, members, device=options.device, machine=machine, runs=options.runs
    )
    plans = {each.name: prepare(each.scenario) for each in members}
    of_group = {by_name[name]: plan for name, plan in plans.items()}
    if not options.report:
        with (
            progress() as show,
            closing(Costs(study, of_group, options)) as costs,
            closing(RealBench(options.device, list(plans.values()))) as bench,
        ):
            study.measure(plans, bench, progress=show or say, before=costs.measure)
    profiles = {group: priced(study, group, plan) for group, plan in of_group.items()}
    costed = {
        each.name: with_profile(each.scenario, profiles[by_name[each.name]]) for each in members
    }
    report(study, costed, by_name, machine)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda", "fake"), default="cpu")
    parser.add_argument("--runs", type=int, default=11)
    parser.add_argument("--calibration-s", type=float, default=8.0, help="of a group, at first")
    parser.add_argument("--slice-s", type=float, default=2.0, help="more, before each round")
    parser.add_argument("--report", action="store_true", help="from finished runs only")
    return parser.parse_args()


def configurations(group: Group, device: str) -> list[tuple[str, Group, Scenario]]:
    """Return the members of a group: one workload under each policy."""
    members = []
    for policy, prefetch in POLICIES[:4] if group in GROUPS else (POLICIES[0], POLICIES[3]):
        name = f"{group.name}-{policy}" + ("" if prefetch == "none" else f"-{prefetch}")
        members.append((name, group, load_scenario(plain(group, policy, prefetch, device, name))))
    return members


def plain(group: Group, policy: str, prefetch: str, device: str, name: str) -> dict[str, Any]:
    """Return a scenario as plain data; a measured profile replaces its profile later."""
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
            "requests": REQUESTS[group.model][group.batch],
            "order": "shuffled",
            "lengths": {"prompt": 12, "output": 12},
            "arrivals": arrivals,
        },
        "batching": {"token_budget": 24, "max_sequences": group.batch},
        "cache": {"policy": policy, "slots": f"{group.slots}/layer"},
        "prefetch": {"policy": prefetch},
        "memory": {"staging": 2},
        "bounds": False,
    }


class Costs:
    """Costs of each group: a short calibration first, then a slice before each round of runs.

    So calibration and runs see the same machine load.
    """

    def __init__(self, study: Study, plans: dict[Group, Plan], options: argparse.Namespace) -> None:
        self._study = study
        self._plans = plans
        self._options = options
        self._open: dict[Group, Slices] = {}

    def measure(self, number: int) -> None:
        """Measure a slice for each group that lacks it."""
        for group, plan in self._plans.items():
            if not profile_of(self._study, group).exists():
                say(f"calibrating {group.name}", 0, 0)
                device, budget_s = self._options.device, self._options.calibration_s
                profile = calibrate_plan(plan, device=device, budget_s=budget_s)
                save_samples(samples_of(self._study, group) / "first.json", profile.samples)
                profile.write(profile_of(self._study, group))
            file = samples_of(self._study, group) / f"round-{number}.json"
            if not file.exists():
                if group not in self._open:
                    self._open[group] = Slices(plan, device=self._options.device)
                budget_s = self._options.slice_s
                save_samples(file, self._open[group].sample(budget_s, seed=1 + number))

    def close(self) -> None:
        """Release the models."""
        for slices in self._open.values():
            slices.close()


def priced(study: Study, group: Group, plan: Plan) -> Path:
    """Write and return the profile of a group, its operations fitted to all slices."""
    file = profile_of(study, group)
    samples = Samples()
    # Sorted, so that the fit does not depend on the order of files on disk.
    for each in sorted(samples_of(study, group).glob("*.json")):
        samples.add(load_samples(each))
    emulated = study.device == "cpu"
    link = plan.cost.hardware.h2d if emulated else load_hardware(file).h2d
    times = Slices.fit(plan.cost.shape, samples, link)
    data = dict(load_document(file).data)
    data["operations"] = [times.model_dump(exclude_defaults=True)]
    fitted = file.with_suffix(".fitted.yaml")
    with output_errors(fitted):
        fitted.write_text(dump_document(data), encoding="utf-8")
    return fitted


def with_profile(scenario: Scenario, profile: Path) -> Plan:
    """Return the plan of a scenario with the costs of a profile."""
    hardware = scenario.hardware.model_copy(update={"profile": str(profile.resolve())})
    return prepare(scenario.model_copy(update={"hardware": hardware}))


def samples_of(study: Study, group: Group) -> Path:
    """Return the folder of the samples of a group's slices."""
    return study.folder / "samples" / group.name


def profile_of(study: Study, group: Group) -> Path:
    """Return the file of a group's profile."""
    return study.folder / f"profiles/{group.name}.yaml"


def report(
    study: Study, plans: dict[str, Plan], groups: dict[str, Group], machine: dict[str, Any]
) -> None:
    """Write tables and figures of the finished configurations."""
    unfitted = study.assess(plans)
    correction = fit(study, plans, unfitted)
    fitted = study.assess({name: corrected(plan, correction) for name, plan in plans.items()})
    for folder, kind in ((study.folder, GROUPS), (study.folder / "apart", APART)):
        members = [each for each in study.configurations if groups[each.name] in kind]
        rows = [
            {
                "configuration": each.name,
                "group": each.group,
                "held_out": each.held_out,
                "calibrates": each.calibrates,
                **fitted[each.name].summary,
                "uncorrected_bias_pct": unfitted[each.name].summary["total_time_bias_pct"],
                "uncorrected_step_error_pct": unfitted[each.name].summary[
                    "step_time_error_median_pct"
                ],
            }
            for each in members
            if each.name in fitted
        ]
        results, before = (
            {each.name: which[each.name].comparison for each in members if each.name in which}
            for which in (fitted, unfitted)
        )
        pairs = [{**asdict(p), "agrees": p.agrees} for p in rankings(results, members)]
        said, uncorrected = asdict(verdict(results, members)), asdict(verdict(before, members))
        facts = ", ".join(f"{key} {value}" for key, value in machine.items())
        notes = [
            f"measured on {study.device}: {facts}",
            f"{study.runs} runs each, interleaved, after a warm-up that does not count",
            f"fitted to the calibration configurations: computation takes "
            f"{correction.compute_factor:.3f} times as long as calibrated, and starts on an expert "
            f"that has just landed {correction.landing_ns / 1000:.0f} µs later",
        ]
        folder.mkdir(exist_ok=True)
        title = "Validation study" if kind is GROUPS else "Free links, and open arrivals"
        write_study(folder, rows, said, pairs, title=title, notes=notes, uncorrected=uncorrected)
        write_json(
            folder / "verdict.json",
            {"verdict": said, "nothing_fitted": uncorrected, "fitted": asdict(correction)},
        )
        write_tables([configuration_table(rows), verdict_table(said)])


def fit(study: Study, plans: dict[str, Plan], assessed: dict[str, Validation]) -> Correction:
    """Fit the two numbers to the calibration configurations that are finished and testable."""
    chosen = [
        each.name
        for each in study.configurations
        if each.calibrates and each.name in assessed and assessed[each.name].summary["testable"]
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
        print("interrupted: finished runs are kept; the same command resumes", file=sys.stderr)
        sys.exit(130)
