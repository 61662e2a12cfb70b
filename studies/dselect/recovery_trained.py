"""Do gates find the tasks' experts while these experts are still learnt? And are they sparse then?

    python studies/dselect/recovery_trained.py OUT [--cells 16x4x128 ...] [--seeds 5]

The tasks are those of `recovery.py`: each mixes k of n teachers. There the mixture has the
teachers as frozen experts, so every gate that is cut to k afterwards finds them. Here experts are
learnt together with the gates (`trained_experts.py`), and gates that are not sparse while they
learn must pay for the cut.

Two rows bound what a gate can reach. Both learn experts and weights, on supports that are fixed:
*true supports* (what a perfect choice reaches) and *random supports* (what no choice reaches). The
experiment can show a difference between gates only where these two rows differ.

*As trained* is the gate without noise before the cut; *hardened* is the gate cut to k as in
inference. Supports are compared with the truth after learnt experts are matched with teachers.

Protocol. Nothing is fitted to published figures. All gates and both bounds have the same tuning
(`tuning.py`): the same learning rates of experts, as many trials at each, the same two factors by
which gates learn faster. Equal settings run once. Each trial runs on one problem that no table
shows. Two criteria choose a setting among the same trials:

- *loss*: the least hardened loss;
- *at most k*: the least hardened loss among trials that use at most k experts a task as trained, in
  the mean over tasks. If no trial does, the table says so, and shows the least number of experts.

The sweep varies DSelect-k's entropy weight, with and without ramp, at a learning rate of 0.01, a
factor of 1 and two values of gamma. These are fixed in advance, not chosen by a result.

Losses are mean squared errors on new inputs over the target's variance. Intervals are 95 % over
seeds, of the mean over a seed's tasks. All gates of a seed see one problem, the same batches and
the same first weights of experts. Every finished run is kept in OUT, and a killed study resumes
there. It took 40 minutes on about a third of a shared core.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Final

import recovery
import torch
import trained_experts
from recovery import Cell, Run, Setting
from recovery_tables import reading, spread, written
from trained_experts import BOUNDS, end_of

from moesim.cli.ending import run_to_its_end
from moesim.report.statistics import difference
from moesim.report.tabular import Table, markdown

CELLS: Final = (Cell(8, 2, 16), Cell(16, 2, 32), Cell(16, 4, 128))
GATES: Final = ("dselect_k", "top_k", "noisy_top_k", "softmax")
RATES: Final = (0.002, 0.05)
SHARED: Final = {"gate_factor": (1.0, 10.0)}
CRITERIA: Final = ("loss", "at most k")
SWEEP_CELLS: Final = (Cell(8, 2, 16), Cell(16, 4, 128))
ENTROPIES: Final = (0.0, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
GAMMAS: Final = (0.1, 1.0)
Point = tuple[float, float, bool]  # gamma, entropy weight, and whether it ramps up


@dataclass(frozen=True, slots=True)
class Choice:
    """A gate's setting by one criterion: its runs, seed by seed.

    `least` is the least mean number of experts of any trial if none fits the criterion, else None.
    """

    setting: Setting
    runs: Sequence[Run]
    least: float | None = None

    def ends(self, key: str) -> list[float]:
        """Return a figure of the last snapshot, seed by seed."""
        return [end_of(run)[key] for run in self.runs]


class Study(recovery.Study):
    """Runs of trained experts, tuned under the common protocol."""

    rates = RATES
    shared = SHARED

    def train(self, cell: Cell, gate: str, setting: Setting, seed: int) -> Run:
        return trained_experts.train(gate, cell, setting, seed, self.steps).run

    def choices(self, cell: Cell, gate: str) -> dict[str, Choice]:
        """Return each criterion's choice. Equal settings share their runs.

        If no trial uses at most k experts, the second choice has no runs.
        """
        trials = self.trials_of(cell, gate)
        first = best_of(trials)
        one = Choice(first["setting"], self.seeds_of(cell, gate, first["setting"]))
        sparse = [run for run in trials if end_of(run)["non_zeros"] <= cell.k]
        if not sparse:
            return {"loss": one, "at most k": Choice({}, [], least_experts(trials))}
        second = best_of(sparse)["setting"]
        if second == first["setting"]:
            return {"loss": one, "at most k": one}
        runs = self.seeds_of(cell, gate, second, "sparse-seed")
        return {"loss": one, "at most k": Choice(second, runs)}

    def sweep(self, cell: Cell, seeds: int) -> dict[Point, list[Run]]:
        """Return DSelect-k's runs at every entropy weight."""
        return {
            (gamma, entropy, ramp): [
                self._kept(
                    cell,
                    "dselect_k",
                    f"sweep-{gamma:g}-{entropy:g}-{'ramp' if ramp else 'fixed'}-{seed}",
                    {"lr": 0.01, "gate_factor": 1.0, "gamma": gamma, "entropy": entropy}
                    | ({"ramp": True} if ramp else {}),
                    seed,
                )
                for seed in range(seeds)
            ]
            for gamma, entropy, ramp in product(GAMMAS, ENTROPIES, (False, True))
            if entropy or not ramp
        }


