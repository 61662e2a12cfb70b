"""`moesim models`: train small real models, refactor dense ones into experts, and cut prompts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.cli.extra import ThreadsOption, start_torch
from moesim.cli.options import ReplaceOption
from moesim.cli.paths import App
from moesim.cli.readme import readme
from moesim.cli.text import CharactersOption, TextOption, corpus_of, spell_text

if TYPE_CHECKING:
    from moesim.training import Evaluation, Preset

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the sub-commands of this file to the application."""
    group = App(
        no_args_is_help=True, help="Train or refactor small models, and cut prompts for them."
    )
    group.command()(train)
    group.command()(prompts)
    group.command()(readme)
    app.add_typer(group, name="models")


def train(
    out: Annotated[Path, typer.Option(help="The model folder to write.")],
    preset: Annotated[
        str, typer.Option(help="The kind of model: shallow, deep, dense or gated.")
    ] = "shallow",
    gate: Annotated[
        str | None,
        typer.Option(help="With preset gated: dselect_k, top_k, noisy_top_k, softmax, ..."),
    ] = None,
    routed_by: Annotated[
        str | None,
        typer.Option(help="With preset gated, what the gate reads: hidden, tokens, prefix, tasks."),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="With preset gated: experts per token.")
    ] = None,
    gate_option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="An option of the gate; may be repeated."),
    ] = None,
    text: TextOption = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps (default: the preset's).")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and text windows.")] = 0,
    evaluate_every: Annotated[int, typer.Option(min=1, help="Steps between evaluations.")] = 100,
    characters: CharactersOption = 2_000_000,
    threads: ThreadsOption = None,
    force: ReplaceOption = False,
) -> None:
    """Train a small language model, dense or with experts, on real text; needs the torch extra.

    The validation loss is printed during training. The last line printed is the model's folder. If
    training is killed, the same command continues it from OUT.checkpoint beside the folder.
    """
    from moesim.cli.command_line import full_command_line
    from moesim.cli.progress import progress
    from moesim.files import may_replace
    from moesim.progress import counter
    from moesim.record.extra import require_torch

    # Without the packages, no other mistake matters; torch itself takes seconds to import.
    require_torch("training a model")
    may_replace(out, force, None)
    start_torch("training a model", threads)
    from moesim.training import train as train_model

    command = full_command_line(
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
    model = _preset(preset, gate, routed_by, top_k, gate_option)
    with progress("reading the text") as show:
        trained = train_model(
            model,
            corpus_of(text, characters),
            out,
            steps=steps,
            seed=seed,
            evaluate_every=evaluate_every,
            force=force,
            # The real path, so that a link to a folder and the folder share one checkpoint.
            checkpoint=Path(f"{os.path.realpath(out)}.checkpoint"),
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


def _preset(
    preset: str,
    gate: str | None,
    routed_by: str | None,
    top_k: int | None,
    options: list[str] | None,
) -> str | Preset:
    """Return the preset with the gate that the options choose, checked.

    Raises:
        UsageError: there is no such preset, or the gate does not fit it.
    """
    from dataclasses import replace

    from moesim.config.yaml_document import parse_value
    from moesim.errors import UsageError
    from moesim.training import PRESETS, GatedPreset

    if preset not in PRESETS:
        raise UsageError(f"unknown preset {preset!r}: choose one of {', '.join(PRESETS)}")
    base = PRESETS[preset]
    if not isinstance(base, GatedPreset):
        if gate or routed_by or top_k or options:
            raise UsageError(f"preset {preset} has no gate to choose; use --preset gated")
        return preset
    values = {}
    for option in options or []:
        name, equals, value = option.partition("=")
        if not equals or not name:
            raise UsageError(f"--gate-option {option!r}: expected NAME=VALUE, as in gamma=0.5")
        values[name] = parse_value(value, f"--gate-option {name}")
    gate = gate or base.gate
    # Hash routing reads token ids, and a switch layer selects one expert: the preset's own defaults
    # would be refused.
    gated = replace(
        base,
        gate=gate,
        gate_options=values,
        routed_by=routed_by or ("tokens" if gate == "hash" else base.routed_by),
        top_k=top_k or (1 if gate == "switch" else base.top_k),
    )
    from moesim.training.gated import check_gate

    check_gate(gated)
    return gated


def prompts(
    out: Annotated[Path, typer.Option(help="The JSONL file to write.")],
    per_domain: Annotated[int, typer.Option(min=1, help="Prompts of each domain.")] = 40,
    text: TextOption = None,
    characters: CharactersOption = 2_000_000,
    shortest: Annotated[int, typer.Option(min=1, help="Fewest characters of a prompt.")] = 40,
    longest: Annotated[int, typer.Option(min=1, help="Most characters of a prompt.")] = 240,
    fewest: Annotated[int, typer.Option(min=1, help="Fewest tokens to generate.")] = 16,
    most: Annotated[int, typer.Option(min=1, help="Most tokens to generate.")] = 48,
    seed: Annotated[int, typer.Option(min=0, help="Seed of positions and lengths.")] = 0,
    force: ReplaceOption = False,
) -> None:
    """Cut prompts from text that `models train` holds out.

    The last line printed is the file.
    """
    from moesim.errors import OutputError

    if os.path.lexists(out) and not force:  # before seconds of reading text
        raise OutputError(out, "already exists; choose another name or pass --force")
    from moesim.training import cut_prompts, write_prompts

    cut = cut_prompts(
        corpus_of(text, characters),
        per_domain=per_domain,
        characters=(shortest, longest),
        new_tokens=(fewest, most),
        seed=seed,
    )
    typer.echo(str(write_prompts(cut, out, force=force)))


def _echo(evaluation: Evaluation) -> None:
    from moesim.cli.progress import say

    domains = "  ".join(f"{name} {loss:.3f}" for name, loss in evaluation.by_domain.items())
    say(f"step {evaluation.step:>5}  validation loss {evaluation.loss:.3f}  ({domains})")
