"""`moesim trace redundancy` and `moesim trace locality`: what a trace's routing has to give."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, cast

import typer

if TYPE_CHECKING:
    from moesim.report.tabular import Table
    from moesim.trace import Trace

__all__ = ["locality", "redundancy"]

SYNTHETIC: Final = "SYNTHETIC ROUTING: drawn at random, made by no model. "
TraceArgument = Annotated[Path, typer.Argument(help="The trace's folder.")]
OutOption = Annotated[Path | None, typer.Option(help="A folder to write, with CSV and figures.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seeds the shuffles.")]
PlotsOption = Annotated[bool, typer.Option("--plots/--no-plots", help="Draw figures into --out.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace what is there.")]


def redundancy(
    trace: TraceArgument,
    out: OutOption = None,
    state: Annotated[
        str, typer.Option(help="A token's choice: the set of its experts, or its top expert.")
    ] = "set",
    layer: Annotated[
        int | None,
        typer.Option(help="Draw the transitions into this trace layer (default: the last)."),
    ] = None,
    shuffles: Annotated[int, typer.Option(min=2, help="Shuffles of the null.")] = 20,
    min_count: Annotated[
        int, typer.Option(min=1, help="Tokens that a likeliest transition needs.")
    ] = 100,
    seed: SeedOption = 0,
    plots: PlotsOption = True,
    force: ForceOption = False,
) -> None:
    """Measure what each layer's choice of experts tells of the next layer's, beside chance.

    With --out the last line printed is the folder with redundancy.csv and plots/.
    """
    from moesim.cli.progress import progress
    from moesim.report import redundancy as shown
    from moesim.trace import load_trace
    from moesim.trace.choices import State
    from moesim.trace.redundancy import redundancy as measured
    from moesim.trace.redundancy import transitions

    kind = cast(State, state)  # checked where it is used, before anything long
    loaded = load_trace(trace)
    pair = transitions(loaded, layer, kind)

    def work(folder: Path | None) -> None:
        with progress() as show:
            found = measured(
                loaded, state=kind, shuffles=shuffles, min_count=min_count, seed=seed,
                progress=show,
            )  # fmt: skip
        _print(loaded, shown.redundancy_table(found), shown.remarks(found, min_count))
        if folder is None:
            return
        shown.write_redundancy(folder / "redundancy.csv", found)
        if plots:
            about = _about(trace, loaded, f"state: {state}; {shuffles} shuffles, seed {seed}")
            shown.plots_for_redundancy(folder / "plots", found, pair, about=about, seed=seed)

    _into(out, force, ("redundancy.csv",), work)


def locality(
    trace: TraceArgument,
    out: OutOption = None,
    shuffles: Annotated[int, typer.Option(min=1, help="Shuffles of the null.")] = 5,
    seed: SeedOption = 0,
    plots: PlotsOption = True,
    force: ForceOption = False,
) -> None:
    """Measure how often a token uses the experts of the token before it, beside chance.

    With --out the last line printed is the folder with locality.csv and plots/.
    """
    from moesim.cli.progress import progress
    from moesim.report import locality as shown
    from moesim.trace import load_trace
    from moesim.trace.locality import distances
    from moesim.trace.locality import locality as measured

    loaded = load_trace(trace)

    def work(folder: Path | None) -> None:
        found = measured(loaded)
        with progress() as show:
            reuse = distances(loaded, shuffles=shuffles, seed=seed, progress=show)
        _print(loaded, shown.locality_table(found, reuse), shown.locality_remarks())
        if folder is None:
            return
        shown.write_locality(folder / "locality.csv", found)
        if plots:
            about = _about(trace, loaded, f"{shuffles} shuffles, seed {seed}")
            shown.plots_for_locality(folder / "plots", found, reuse, about=about)

    _into(out, force, ("locality.csv",), work)


def _into(
    out: Path | None, force: bool, ours: Iterable[str], work: Callable[[Path | None], None]
) -> None:
    """Do `work` into a folder that appears when it is whole, and name it; or into none."""
    from moesim.files import whole_folder

    if out is None:
        work(None)
        return
    with whole_folder(out, force=force, ours=tuple(ours)) as folder:
        work(folder)
    typer.echo(f"\n{out}")


def _print(trace: Trace, table: Table, notes: Iterable[str]) -> None:
    from moesim.report.tabular import write_tables

    typer.echo(f"{trace}\n")
    write_tables([table])
    typer.echo()
    for note in notes:
        typer.echo(f"- {note}")


def _about(path: Path, trace: Trace, how: str) -> str:
    """What ends a caption: the data and how they were treated."""
    name, model = path.resolve().name, trace.meta.model
    beware = SYNTHETIC if trace.meta.synthetic else ""
    return (
        f"{beware}Trace {name}{'' if model == name else f' of {model}'} (router: "
        f"{trace.meta.router}), {trace.num_rows} tokens of {trace.num_requests} requests, "
        f"{trace.num_layers} trace layers (from 0) x {trace.num_experts} experts, "
        f"top-{trace.top_k}; {how}."
    )
