"""Looking without running: `moesim curve`, `moesim schema`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = ["register"]

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file to the application."""
    app.command()(curve)
    app.command()(schema)


def curve(
    trace: Annotated[Path, typer.Argument(help="The trace's folder.")],
    policy: Annotated[
        list[str],
        typer.Option(
            "--policy",
            help="An eviction policy (see `moesim list policies`); repeat for several.",
        ),
    ],
    scope: Annotated[
        Literal["per_layer", "global"], typer.Option(help="A cache a layer, or one for all.")
    ] = "per_layer",
    capacity: Annotated[
        str | None,
        typer.Option(help="Experts per layer, like 4,8,16 (default: each from 1 to all)."),
    ] = None,
    batch: Annotated[int, typer.Option(help="Requests that advance in lock-step.")] = 1,
    replay: Annotated[
        Literal["atomic", "sequential"],
        typer.Option(help="sequential replays ids one by one, to see how wrong that is."),
    ] = "atomic",
    admission: Annotated[
        Literal["bypass", "always"],
        typer.Option(help="Whether a fetched expert may pass the cache by, or always gets a slot."),
    ] = "bypass",
    seed: Annotated[int, typer.Option(help="For policies that draw.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Print hit rate against capacity, by replaying a trace without any time.

    Requests one after another, one token a step, caches never reset. A hit is a distinct expert
    of a layer event that was resident when the event began.
    """
    from moesim.cli.output import echo_json
    from moesim.cli.progress import progress
    from moesim.curve import curve as replayed
    from moesim.trace import load_trace

    loaded = load_trace(trace)
    names = list(dict.fromkeys(policy))
    with progress() as show:
        rates = replayed(
            loaded,
            names,
            scope=scope,
            capacities=None if capacity is None else _numbers(capacity),
            batch=batch,
            replay=replay,
            admission=admission,
            seed=seed,
            progress=show,
        )
    if as_json:
        echo_json(rates)
        return
    sizes = list(rates[names[0]])
    width = max(8, *map(len, names)) + 2
    typer.echo(f"# {loaded}; scope {scope}; hits over distinct experts of layer events")
    typer.echo("capacity" + "".join(f"{name:>{width}}" for name in names))
    for size in sizes:
        typer.echo(f"{size:8d}" + "".join(f"{rates[name][size]:>{width}.3f}" for name in names))


def schema() -> None:
    """Print the JSON Schema of scenario files."""
    import json

    from moesim.scenario import json_schema

    typer.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no list of whole numbers like 4,8,16", param_hint="--capacity"
        ) from None
