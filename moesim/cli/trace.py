"""`moesim trace`: show, check, measure, convert and draw traces."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from moesim.cli.complete import of_importers, of_models
from moesim.cli.drawing import draws
from moesim.cli.paths import App
from moesim.cli.routing import locality, redundancy
from moesim.cli.trace_info import info

if TYPE_CHECKING:
    from moesim.trace import Trace
    from moesim.trace.like import Likeness

__all__ = ["register"]

ForceOption = Annotated[bool, typer.Option("--force", help="Replace an existing trace.")]


def register(app: typer.Typer) -> None:
    """Add the sub-commands of this file to the application."""
    group = App(no_args_is_help=True, help="Show, check, measure, convert and draw traces.")
    group.command()(draws(info))
    group.command()(validate)
    group.command()(convert)
    group.command()(synth)
    group.command()(draws(redundancy))
    group.command()(draws(locality))
    app.add_typer(group, name="trace")


def validate(trace: Annotated[Path, typer.Argument(help="The trace's folder.")]) -> None:
    """Check every hash and every value of a trace; exit with 1 at the first that is wrong."""
    from moesim.cli.progress import progress

    with progress("reading the trace"):
        from moesim.trace import validate_trace

        valid = validate_trace(trace)
    typer.echo(f"ok: {valid}")


def convert(
    source: Annotated[Path, typer.Argument(help="The file to read (of esft: or a folder).")],
    out: Annotated[Path, typer.Argument(help="The trace folder to write.")],
    kind: Annotated[
        str | None,
        typer.Option(
            "--from",
            "--format",
            metavar="NAME",
            help="Format of SOURCE: npz, esft, sglang, sglang_routed, vllm, llama_cpp, moearc, "
            "jsonl, csv or counts. [default: found from the content]",
            autocompletion=of_importers,
        ),
    ] = None,
    num_experts: Annotated[
        int | None, typer.Option(min=1, help="Experts per layer (default: the highest id + 1).")
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(min=1, help="Experts of a token at a layer, where SOURCE does not say."),
    ] = None,
    layers: Annotated[
        int | None, typer.Option(min=1, help="Layers of SOURCE, to check it (sglang_routed).")
    ] = None,
    prompt_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Prompt tokens of each request, where SOURCE does not say; or to draw."
        ),
    ] = None,
    decoded_only: Annotated[
        bool, typer.Option("--decoded-only", help="Leave out the rows of prompts (llama_cpp).")
    ] = False,
    guess_requests: Annotated[
        bool,
        typer.Option(
            "--guess-requests",
            help="Where a dump leaves open which of two requests continues, take the first "
            "(sglang).",
        ),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="The model's name (default: by the file). The sizes of a shipped model are used "
            "where SOURCE does not say them."
        ),
    ] = None,
    requests: Annotated[
        int, typer.Option(min=1, help="Requests to draw, where SOURCE holds statistics only.")
    ] = 32,
    output_tokens: Annotated[
        int, typer.Option(min=1, help="Output tokens of each request that is drawn.")
    ] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Seed of requests that are drawn.")] = 0,
    force: ForceOption = False,
) -> None:
    """Convert another program's recording into a trace.

    Statistics (counts of experts) become a synthetic trace that is fitted to them and marked so.
    """
    from moesim.cli.progress import progress
    from moesim.files import may_replace
    from moesim.progress import counter
    from moesim.trace import import_trace
    from moesim.trace.importers import Options
    from moesim.trace.meta import HEADER

    may_replace(out, force, (HEADER,))  # before the source is read, which may be long
    sizes = None if model is None else _shipped_sizes(model)
    if sizes is not None:
        num_experts, top_k = num_experts or sizes[0], top_k or sizes[1]
    with progress() as show:
        options = Options(
            num_experts=num_experts, top_k=top_k, num_layers=layers, model=model,
            prompt_tokens=prompt_tokens, decoded_only=decoded_only, guess_requests=guess_requests,
            requests=requests, output_tokens=output_tokens, seed=seed,
            progress=counter(show, "lines"),
        )  # fmt: skip
        found, imported = import_trace(source, kind, options)
        if sizes is not None:
            _check_sizes(str(model), (num_experts, top_k), imported.trace)
        trace = imported.trace.save(out, force=force, progress=counter(show, "requests"))
    typer.echo(f"{trace}\nread as {found.name}: {found.expects}")
    if sizes is not None:
        typer.echo(f"- {num_experts} experts, and {top_k} a token: those of {model}")
    for note in imported.notes:
        typer.echo(f"- {note}")
    typer.echo(out)


def _check_sizes(model: str, sizes: tuple[int | None, int | None], trace: Trace) -> None:
    from moesim.errors import UsageError

    if sizes != (trace.num_experts, trace.top_k):
        raise UsageError(
            f"--model {model}: the source has {trace.num_experts} experts, {trace.top_k} a token, "
            f"and {sizes[0]}, {sizes[1]} a token were expected; name another model, or state "
            "--num-experts and --top-k"
        )


def _shipped_sizes(model: str) -> tuple[int, int] | None:
    """Return the experts a layer and a token of a shipped model; None for any other name."""
    from moesim.errors import UsageError
    from moesim.model.hf_config import load_shape

    try:
        shape = load_shape(model)
    except UsageError:
        return None  # the name of a model of one's own
    return (shape.num_experts, shape.top_k) if shape.moe_layers else None


_OF_LIKENESS: Final = ("experts", "top_k", "skew", "cutoff", "stickiness", "layer_correlation")
"""The options of `trace synth` that --like decides."""


def synth(
    context: typer.Context,
    out: Annotated[Path, typer.Argument(help="The trace folder to write.")],
    like: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Give the trace the sizes of this model and hit rates as published for it: a "
            "shipped name, a config.json or a GGUF file.",
            autocompletion=of_models,
        ),
    ] = None,
    locality: Annotated[
        str | None,
        typer.Option(
            help="With --like: published, or low, middle or high of the known range of hit rates. "
            "[default: published, or middle where nothing is published]",
        ),
    ] = None,
    requests: Annotated[int, typer.Option(help="Number of requests.")] = 32,
    prompt_tokens: Annotated[int, typer.Option(help="Prompt tokens per request.")] = 32,
    output_tokens: Annotated[int, typer.Option(help="Generated tokens per request.")] = 32,
    layers: Annotated[int, typer.Option(help="Number of MoE layers.")] = 8,
    experts: Annotated[int, typer.Option(help="Experts per layer.")] = 16,
    top_k: Annotated[int, typer.Option(help="Experts per token and layer.")] = 2,
    skew: Annotated[
        float, typer.Option(help="Zipf exponent of expert popularity; 0 is uniform.")
    ] = 0.8,
    cutoff: Annotated[
        float,
        typer.Option(help="How fast popularity falls below Zipf's law in its tail; 0 is Zipf's."),
    ] = 0.0,
    stickiness: Annotated[
        float, typer.Option(help="Probability that a token repeats the previous token's experts.")
    ] = 0.2,
    layer_correlation: Annotated[
        float, typer.Option(help="Probability that the layer before decides a layer's experts.")
    ] = 0.3,
    prediction_depth: Annotated[
        int, typer.Option(help="Layers ahead with recorded predictions.")
    ] = 0,
    prediction_accuracy: Annotated[
        float, typer.Option(help="Probability that a recorded prediction is true.")
    ] = 0.9,
    seed: Annotated[int, typer.Option(help="Seed of the trace.")] = 0,
    force: ForceOption = False,
) -> None:
    """Draw a synthetic trace at random; its header marks it as synthetic."""
    from moesim.cli.progress import progress, say
    from moesim.errors import UsageError
    from moesim.progress import counter
    from moesim.trace import SyntheticKnobs, write_synthetic
    from moesim.trace.like import header_like, knobs_like

    if like is None and locality is not None:
        raise UsageError("--locality is that of a model; name it with --like MODEL")
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
        cutoff=cutoff,
    )
    with progress() as show:
        header = {}
        if like is not None:
            stated = _stated(context)
            moe_layers, found = _likeness(like, locality, stated)
            if "layers" not in stated:
                knobs = replace(knobs, num_layers=found.sizes.layers)
            own = knobs.num_layers == found.sizes.layers
            knobs = knobs_like(found, knobs)
            header = header_like(found, knobs, moe_layers if own else None)
            say("\n".join(found.lines()))
        trace = write_synthetic(
            out, knobs, meta=header, force=force, progress=counter(show, "requests")
        )
    typer.echo(f"{trace}\n{out}")


def _stated(context: typer.Context) -> set[str]:
    """Return the names of the options that the command line states."""
    names = context.params
    return {
        name
        for name in names
        if getattr(context.get_parameter_source(name), "name", "") != "DEFAULT"
    }


def _likeness(
    model: str, locality: str | None, stated: set[str]
) -> tuple[tuple[int, ...], Likeness]:
    """Return the model layer of each MoE layer, and the likeness of a model.

    Raises:
        UsageError: an option is stated that the likeness decides, there is no such model, or it has
            no routed experts.
    """
    from moesim.errors import UsageError
    from moesim.model.hf_config import load_shape
    from moesim.trace.like import likeness
    from moesim.trace.localities import Sizes

    if wrong := [name for name in _OF_LIKENESS if name in stated]:
        option = "--" + wrong[0].replace("_", "-")
        raise UsageError(f"{option} and --like {model}: --like decides it; leave one of them away")
    shape = load_shape(model)
    if not shape.moe_layers:
        raise UsageError(f"--like {model}: the model has no routed experts")
    sizes = Sizes(len(shape.moe_layers), shape.num_experts, shape.top_k)
    return shape.moe_layers, likeness(shape.name, sizes, locality)
