"""`moesim trace redundancy` and `moesim trace locality`: how far routing can be predicted.

Redundancy is between the layers of a token, locality between the tokens of a request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, cast

import typer

from moesim.cli.options import PlotsIntoOutOption, ReplaceOption

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

        kind = cast(State, state)  # `transitions` checks it, before the long measurement
        loaded = load_trace(trace)
        pair = transitions(loaded, layer, kind)

    def work(folder: Path | None) -> None:
        with progress() as show:
            measured = measure(
                loaded, state=kind, shuffles=shuffles, min_count=min_count, seed=seed,
                progress=show,
            )  # fmt: skip
        _print(loaded, reports.redundancy_table(measured), reports.remarks(measured, min_count))
        if folder is None:
            return
        reports.write_redundancy(folder / "redundancy.csv", measured)
        if plots:
            about = caption_of(trace, loaded, f"state: {state}; {shuffles} shuffles, seed {seed}")
            with progress("figures"):
                reports.plots_for_redundancy(
                    folder / "plots", measured, pair, about=about, seed=seed
                )

    _into(out, force, ("redundancy.csv",), work)


def locality(
    trace: TraceArgument,
    out: OutOption = None,
    shuffles: Annotated[
        int, typer.Option(min=1, help="Shuffles of tokens that estimate chance.")
    ] = 5,
    seed: SeedOption = 0,
    plots: PlotsIntoOutOption = True,
    force: ReplaceOption = False,
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

        loaded = load_trace(trace)

    def work(folder: Path | None) -> None:
        with progress() as show:
            measured = measure(loaded)
            reuse = distances(loaded, shuffles=shuffles, seed=seed, progress=show)
        _print(loaded, reports.locality_table(measured, reuse), reports.locality_remarks())
        if folder is None:
            return
        reports.write_locality(folder / "locality.csv", measured)
        if plots:
            about = caption_of(trace, loaded, f"{shuffles} shuffles, seed {seed}")
            with progress("figures"):
                reports.plots_for_locality(folder / "plots", measured, reuse, about=about)

    _into(out, force, ("locality.csv",), work)


def _into(
    out: Path | None, force: bool, ours: Iterable[str], work: Callable[[Path | None], None]
) -> None:
    """Call `work` with a folder that becomes `out` when all is written; print its name.

    Call `work` with None if there is no `out`. `ours` are file names by which `force` recognises a
    folder that it may replace.
    """
    from moesim.files import whole_folder

    if out is None:
        work(None)
        return
    with whole_folder(out, force=force, ours=tuple(ours)) as folder:
        work(folder)
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
