"""Mixtures of 2, 8 and 32 tasks served as streams of tasks: what task-aware batching gains.

    python studies/dselect/served_recovery.py OUT [--tasks 2 8 32] [--tuned DIR] [--seeds 5]

The tasks are those of `recovery_trained.py`: each mixes k of 16 experts that are learnt together
with one static gate a task. Each mixture gets one stream of requests. A request is one task with 8
to 24 new inputs. Tasks are mixed at random, and the requests of a seed are the same for all gates
and policies of a number of tasks. The gates' choices are recorded as a trace, and the simulator
serves it with an eighth, a quarter or half of the experts in memory.

Measured: losses, hardened, and routing. Simulated: hits, copies, times and waits. Assumed: all
sizes and the machine, as in `served_tasks.py` (one layer of Mixtral-8x7B, experts of 352 MB,
rtx-3060-12gb). All requests arrive at once, 8 at a time and 32 inputs a step; one table has more at
a time.

Protocol. Settings are those that the least hardened loss chooses for 32 tasks among the trials of
`recovery_trained.py`, for every number of tasks; costs of serving choose nothing. --tuned names the
folder of such a study, where missing trials are added. The row *true supports* learns experts on
the true supports: what a perfect choice costs. Changes are paired seed by seed; intervals are 95 %.

Expected before the first run, from the mechanism: a batch of mixed tasks wants more distinct
experts, the more tasks there are, so decode first gets worse with the number of tasks. A batch of
one task wants k experts for any number of tasks, but a stream of the same length has fewer requests
of each, so unmixed steps are less full. Which effect prevails is what the study measures.

Expected after it, before `--requests 800`: if the number of waiting requests of a task limits the
gain, 32 tasks with 800 requests (25 a task) gain about what 8 tasks gain with 200. This was wrong:
they gained as much as with 200. A policy is shown no more requests than may run at a time, here 8,
however many wait.

Expected after that, before `--sequences`: the gain depends on the shown requests of each task. With
four a task (8 at a time for 2 tasks, 32 for 8, 128 for 32) it is about equal for all three.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Final

import recovery
import recovery_trained
import served_tasks
import torch
import trained_experts
from offloading import Policies, scenario_of
from recovery import Cell, Run, Setting
from recovery_tables import reading, spread, written
from recovery_trained import best_of
from served_tasks import AHEAD, UNMIXED, Served
from torch import nn
from trained_experts import Trained, end_of

from moesim.cli.ending import run_to_its_end
from moesim.report.statistics import difference
from moesim.report.tabular import Table, markdown
from moesim.simulate import run as simulate
from moesim.training.multitask import Examples, Mixture
from moesim.training.multitask.requests import draw_requests, record_tasks
from moesim.training.multitask.served import ServedMixture

TUNED_TASKS: Final = 32
AT_A_TIME, ROWS = served_tasks.BATCH  # most requests at a time, most rows a step
GATES: Final = ("true_supports", *recovery_trained.GATES)
POLICIES: Final[Mapping[str, Policies]] = {
    "decode first, LRU": {},
    "decode first, look-ahead cache and prefetch": AHEAD,
    "task-aware, LRU": {"batching": {"policy": "task_aware"}},
    "task-aware unmixed, LRU": UNMIXED,
    "task-aware unmixed, look-ahead cache and prefetch": {**UNMIXED, **AHEAD},
}
FIRST: Final = next(iter(POLICIES))


@dataclass(frozen=True, slots=True)
class Variant:
    """A gate's mixtures of one number of tasks: runs and traces, seed by seed."""

    cell: Cell
    gate: str
    runs: Sequence[Run]
    traces: Sequence[Path]


class Study(recovery_trained.Study):
    """Runs that keep a trace of each mixture."""

    def __init__(self, out: Path, requests: int, command: str, **sizes: int) -> None:
        super().__init__(out, **sizes)
        self.requests = requests
        self.command = command

    def variant(self, cell: Cell, gate: str, setting: Setting) -> Variant:
        """Train and record a mixture of every seed."""
        runs = self.seeds_of(cell, gate, setting, f"served-{self.requests}")
        return Variant(cell, gate, runs, [self.trace(cell, gate, s) for s in range(self.seeds)])

    def trace(self, cell: Cell, gate: str, seed: int) -> Path:
        return self.out / str(cell) / gate / f"trace-{self.requests}-{seed}"

    def train(self, cell: Cell, gate: str, setting: Setting, seed: int) -> Run:
        trained = trained_experts.train(gate, cell, setting, seed, self.steps)
        names = [f"task_{number}" for number in range(cell.tasks)]
        inputs = recovery.make_problem(cell, seed).held_out_inputs
        record_tasks(
            ServedMixture(mixture_of(trained, names), f"recovery {cell} {gate}"),
            draw_requests(
                names,
                Examples(inputs, {}),
                self.requests,
                lengths=served_tasks.LENGTHS,
                seed=seed,
            ),
            self.trace(cell, gate, seed),
            provenance={
                "command": self.command,
                "data": "synthetic tasks of studies/dselect/recovery.py",
                "gate": gate,
                "setting": setting,
                "seed": seed,
                "loss": end_of(trained.run)["hard_loss"],
            },
            force=True,  # a kill between trace and scores leaves a trace, which is written again
        )
        return trained.run


