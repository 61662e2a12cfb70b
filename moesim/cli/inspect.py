"""`moesim curve` and `moesim schema`: what can be shown without a simulation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from moesim.trace import Trace

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
    from moesim.report.marks import FORESEES, marked
    from moesim.simulate.curve import curve as replayed
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
    typer.echo(f"# {_routing(loaded)}; {_replayed(loaded, scope, batch, replay, admission)}")
    seers = _knowing_the_future(names)
    if seers:
        typer.echo(f"# {', '.join(seers)}: {FORESEES}: a bound, not a policy")
    heads = [marked(name, FORESEES if name in seers else "") for name in names]
    widths = [max(8, len(head)) + 2 for head in heads]
    columns = list(zip(names, heads, widths, strict=True))
    typer.echo("capacity" + "".join(f"{head:>{width}}" for _, head, width in columns))
    for size in rates[names[0]]:
        row = "".join(f"{rates[name][size]:>{width}.3f}" for name, _, width in columns)
        typer.echo(f"{size:8d}{row}")


def _routing(trace: Trace) -> str:
    """Return whose routing a trace holds, and how much of it."""
    name = f"routing of {trace.meta.model}"
    if trace.meta.synthetic:
        name = "SYNTHETIC ROUTING, drawn at random, made by no model"
    return (
        f"{name}: {trace.num_requests} requests, {trace.num_rows} rows, "
        f"{trace.num_layers} layers of {trace.num_experts} experts, top-{trace.top_k}"
    )


def _replayed(trace: Trace, scope: str, batch: int, replay: str, admission: str) -> str:
    """Return in words how a trace is replayed and what a hit rate is."""
    parts = ["one cache per layer" if scope == "per_layer" else "one cache for all layers"]
    together = batch > trace.num_requests
    requests = f" (the trace has {trace.num_requests} requests: all together)" if together else ""
    parts.append(f"batch {batch}{requests}")
    parts.append(
        "atomic replay: a layer's experts are looked up together"
        if replay == "atomic"
        else "sequential replay: experts are looked up one by one, which inflates misses"
    )
    if admission == "always":
        parts.append("every fetched expert gets a slot")
    return "; ".join([*parts, "hits over distinct experts of layer events"])


def _knowing_the_future(names: list[str]) -> list[str]:
    """Return the policies that see the replayed trace beforehand, or learn on it."""
    from moesim.policies import find, parse_options
    from moesim.policies.guard import has_hindsight

    policies = {name: find("eviction", name) for name in names}
    return [
        name
        for name, policy in policies.items()
        if policy.clairvoyant or has_hindsight(policy, parse_options(policy, {}))
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
