"""Do gates find the experts that tasks were made of? DSelect-k and Top-k on synthetic tasks.

    python studies/dselect/recovery.py OUT [--cells 16x2x16 ...] [--seeds 10]

A *cell* is n experts, k of them in each of some tasks. The experts are random networks of one
hidden layer, frozen, with standardised outputs. A task's target mixes k of them with weights of at
least 1/(2k), plus noise. Only the gates learn, one static gate for each task, so a gate's support
can be compared with the truth. With frozen experts a dense mixture is an easy regression, so
softmax, cut to k afterwards, is the control. A gate's loss above softmax's is the price of learning
while sparse. Softmax's price is that all experts run throughout.

Every gate has the same tuning in every cell (`tuning.py`): the same learning rates, and as many
trials of its own options at each. A gate of few options draws equal settings, which run once. Each
trial runs on one problem that no table shows. The setting with the least *hardened* loss is kept.
Hardened means as in inference, with at most k experts; *as trained* DSelect-k may have more. Losses
are mean squared errors on new inputs over the target's variance. Intervals are 95 % over seeds, of
the mean over a seed's tasks. All gates of a seed see one problem and the same batches.

Each finished run is kept in OUT, and a killed study resumes there. It took 21 minutes on about a
third of a shared core.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import recovery_plots
import torch
import tuning
from recovery_tables import TABLES
from recovery_tables import reading as reading
from recovery_tables import spread as spread
from recovery_tables import written as written
from torch import Tensor

from moesim.cli.ending import run_to_its_end
from moesim.errors import MoesimError, UsageError
from moesim.files import output_errors, write_json
from moesim.report.tabular import markdown
from moesim.training.gates import GATES, Gate
from moesim.training.gates.dselect_k import Ramp
from moesim.training.gates.mixing import activity

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
RATES = (0.001, 0.3)  # bounds, of every gate


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


def make_gate(name: str, cell: Cell, setting: Setting, steps: int) -> Gate:
    """Return a static gate for all tasks."""
    options = {key: value for key, value in setting.items() if key != "lr"}
    if options.pop("ramp", False):
        options["entropy"] = Ramp(options["entropy"], max(1, steps // 2))
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
        descend(optimizer, loss, f"{name} on {cell}, seed {seed}, {setting}", step)
        if step % every == 0 or step == steps:
            snapshots.append(look(gate, problem, step))
    return {"setting": setting, "snapshots": snapshots}


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, run: str, step: int) -> None:
    """Take a step down the gradient. Raise `MoesimError` if the loss is not finite."""
    if not torch.isfinite(loss):
        raise MoesimError(
            f"{run}: the loss is {loss.item()} at step {step}; runs that ended well are kept"
        )
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


@torch.no_grad()
def look(gate: Gate, problem: Problem, step: int) -> dict[str, Any]:
    """Return the gate's losses and supports, as trained and hardened, and one task's weights."""
    weights_TN = gate.eval()().weights
    hard_TN = gate.select().dense()
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

    rates = RATES
    shared: Mapping[str, Sequence[Any]] = MappingProxyType({})  # options that every gate has

    def __init__(self, out: Path, *, strata: int, draws: int, seeds: int, steps: int) -> None:
        for name, value in (
            *(("strata", strata), ("draws", draws)),
            *(("seeds", seeds), ("steps", steps)),
        ):
            if value < 1:
                raise UsageError(f"{name} ({value}) must be at least 1")
        self.out, self.strata, self.draws = out, strata, draws
        self.seeds, self.steps = seeds, steps

    def runs_of(self, cell: Cell, gate: str) -> list[Run]:
        """Tune, then return the chosen setting's run of every seed."""
        best = min(self.trials_of(cell, gate), key=lambda run: run["snapshots"][-1]["hard_loss"])
        return self.seeds_of(cell, gate, best["setting"])

    def settings_of(self, gate: str) -> list[Setting]:
        """Return the different settings that a gate tries."""
        settings = tuning.draw_settings(
            gate,
            SPACES.get(gate, {}),
            self.rates,
            strata=self.strata,
            draws=self.draws,
            shared=self.shared,
        )
        # Gates of few options draw equal settings, whose results are known.
        return [setting for n, setting in enumerate(settings) if setting not in settings[:n]]

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
        of = f"of {self.strata * self.draws} trials and {self.seeds} seeds"
        print(f"\r{cell} {gate}: {name} {of}      ", end="", file=sys.stderr, flush=True)
        run = self.train(cell, gate, setting, seed) | wanted
        partial = file.with_suffix(".partial")
        with output_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(partial, run)
            # Only whole files get the name, so a killed run is done again.
            partial.replace(file)
        return run


def add_sizes(parser: argparse.ArgumentParser, **defaults: int) -> None:
    """Add the arguments that `Study` needs, or others that are numbers."""
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)


def sizes_of(options: argparse.Namespace) -> dict[str, int]:
    """Return the arguments of `Study`."""
    return {name: getattr(options, name) for name in ("strata", "draws", "seeds", "steps")}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study from a command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--cells", nargs="+", type=Cell.parse, default=list(CELLS))
    parser.add_argument("--gates", nargs="+", choices=sorted(SPACES), default=list(GATES_SHOWN))
    add_sizes(parser, strata=8, draws=2, seeds=10, steps=1000)
    parser.add_argument("--plot", type=Path, help="folder for plots (default: OUT/plots)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    study = Study(options.out, **sizes_of(options))
    results = {
        (cell, gate): study.runs_of(cell, gate)
        for cell, gate in product(options.cells, options.gates)
    }
    print(file=sys.stderr)
    for make in TABLES:
        print(markdown(make(results)), end="\n\n")
    recovery_plots.draw(options.plot or options.out / "plots", results)


if __name__ == "__main__":
    run_to_its_end(main)
