"""`moesim dial`: what accuracy a predictor needs, so that prefetch pays on a machine."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.drawing import draws, this_command
from moesim.cli.options import AgainOption, JsonOption, PlotsOption, SetOption
from moesim.cli.output import echo_json
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
from moesim.locks import exclusive

if TYPE_CHECKING:
    from moesim.dial import Grid, Link, Page
    from moesim.scenario import Scenario
    from moesim.sweep import Backend, Cluster

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command of this file to the application."""
    app.command()(draws(dial))


def dial(
    scenario: Annotated[Path, typer.Argument(help="A scenario of one run.")],
    recall: Annotated[
        str, typer.Option(help="Shares of the needed experts that are predicted.")
    ] = "0,0.25,0.5,0.75,1",
    precision: Annotated[
        str, typer.Option(help="Shares of the predicted experts that are needed.")
    ] = "0.25,0.5,0.75,0.9,1",
    depth: Annotated[str, typer.Option(help="Numbers of layers ahead.")] = "1,2,3",
    link: Annotated[
        str, typer.Option(help="Speeds of the link: factors of its own, or like 16GB/s.")
    ] = "0.5x,1x,2x",
    seeds: Annotated[
        int, typer.Option(min=1, help="Seeds, from the scenario's own on; 2 or more for intervals.")
    ] = 3,
    overrides: SetOption = None,
    out: Annotated[
        Any,
        typer.Option(
            parser=path_or_url,
            metavar="PATH|URL",
            help="The folder or fsspec URL to write into (default: runs/NAME-dial).",
        ),
    ] = None,
    on: OnOption = "local",
    workers: WorkersOption = None,
    force: AgainOption = False,
    plots: PlotsOption = True,
    as_json: JsonOption = False,
) -> None:
    """Say what recall and precision a predictor needs, so that prefetch saves time.

    A synthetic predictor, the dial, takes the place of the scenario's prefetch policy. It spoils
    the true routing at random. Each accuracy is compared with the same run without prefetch, and
    the line between time saved and time lost is drawn. Finished points are not run again. Results
    do not depend on where, or by how many workers, they are simulated. The last line printed is the
    folder with dial.csv, dial.json, dial.md and plots/.
    """
    from moesim.dial import Grid, parse_depths, parse_links, parse_shares, refuse
    from moesim.scenario import load_scenario

    grid = Grid(
        parse_shares("--recall", recall, zero=True),
        parse_shares("--precision", precision, zero=False),
        parse_depths("--depth", depth),
        parse_links("--link", link),
        seeds,
    )
    with progress():
        loaded = load_scenario(scenario, overrides or ())
        refuse(loaded)
    backend = backend_of(on, workers)
    with opened(out or Path("runs") / f"{loaded.name}-dial") as output:
        page = _simulated(loaded, grid, output, backend, force=force, plots=plots)
        _print(page, output.shown, as_json=as_json)


def _simulated(
    loaded: Scenario,
    grid: Grid,
    output: Output,
    backend: AbstractContextManager[Backend | Cluster],
    *,
    force: bool,
    plots: bool,
) -> Page:
    """Simulate the points that are missing, and write the page. Exit where points fail."""
    with progress("checking the points"):
        from moesim.dial import Page, dial_points, planes_of, write_page
        from moesim.dial.points import check
        from moesim.report import load_run
        from moesim.sweep import unfinished

        folder = output.folder
        points = dial_points(loaded, grid, folder / "runs", copied=output.copied)
        every = [each.point for each in points]
        if not force:
            output.fetch(every)
        missing = every if force else unfinished(every)
        check(points)
        output.check()
    with exclusive(folder, inside=True):
        failures = run_into(
            folder / "runs", missing, len(every), backend, force=force, saved=output.save_run
        )
        if failures:
            echo_failures(failures, len(every))
            raise typer.Exit(exit_code(failures, wrote=False))
        with progress("page"):
            runs = {each: load_run(each.point.folder) for each in points}
            page = Page(
                loaded.name, planes_of(runs, grid), _speeds(loaded, grid.links), this_command()
            )
            write_page(page, folder, plots=plots)
    output.save_rest()
    return page


def _print(page: Page, folder: str, *, as_json: bool) -> None:
    """Print the page and the folder that holds it, as text or as JSON."""
    if as_json:
        echo_json({"out": folder, **page.as_plain()})
        return
    from moesim.report.tabular import write_tables

    typer.echo(f"{page.caption}\n")
    write_tables([page.table()])
    typer.echo(f"\n{page.sentence}\n\n{folder}")


def _speeds(loaded: Scenario, links: Sequence[Link]) -> dict[Link, str]:
    hardware, pinned = loaded.load_hardware(), loaded.hardware.pinned
    return {link: link.name(hardware, pinned=pinned) for link in links}
