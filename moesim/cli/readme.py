"""`moesim models readme`: refactor a dense model into mixtures of experts, after Read-ME.

Cai et al., "Read-ME: Refactorizing LLMs as Router-Decoupled Mixture of Experts with System
Co-Design", NeurIPS 2024.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.cli.extra import ThreadsOption, start_torch
from moesim.cli.text import CharactersOption, TextOption, corpus_of, spell_text

if TYPE_CHECKING:
    from moesim.training.readme.pipeline import Untuned
    from moesim.training.readme.settings import PipelineSettings
    from moesim.training.readme.tuning import Measured

__all__ = ["readme"]


def readme(
    base: Annotated[
        str, typer.Option(help="A dense model: a folder, a Hugging Face Hub id, or smollm2.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="The folder of checkpoints and models; the same command continues a killed run."
        ),
    ],
    text: TextOption = None,
    kinds: Annotated[
        str,
        typer.Option(
            help="Models to make, of decoupled, layerwise, dense and oracle (losses only); "
            "use commas."
        ),
    ] = "decoupled,layerwise",
    size: Annotated[
        str | None,
        typer.Option(help="Text windows and schedule: small or smollm2 (default: by the base)."),
    ] = None,
    share: Annotated[
        float, typer.Option(help="An expert's share of the FFN's channels, above 0, at most 1.")
    ] = 0.5,
    variant: Annotated[
        str, typer.Option(help="Which to follow where they differ: paper or code.")
    ] = "code",
    control: Annotated[
        str,
        typer.Option(help="Control experiment: none, random (channels) or shuffled (domains)."),
    ] = "none",
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Rounds of tuning (default: the size's).")
    ] = None,
    expert_steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps of the experts in each round.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of windows, routers and controls.")] = 0,
    characters: CharactersOption = 2_000_000,
    threads: ThreadsOption = None,
) -> None:
    """Refactor a dense model into experts, one for each domain, and tune them (Read-ME).

    The decoupled model is the paper's; layerwise and dense ones are for comparison. Losses are
    printed during tuning. The last lines printed are the models' folders. Needs the torch extra.
    """
    from moesim.cli.command_line import full_command_line
    from moesim.cli.progress import progress

    start_torch("refactoring a model", threads)
    from moesim.training.readme.pipeline import run

    settings = _settings(size or ("smollm2" if base == "smollm2" else "small"), rounds)
    settings = _changed(
        settings, expert_steps, share=share, variant=variant, control=control, seed=seed
    )
    command = full_command_line(
        ["models", "readme"],
        {
            "base": base,
            "out": out,
            "text": spell_text(text),
            "kinds": kinds,
            "size": size,
            "share": share,
            "variant": variant,
            "control": control,
            "rounds": rounds,
            "expert-steps": expert_steps,
            "seed": seed,
            "characters": characters,
            "threads": threads,
        },
    )
    with progress("reading the text") as show:
        folders = run(
            base,
            corpus_of(text, characters),
            out,
            settings,
            kinds=[kind.strip() for kind in kinds.split(",")],
            show=show,
            on_untuned=_echo_untuned,
            on_stage=_echo_stage,
            provenance={"command": command},
        )
    for folder in folders.values():
        typer.echo(str(folder))


def _settings(size: str, rounds: int | None) -> PipelineSettings:
    from dataclasses import replace

    from moesim.errors import UsageError
    from moesim.training.readme.settings import SIZES

    if size not in SIZES:
        raise UsageError(f"unknown size {size!r}: choose one of {', '.join(SIZES)}")
    settings = SIZES[size]
    if rounds is None:
        return settings
    return replace(settings, schedule=replace(settings.schedule, rounds=rounds))


def _changed(
    settings: PipelineSettings, expert_steps: int | None, **changes: object
) -> PipelineSettings:
    from dataclasses import replace

    if expert_steps is not None:
        schedule = replace(settings.schedule, expert_steps=expert_steps)
        settings = replace(settings, schedule=schedule)
    return replace(settings, **changes)  # type: ignore[arg-type]


def _echo_untuned(untuned: Untuned) -> None:
    """Print the loss of the dense model and of each expert on each domain, before tuning."""
    from moesim.cli.progress import say

    say("loss before tuning, in nats per token:")
    width = max(len(name) for name in ("dense model", *untuned.experts)) + 2
    domains = list(untuned.dense)
    column = max(10, *map(len, domains)) + 2
    say(f"{'':{width}}" + "".join(f"{domain:>{column}}" for domain in domains))
    rows = {"dense model": untuned.dense, **untuned.experts}
    for name, losses in rows.items():
        say(f"{name:{width}}" + "".join(f"{losses[domain]:{column}.3f}" for domain in domains))


def _echo_stage(kind: str, measured: Measured) -> None:
    from moesim.cli.progress import say

    agreement = "" if measured.agreement is None else f"  routers agree {measured.agreement:.1%}"
    passes = "" if not measured.passes else f"  {measured.passes:.2f} passes over the text"
    say(
        f"{kind:>10}  {measured.stage:16}  validation loss {measured.validation:.3f}"
        f"{agreement}{passes}"
    )
