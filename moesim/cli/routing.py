"""`moesim trace redundancy` and `moesim trace locality`: how far routing can be predicted.

Redundancy is between the layers of a token, locality between the tokens of a request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import typer

from moesim.cli.options import JsonOption, PlotsIntoOutOption, ReplaceOption

if TYPE_CHECKING:
    from moesim.report.tabular import Table
    from moesim.trace import Trace

__all__ = ["SYNTHETIC", "caption_of", "locality", "redundancy"]

SYNTHETIC: Final = "SYNTHETIC ROUTING: drawn at random, made by no model. "
TraceArgument = Annotated[Path, typer.Argument(help="The trace's folder.")]
OutOption = Annotated[Path | None, typer.Option(help="The folder to write CSV and figures into.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of the shuffles.")]


def redundancy(
    trace: TraceArgument,
    out: OutOption = None,
    state: Annotated[
        str,
        typer.Option(help="A token's choice: set (all its experts) or top (its heaviest expert)."),
    ] = "set",
    layer: Annotated[
        int | None,
        typer.Option(help="Draw transitions into this trace layer, from 1 (default: the last)."),
    ] = None,
    shuffles: Annotated[
        int, typer.Option(min=2, help="Shuffles of tokens that estimate chance.")
    ] = 20,
    min_count: Annotated[
        int,
        typer.Option(min=1, help="Fewest tokens of a choice whose likeliest next one is shown."),
    ] = 100,
    seed: SeedOption = 0,
    plots: PlotsIntoOutOption = True,
    force: ReplaceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure how well a layer's choice of experts predicts the next layer's, beyond chance.

    With --out, the last line printed is the folder with redundancy.csv and plots/.
    """
    from moesim.cli.progress import progress

    with progress("opening the trace"):
        from moesim.report import redundancy as reports
        from moesim.trace import load_trace
        from moesim.trace.choices import State
        from moesim.trace.redundancy import redundancy as measure
        from moesim.trace.redundancy import transitions
        from moesim.trace.statistics import outline

        kind = cast(State, state)  # `transitions` checks it, before the long measurement
        loaded = load_trace(trace)
        pair = transitions(loaded, layer, kind)

    def work(folder: Path | None) -> dict[str, Any]:
        with progress() as show:
            measured = measure(
                loaded, state=kind, shuffles=shuffles, min_count=min_count, seed=seed,
                progress=show,
            )  # fmt: skip
        notes = reports.remarks(measured, min_count)
        if not as_json:
            _print(loaded, reports.redundancy_table(measured), notes)
        if folder is not None:
            reports.write_redundancy(folder / "redundancy.csv", measured)
        if folder is not None and plots:
            about = caption_of(trace, loaded, f"state: {state}; {shuffles} shuffles, seed {seed}")
            with progress("figures"):
                reports.plots_for_redundancy(
                    folder / "plots", measured, pair, about=about, seed=seed
                )
        return {**outline(loaded), "pairs": reports.redundancy_records(measured), "notes": notes}

    _into(out, force, "redundancy.csv", work, as_json=as_json)


def locality(
    trace: TraceArgument,
    out: OutOption = None,
    shuffles: Annotated[
        int, typer.Option(min=1, help="Shuffles of tokens that estimate chance.")
    ] = 5,
    seed: SeedOption = 0,
    plots: PlotsIntoOutOption = True,
    force: ReplaceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure how often a token reuses the experts of the token before it, beyond chance.

    With --out, the last line printed is the folder with locality.csv and plots/.
    """
    from moesim.cli.progress import progress

    with progress("opening the trace"):
        from moesim.report import locality as reports
        from moesim.trace import load_trace
        from moesim.trace.locality import distances
        from moesim.trace.locality import locality as measure
        from moesim.trace.statistics import outline

        loaded = load_trace(trace)

    def work(folder: Path | None) -> dict[str, Any]:
        with progress() as show:
            measured = measure(loaded)
            reuse = distances(loaded, shuffles=shuffles, seed=seed, progress=show)
        notes = reports.locality_remarks()
        if not as_json:
            _print(loaded, reports.locality_table(measured, reuse), notes)
        if folder is not None:
            reports.write_locality(folder / "locality.csv", measured)
        if folder is not None and plots:
            about = caption_of(trace, loaded, f"{shuffles} shuffles, seed {seed}")
            with progress("figures"):
                reports.plots_for_locality(folder / "plots", measured, reuse, about=about)
        return {**outline(loaded), **reports.locality_records(measured, reuse), "notes": notes}

    _into(out, force, "locality.csv", work, as_json=as_json)


def _into(
    out: Path | None,
    force: bool,
    ours: str,
    work: Callable[[Path | None], dict[str, Any]],
    *,
    as_json: bool,
) -> None:
    """Call `work` with a folder that becomes `out` when all is written; print its name.

    Call `work` with None if there is no `out`. It returns the document that `as_json` prints.
    `ours` is the file by which `force` recognises a folder that it may replace.
    """
    from moesim.cli.output import echo_json
    from moesim.files import whole_folder

    with nullcontext() if out is None else whole_folder(out, force=force, ours=(ours,)) as folder:
        document = work(folder)
    if as_json:
        echo_json(document if out is None else {"out": str(out), **document})
    elif out is not None:
        typer.echo(f"\n{out}")


def _print(trace: Trace, table: Table, notes: Iterable[str]) -> None:
    """Print what a trace is, a table of it, and remarks on how to read the table."""
    from moesim.report.tabular import write_tables

    typer.echo(f"{trace}\n")
    write_tables([table])
    typer.echo()
    for note in notes:
        typer.echo(f"- {note}")


def caption_of(path: Path, trace: Trace, how: str) -> str:
    """Return the end of a figure's caption: the data and `how` they were treated."""
    name, model = path.resolve().name, trace.meta.model
    warning = SYNTHETIC if trace.meta.synthetic else ""
    return (
        f"{warning}Trace {name}{'' if model == name else f' of {model}'} (router: "
        f"{trace.meta.router}), {trace.num_rows} tokens of {trace.num_requests} requests, "
        f"{trace.num_layers} trace layers (from 0) x {trace.num_experts} experts, "
        f"top-{trace.top_k}; {how}."
    )
