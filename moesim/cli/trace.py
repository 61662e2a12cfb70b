"""`moesim trace`: look at a trace, measure its routing, check it, make one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moesim.cli.routing import locality, redundancy

__all__ = ["register"]

ForceOption = Annotated[bool, typer.Option("--force", help="Replace an existing trace.")]


def register(app: typer.Typer) -> None:
    """Add the sub-commands of this file to the application."""
    group = typer.Typer(no_args_is_help=True, help="Look at, check, convert and make traces.")
    group.command()(info)
    group.command()(validate)
    group.command()(convert)
    group.command()(synth)
    group.command()(redundancy)
    group.command()(locality)
    app.add_typer(group, name="trace")


def info(
    trace: Annotated[Path, typer.Argument(help="The trace's folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a trace holds, where it is from, and how its routing looks."""
    import json

    from moesim.cli.output import echo_json
    from moesim.trace import load_trace
    from moesim.trace.statistics import describe

    about = describe(load_trace(trace))
    if as_json:
        echo_json(about)
        return
    for key, value in about.items():
        text = json.dumps(value) if isinstance(value, dict | list) else value
        if len(str(text)) > 400:
            text = f"{text[:400]} ... (all of it: --json)"
        typer.echo(f"{key:<24} {text}")


def validate(trace: Annotated[Path, typer.Argument(help="The trace's folder.")]) -> None:
    """Check every hash and every value of a trace; exit 1 at the first that is wrong."""
    from moesim.trace import validate_trace

    typer.echo(f"ok: {validate_trace(trace)}")


def convert(
    source: Annotated[Path, typer.Argument(help="The file to read.")],
    out: Annotated[Path, typer.Argument(help="The trace folder to write.")],
    kind: Annotated[
        str,
        typer.Option(
            "--format", help="npz (expert_ids, seq_len; prompt_tokens, gate_weights, ...) or esft."
        ),
    ] = "npz",
    num_experts: Annotated[
        int | None, typer.Option(help="Experts of a layer (default: the highest id + 1).")
    ] = None,
    model: Annotated[str | None, typer.Option(help="What to call the model.")] = None,
    force: ForceOption = False,
) -> None:
    """Turn a recording of another program into a trace."""
    from moesim.cli.progress import progress
    from moesim.errors import UsageError
    from moesim.progress import counter
    from moesim.trace import IMPORTERS

    if kind not in IMPORTERS:
        raise UsageError(f"--format {kind!r} is none of {', '.join(IMPORTERS)}")
    named = {"num_experts": num_experts, "model": model}
    given = {key: value for key, value in named.items() if value is not None}
    with progress() as show:
        found = IMPORTERS[kind](source, **given)
        trace = found.save(out, force=force, progress=counter(show, "requests"))
    typer.echo(f"{trace}\n{out}")


def synth(
    out: Annotated[Path, typer.Argument(help="The trace folder to write.")],
    requests: Annotated[int, typer.Option(help="How many requests.")] = 32,
    prompt_tokens: Annotated[int, typer.Option(help="Prompt tokens of each.")] = 32,
    output_tokens: Annotated[int, typer.Option(help="Generated tokens of each.")] = 32,
    layers: Annotated[int, typer.Option(help="MoE layers.")] = 8,
    experts: Annotated[int, typer.Option(help="Experts of a layer.")] = 16,
    top_k: Annotated[int, typer.Option(help="Experts of a token.")] = 2,
    skew: Annotated[float, typer.Option(help="Zipf exponent of popularity; 0 is uniform.")] = 0.8,
    stickiness: Annotated[
        float, typer.Option(help="Chance to repeat the previous token's experts.")
    ] = 0.2,
    layer_correlation: Annotated[
        float, typer.Option(help="Chance to follow from the layer before.")
    ] = 0.3,
    prediction_depth: Annotated[int, typer.Option(help="Layers predicted ahead.")] = 0,
    prediction_accuracy: Annotated[
        float, typer.Option(help="Chance that a prediction is the truth.")
    ] = 0.9,
    seed: Annotated[int, typer.Option(help="Seeds everything.")] = 0,
    force: ForceOption = False,
) -> None:
    """Draw a synthetic trace with stated knobs; its header says that it is synthetic."""
    from moesim.cli.progress import progress
    from moesim.progress import counter
    from moesim.trace import SyntheticKnobs, synthesize

    knobs = SyntheticKnobs(
        requests=requests,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        num_layers=layers,
        num_experts=experts,
        top_k=top_k,
        skew=skew,
        stickiness=stickiness,
        layer_correlation=layer_correlation,
        prediction_depth=prediction_depth,
        prediction_accuracy=prediction_accuracy,
        seed=seed,
    )
    with progress() as show:
        trace = synthesize(knobs).save(out, force=force, progress=counter(show, "requests"))
    typer.echo(f"{trace}\n{out}")
