"""`moesim record`: run a model on prompts and write its routing as a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moesim.cli.command_line import full_command_line
from moesim.cli.extra import ThreadsOption, start_torch

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command of this file to the application."""
    app.command()(record)


def record(
    model: Annotated[str, typer.Option(help="A Hugging Face Hub id, or a local folder.")],
    prompts: Annotated[
        Path,
        typer.Option(
            help="A file of prompts: JSONL of {prompt or messages, domain, max_new_tokens}, lines "
            "of PROMPT or DOMAIN<TAB>PROMPT, or text with one prompt per paragraph."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The trace folder to write.")],
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens to generate for prompts without a limit.")
    ] = 32,
    batch_size: Annotated[int, typer.Option(min=1, help="Requests generated together.")] = 8,
    depth: Annotated[
        int, typer.Option(min=0, help="Layers ahead to predict, by their gates, at each layer.")
    ] = 0,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Record the scores of all experts too.")
    ] = False,
    temperature: Annotated[
        float, typer.Option(min=0, help="0 takes the likeliest token; above 0, tokens are sampled.")
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(help="Sample from the likeliest tokens with this total probability.")
    ] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    kind: Annotated[
        str,
        typer.Option("--prompts-kind", help="Format of --prompts: auto, jsonl, lines or text."),
    ] = "auto",
    domain: Annotated[
        str | None, typer.Option(help="The domain of prompts that state none.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first N prompts.")] = None,
    max_prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="Cut longer prompts to N tokens.")
    ] = None,
    ignore_end: Annotated[
        bool, typer.Option("--ignore-end", help="Forbid the end token: generate to the limit.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    device: Annotated[
        str, typer.Option(help="The device to run on: cpu, cuda, cuda:1, ...")
    ] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="Number format: auto (as stored), float32, bfloat16 or float16.")
    ] = "auto",
    threads: ThreadsOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing trace.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what would be recorded, without loading the weights."),
    ] = False,
) -> None:
    """Generate text with a real model and record its routing; needs the torch extra.

    The last line printed is the trace's folder.
    """
    from moesim.cli.progress import progress
    from moesim.files import may_replace
    from moesim.progress import counter
    from moesim.record.extra import require_torch
    from moesim.record.prompts import read_prompts
    from moesim.trace.meta import HEADER

    # Cheap mistakes first: importing torch and loading a model take long. Without the packages,
    # no other mistake matters.
    require_torch("recording a model")
    requested = read_prompts(prompts, kind=kind, domain=domain)[:limit]
    may_replace(out, force, (HEADER,))
    start_torch("recording a model", threads)
    from moesim.record import load_model
    from moesim.record import record as record_model
    from moesim.record.header import loaded_config
    from moesim.record.routers import find_moe_layers

    if dry_run:
        from moesim.record.dry_run import plan_recording
        from moesim.record.loading import load_empty

        plan = plan_recording(
            *load_empty(model, revision=revision),
            requested,
            max_new_tokens=max_new_tokens,
            max_prompt_tokens=max_prompt_tokens,
            prediction_depth=depth,
            probabilities=probabilities,
        )
        typer.echo("\n".join(plan.lines()))
        return
    command = full_command_line(
        ["record"],
        {
            "model": model,
            "prompts": prompts,
            "out": out,
            "max-new-tokens": max_new_tokens,
            "batch-size": batch_size,
            "depth": depth,
            "probabilities": probabilities,
            "temperature": temperature,
            "top-p": top_p,
            "seed": seed,
            "prompts-kind": None if kind == "auto" else kind,
            "domain": domain,
            "limit": limit,
            "max-prompt-tokens": max_prompt_tokens,
            "ignore-end": ignore_end,
            "revision": revision,
            "dtype": None if dtype == "auto" else dtype,
            "threads": threads,
        },
    )
    with progress("loading the model"):
        loaded, tokenizer = load_model(model, revision=revision, device=device, dtype=dtype)
    _note_missing_shape(loaded_config(loaded, find_moe_layers(loaded)))
    with progress() as show:
        trace = record_model(
            loaded,
            tokenizer,
            requested,
            out,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            prediction_depth=depth,
            probabilities=probabilities,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            max_prompt_tokens=max_prompt_tokens,
            ignore_end=ignore_end,
            provenance={"command": command},
            force=force,
            progress=counter(show, "requests"),
        )
    requests = trace.requests["prompt_tokens"]
    meta = trace.meta
    typer.echo(
        f"{len(requests)} requests, {trace.num_rows} rows of {meta.num_layers} layers, "
        f"{meta.top_k} of {meta.num_experts} experts"
    )
    typer.echo(str(out))


def _note_missing_shape(config: dict[str, Any] | None) -> None:
    """Say, before anything is recorded, that a run of the trace will need a shape.

    It does if the model's own configuration gives none.
    """
    from moesim.errors import UsageError
    from moesim.model.hf_config import shape_from_config

    try:
        shape_from_config(config or {})
    except UsageError as error:
        typer.echo(
            f"note: a run of this trace needs `model`, a shipped model or a path, because {error}",
            err=True,
        )