Results = Mapping[tuple[Cell, str], Mapping[str, Choice]]
Sweeps = Mapping[Cell, Mapping[Point, Sequence[Run]]]


def best_of(trials: Sequence[Run]) -> Run:
    """Return the trial with the least hardened loss, the first of equals."""
    return min(trials, key=lambda run: end_of(run)["hard_loss"])


def least_experts(trials: Sequence[Run]) -> float:
    """Return the least mean number of experts that a trial uses as trained."""
    return min(float(end_of(run)["non_zeros"]) for run in trials)


# --- tables ---


def rows_of(results: Results) -> list[tuple[Cell, str, str, Choice]]:
    """Return cell, gate, criteria and choice of each row; one row if both criteria agree."""
    rows = []
    for (cell, gate), choices in results.items():
        first, second = (choices[criterion] for criterion in CRITERIA)
        if second.runs and second.setting == first.setting:
            rows.append((cell, gate, "both", first))
        else:
            rows += [(cell, gate, "loss", first), (cell, gate, "at most k", second)]
    return rows


def table_of(title: str, columns: Mapping[str, tuple[str, int]], results: Results) -> Table:
    """Return a table of figures at the end of training; a choice without runs says so."""
    headers = [header for header, _ in columns.values()]
    table = Table(title, ["n x k x tasks", "gate", "chosen by", *headers])
    for cell, gate, criterion, choice in rows_of(results):
        if choice.least is not None:
            said = f"no setting: {choice.least:.1f} experts at the least"
            table.add(str(cell), gate, criterion, said, *[""] * (len(columns) - 1))
            continue
        cells = [spread(choice.ends(key), digits) for key, (_, digits) in columns.items()]
        table.add(str(cell), gate, criterion, *cells)
    return table


def by_gate(results: Results) -> Table:
    """Return losses and supports, as trained and hardened side by side."""
    columns = {
        "hard_loss": ("loss hardened", 4),
        "loss": ("as trained", 4),
        "hard_exact": ("exact support hardened", 2),
        "exact": ("as trained", 2),
        "hard_pairs": ("equal overlaps hardened", 2),
        "pairs": ("as trained", 2),
    }
    return table_of("Losses and supports at the end of training", columns, results)


def by_experts(results: Results) -> Table:
    """Return numbers of experts, and how well learnt experts are matched with teachers."""
    columns = {
        "non_zeros": ("experts a task as trained", 2),
        "hard_non_zeros": ("hardened", 2),
        "at_most_k": ("tasks with at most k as trained", 2),
        "lost": ("experts no task uses, hardened", 2),
        "certain": ("experts matched with certainty", 2),
        "correlation": ("mean correlation of matches", 2),
    }
    return table_of("Experts at the end of training", columns, results)


