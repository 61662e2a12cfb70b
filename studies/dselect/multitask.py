"""Shared parts of the studies of multi-task mixtures: tuning, and runs kept in a folder.

Every gate is tuned by the protocol of `tuning.py`: the same four learning rates for all gates, the
same factors by which gates learn faster, and `--draws` trials of a gate's own options at each rate.
Each setting is trained on the problem of one seed that no table shows. The setting with the least
*validation* loss is kept. Only the runs of the tables use test rows. All gates of a seed see the
same rows, batches and first weights of experts and towers. Hash learns nothing, so it has no
factor; its trials at one rate are equal, count, and run once.

The control is Top-k with the rate and factor that were chosen for DSelect-k. If DSelect-k is ahead
of Top-k but not of the control, then the rates and not the gates made the difference.

*Hardened* means as in inference, with at most k experts a task; *as trained* a gate may have more.
Early stopping and choice both use the hardened loss. Softmax never learns to work with k experts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import multitask_tables
import recovery
import torch
import tuning
from tuning import Setting

from moesim.errors import UsageError
from moesim.files import output_errors, write_json
from moesim.report.tabular import markdown
from moesim.training.gates import Gate
from moesim.training.multitask import (
    Examples,
    FitSettings,
    Mixture,
    Task,
    evaluate,
    fit,
    flops_per_row,
)
from moesim.training.multitask.fitting import weighted

TUNING_SEED = recovery.TUNING_SEED
SPACES: Mapping[str, Mapping[str, Sequence[Any]]] = {
    **recovery.SPACES,
    "switch": {"balance": (0.0, 0.01, 0.1)},
    "hash": {},
}
STRATA = 4  # learning rates of every gate
FACTORS = {"gate_factor": (1.0, 10.0, 100.0)}  # of the rate: a gate's few parameters change much
LEARN_NOTHING = ("hash",)
CONTROL = "top_k, rates of dselect_k"

Run = dict[str, Any]
Results = dict[str, list[Run]]


@dataclass(frozen=True, slots=True)
class World:
    """A data set and a network of `n` experts, of which gates select `k`.

    `splits` returns the training, validation and test rows of a seed; `network` returns a mixture
    of given gates. `features` is the width of per-example gates' input, None for static gates.
    `rates` are bounds of the learning rate.
    """

    tasks: Sequence[Task]
    splits: Callable[[int], Mapping[str, Examples]]
    network: Callable[[Sequence[Gate]], Mixture]
    n: int
    k: int
    features: int | None
    epochs: int
    batch: int
    rates: tuple[float, float]
    size: Mapping[str, Any]  # all other settings that a run depends on, for its record


def draw_settings(gate: str, draws: int, bounds: tuple[float, float]) -> list[Setting]:
    """Return the settings of a gate that tuning tries."""
    shared = {} if gate in LEARN_NOTHING else FACTORS
    return tuning.draw_settings(
        gate, SPACES[gate], bounds, strata=STRATA, draws=draws, shared=shared, middles=True
    )


def make_gates(name: str, world: World, setting: Setting, steps: int) -> list[Gate]:
    """Return one static gate for all tasks, or a per-example gate for each task."""
    options = {key: value for key, value in setting.items() if key != "gate_factor"}
    k = 1 if name == "switch" else world.k
    if world.features is None:
        return [
            recovery.make_gate(name, recovery.Cell(world.n, k, len(world.tasks)), options, steps)
        ]
    if name == "hash":
        raise UsageError("hash routes by id and reads no example; leave it out")
    options["features"] = world.features
    if name == "dselect_k":
        options["over_rows"] = "mean"  # so that the entropy weight does not depend on the batch
    cell = recovery.Cell(world.n, k, 1)
    return [recovery.make_gate(name, cell, options, steps) for _ in world.tasks]


def train(
    gate: str,
    world: World,
    setting: Setting,
    seed: int,
    *,
    test: bool,
    checkpoint: Path | None = None,
    on_step: Callable[[int, int], None] | None = None,
    keep: Callable[[Mixture, Run], None] | None = None,
) -> Run:
    """Train and score one mixture, and pass it to `keep`.

    Raise `MoesimError` as `fit` does.
    """
    rows = world.splits(seed)
    steps = world.epochs * -(-len(rows["train"]) // world.batch)
    torch.manual_seed(seed)
    gates = make_gates(gate, world, setting, steps)
    torch.manual_seed(seed)  # gates draw different counts; experts and towers must start alike
    model = world.network(gates)
    fitted = fit(
        model,
        world.tasks,
        rows["train"],
        rows["validation"],
        FitSettings(
            world.epochs, world.batch, setting["lr"], setting.get("gate_factor", 1.0), seed=seed
        ),
        checkpoint=checkpoint,
        on_step=on_step,
    )
    model.eval()
    with torch.no_grad():
        features = model.trunk(rows["train"].inputs[:1])[0]
        sample = rows["validation"].inputs[:512]
        weights_TBN, _ = model.weights(model.trunk(sample))
        served = model(sample, hardened=True).activity
    run = {
        "history": [asdict(epoch) for epoch in fitted.history],
        "best": fitted.best,
        "expert_flops": flops_per_row(model.experts[0], features),
        "non_zeros": float((weights_TBN != 0).sum(dim=2).double().mean()),
        "served_experts": served.pairs / served.rows,
        "scores": {
            name: {
                how: {task: asdict(score) for task, score in scores.items()}
                for how, scores in (
                    ("hardened", evaluate(model, world.tasks, rows[name])),
                    ("as trained", evaluate(model, world.tasks, rows[name], hardened=False)),
                )
            }
            for name in (("validation", "test") if test else ("validation",))
        },
        "validation": weighted(world.tasks, evaluate(model, world.tasks, rows["validation"])),
    }
    if keep is not None:
        keep(model, run)
    return run


class Study:
    """Runs kept in a folder: gate / trial or seed. Runs with other settings are refused."""

    def __init__(self, out: Path, world: World, *, draws: int, seeds: int) -> None:
        for name, value in (("draws", draws), ("seeds", seeds)):
            if value < 1:
                raise UsageError(f"{name} ({value}) must be at least 1")
        self.out, self.world, self.draws, self.seeds = out, world, draws, seeds

    def runs_of(self, gate: str) -> list[Run]:
        """Tune, then return the chosen setting's run of every seed."""
        setting = best_setting(self.trials_of(gate))
        return [self._kept(gate, f"seed-{seed}", setting, seed) for seed in range(self.seeds)]

    def trials_of(self, gate: str) -> list[Run]:
        """Return a run of each setting that is tried; equal settings share one run."""
        runs: list[Run] = []
        for number, setting in enumerate(draw_settings(gate, self.draws, self.world.rates)):
            done = [run for run in runs if run["setting"] == setting]
            runs += done[:1] or [self._kept(gate, f"trial-{number}", setting, TUNING_SEED)]
        return runs

    def control(self) -> list[Run]:
        """Return Top-k's run of every seed with the rate and factor of DSelect-k's setting."""
        chosen = best_setting(self.trials_of("dselect_k"))
        setting = {key: chosen[key] for key in ("lr", "gate_factor")}
        if setting == best_setting(self.trials_of("top_k")):
            return self.runs_of("top_k")
        return [
            self._kept("top_k", f"seed-{seed}-control", setting, seed) for seed in range(self.seeds)
        ]

    def keep(self, gate: str, setting: Setting, seed: int, model: Mixture, run: Run) -> None:
        """Keep more of a seed's mixture; subclasses override it, and here nothing is kept."""

    def _kept(self, gate: str, name: str, setting: Setting, seed: int) -> Run:
        file = self.out / gate / f"{name}.json"
        wanted = {"setting": setting, "seed": seed, "size": dict(self.world.size)}
        if file.exists():
            run: Run = json.loads(file.read_text(encoding="utf-8"))
            # A result of other settings would silently mix two studies.
            if any(run[key] != value for key, value in wanted.items()):
                raise UsageError(f"{file} was made with other settings; choose another folder")
            return run

        def show(done: int, of: int) -> None:
            if done % 10 == 0 or done == of:
                trials = f"{STRATA * self.draws} trials"
                progress = f"{gate}: {name} of {trials} and {self.seeds} seeds"
                print(f"\r{progress}, step {done}/{of}      ", end="", file=sys.stderr, flush=True)

        def keep(model: Mixture, result: Run) -> None:
            self.keep(gate, setting, seed, model, result)

        checkpoint = file.with_suffix(".safetensors")
        test = name.startswith("seed")
        run = train(
            gate,
            self.world,
            setting,
            seed,
            test=test,
            checkpoint=checkpoint,
            on_step=show,
            keep=keep if name == f"seed-{seed}" else None,  # of gates as tuned, not of controls
        )
        run |= wanted
        partial = file.with_suffix(".partial")
        with output_errors(file):
            write_json(partial, run)
            partial.replace(file)
            # Last: a kill before this line leaves a result and a checkpoint, which do no harm.
            checkpoint.unlink()
        return run


