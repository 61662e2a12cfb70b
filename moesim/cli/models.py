"""`moesim models`: train small real models, refactor them, and cut prompts for them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.cli.readme import readme
from moesim.cli.text import CharactersOption, TextOption, corpus_of, spell_text

if TYPE_CHECKING:
    from moesim.models import Evaluation, Preset

__all__ = ["register"]

ForceOption = Annotated[bool, typer.Option("--force", help="Replace what is there.")]


def register(app: typer.Typer) -> None:
    """Add the sub-commands of this file to the application."""
    group = typer.Typer(no_args_is_help=True, help="Train small models whose routing is real.")
    group.command()(train)
    group.command()(prompts)
    group.command()(readme)
    app.add_typer(group, name="models")


def train(
    out: Annotated[Path, typer.Option(help="The model folder to write.")],
    preset: Annotated[str, typer.Option(help="shallow, deep, dense or gated.")] = "shallow",
    gate: Annotated[
        str | None, typer.Option(help="With gated: dselect_k, top_k, noisy_top_k, softmax, ...")
    ] = None,
    routed_by: Annotated[
        str | None, typer.Option(help="What the gate reads: hidden, tokens, prefix or tasks.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="With gated: experts that a token selects.")
    ] = None,
    gate_option: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE, of the gate; may be given repeatedly.")
    ] = None,
    text: TextOption = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps (default: the preset's).")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and windows.")] = 0,
    evaluate_every: Annotated[int, typer.Option(min=1, help="Steps between evaluations.")] = 100,
    characters: CharactersOption = 2_000_000,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads (default: torch's own choice).")
    ] = None,
    force: ForceOption = False,
) -> None:
    """Train a small language model, dense or of experts, on real text; needs the torch extra.

    Prints the validation loss as it falls; the last line printed is the model's folder. A training
    that was killed goes on when the command is given again, from OUT.checkpoint beside the folder.
    """
    from moesim.cli.progress import progress
    from moesim.cli.record import spell
    from moesim.errors import OutputError
    from moesim.progress import counter
    from moesim.record.extra import prepare_torch

    if out.exists() and not force:
        raise OutputError(out, "already exists; choose another name or pass --force")
    prepare_torch("training a model")
    import torch
    from transformers.utils import logging

    from moesim.models import train as train_model

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if threads is not None:
        torch.set_num_threads(threads)
    command = spell(
        ["models", "train"],
        {
            "preset": preset,
            "gate": gate,
            "routed-by": routed_by,
            "top-k": top_k,
            "gate-option": gate_option,
            "out": out,
            "text": spell_text(text),
            "steps": steps,
            "seed": seed,
            "evaluate-every": evaluate_every,
            "characters": characters,
            "threads": threads,
        },
    )
    shape = _gated(preset, gate, routed_by, top_k, gate_option)
    corpus = corpus_of(text, characters)
    with progress() as show:
        trained = train_model(
            shape,
            corpus,
            out,
            steps=steps,
            seed=seed,
            evaluate_every=evaluate_every,
            force=force,
            checkpoint=out.resolve().with_name(f"{out.resolve().name}.checkpoint"),
            on_step=counter(show, "steps"),
            on_evaluation=_echo,
            provenance={"command": command, "preset": preset},
        )
    first, last = trained.evaluations[0], trained.evaluations[-1]
    typer.echo(
        f"{trained.num_parameters:,} parameters; "
        f"validation loss {first.loss:.3f} -> {last.loss:.3f}"
    )
    typer.echo(str(out))


def _gated(
    preset: str,
    gate: str | None,
    routed_by: str | None,
    top_k: int | None,
    options: list[str] | None,
) -> str | Preset:
    """The preset, with the gate asked for; refused, before any work, where it cannot be."""
    from dataclasses import replace

    from moesim.config.yaml_document import parse_value
    from moesim.errors import UsageError
    from moesim.models import PRESETS, GatedPreset

    if preset not in PRESETS:
        raise UsageError(f"unknown preset {preset!r}: choose one of {', '.join(PRESETS)}")
    shape = PRESETS[preset]
    if not isinstance(shape, GatedPreset):
        if gate or routed_by or top_k or options:
            raise UsageError(f"preset {preset} has no gate to choose; --preset gated has")
        return preset
    values = {}
    for option in options or []:
        name, equals, value = option.partition("=")
        if not equals or not name:
            raise UsageError(f"--gate-option {option!r}: expected NAME=VALUE, as in gamma=0.5")
        values[name] = parse_value(value, f"--gate-option {name}")
    gate = gate or shape.gate
    chosen = replace(
        shape,
        gate=gate,
        gate_options=values,
        routed_by=routed_by or ("tokens" if gate == "hash" else shape.routed_by),
        top_k=top_k or (1 if gate == "switch" else shape.top_k),
    )
    from moesim.models.gated import check_gate

    check_gate(chosen)
    return chosen


def prompts(
    out: Annotated[Path, typer.Option(help="The JSONL file to write.")],
    per_domain: Annotated[int, typer.Option(min=1, help="Prompts of each domain.")] = 40,
    text: TextOption = None,
    characters: CharactersOption = 2_000_000,
    shortest: Annotated[int, typer.Option(min=1, help="Characters of a prompt, at least.")] = 40,
    longest: Annotated[int, typer.Option(min=1, help="Characters of a prompt, at most.")] = 240,
    fewest: Annotated[int, typer.Option(min=1, help="Tokens to generate, at least.")] = 16,
    most: Annotated[int, typer.Option(min=1, help="Tokens to generate, at most.")] = 48,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the choice.")] = 0,
    force: ForceOption = False,
) -> None:
    """Cut prompts from the text that training holds out; the last line printed is the file."""
    from moesim.models import cut_prompts, write_prompts

    cut = cut_prompts(
        corpus_of(text, characters),
        per_domain=per_domain,
        characters=(shortest, longest),
        new_tokens=(fewest, most),
        seed=seed,
    )
    typer.echo(str(write_prompts(cut, out, force=force)))


def _echo(evaluation: Evaluation) -> None:
    domains = "  ".join(f"{name} {loss:.3f}" for name, loss in evaluation.by_domain.items())
    typer.echo(f"step {evaluation.step:>5}  validation loss {evaluation.loss:.3f}  ({domains})")