def by_difference(results: Results) -> Table:
    """Return DSelect-k less every other gate, seed by seed, under each criterion."""
    parts = (
        ("hard_loss", "loss hardened", 4, -1),
        ("loss", "loss as trained", 4, -1),
        ("hard_exact", "exact support hardened", 2, 1),
        ("exact", "exact support as trained", 2, 1),
    )
    headers = [text for _, header, _, _ in parts for text in (header, "reading")]
    table = Table(
        "DSelect-k less the other gate", ["n x k x tasks", "other gate", "chosen by", *headers]
    )
    for (cell, gate), choices in results.items():
        for criterion in CRITERIA:
            ours = results.get((cell, "dselect_k"), {}).get(criterion)
            theirs = choices[criterion]
            if gate == "dselect_k" or ours is None or not ours.runs or not theirs.runs:
                continue
            cells = []
            for key, _, digits, good in parts:
                less = difference(ours.ends(key), theirs.ends(key), relative=False)
                cells += [written(less, digits, sign=True), reading(less, good)]
            table.add(str(cell), gate, criterion, *cells)
    return table


def by_setting(results: Results) -> Table:
    """Return the settings that tuning chose."""
    table = Table("Chosen settings", ["n x k x tasks", "gate", "chosen by", "setting"])
    for cell, gate, criterion, choice in rows_of(results):
        said = {k: f"{v:.3g}" if k == "lr" else str(v) for k, v in choice.setting.items()}
        text = ", ".join(f"{key} {value}" for key, value in said.items())
        table.add(str(cell), gate, criterion, text or "none")
    return table


def by_entropy(sweeps: Sweeps) -> Table:
    """Return DSelect-k's sparsity, losses and supports against the entropy weight."""
    columns = {
        "binary": ("binary bits", 2),
        "non_zeros": ("experts a task as trained", 2),
        "at_most_k": ("tasks with at most k as trained", 2),
        "hard_non_zeros": ("experts a task hardened", 2),
        "loss": ("loss as trained", 4),
        "hard_loss": ("hardened", 4),
        "exact": ("exact support as trained", 2),
        "hard_exact": ("hardened", 2),
    }
    headers = [header for header, _ in columns.values()]
    table = Table(
        "DSelect-k against its entropy weight",
        ["n x k x tasks", "gamma", "entropy weight", "ramp", *headers],
    )
    for cell, sweep in sweeps.items():
        for (gamma, entropy, ramp), runs in sweep.items():
            cells = [
                spread([end_of(run)[key] for run in runs], digits)
                for key, (_, digits) in columns.items()
            ]
            table.add(str(cell), f"{gamma:g}", f"{entropy:g}", "yes" if ramp else "no", *cells)
    return table


TABLES: Sequence[Callable[[Results], Table]] = (by_gate, by_experts, by_difference, by_setting)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study from a command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--cells", nargs="+", type=Cell.parse, default=list(CELLS))
    parser.add_argument("--gates", nargs="+", choices=GATES, default=list(GATES))
    parser.add_argument("--sweep-cells", nargs="*", type=Cell.parse, default=list(SWEEP_CELLS))
    recovery.add_sizes(parser, strata=4, draws=4, seeds=5, sweep_seeds=3, steps=1000)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    study = Study(options.out, **recovery.sizes_of(options))
    results = {
        (cell, gate): study.choices(cell, gate)
        for cell, gate in product(options.cells, (*BOUNDS, *options.gates))
    }
    sweeps = {cell: study.sweep(cell, options.sweep_seeds) for cell in options.sweep_cells}
    print(file=sys.stderr)
    for make in TABLES:
        print(markdown(make(results)), end="\n\n")
    if sweeps:
        print(markdown(by_entropy(sweeps)), end="\n\n")


if __name__ == "__main__":
    run_to_its_end(main)
