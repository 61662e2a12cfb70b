"""`moesim split`: the best division of GPU memory between KV blocks and expert slots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from moesim.cli.drawing import draws
from moesim.cli.options import JsonOption, PlotsOption, SetOption
from moesim.cli.output import echo_json
from moesim.cli.progress import progress
from moesim.errors import BudgetError, UsageError
from moesim.files import clean_up, output_errors
from moesim.locks import exclusive

if TYPE_CHECKING:
    from moesim.report.division import Divided
    from moesim.scenario import Scenario
    from moesim.sweep.division import Room, Search

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command of this file to the application."""
    app.command()(draws(split))


def split(
    scenario: Annotated[Path, typer.Argument(help="A scenario without a `sweep:`.")],
    goal: Annotated[
        Literal["throughput", "ttft", "e2e"],
        typer.Option(help="What is best: throughput, or the least TTFT p95 or E2E p95."),
    ] = "throughput",
    runs: Annotated[
        int, typer.Option(min=3, max=200, help="The most divisions that are simulated.")
    ] = 12,
    overrides: SetOption = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder to write into (default: runs/NAME-split).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Run finished divisions again.")] = False,
    plots: PlotsOption = True,
    as_json: JsonOption = False,
) -> None:
    """Find the best division of GPU memory between KV blocks and expert slots.

    What the scenario gives to memory.kv and cache.slots is one more division, for comparison. The
    last line printed is the folder with split.csv, plots/ and runs/.
    """
    with progress():
        from moesim.report.division import division_records, division_table, write_division
        from moesim.report.metrics import run_caption
        from moesim.report.tabular import write_tables
        from moesim.scenario import load_scenario
        from moesim.sweep.division import GOALS, remarks, room_of

        loaded = load_scenario(scenario, overrides or ())
    if loaded.sweep:
        raise UsageError(
            f"{scenario}: a division is searched for one scenario, and this one has a `sweep:`; "
            f"set a value of each of its keys with --set: {', '.join(loaded.sweep)}"
        )
    room = room_of(loaded)
    folder = out or Path("runs") / f"{loaded.name}-split"
    key, sign = GOALS[goal]
    with output_errors(folder):
        (folder / "runs").mkdir(parents=True, exist_ok=True)
    with exclusive(folder, inside=True):
        clean_up(folder / "runs")
        rows, best, found = _searched(loaded, room, folder / "runs", (key, sign), runs, force=force)
        with progress("tables and figures"):
            write_division(folder, rows, best, key, name=loaded.name, plots=plots)
    values = room.values(found.best)
    caption = run_caption(best.run)
    notes = [*_against_own(rows, best, key, sign), *remarks(room, found)]
    if as_json:
        echo_json(
            {
                "out": str(folder),
                "goal": key,
                "caption": caption,
                "best": values,
                "divisions": division_records(rows),
                "peaks": found.peaks,
                "notes": notes,
            }
        )
        return
    typer.echo(f"Of the best: {caption}\n")
    write_tables([division_table(rows, best, key)])
    typer.echo(f"\nbest {key}:")
    for name, value in values.items():
        section, _, entry = name.partition(".")
        typer.echo(f"  {section}: {{{entry}: {value}}}")
    typer.echo()
    for note in notes:
        typer.echo(f"- {note}")
    typer.echo(f"\n{folder}")


def _searched(
    loaded: Scenario,
    room: Room,
    folder: Path,
    goal: tuple[str, int],
    runs: int,
    *,
    force: bool,
) -> tuple[list[Divided], Divided, Search]:
    """Return all simulated divisions by KV share, the best, and the search that chose them."""
    from moesim.sweep.division import search

    key, sign = goal
    rows: list[Divided] = []
    with progress() as show:

        def run(values: dict[str, Any], *, own: bool) -> Divided:
            rows.append(_divided(loaded, values, room, folder, own=own, force=force))
            if show is not None:
                show("divisions", len(rows), runs + 1)
            return rows[-1]

        with suppress(BudgetError):  # one that does not fit is a reason to search for another
            run({}, own=True)
        # By the slots that were asked for: a placement may use fewer of them.
        searched: dict[int, Divided] = {}

        def score(slots: int) -> float:
            searched[slots] = run(room.values(slots), own=False)
            return sign * searched[slots].run.value(key)

        found = search(room.least, room.most, score, runs)
    return sorted(rows, key=lambda row: (row.share, row.own)), searched[found.best], found


def _divided(
    loaded: Scenario,
    values: dict[str, Any],
    room: Room,
    folder: Path,
    *,
    own: bool,
    force: bool,
) -> Divided:
    """Simulate one division into its run directory, unless it is there."""
    from moesim.report import load_run
    from moesim.report.division import Divided
    from moesim.scenario.sweep import with_values
    from moesim.simulate import run
    from moesim.sweep.points import slug

    point = with_values(loaded, {**values, "bounds": False})
    path = folder / (slug(values) if values else "as-written")
    summary = run(point, out=path, force=force, point=values).summary
    tokens = summary["kv_bytes"] // room.block_bytes * room.block_tokens
    share = summary["kv_bytes"] / room.free_bytes
    return Divided(share, tokens, summary["cache_slots"], load_run(path), own)


def _against_own(rows: Sequence[Divided], best: Divided, key: str, sign: int) -> list[str]:
    """Return how much better the best division is than the scenario's own."""
    own = next((row for row in rows if row.own), None)
    if own is None:
        return ["the scenario's own division does not fit the memory"]
    now, then = own.run.value(key), best.run.value(key)
    if math.isnan(now) or not now:
        return ["the goal is undefined in the scenario's own division"]
    change = (then - now) / now
    if sign * change < -1e-9:
        return [f"the scenario's own division is better than all that were tried ({-change:+.1%})"]
    return [f"against the scenario's own division ({own.slots} slots): {key} {change:+.1%}"]
