"""Do gates find the experts that tasks were made of? DSelect-k and Top-k on synthetic tasks.

    python studies/dselect/recovery.py OUT [--cells 16x2x16 ...] [--seeds 10]

A *cell* is n experts, k of them in each of some tasks. The experts are random networks of one
hidden layer, frozen, with standardised outputs. A task's target mixes k of them with weights of at
least 1/(2k), plus noise. Only the gates learn, one static gate for each task, so a gate's support
can be compared with the truth. With frozen experts a dense mixture is an easy regression, so
softmax, cut to k afterwards, is the control. A gate's loss above softmax's is the price of learning
while sparse. Softmax's price is that all experts run throughout.

Every gate has the same tuning budget in every cell. `--trials` settings are drawn from its own
space, and each is trained on one problem that no table shows. The setting with the least *hardened*
loss is kept. Hardened means as in inference, with at most k experts; *as trained* DSelect-k may
have more. Losses are mean squared errors on new inputs over the target's variance. Intervals are
95 % over seeds, of the mean over a seed's tasks. All gates of a seed see one problem and the same
batches.

Each finished run is kept in OUT, and a killed study resumes there. It takes about ten minutes on
one idle core.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import recovery_plots
import torch
from torch import Tensor

from moesim.errors import MoesimError, UsageError
from moesim.files import output_errors, write_json
from moesim.models.gates import GATES, Gate
from moesim.models.gates.dselect_k import Ramp
from moesim.models.gates.mixing import activity
from moesim.report.statistics import Estimate, difference, estimate
from moesim.report.tabular import Table, markdown

INPUTS, HIDDEN, OUTPUTS = 10, 16, 4
TRAINING, HELD_OUT, BATCH = 2048, 1024, 32
NOISE = 0.1  # standard deviation; the targets' own is near 1
TUNING_SEED = 10_000  # of the problem on which settings are chosen
SNAPSHOTS = 20  # along a run

Setting = dict[str, Any]  # a learning rate `lr` and the gate's options
Run = dict[str, Any]


class Cell(NamedTuple):
    """`tasks` tasks, each of `k` of `n` experts."""

    n: int
    k: int
    tasks: int

    def __str__(self) -> str:
        return "x".join(map(str, self))

    @classmethod
    def parse(cls, text: str) -> Cell:
        """Read a cell of the form 16x2x128. Raise `UsageError` for any other text."""
        parts = text.split("x")
        if len(parts) != 3 or not all(part.isdigit() and int(part) for part in parts):
            raise UsageError(f"cell {text!r} must be experts x selected x tasks, as in 16x2x128")
        cell = cls(*map(int, parts))
        if cell.k > cell.n:
            raise UsageError(f"cell {text!r}: a task cannot have {cell.k} of {cell.n} experts")
        return cell


CELLS = tuple(
    Cell(*cell) for cell in ((8, 2, 16), (12, 2, 16), (16, 2, 16), (16, 4, 16), (16, 4, 128))
)

SPACES: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "dselect_k": {
        "gamma": (0.01, 0.1, 1.0, 10.0),
        "entropy": (0.0, 1e-4, 1e-3, 1e-2, 1e-1),
        "ramp": (False, True),
    },
    "top_k": {},
    "noisy_top_k": {"balance": (0.0, 0.01, 0.1, 1.0)},
    "gumbel": {"temperature": (0.1, 0.3, 1.0, 3.0), "straight_through": (False, True)},
    "softmax": {},
}
GATES_SHOWN = ("dselect_k", "top_k", "noisy_top_k", "softmax")
RATES = (0.001, 0.3)  # log-uniform, of every gate


@dataclass(frozen=True, slots=True)
class Problem:
    """Inputs, experts' outputs `[rows, n, O]` in training and held out, targets, true weights."""

    inputs: Tensor  # (rows, I), of training
    held_out_inputs: Tensor
    train: Tensor
    train_targets: Tensor  # (rows, tasks, O), with noise
    held_out: Tensor
    held_out_targets: Tensor  # (rows, tasks, O), without
    truth: Tensor  # (tasks, n), rows sum to one