def best_setting(trials: Sequence[Run]) -> Setting:
    """Return the setting with the least hardened validation loss, the first of equals."""
    setting: Setting = min(trials, key=lambda run: run["validation"])["setting"]
    return setting


def add_arguments(
    parser: argparse.ArgumentParser, *, epochs: int, batch: int, draws: int, seeds: int
) -> None:
    """Add the arguments that every study of mixtures has."""
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--gates", nargs="+", choices=sorted(SPACES), default=list(recovery.GATES_SHOWN)
    )
    parser.add_argument("--per-example", action="store_true", help="gates that read the input")
    for name, value in (
        ("experts", 8),
        ("k", 2),
        ("epochs", epochs),
        ("batch", batch),
        ("draws", draws),
        ("seeds", seeds),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)


def size_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that a run depends on, other than gate, setting and seed."""
    others = ("out", "gates", "draws", "seeds")
    return {key: value for key, value in vars(options).items() if key not in others}


def run_study(options: argparse.Namespace, world: World) -> None:
    """Do every gate's runs, then print the tables."""
    torch.set_num_threads(1)
    for name in options.gates:  # so that a wrong gate is refused before hours of work for others
        make_gates(name, world, draw_settings(name, 1, world.rates)[0], 1)
    study = Study(options.out, world, draws=options.draws, seeds=options.seeds)
    results = {gate: study.runs_of(gate) for gate in options.gates}
    if {"dselect_k", "top_k"} <= results.keys():
        results[CONTROL] = study.control()
    print(file=sys.stderr)
    trials = {gate: study.trials_of(gate) for gate in options.gates}
    for table in multitask_tables.tables(world.tasks, world.epochs, results, trials):
        print(markdown(table), end="\n\n")
