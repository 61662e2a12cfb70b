"""`moesim advise`: will a model run on a machine, how fast, and with which flags?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from moesim.cli.complete import of_cards, of_cpus, of_formats, of_models
from moesim.cli.options import JsonOption

if TYPE_CHECKING:
    from moesim.advice.question import Parts
    from moesim.cli.this_machine import OwnMachine

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command of this file to the application."""
    app.command()(advise)


def advise(
    model: Annotated[
        str,
        typer.Argument(
            help="A shipped model (`moesim list models`), or the path of a Hugging Face "
            "config.json or of a GGUF file.",
            autocompletion=of_models,
        ),
    ],
    gpu: Annotated[
        str | None,
        typer.Option(
            help="The graphics card, like rtx-3060-12gb, or none, the default.",
            autocompletion=of_cards,
        ),
    ] = None,
    cpu: Annotated[
        str, typer.Option(help="The processor, like ryzen-7950x.", autocompletion=of_cpus)
    ] = "",
    ram: Annotated[str, typer.Option(help="Host memory, like 32GB-ddr4-3200-2ch.")] = "",
    pcie: Annotated[str, typer.Option(help="The link of the card, like 4.0-x16.")] = "",
    vram: Annotated[
        str, typer.Option(help="GPU memory, like 16GB, if it is not that of the catalogue.")
    ] = "",
    gpu_bandwidth: Annotated[
        str, typer.Option(help="Bandwidth of GPU memory, like 600GB/s, likewise.")
    ] = "",
    gpu_tflops: Annotated[
        str, typer.Option(help="Peak rate of dense 16-bit products, like 80, likewise.")
    ] = "",
    context: Annotated[
        str, typer.Option(help="Tokens of the longest conversation; k is 1024.")
    ] = "8k",
    goal: Annotated[
        Literal["chat", "agent", "batch", "rag"], typer.Option(help="What the model is for.")
    ] = "chat",
    load: Annotated[
        int | None, typer.Option(min=1, max=64, help="Sequences at once; batch has 8, others 1.")
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="Only this format of the weights; may be repeated.",
            autocompletion=of_formats,
        ),
    ] = None,
    engine: Annotated[
        Literal["llama.cpp", "ik_llama.cpp"], typer.Option(help="The engine that is priced.")
    ] = "llama.cpp",
    every: Annotated[
        bool, typer.Option("--all", help="Show every choice that no other beats.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show what takes the time of the recommended choice.")
    ] = False,
    this_machine: Annotated[
        bool,
        typer.Option(
            "--this-machine",
            help="Detect the parts of this machine that are not named, and measure its memory and "
            "its link for about ten seconds.",
        ),
    ] = False,
    no_probe: Annotated[
        bool, typer.Option("--no-probe", help="With --this-machine: measure nothing.")
    ] = False,
    as_json: JsonOption = False,
    html: Annotated[
        str | None,
        typer.Option(help="Also write the answer as one page, which computes other settings."),
    ] = None,
) -> None:
    """Say whether a model runs on a machine, how fast, and with which flags.

    Needs no trace and no GPU. Speeds are predictions by the code that `moesim measured` scores, and
    each has its interval.
    """
    from moesim.cli.progress import progress

    numbers = (vram, gpu_bandwidth, gpu_tflops)
    parts, own = _parts(gpu, cpu, ram, pcie, this_machine, no_probe, as_json)
    from moesim.advice.ask import question_of

    question = question_of(model, parts, numbers, context, goal, load, tuple(formats or ()), engine)
    if own is not None and not no_probe:
        question = own.probed(question)
    from moesim.advice.heading import heading

    if html is not None:
        from moesim.advice.page import check_page_path, shown_of, write_page

        check_page_path(html)
    if not as_json:
        typer.echo(f"{heading(question)}\n")
    with progress("choices") as show:
        from moesim.advice import tables
        from moesim.advice.advice import advise as advise_on
        from moesim.cli.output import echo_json
        from moesim.progress import counter
        from moesim.report.tabular import write_tables

        advice = advise_on(question, thorough=every, progress=counter(show, "choices"))
    if as_json:
        if html is not None:
            write_page(html, advice, shown_of(advice))
        echo_json({**advice.plain(), **({"this_machine": own.plain()} if own else {})})
        return
    shown = [tables.front_table(advice, whole=every), tables.memory_table(advice.best.memory)]
    write_tables([*shown, tables.terms_table(advice.terms)] if explain else shown)
    typer.echo()
    typer.echo("\n".join(tables.recommendation(advice)))
    for line in advice.grounds.caution():
        typer.echo(line)
    term = advice.terms[0]
    typer.echo(f"limited by: {term.name} ({term.share:.0%} of the time of a token)")
    typer.echo("\n".join(tables.cliff_lines(advice, advice.cliff)))
    typer.echo("\n".join(tables.cache_lines(advice.cached)))
    typer.echo()
    if advice.upgrades:
        write_tables([tables.upgrade_table(advice, advice.upgrades)])
    else:
        typer.echo("none of the upgrades that are tried saves time")
    typer.echo("\nwhat the answer rests on")
    for line in advice.grounds.lines():
        typer.echo(f"  {line}")
    if html is not None:
        write_page(html, advice, shown_of(advice))
        typer.echo(f"\npage: {html}")


def _parts(
    gpu: str | None,
    cpu: str,
    ram: str,
    pcie: str,
    this_machine: bool,
    no_probe: bool,
    quiet: bool,
) -> tuple[Parts, OwnMachine | None]:
    """Return the parts that are named, or those of this machine where it is asked for."""
    from moesim.advice.question import Parts
    from moesim.errors import UsageError

    if no_probe and not this_machine:
        raise UsageError(
            "--no-probe skips the measurements of --this-machine; add that or leave it"
        )
    if not this_machine:
        return Parts("none" if gpu is None else gpu, cpu, ram, pcie), None
    from moesim.cli.this_machine import OwnMachine

    own = OwnMachine(gpu, cpu, ram, pcie, quiet=quiet)
    return own.parts, own