def make_problem(cell: Cell, seed: int) -> Problem:
    """Return the problem of a seed, which is the same for every gate."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    inner, outer = normal(cell.n, INPUTS, HIDDEN), normal(cell.n, HIDDEN, OUTPUTS)
    x = normal(TRAINING + HELD_OUT, INPUTS)
    states = torch.einsum("bnh,nho->bno", torch.einsum("bi,nih->bnh", x, inner).relu(), outer)
    # Standardised, so that no expert is easier to find than another by its scale.
    states = (states - states.mean(dim=0)) / states.std(dim=0)
    rng = np.random.default_rng(seed)
    truth = np.zeros((cell.tasks, cell.n), dtype=np.float32)
    for row in truth:
        support = rng.choice(cell.n, cell.k, replace=False)
        # At least 1 / 2k each: a weight near zero would make the true support arbitrary.
        row[support] = 0.5 / cell.k + 0.5 * rng.dirichlet(np.ones(cell.k))
    truth_TN = torch.from_numpy(truth)
    clean = torch.einsum("tn,bno->bto", truth_TN, states)
    noisy = clean[:TRAINING] + NOISE * normal(TRAINING, cell.tasks, OUTPUTS)
    return Problem(
        *(x[:TRAINING], x[TRAINING:]),
        *(states[:TRAINING], noisy),
        *(states[TRAINING:], clean[TRAINING:]),
        truth_TN,
    )


def draw_settings(gate: str, count: int, seed: int = 0) -> list[Setting]:
    """Draw `count` settings from a gate's space; the first ones do not depend on the count."""
    rng = np.random.default_rng([seed, sorted(SPACES).index(gate)])
    low, high = map(math.log, RATES)
    return [
        {
            "lr": float(math.exp(rng.uniform(low, high))),
            **{key: values[int(rng.integers(len(values)))] for key, values in SPACES[gate].items()},
        }
        for _ in range(count)
    ]


