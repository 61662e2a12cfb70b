"""A validation study: many configurations on one machine, their runs interleaved.

The configurations are split into *calibration* and *held-out* ones before anything is measured;
only the former may shape the model, the latter say how good it is. Runs go round: each
configuration once, then each once more, so that a slow minute of the machine hits all alike.
Every finished run is kept, so a study that was killed goes on from there.
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
from moesim.rundir import trace_hash
from moesim.scenario import Scenario
from moesim.validate.comparison import Comparison
from moesim.validate.observation import Observation
from moesim.validate.runs import Bench
from moesim.validate.store import load_run, save_run
from moesim.validate.validation import WARMUPS, Validation, assess, measure
from moesim.wiring import Plan

__all__ = ["Configuration", "Ranking", "Study", "Verdict", "rankings", "split", "verdict"]

DEFINITION: Final = "study.json"
POLICY_KEYS: Final = ("cache_policy", "prefetch_policy")
"""What distinguishes the members of a ranking; all else is equal among them."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """One workload of a study; `group` names those that differ in their policies only. One that
    neither is held out nor `calibrates` is reported and judges nothing."""

    name: str
    group: str
    scenario: Scenario
    held_out: bool
    calibrates: bool = False


def split(names: Sequence[str], share: float = 1 / 3) -> set[str]:
    """The names of calibration configurations: a `share` of all, drawn by their hash and nothing
    else, so that nobody chooses."""
    ordered = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    return set(ordered[: round(share * len(ordered))])


class Study:
    """The folder of a study: `study.json` (what is compared, and how it is split, written before
    anything is measured) and `measured/NAME/run-N.npz`."""

    def __init__(
        self,
        folder: Path,
        configurations: Sequence[Configuration],
        *,
        device: str,
        machine: Mapping[str, Any],
        runs: int = 5,
    ) -> None:
        """Open a study, a new one or one that was begun. It may be given more runs later.

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
            "configurations": {one.name: _defined(one) for one in configurations},
        }
        known = self._known()
        now = json.loads(json.dumps(definition))
        if known is None or (known != now and {**known, "runs": runs} == now):
            with output_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
                write_json(folder / DEFINITION, definition)
        elif known != now:
            wrong = [key for key in definition if known.get(key) != definition[key]]
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
        """Run what is missing, round by round, after a warm-up of each that does not count;
        `before` is called with the number of each round that has something to do."""
        left = [one for one in self.configurations if self.missing(one.name)]
        total = sum(len(self.missing(one.name)) for one in left)
        done = 0
        for one in left:
            for _ in range(WARMUPS):
                measure(plans[one.name], bench, self.finished(one.name))
        for number in range(self.runs):
            if before is not None and any(number in self.missing(one.name) for one in left):
                before(number)
            for one in left:
                if number not in self.missing(one.name):
                    continue
                made = measure(plans[one.name], bench, self.finished(one.name))
                save_run(self._file(one.name, number), made)
                done += 1
                if progress is not None:
                    progress("runs", done, total)

    def missing(self, name: str) -> list[int]:
        """The numbers of runs of a configuration that are still to do."""
        return [n for n in range(self.runs) if not self._file(name, n).exists()]

    def finished(self, name: str) -> list[Observation]:
        """The runs of a configuration that are done, in order."""
        files = [self._file(name, number) for number in range(self.runs)]
        return [load_run(file) for file in files if file.exists()]

    def assess(self, plans: Mapping[str, Plan]) -> dict[str, Validation]:
        """Every configuration whose runs are all done, compared with its simulation."""
        return {
            one.name: assess(plans[one.name], self.device, self.finished(one.name))
            for one in self.configurations
            if not self.missing(one.name)
        }

    def _file(self, name: str, number: int) -> Path:
        return self.folder / "measured" / name / f"run-{number}.npz"

    def _known(self) -> Any:
        file = self.folder / DEFINITION
        try:
            return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        except (OSError, ValueError) as error:
            raise OutputError(file, f"cannot be read: {error}") from None


def _defined(one: Configuration) -> dict[str, Any]:
    """All that decides what is measured; the profile is a result and no part of it."""
    plain = one.scenario.resolved()
    plain["hardware"] = {k: v for k, v in plain["hardware"].items() if k != "profile"}
    plain["trace"] = trace_hash(one.scenario)
    plain["model"] = {**plain["model"], "shape": Path(plain["model"]["shape"]).name}
    text = json.dumps(plain, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {
        "group": one.group,
        "held_out": one.held_out,
        "calibrates": one.calibrates,
        "sha256": digest,
    }


@dataclass(frozen=True, slots=True)
class Ranking:
    """Two policies on the same workload: relative difference of their totals, real and simulated,
    in percent; `resolved` where the real one exceeds both spreads."""

    group: str
    first: str
    second: str
    real_pct: float
    simulated_pct: float
    resolved: bool

    @property
    def agrees(self) -> bool:
        return self.real_pct * self.simulated_pct > 0


def rankings(
    made: Mapping[str, Comparison], configurations: Sequence[Configuration]
) -> list[Ranking]:
    """Every pair of a group that is finished."""
    groups: dict[str, list[str]] = {}
    for one in configurations:
        if one.name in made:
            groups.setdefault(one.group, []).append(one.name)
    return [
        _ranking(group, first, second, made)
        for group, names in groups.items()
        for first, second in combinations(names, 2)
    ]


def _ranking(group: str, first: str, second: str, made: Mapping[str, Comparison]) -> Ranking:
    ours, theirs = made[first].summary, made[second].summary
    real = 100 * (theirs["real_total_s"] / ours["real_total_s"] - 1)
    simulated = 100 * (theirs["simulated_total_s"] / ours["simulated_total_s"] - 1)
    spread = max(ours["executor_spread_pct"], theirs["executor_spread_pct"])
    return Ranking(group, first, second, real, simulated, abs(real) > spread)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A study against what it promised, over its held-out configurations that are testable."""

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


def verdict(made: Mapping[str, Comparison], configurations: Sequence[Configuration]) -> Verdict:
    """What the study came to. Nothing is left out without being named."""
    import numpy as np

    summaries = {name: comparison.summary for name, comparison in made.items()}
    untestable = [name for name, summary in summaries.items() if not summary["testable"]]
    held_out = [
        one.name
        for one in configurations
        if one.held_out and one.name in made and one.name not in untestable
    ]
    steps = [summaries[name]["step_time_error_median_pct"] for name in held_out]
    totals = {name: summaries[name]["total_time_error_pct"] for name in held_out}
    worst = max(totals, key=totals.__getitem__, default="")
    pairs = rankings(made, configurations)
    resolved = [pair for pair in pairs if pair.resolved]
    return Verdict(
        configurations=len(configurations),
        held_out=len(held_out),
        untestable=untestable,
        decisions_differ=[name for name, one in made.items() if one.differences],
        step_error_median_pct=float(np.median(steps)) if steps else None,
        total_error_median_pct=float(np.median(list(totals.values()))) if totals else None,
        total_error_worst_pct=totals.get(worst),
        worst=worst,
        compute_bound=sum(one["compute_share"] > 0.5 for one in summaries.values()),
        partly_stalled=sum(0.2 <= one["stall_share"] <= 0.8 for one in summaries.values()),
        rankings_resolved=len(resolved),
        rankings_reversed=[f"{p.first} : {p.second}" for p in resolved if not p.agrees],
        missing=[one.name for one in configurations if one.name not in made],
    )
