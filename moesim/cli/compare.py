"""`moesim compare`: simulate every point of a scenario's sweep, and compare the runs."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.comparison import print_comparison
from moesim.cli.drawing import draws, this_command
from moesim.cli.options import AgainOption, JsonOption, PlotsOption
from moesim.cli.outputs import Output, opened, path_or_url
from moesim.cli.points import (
    OnOption,
    WorkersOption,
    backend_of,
    echo_failures,
    exit_code,
    run_into,
)
from moesim.cli.progress import progress
from moesim.cli.watch_points import telling
from moesim.errors import UsageError
from moesim.locks import exclusive

if TYPE_CHECKING:
    from moesim.scenario import Scenario
    from moesim.sweep import Backend, Cluster, Point

__all__ = ["register"]

Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key, like cache.policy=lru. A key of the sweep is then not swept.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command of this file to the application."""
    app.command()(draws(compare))


def compare(
    scenario: Annotated[Path, typer.Argument(help="A scenario with a `sweep:`.")],
    overrides: Overrides = None,
    out: Annotated[
        Any,
        typer.Option(
            parser=path_or_url,
            metavar="PATH|URL",
            help="The folder or fsspec URL to write into (default: runs/NAME-compare).",
        ),
    ] = None,
    on: OnOption = "local",
    workers: WorkersOption = None,
    force: AgainOption = False,
    plots: PlotsOption = True,
    as_json: JsonOption = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", help="Say on stderr how fast each point is as it ends, and the best so far."
        ),
    ] = False,
) -> None:
    """Run every point of a scenario's sweep and compare them in tables and figures.

    Finished points are not run again. Several seeds in the sweep give 95 % intervals. Results do
    not depend on where, or by how many workers, they are simulated. The command fails if another
    process is writing the same folder. The last line printed is the folder with compare.csv,
    compare.md and plots/.
    """
    with progress():
        from moesim.scenario import load_scenario

        loaded = load_scenario(scenario, overrides or ())
    taken_out = _taken_out(scenario, loaded)
    if not loaded.sweep:
        why = f"--set takes {taken_out} out of its `sweep:`" if taken_out else "has no `sweep:`"
        sets = [part for override in overrides or () for part in ("--set", override)]
        command = shlex.join(["moesim", "run", str(scenario), *sets])
        raise UsageError(
            f"{scenario}: {why}, so there is nothing to compare; run it with: {command}, or add a "
            "sweep, like --set 'sweep.cache.policy=[lru, lfu]'"
        )
    if taken_out:
        typer.echo(f"--set takes {taken_out} out of the sweep", err=True)
    backend = backend_of(on, workers)
    with opened(out or Path("runs") / f"{loaded.name}-compare") as output:
        failures, wrote = _compared(loaded, output, backend, force, plots, as_json, watch=watch)
    if failures:
        raise typer.Exit(exit_code(failures, wrote=wrote))


def _compared(
    loaded: Scenario,
    output: Output,
    backend: AbstractContextManager[Backend | Cluster],
    force: bool,
    plots: bool,
    as_json: bool,
    *,
    watch: bool,
) -> tuple[list[tuple[Point, Exception]], bool]:
    """Simulate the points that are missing, write the comparison and print it.

    Return the points that failed, and whether any succeeded.
    """
    with progress("checking the points"):
        from moesim.report import write_comparison
        from moesim.sweep import check_points, comparison_of, points_of, unfinished

        folder = output.folder
        points = points_of(loaded, folder / "runs", copied=output.copied)
        if not force:
            output.fetch(points)
        missing = points if force else unfinished(points)
        # A mistake in the last point, or a read-only folder, must show before hours of simulation.
        check_points(missing)
        output.check()
    saved: Callable[[Path], None] = output.save_run
    if watch:
        kept = [point for point in points if point not in missing]
        saved = telling(missing, kept, output.save_run)
    # Inside the folder, which stays while its runs come and go. The lock also keeps `report` out.
    with exclusive(folder, inside=True):
        failures = run_into(
            folder / "runs", missing, len(points), backend, force=force, saved=saved
        )
        with progress("tables and figures" if plots else "tables"):
            # Points that worked are reported although others failed.
            comparison = comparison_of(points, failures)
            if comparison is not None:
                write_comparison(
                    comparison,
                    folder,
                    name=loaded.name,
                    command=this_command(),
                    failures=comparison.failures,
                    plots=plots,
                )
    output.save_rest()
    if comparison is not None:
        print_comparison(
            comparison, output.shown, comparison.failures, as_json=as_json, plots=plots
        )
    if failures:
        echo_failures(failures, len(points))
    return failures, comparison is not None


def _taken_out(file: Path, loaded: Scenario) -> str:
    """Return the keys of the file's sweep that an override sets instead, as text."""
    from moesim.config.yaml_document import load_document

    sweep = load_document(file).data.get("sweep") or {}
    return ", ".join(key for key in sweep if key not in loaded.sweep)