def mixture_of(trained: Trained, tasks: Sequence[str]) -> Mixture:
    """Return the network as a mixture whose towers do nothing."""
    towers = {task: nn.Identity() for task in tasks}
    return Mixture(trained.experts.separate(), [trained.gate], towers).eval()


# --- tables ---

Serve = Callable[[Variant, int, str, int], Sequence[Served]]
"""The simulated runs of a variant with slots, a policy, and requests at a time, seed by seed."""


def by_loss(variants: Sequence[Variant]) -> Table:
    """Return the measured losses and numbers of experts."""
    table = Table(
        "Measured: loss on new inputs; experts in the trace",
        [
            *("tasks", "gate", "loss, hardened", "as trained", "exact support, hardened"),
            *("experts a row", "distinct experts"),
        ],
    )
    for variant in variants:
        ends = [end_of(run) for run in variant.runs]
        used = zip(*map(served_tasks.used, variant.traces), strict=True)
        table.add(
            str(variant.cell.tasks),
            variant.gate,
            *(spread([end[key] for end in ends], 4) for key in ("hard_loss", "loss")),
            spread([end["hard_exact"] for end in ends], 2),
            *(spread(values, 2) for values in used),
        )
    return table


def by_policy(variants: Sequence[Variant], serve: Serve, slots: int) -> Table:
    """Return the simulated costs of serving."""
    table = Table(
        f"Simulated, {slots} slots",
        [
            *("tasks", "gate", "policies", "hits and late hits (%)", "distinct experts an event"),
            *("MB a row", "ms a row", "latency, mean (ms)", "change, seed by seed (%)"),
            *("rows a step", "longest wait (steps)"),
        ],
    )
    for variant in variants:
        first = serve(variant, slots, FIRST, AT_A_TIME)
        for name in POLICIES:
            seen = serve(variant, slots, name, AT_A_TIME)
            table.add(
                str(variant.cell.tasks),
                variant.gate,
                name,
                spread([100 * s["expert_hit_rate"] for s in seen], 1),
                spread([s["unique_experts_per_event_mean"] for s in seen], 2),
                spread([s["mb_per_row"] for s in seen], 1),
                spread([s["ms_per_row"] for s in seen], 2),
                spread([s["e2e_mean_ms"] for s in seen], 0),
                "" if name == FIRST else changed(seen, first, "e2e_mean_ms"),
                spread([s["rows_per_step"] for s in seen], 1),
                spread([s["wait_max_steps"] for s in seen], 0),
            )
    return table


def changed(seen: Sequence[Served], first: Sequence[Served], key: str) -> str:
    """Return the relative change of a figure, seed by seed, in percent."""
    less = difference([s[key] for s in seen], [s[key] for s in first])
    return written(
        replace(less, mean=100 * less.mean, half=less.half and 100 * less.half), 1, sign=True
    )


def by_tasks(variants: Sequence[Variant], serve: Serve, points: Sequence[tuple[int, int]]) -> Table:
    """Return what each policy changes against decode first, by number of tasks.

    `points` are slots and requests at a time.
    """
    others = [name for name in POLICIES if name != FIRST]
    table = Table(
        "Simulated: change of time a row against decode first with LRU, seed by seed (%)",
        ["tasks", "gate", "slots", "requests at a time", *others],
    )
    for variant, (slots, at_a_time) in product(variants, points):
        first = serve(variant, slots, FIRST, at_a_time)
        changes = [
            changed(serve(variant, slots, name, at_a_time), first, "ms_per_row") for name in others
        ]
        table.add(str(variant.cell.tasks), variant.gate, str(slots), str(at_a_time), *changes)
    return table


