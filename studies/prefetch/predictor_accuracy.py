"""What prediction accuracy each published predictor needs, and what it has.

    python studies/prefetch/predictor_accuracy.py runs/prefetch [--seeds 4] [--requests 1]

Published recalls and precisions of predictors stand beside the break-even line of `moesim dial` on
several machines: one user, LRU, copies one layer ahead. A predictor is run as the dial of its
accuracy, so its errors are random. The rules that need no model are measured here: they learn on
one half of real routing of DeepSeek-V2-Lite, and are run on requests of the other half. Beside each
stands the dial of the accuracy that was measured. So the last table says how well random errors
stand for real ones.

Every seed draws other requests and other errors. All intervals are 95 % over seeds, paired with the
run without prefetch of the same seed. Nothing is fitted here. Real routing is read from ../shared;
without it, only the places of Mixtral are run.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from held_out_accuracy import LEARNED, Accuracy, accuracy_of
from prefetch_picture import caption_of, predictor_chart
from prefetch_places import DEEPSEEK, PLACES, TASK, TASKS, deepseek_trace, traces_of
from prefetch_runs import Found, run_places
from published_predictors import PREDICTORS, WITHOUT_FIGURE

from moesim.cli.ending import run_to_its_end
from moesim.dial import Grid, Link
from moesim.dial.break_even import steps_s
from moesim.report.chart import save_charts, write_whole
from moesim.report.statistics import Estimate
from moesim.report.tabular import Table, escaped, markdown
from moesim.scenario import load_scenario

SHARED: Final = Path(__file__).resolve().parents[2].parent / "shared"
GRID: Final = Grid((0.5, 1.0), (0.5, 0.75, 0.9, 1.0), (1,), (Link("1x"),), 4)
HEAD: Final = (
    "One user decodes token by token, the cache is LRU, and copies are made one layer ahead. "
    "*Saved* is the share of the time in steps, against the same run without prefetch. ▲ pays: the "
    "interval lies above zero. ▼ loses: it lies below. Other figures are not resolved.\n\n"
    "**The routing of Mixtral is synthetic.** Its hit rates are those measured on Mixtral, and "
    f"each layer is drawn by itself. That of DeepSeek-V2-Lite is real (task {TASK}). Costs are "
    "assumed (datasheets). The engine is ideal, unless a place says otherwise: then the host needs "
    "12.2 ms a layer, as mixtral-offloading's Python loop does on such a card. A copy ahead takes "
    "a slot when it is issued; with buffers, an expert takes a slot when it is used. Figures that "
    "are `secondary` are from notes on a source that was not read itself."
)


TEMPLATES: Final = (
    "Requests of a task share a template, so these figures are optimistic, also in the middle of a "
    "request. Most of all this holds for `trajectory`, which looks for the same text."
)


def main() -> None:
    """Run the study, and write `accuracy.md` and its picture."""
    options = _options()
    folder = options.folder
    real = SHARED.is_dir()
    places = [place for place in PLACES if real or place.model != DEEPSEEK]
    accuracies = measure(SHARED) if real else {}
    grid = Grid(GRID.recalls, GRID.precisions, GRID.depths, GRID.links, options.seeds)
    traces = traces_of(places, SHARED, folder / "traces")
    scenarios = {
        place: load_scenario(place.scenario(traces[place.model].resolve(), options.requests))
        for place in places
    }
    of_task = {name: each[TASK] for name, each in accuracies.items()}
    found = run_places(scenarios, grid, PREDICTORS, of_task, folder / "runs", options.workers)
    write(found, accuracies, folder)
    print(folder)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the folder to write")
    parser.add_argument("--seeds", type=int, default=GRID.seeds, help="2 or more, for intervals")
    parser.add_argument("--requests", type=int, default=1, help="requests of a run")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


def measure(shared: Path) -> dict[str, dict[str, Accuracy]]:
    """Return the accuracy of each policy that learns on each task."""
    traces = {task: deepseek_trace(shared, task) for task in TASKS}
    return {
        name: {task: accuracy_of(name, options, trace) for task, trace in traces.items()}
        for name, options in LEARNED.items()
    }


def write(
    found: Sequence[Found], accuracies: Mapping[str, Mapping[str, Accuracy]], folder: Path
) -> None:
    """Write the report and its picture."""
    save_charts(folder / "plots", [lambda: predictor_chart(found, PREDICTORS)])
    parts = [
        "# What accuracy published predictors need, and have",
        f"```sh\n{_command()}\n```",
        HEAD,
        markdown(needs(found)),
        markdown(has(found)),
        markdown(saves(found)),
        f"No accuracy was found for {', '.join(WITHOUT_FIGURE)} in the sources at hand.",
        "![Predictors and break-even lines](plots/predictors.png)\n\n"
        f"*{escaped(caption_of(found))}*",
    ]
    if accuracies:
        parts += [markdown(held_out(accuracies)), TEMPLATES, markdown(random_or_real(found))]
    write_whole(folder / "accuracy.md", "\n\n".join(parts) + "\n")


def _command() -> str:
    """Return the command of this process; the number of workers changes no result."""
    given = sys.argv[1:]
    kept = [
        text for text, before in zip(given, ["", *given], strict=False)
        if "--workers" not in (text, before)
    ]  # fmt: skip
    return shlex.join(["python", "studies/prefetch/predictor_accuracy.py", *kept])


def needs(found: Sequence[Found]) -> Table:
    """Return what each place needs: the break-even precision at each recall."""
    recalls = found[0].plane.recalls
    table = Table(
        "What a place needs",
        ["place", "time a token (ms)", "hits on time (%)", "link busy (%)", "perfect saves (%)",
         *(f"break-even precision at recall {recall:g}" for recall in recalls)],
    )  # fmt: skip
    for each in found:
        base = each.plane.base
        steps = sum(map(steps_s, base))
        tokens = sum(run.value("steps") for run in base)
        busy = sum(run.value("h2d_busy_share") * run.window_s for run in base)
        hits = sum(run.value("on_time_hit_rate") for run in base) / len(base)
        table.add(
            each.place.name, f"{1e3 * steps / tokens:.1f}", f"{100 * hits:.0f}",
            f"{100 * busy / steps:.0f}", cell(each.plane.perfect.saved),
            *(_border(b.mean, b.pays_from, claimed=b.claimed) for b in each.plane.borders),
        )  # fmt: skip
    return table


def _border(mean: float | None, pays_from: float | None, *, claimed: bool) -> str:
    if pays_from is None:
        return "none"
    if mean is None:
        return f"below {pays_from:g}"
    return f"{mean:.2f}" if claimed else f"{mean:.2f} (not resolved)"


def has(found: Sequence[Found]) -> Table:
    """Return what each published predictor has, and at how many places it pays and loses."""
    table = Table(
        "What a predictor has",
        ["predictor", "recall", "precision", "read", "pays at", "loses at", "source and reading"],
    )
    for predictor in PREDICTORS:
        saved = [each.published[predictor.name] for each in found]
        table.add(
            predictor.name, f"{predictor.recall:.2f}", f"{predictor.precision:.2f}", predictor.read,
            f"{sum(it.low > 0 for it in saved)} of {len(found)}",
            f"{sum(it.high < 0 for it in saved)} of {len(found)}",
            f"{predictor.source}: {predictor.note}",
        )  # fmt: skip
    return table


def saves(found: Sequence[Found]) -> Table:
    """Return what each published predictor saves at each place."""
    table = Table("What it saves (%)", ["place", *(each.name for each in PREDICTORS)])
    for each in found:
        table.add(each.place.name, *(cell(each.published[it.name]) for it in PREDICTORS))
    return table


def held_out(accuracies: Mapping[str, Mapping[str, Accuracy]]) -> Table:
    """Return recall and precision of the policies that learn, on requests not seen before."""
    table = Table(
        "Measured here: recall, precision of rules that learn (real routing of DeepSeek-V2-Lite)",
        ["policy", *TASKS],
    )
    for name, by_task in accuracies.items():
        texts = [f"{it.recall:.2f}, {it.precision:.2f}" for it in map(by_task.get, TASKS) if it]
        table.add(name, *texts)
    return table


def random_or_real(found: Sequence[Found]) -> Table:
    """Return what these policies save, beside the dial of the same accuracy."""
    real = [each for each in found if each.learned]
    table = Table(
        "Real errors and random errors of the same accuracy: saved (%)",
        ["policy", *(f"{each.place.name}: {kind}" for each in real for kind in ("policy", "dial"))],
    )
    for name in LEARNED:
        texts = [cell(of[name]) for each in real for of in (each.learned, each.dialled)]
        table.add(name, *texts)
    return table


def cell(saved: Estimate) -> str:
    """Return a time saved in per cent, marked by whether it pays."""
    spread = "" if saved.half is None else f" ± {100 * saved.half:.1f}"
    text = f"{100 * saved.mean:+.1f}{spread}"
    if saved.low > 0:
        return f"▲ {text}"
    return f"▼ {text}" if saved.high < 0 else text


if __name__ == "__main__":
    run_to_its_end(main)
