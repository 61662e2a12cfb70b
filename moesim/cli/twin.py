"""`moesim twin`: a machine learned from its own logs, and what it would do else."""

from __future__ import annotations

from typing import Annotated

import typer

from moesim.cli.complete import of_cards, of_cpus, of_models
from moesim.cli.options import JsonOption

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command of this file to the application."""
    app.command()(twin)


def twin(
    logs: Annotated[
        list[str],
        typer.Argument(
            metavar="LOG...",
            help="What llama-bench prints (Markdown, CSV, JSON, JSONL), a log of llama-server, or "
            "rows of `moesim measured` as JSON; - is the standard input.",
        ),
    ],
    gpu: Annotated[
        str,
        typer.Option(
            help="The graphics card, like rtx-3060-12gb, or none.", autocompletion=of_cards
        ),
    ] = "",
    cpu: Annotated[
        str, typer.Option(help="The processor, like ryzen-7950x.", autocompletion=of_cpus)
    ] = "",
    ram: Annotated[str, typer.Option(help="Host memory, like 32GB-ddr4-3200-2ch.")] = "",
    pcie: Annotated[str, typer.Option(help="The link of the card, like 4.0-x16.")] = "",
    model: Annotated[
        str,
        typer.Option(
            help="The model: a shipped name, a config.json or a GGUF file.",
            autocompletion=of_models,
        ),
    ] = "",
    form: Annotated[
        str, typer.Option("--format", help="The format of the weights, like Q4_K_M.")
    ] = "",
    engine: Annotated[
        str, typer.Option(help="The engine and backend, like `llama.cpp CUDA`.")
    ] = "",
    setting: Annotated[
        str, typer.Option(help="Options of the runs that the logs do not say, like ncmoe=24.")
    ] = "",
    what_if: Annotated[
        list[str] | None,
        typer.Option(
            "--what-if",
            metavar="KEY=VALUE",
            help="Predict a change: ncmoe=20, format=Q8_0, gpu='RTX 4090', channels=4, context, "
            "ubatch, kv, threads, cpu, ram, pcie; may be repeated.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Learn a machine's read bandwidth and time of a layer from logs, and answer what-ifs.

    The logs are of one machine and engine, in two or more settings. What they do not say is given
    by options, which replace what the logs say.
    """
    from moesim.cli.output import echo_json
    from moesim.cli.progress import progress

    with progress("what-ifs" if what_if else "fitting"):
        from moesim.report.tabular import write_tables
        from moesim.twin.samples import Options
        from moesim.twin.twin import twin_of

        options = Options(gpu, cpu, ram, pcie, model, form, engine, setting)
        found = twin_of(logs, options, what_if or ())
    if as_json:
        echo_json(found.plain())
        return
    typer.echo(found.heading())
    typer.echo()
    write_tables(found.tables())
    typer.echo()
    typer.echo("\n".join(found.lines()))