def by_difference(variants: Sequence[Variant], serve: Serve, slots: int) -> Table:
    """Return DSelect-k less each other gate, alike and in unmixed batches."""
    parts = (
        ("decode first, LRU", "mb_per_row", "MB a row, decode first", 1),
        ("decode first, LRU", "ms_per_row", "ms a row, decode first", 2),
        ("task-aware unmixed, LRU", "ms_per_row", "ms a row, task-aware unmixed", 2),
    )
    headers = [text for *_, header, _ in parts for text in (header, "reading")]
    table = Table(
        f"DSelect-k less the other gate ({slots} slots), seed by seed",
        ["tasks", "other gate", "loss, hardened", "reading", *headers],
    )
    ours_by_tasks = {v.cell.tasks: v for v in variants if v.gate == "dselect_k"}
    for variant in variants:
        ours = ours_by_tasks.get(variant.cell.tasks)
        if ours is None or variant is ours:
            continue
        losses = [[end_of(run)["hard_loss"] for run in each.runs] for each in (ours, variant)]
        less = difference(*losses, relative=False)
        cells = [written(less, 4, sign=True), reading(less, -1)]
        for policy, key, _, digits in parts:
            pair = [
                [s[key] for s in serve(each, slots, policy, AT_A_TIME)] for each in (ours, variant)
            ]
            less = difference(*pair, relative=False)
            cells += [written(less, digits, sign=True), reading(less, -1)]
        table.add(str(variant.cell.tasks), variant.gate, *cells)
    return table


# --- the study ---


def server(shape: Path, requests: int) -> Serve:
    """Return a function that serves a variant; a simulation that two tables need runs once."""
    memo: dict[str, list[Served]] = {}

    def serve(variant: Variant, slots: int, policy: str, at_a_time: int) -> list[Served]:
        key = f"{variant.cell} {variant.gate}, {slots} slots, {policy}, {at_a_time} at a time"
        if key not in memo:
            print(f"\rserving {key}      ", end="", file=sys.stderr, flush=True)
            memo[key] = [
                served(
                    scenario_of(
                        trace,
                        shape,
                        slots,
                        (at_a_time, ROWS),
                        seed,
                        POLICIES[policy],
                        requests=requests,
                    )
                )
                for seed, trace in enumerate(variant.traces)
            ]
        return memo[key]

    return serve


def served(scenario: dict[str, Any]) -> Served:
    """Return the summary of one simulated run, with bytes and time by row, and rows by step."""
    result = simulate(scenario)
    summary, rows = result.summary, sum(result.columns["requests"]["prompt_tokens"])
    return {
        **summary,
        "mb_per_row": summary["h2d_bytes"] / rows / 1e6,
        "ms_per_row": summary["makespan_s"] / rows * 1e3,
        "rows_per_step": rows / summary["steps"],
    }


def tables(
    variants: Sequence[Variant], serve: Serve, slots: Sequence[int], sequences: Sequence[int]
) -> list[Table]:
    """Return all tables; more requests at a time are shown with the middle number of slots."""
    middle = slots[len(slots) // 2]
    return [
        by_loss(variants),
        by_tasks(variants, serve, [(each, AT_A_TIME) for each in slots]),
        by_tasks(variants, serve, [(middle, each) for each in sequences]),
        *(by_policy(variants, serve, each) for each in slots),
        *(by_difference(variants, serve, each) for each in slots),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study from a command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--gates", nargs="+", choices=GATES, default=list(GATES))
    parser.add_argument("--tasks", nargs="+", type=int, default=[2, 8, TUNED_TASKS])
    parser.add_argument("--sequences", nargs="+", type=int, default=[8, 32, 128])
    parser.add_argument("--tuned", type=Path, help="the folder of a finished recovery_trained.py")
    recovery.add_sizes(parser, strata=4, draws=4, seeds=5, steps=1000)
    recovery.add_sizes(parser, experts=16, k=2, requests=200)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    command = "python studies/dselect/served_recovery.py " + options.out.name
    sizes = recovery.sizes_of(options)
    study = Study(options.out, options.requests, command, **sizes)
    tuner = recovery_trained.Study(options.tuned or options.out, **sizes)
    tuning_cell = Cell(options.experts, options.k, TUNED_TASKS)
    tuned = {gate: best_of(tuner.trials_of(tuning_cell, gate))["setting"] for gate in options.gates}
    variants = [
        study.variant(Cell(options.experts, options.k, tasks), gate, tuned[gate])
        for tasks, gate in product(options.tasks, options.gates)
    ]
    shape = served_tasks.shape_for(options.k, options.experts, options.out)
    slots = [options.experts // part for part in (8, 4, 2)]
    for table in tables(variants, server(shape, options.requests), slots, options.sequences):
        print(markdown(table), end="\n\n")
    print(file=sys.stderr)


if __name__ == "__main__":
    run_to_its_end(main)
