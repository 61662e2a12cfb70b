"""`moesim record`: a running model's routing, written down as a trace."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["register", "spell"]


def register(app: typer.Typer) -> None:
    """Add the command of this file to the application."""
    app.command()(record)


def record(
    model: Annotated[str, typer.Option(help="A Hugging Face Hub id, or a local folder.")],
    prompts: Annotated[
        Path,
        typer.Option(
            help="JSONL of {prompt, domain, max_new_tokens}, a prompt a line (DOMAIN<TAB>PROMPT), "
            "or text, a paragraph a prompt."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The trace folder to write.")],
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens to generate, where a prompt has no limit of its own.")
    ] = 32,
    batch_size: Annotated[int, typer.Option(min=1, help="Requests generated together.")] = 8,
    depth: Annotated[
        int, typer.Option(min=0, help="Layers ahead whose gates predict from each hidden state.")
    ] = 0,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Keep the scores of all experts, too.")
    ] = False,
    temperature: Annotated[
        float, typer.Option(min=0, help="0 is greedy; above, tokens are drawn.")
    ] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens of this share.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the drawing.")] = 0,
    kind: Annotated[
        str, typer.Option("--prompts-kind", help="auto, jsonl, lines or text.")
    ] = "auto",
    domain: Annotated[
        str | None, typer.Option(help="The domain of prompts that name none.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first N prompts.")] = None,
    max_prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="Cut longer prompts to N tokens.")
    ] = None,
    ignore_end: Annotated[
        bool, typer.Option("--ignore-end", help="Draw no end token: generate to the limit.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="auto (as stored), float32, bfloat16 or float16.")
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads (default: torch's own choice).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing trace.")] = False,
) -> None:
    """Generate from prompts with a real model and record its routing; needs the torch extra.

    The last line printed is the trace's folder.
    """
    from moesim.cli.progress import progress
    from moesim.errors import OutputError
    from moesim.progress import counter
    from moesim.record.extra import prepare_torch
    from moesim.record.prompts import read_prompts

    asked = read_prompts(prompts, kind=kind, domain=domain)[:limit]
    if out.exists() and not force:
        raise OutputError(out, "already exists; choose another name or pass --force")
    prepare_torch("recording a model")
    import torch
    from transformers.utils import logging

    from moesim.record import load_model
    from moesim.record import record as record_model

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if threads is not None:
        torch.set_num_threads(threads)
    command = spell(
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
    loaded, tokenizer = load_model(model, revision=revision, device=device, dtype=dtype)
    with progress() as show:
        trace = record_model(
            loaded,
            tokenizer,
            asked,
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


def spell(words: list[str], options: dict[str, object]) -> str:
    """The command that does this again, naming no folder of this machine: for provenance.

    An absolute path is cut to its last part, options that are None or False are left out, those
    with a list are repeated.
    """
    spelled = ["moesim", *words]
    for name, value in options.items():
        for each in value if isinstance(value, list) else [value]:
            if each is None or each is False:
                continue
            spelled.append(f"--{name}")
            if each is not True:
                text = str(each)
                spelled.append(Path(text).name if Path(text).is_absolute() else text)
    return shlex.join(spelled)
