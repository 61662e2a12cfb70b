"""A validation study: many configurations on one machine, their runs interleaved.

Configurations are split into *calibration* and *held-out* ones before any measurement. Only the
former may change the model; the latter judge it. Runs are interleaved: each configuration once,
then each once more. So a slow minute of the machine affects all alike. Every finished run is kept,
so a killed study resumes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Final

from moesim.errors import OutputError
from moesim.files import output_errors, write_json
from moesim.progress import Progress
from moesim.scenario import Scenario
from moesim.simulate.build import Plan
from moesim.simulate.rundir import trace_hash
from moesim.validate.comparison import Comparison
from moesim.validate.observation import Observation
from moesim.validate.runs import Bench
from moesim.validate.store import load_run, save_run
from moesim.validate.validation import WARMUPS, Validation, assess, measure

__all__ = ["Configuration", "Ranking", "Study", "Verdict", "rankings", "split", "verdict"]

DEFINITION: Final = "study.json"
POLICY_KEYS: Final = ("cache_policy", "prefetch_policy")
"""The keys in which the members of a ranking may differ; all others are equal."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """One workload of a study.

    Members of a `group` differ in their policies only. A configuration that is neither held out nor
    `calibrates` is reported, but not used for the verdict.
    """

    name: str
    group: str
    scenario: Scenario
    held_out: bool
    calibrates: bool = False


def split(names: Sequence[str], share: float = 1 / 3) -> set[str]:
    """Return the names of calibration configurations: a `share` of all.

    Only the hashes of the names draw them, so that the choice cannot depend on results.
    """
    ordered = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    return set(ordered[: round(share * len(ordered))])


class Study:
    """The folder of a study: `study.json` and `measured/NAME/run-N.npz`.

    `study.json` holds the configurations and their split, and is written before any measurement.
    """

    def __init__(
        self,
        folder: Path,
        configurations: Sequence[Configuration],
        *,
        device: str,
        machine: Mapping[str, Any],
        runs: int = 5,
    ) -> None:
        """Open a new study, or one that was begun. A later call may ask for more runs.

        Raises:
            OutputError: the folder holds another study, or cannot be written.
        """
        self.folder = folder
        self.configurations = configurations
        self.device = device
        self.runs = runs
        definition = {
            "device": device,
            "machine": dict(machine),
            "runs": runs,
            "configurations": {each.name: _defined(each) for each in configurations},
        }
        stored = self._stored()
        # As read back from a file, where tuples are lists.
        now = json.loads(json.dumps(definition))
        # More runs may be added to a study; all else must be equal.
        if stored is None or (stored != now and {**stored, "runs": runs} == now):
            with output_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
                write_json(folder / DEFINITION, definition)
        elif stored != now:
            wrong = [key for key in definition if stored.get(key) != definition[key]]
            raise OutputError(
                folder,
                f"holds a study of another {' and '.join(wrong) or 'kind'}; choose another folder",
            )

    def measure(
        self,
        plans: Mapping[str, Plan],
        bench: Bench,
        *,
        progress: Progress | None = None,
        before: Callable[[int], None] | None = None,
    ) -> None:
        """Do the missing runs, round by round, after a warm-up of each that does not count.

        `before` is called with the number of each round that has missing runs.
        """
        left = [each.name for each in self.configurations if self.missing(each.name)]
        total = sum(len(self.missing(name)) for name in left)
        done = 0
        # The first run after a start meets cold caches, also in a resumed study.
        for name in left:
            for _ in range(WARMUPS):
                measure(plans[name], bench, self.finished(name))
        for number in range(self.runs):
            if before is not None and any(number in self.missing(name) for name in left):
                before(number)
            for name in left:
                if number not in self.missing(name):
                    continue
                run = measure(plans[name], bench, self.finished(name))
                save_run(self._file(name, number), run)
                done += 1
                if progress is not None:
                    progress("runs", done, total)

    def missing(self, name: str) -> list[int]:
        """Return the numbers of a configuration's missing runs."""
        return [n for n in range(self.runs) if not self._file(name, n).exists()]

    def finished(self, name: str) -> list[Observation]:
        """Return a configuration's finished runs, in order."""
        files = [self._file(name, number) for number in range(self.runs)]
        return [load_run(file) for file in files if file.exists()]

    def assess(self, plans: Mapping[str, Plan]) -> dict[str, Validation]:
        """Compare every configuration whose runs are all done with its simulation."""
        return {
            each.name: assess(plans[each.name], self.device, self.finished(each.name))
            for each in self.configurations
            if not self.missing(each.name)
        }

    def _file(self, name: str, number: int) -> Path:
        return self.folder / "measured" / name / f"run-{number}.npz"

    def _stored(self) -> Any:
        file = self.folder / DEFINITION
        try:
            return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        except (OSError, ValueError) as error:
            raise OutputError(file, f"cannot be read: {error}") from None


