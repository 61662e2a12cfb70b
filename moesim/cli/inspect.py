"""`moesim curve` and `moesim schema`: what can be shown without a simulation."""

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
        Literal["per_layer", "global"],
        typer.Option(help="One cache for each layer, or one for all layers."),
    ] = "per_layer",
    capacity: Annotated[
        str | None,
        typer.Option(help="Slots per layer, like 4,8,16 (default: 1 to all experts)."),
    ] = None,
    batch: Annotated[int, typer.Option(help="Requests that advance in lock-step.")] = 1,
    replay: Annotated[
        Literal["atomic", "sequential"],
        typer.Option(
            help="atomic looks up a layer's experts together, as a server does; sequential one "
            "by one, which inflates misses."
        ),
    ] = "atomic",
    admission: Annotated[
        Literal["bypass", "always"],
        typer.Option(
            help="bypass lets the policy use a fetched expert once without a slot; always gives "
            "every fetched expert a slot."
        ),
    ] = "bypass",
    seed: Annotated[int, typer.Option(help="Seed of policies that choose at random.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Print the hit rate for each cache capacity, by replaying a trace without timing.

    Requests are replayed one after another, one token per step, and caches are never reset. A hit
    is a distinct expert of a layer event that was resident when the event began.
    """
    from moesim.cli.output import echo_json
    from moesim.cli.progress import progress
    from moesim.curve import curve as replayed
    from moesim.trace import load_trace

    loaded = load_trace(trace)
    names = list(dict.fromkeys(policy))  # a policy named twice is one column
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
    together = f"batch {batch}"
    if batch > loaded.num_requests:
        together += f" (the trace has {loaded.num_requests} requests: all together)"
    # With a `#`, so that programs that read the columns can skip the line.
    typer.echo(f"# {loaded}; scope {scope}; {together}; hits over distinct experts of layer events")
    if seers := _knowing_the_future(names):
        typer.echo(f"# {', '.join(seers)}: knows the future: a bound, not a policy")
    typer.echo("capacity" + "".join(f"{name:>{width}}" for name in names))
    for size in sizes:
        typer.echo(f"{size:8d}" + "".join(f"{rates[name][size]:>{width}.3f}" for name in names))


def _knowing_the_future(names: list[str]) -> list[str]:
    """Return the policies that see the replayed trace beforehand; `static` learns on it here."""
    from moesim.policies import find
    from moesim.policies.eviction.static import Static

    policies = {name: find("eviction", name) for name in names}
    return [
        name
        for name, policy in policies.items()
        if getattr(policy, "clairvoyant", False) or issubclass(policy, Static)
    ]


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
            f"{text!r} is not a list of whole numbers like 4,8,16", param_hint="--capacity"
        ) from None