def make_gate(name: str, cell: Cell, setting: Setting, steps: int) -> Gate:
    """Return a static gate for all tasks."""
    options = {key: value for key, value in setting.items() if key != "lr"}
    if options.pop("ramp", False):
        options["entropy"] = Ramp(options["entropy"], max(1, steps // 2))
    if name == "dselect_k":
        options["epsilon"] = 1e-6  # so that a selector that left all experts has a finite loss
    if name == "noisy_top_k":
        options["importance"] = options["load"] = options.pop("balance")
    return GATES[name](cell.n, cell.k, tasks=cell.tasks, **options)


def train(name: str, cell: Cell, setting: Setting, seed: int, steps: int) -> Run:
    """Train one gate on one problem. Raise `MoesimError` if the loss is not finite."""
    problem = make_problem(cell, seed)
    torch.manual_seed(seed)
    gate = make_gate(name, cell, setting, steps)
    optimizer = torch.optim.Adam(gate.parameters(), lr=setting["lr"])
    batches = torch.Generator().manual_seed(seed)
    every = max(1, steps // SNAPSHOTS)
    snapshots = [look(gate, problem, 0)]
    for step in range(1, steps + 1):
        rows = torch.randint(TRAINING, (BATCH,), generator=batches)
        weights_TN, penalty = gate.train()()
        error = torch.einsum("tn,bno->bto", weights_TN, problem.train[rows])
        # A sum over tasks, not a mean: a task's gradient must not depend on how many others exist.
        loss = (error - problem.train_targets[rows]).square().mean(dim=(0, 2)).sum() + penalty
        if not torch.isfinite(loss):
            raise MoesimError(
                f"{name} on {cell}, seed {seed}, {setting}: the loss is {loss.item()} at step "
                f"{step}; runs that ended well are kept"
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % every == 0 or step == steps:
            snapshots.append(look(gate, problem, step))
    return {"setting": setting, "snapshots": snapshots}


@torch.no_grad()
def look(gate: Gate, problem: Problem, step: int) -> dict[str, Any]:
    """Return the gate's losses and supports, as trained and hardened, and one task's weights."""
    weights_TN = gate.eval()().weights
    chosen = gate.select()
    hard_TN = torch.zeros_like(weights_TN)
    hard_TN.scatter_add_(1, chosen.ids.clamp(min=0), chosen.weights)
    return {
        "step": step,
        "loss": relative_loss(weights_TN, problem),
        "hard_loss": relative_loss(hard_TN, problem),
        "exact": exact_support(weights_TN, problem.truth),
        "hard_exact": exact_support(hard_TN, problem.truth),
        "non_zeros": float((weights_TN != 0).sum(dim=1).double().mean()),
        "most_non_zeros": int((weights_TN != 0).sum(dim=1).max()),
        "active_share": activity(weights_TN).share,
        "first_task": [round(w, 5) for w in weights_TN[0].tolist()],
    }


def relative_loss(weights_TN: Tensor, problem: Problem) -> float:
    """Return the mean over tasks of squared error over target variance, on held-out inputs."""
    error = torch.einsum("tn,bno->bto", weights_TN, problem.held_out) - problem.held_out_targets
    variance_T = problem.held_out_targets.var(dim=0, correction=0).mean(dim=1)
    return float((error.square().mean(dim=(0, 2)) / variance_T).double().mean())


def exact_support(weights_TN: Tensor, truth_TN: Tensor) -> float:
    """Return the share of tasks whose non-zeros are exactly those of the truth."""
    return float(((weights_TN != 0) == (truth_TN != 0)).all(dim=1).double().mean())


class Study:
    """Runs kept in a folder: cell / gate / trial or seed. Runs with other settings are refused."""

    def __init__(self, out: Path, *, trials: int, seeds: int, steps: int) -> None:
        for name, value in (("trials", trials), ("seeds", seeds), ("steps", steps)):
            if value < 1:
                raise UsageError(f"{name} ({value}) must be at least 1")
        self.out, self.trials, self.seeds, self.steps = out, trials, seeds, steps

    def runs_of(self, cell: Cell, gate: str) -> list[Run]:
        """Tune, then return the chosen setting's run of every seed."""
        best = min(self.trials_of(cell, gate), key=lambda run: run["snapshots"][-1]["hard_loss"])
        return self.seeds_of(cell, gate, best["setting"])

    def settings_of(self, gate: str) -> list[Setting]:
        """Return the settings that a gate tries."""
        return draw_settings(gate, self.trials)

    def trials_of(self, cell: Cell, gate: str) -> list[Run]:
        """Return a run of each setting that is tried."""
        return [
            self._kept(cell, gate, f"trial-{number}", setting, TUNING_SEED)
            for number, setting in enumerate(self.settings_of(gate))
        ]

    def seeds_of(self, cell: Cell, gate: str, setting: Setting, name: str = "seed") -> list[Run]:
        """Return a setting's run of every seed; `name` tells settings of one gate apart."""
        return [
            self._kept(cell, gate, f"{name}-{seed}", setting, seed) for seed in range(self.seeds)
        ]

    def train(self, cell: Cell, gate: str, setting: Setting, seed: int) -> Run:
        """Return a new run."""
        return train(gate, cell, setting, seed, self.steps)

    def _kept(self, cell: Cell, gate: str, name: str, setting: Setting, seed: int) -> Run:
        file = self.out / str(cell) / gate / f"{name}.json"
        wanted = {"setting": setting, "seed": seed, "steps": self.steps}
        if file.exists():
            run: Run = json.loads(file.read_text(encoding="utf-8"))
            if any(run[key] != value for key, value in wanted.items()):
                raise UsageError(f"{file} was made with other settings; choose another folder")
            return run
        of = f"of {self.trials} trials and {self.seeds} seeds"
        print(f"\r{cell} {gate}: {name} {of}      ", end="", file=sys.stderr, flush=True)
        run = self.train(cell, gate, setting, seed) | wanted
        partial = file.with_suffix(".partial")
        with output_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(partial, run)
            # Only whole files get the name, so a killed run is done again.
            partial.replace(file)
        return run


Results = dict[tuple[Cell, str], list[Run]]
COLUMNS: Mapping[str, tuple[str, int]] = {  # a snapshot's key: its header, and digits
    "hard_loss": ("loss hardened", 3),
    "loss": ("as trained", 3),
    "hard_exact": ("exact support hardened", 2),
    "exact": ("as trained", 2),
    "non_zeros": ("non-zeros", 2),
    "most_non_zeros": ("most", 1),
}


def by_gate(results: Results) -> Table:
    """Return the results of every gate at the end of training."""
    headers = [header for header, _ in COLUMNS.values()]
    table = Table(
        "At the end of training", ["n x k x tasks", "gate", *headers, "active in training"]
    )
    for (cell, gate), runs in results.items():
        ends = [spread(_ends(runs, key), digits) for key, (_, digits) in COLUMNS.items()]
        active = [_mean(s["active_share"] for s in run["snapshots"]) for run in runs]
        table.add(str(cell), gate, *ends, spread(active, 2))
    return table


def by_difference(results: Results) -> Table:
    """Return DSelect-k less every other gate, seed by seed."""
    table = Table(
        "DSelect-k less the other gate (hardened)",
        ["n x k x tasks", "other gate", "loss", "reading", "exact support", "reading"],
    )
    for (cell, gate), runs in results.items():
        ours = results.get((cell, "dselect_k"))
        if ours is None or gate == "dselect_k":
            continue
        cells = []
        for key, digits, good in (("hard_loss", 3, -1), ("hard_exact", 2, 1)):
            less = difference(_ends(ours, key), _ends(runs, key), relative=False)
            cells += [written(less, digits, sign=True), reading(less, good)]
        table.add(str(cell), gate, *cells)
    return table


def by_step(results: Results) -> Table:
    """Return exact support hardened and non-zeros as trained, along training."""
    parts = (0, 0.1, 0.25, 0.5, 1)
    table = Table(
        "Along training: exact support hardened / non-zeros as trained",
        ["n x k x tasks", "gate", *(f"{part:.0%} of steps" for part in parts)],
    )
    for (cell, gate), runs in results.items():
        last = len(runs[0]["snapshots"]) - 1
        cells = []
        for part in parts:
            at = [run["snapshots"][round(part * last)] for run in runs]
            exact, non_zeros = (_mean(s[key] for s in at) for key in ("hard_exact", "non_zeros"))
            cells.append(f"{exact:.2f} / {non_zeros:.1f}")
        table.add(str(cell), gate, *cells)
    return table


def by_setting(results: Results) -> Table:
    """Return the settings that tuning chose."""
    table = Table("Chosen settings", ["n x k x tasks", "gate", "setting"])
    for (cell, gate), runs in results.items():
        setting = {k: f"{v:.3g}" if k == "lr" else str(v) for k, v in runs[0]["setting"].items()}
        table.add(str(cell), gate, ", ".join(f"{key} {value}" for key, value in setting.items()))
    return table


def reading(less: Estimate, good: int) -> str:
    """Return ahead or behind if the interval excludes zero; `good` is the better sign."""
    if less.half is None:
        return "one seed"
    if less.low <= 0 <= less.high:
        return "not seen"
    return "ahead" if less.mean * good > 0 else "behind"


def spread(values: Sequence[float], digits: int) -> str:
    """Return a mean and half its 95 % interval over seeds, as text."""
    return written(estimate(values), digits)


def written(value: Estimate, digits: int, *, sign: bool = False) -> str:
    """Return a mean and half its interval, if it has one, as text."""
    text = f"{value.mean:{'+' if sign else ''}.{digits}f}"
    return text if value.half is None else f"{text} ± {value.half:.{digits}f}"


def _ends(runs: Sequence[Run], key: str) -> list[float]:
    return [run["snapshots"][-1][key] for run in runs]


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


TABLES: Sequence[Callable[[Results], Table]] = (by_gate, by_difference, by_step, by_setting)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study from a command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--cells", nargs="+", type=Cell.parse, default=list(CELLS))
    parser.add_argument("--gates", nargs="+", choices=sorted(SPACES), default=list(GATES_SHOWN))
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--plot", type=Path, help="folder for plots (default: OUT/plots)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    study = Study(options.out, trials=options.trials, seeds=options.seeds, steps=options.steps)
    results = {
        (cell, gate): study.runs_of(cell, gate)
        for cell, gate in product(options.cells, options.gates)
    }
    print(file=sys.stderr)
    for make in TABLES:
        print(markdown(make(results)), end="\n\n")
    recovery_plots.draw(options.plot or options.out / "plots", results)


if __name__ == "__main__":
    main()