def _defined(configuration: Configuration) -> dict[str, Any]:
    """Return all that decides what is measured.

    The profile is left out, because it is a result of the study.
    """
    plain = configuration.scenario.resolved()
    plain["hardware"] = {k: v for k, v in plain["hardware"].items() if k != "profile"}
    plain["trace"] = trace_hash(configuration.scenario)
    # A path differs between machines, but the file's name does not.
    plain["model"] = {**plain["model"], "shape": Path(plain["model"]["shape"]).name}
    text = json.dumps(plain, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {
        "group": configuration.group,
        "held_out": configuration.held_out,
        "calibrates": configuration.calibrates,
        "sha256": digest,
    }


@dataclass(frozen=True, slots=True)
class Ranking:
    """Two policies on the same workload: the relative difference of their totals, in percent.

    `resolved` is true if the real difference exceeds both spreads.
    """

    group: str
    first: str
    second: str
    real_pct: float
    simulated_pct: float
    resolved: bool

    @property
    def agrees(self) -> bool:
        # Equal signs: the same policy is faster on both machines.
        return self.real_pct * self.simulated_pct > 0


def rankings(
    results: Mapping[str, Comparison], configurations: Sequence[Configuration]
) -> list[Ranking]:
    """Rank every pair of finished configurations of a group."""
    groups: dict[str, list[str]] = {}
    for each in configurations:
        if each.name in results:
            groups.setdefault(each.group, []).append(each.name)
    return [
        _ranking(group, first, second, results)
        for group, names in groups.items()
        for first, second in combinations(names, 2)
    ]


def _ranking(group: str, first: str, second: str, results: Mapping[str, Comparison]) -> Ranking:
    ours, theirs = results[first].summary, results[second].summary
    # A ratio, so that long and short workloads count alike.
    real = 100 * (theirs["real_total_s"] / ours["real_total_s"] - 1)
    simulated = 100 * (theirs["simulated_total_s"] / ours["simulated_total_s"] - 1)
    spread = max(ours["executor_spread_pct"], theirs["executor_spread_pct"])
    return Ranking(group, first, second, real, simulated, abs(real) > spread)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a study; errors are over held-out configurations that are testable."""

    configurations: int
    held_out: int
    untestable: list[str]
    decisions_differ: list[str]
    step_error_median_pct: float | None
    total_error_median_pct: float | None
    total_error_worst_pct: float | None
    worst: str
    compute_bound: int
    partly_stalled: int
    rankings_resolved: int
    rankings_reversed: list[str]
    missing: list[str]


def verdict(results: Mapping[str, Comparison], configurations: Sequence[Configuration]) -> Verdict:
    """Return the result of a study; configurations that are left out are named in it."""
    import numpy as np

    summaries = {name: comparison.summary for name, comparison in results.items()}
    untestable = [name for name, summary in summaries.items() if not summary["testable"]]
    # Only configurations that shaped nothing and could be measured judge the model.
    held_out = [
        each.name
        for each in configurations
        if each.held_out and each.name in results and each.name not in untestable
    ]
    steps = [summaries[name]["step_time_error_median_pct"] for name in held_out]
    totals = {name: summaries[name]["total_time_error_pct"] for name in held_out}
    worst = max(totals, key=totals.__getitem__, default="")
    pairs = rankings(results, configurations)
    resolved = [pair for pair in pairs if pair.resolved]
    return Verdict(
        configurations=len(configurations),
        held_out=len(held_out),
        untestable=untestable,
        decisions_differ=[name for name, result in results.items() if result.differences],
        step_error_median_pct=float(np.median(steps)) if steps else None,
        total_error_median_pct=float(np.median(list(totals.values()))) if totals else None,
        total_error_worst_pct=totals.get(worst),
        worst=worst,
        compute_bound=sum(each["compute_share"] > 0.5 for each in summaries.values()),
        partly_stalled=sum(0.2 <= each["stall_share"] <= 0.8 for each in summaries.values()),
        rankings_resolved=len(resolved),
        rankings_reversed=[f"{p.first} : {p.second}" for p in resolved if not p.agrees],
        missing=[each.name for each in configurations if each.name not in results],
    )
