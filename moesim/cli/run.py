"""`moesim run`: simulate one scenario into one run directory."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.cli.drawing import draws
from moesim.cli.options import JsonOption, PlotsOption, SetOption

if TYPE_CHECKING:
    from moesim.cli.progress import Show
    from moesim.serving.standing import Watch

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command of this file to the application."""
    app.command()(draws(run))


def run(
    scenario: Annotated[Path, typer.Argument(help="The scenario's YAML file.")],
    overrides: SetOption = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The run directory to write (default: runs/NAME-FINGERPRINT)."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing run.")] = False,
    plots: PlotsOption = True,
    as_json: JsonOption = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Show the run while it is simulated: clock, speed, hits, requests, lanes, steps.",
        ),
    ] = False,
) -> None:
    """Simulate a scenario and write its run directory.

    The last line printed is the run directory; with --json, it is the document's `out`.
    """
    from moesim.cli.output import echo_json

    # First the view, which shows at once that the command has begun: imports take a second.
    with _shown(watch) as (show, watcher):
        from moesim.files import clean_up
        from moesim.report import plots_for_run, print_summary
        from moesim.scenario import load_scenario
        from moesim.simulate import run as simulate
        from moesim.simulate.rundir import default_path

        loaded = load_scenario(scenario, overrides or ())
        folder = out if out is not None else default_path(loaded)
        # A run that was killed has left its temporary folder beside its run directory.
        clean_up(folder.parent)
        kept = not force and (folder / "plots").exists()
        result = simulate(loaded, out=folder, force=force, draw=plots, progress=show, watch=watcher)
        if plots and kept:  # of a finished run, which may have been drawn in another way
            plots_for_run(folder)
    if as_json:
        echo_json({"out": str(folder), **result.summary})
        return
    print_summary(folder)
    plotted = f"plots are in {folder / 'plots'}\n" if plots else ""
    page = shlex.join(["moesim", "report", str(folder), "--html"])
    typer.echo(f"\n{plotted}to read it on one page: {page}\n{folder}")


@contextmanager
def _shown(watched: bool) -> Iterator[tuple[Show | None, Watch | None]]:
    """Yield the callbacks `progress` and `watch` of a run, or None for what is not shown."""
    if watched:
        from moesim.cli.watch import watching

        with watching() as view:
            yield view
        return
    from moesim.cli.progress import progress

    with progress() as show:
        yield show, None
