"""`moesim measured`: predict throughputs that people measured, and compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from moesim.cli.drawing import draws

__all__ = ["register"]

_MOST_ROWS = 10  # rows of a machine that are printed


def register(app: typer.Typer) -> None:
    """Add the command of this file to the application."""
    app.command()(draws(measured))


def measured(
    rows: Annotated[
        Path, typer.Argument(metavar="FILE", help="A JSON list of rows, see docs/measured.md.")
    ],
    fit: Annotated[
        Literal["none", "two"],
        typer.Option(
            help="two fits two numbers of each machine to its rows with `fit: true`; none fits "
            "nothing, and uses no measured value."
        ),
    ] = "none",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON instead of tables, with all rows.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="A folder for measured.csv, with all rows, and the figure."),
    ] = None,
) -> None:
    """Predict the tokens per second of measured rows, and compare with the measured values.

    A prediction reads what a row says about model, machine, engine and setting, never its value.
    Errors are in per cent of the measured value. Rows without a value are predicted too.
    """
    from moesim.cli.output import echo_json
    from moesim.cli.progress import progress

    with progress() as show:
        from moesim.measured.answers import answer_fitted, answer_rows, as_plain, summarised
        from moesim.measured.fit import Fitted
        from moesim.measured.rows import read_measured
        from moesim.measured.simulated import Simulated

        read = read_measured(rows)
        model = Simulated()
        fits: list[Fitted] = []
        if fit == "two":
            answered, fits = answer_fitted(read, model, progress=show)
        else:
            answered = answer_rows(read, model.predict, progress=show)
    if out is not None:
        from moesim.measured.scatter import draw_scatter
        from moesim.measured.tables import write_rows

        write_rows(answered, out)
        draw_scatter(answered, out / "plots")
    if as_json:
        written = {} if out is None else {"out": str(out)}
        echo_json({**written, **as_plain(answered, fits)})
        return
    from moesim.measured.tables import note_table, row_tables, summary_tables
    from moesim.report.tabular import write_tables

    write_tables(row_tables(answered, None if out is not None else _MOST_ROWS))
    typer.echo()
    write_tables([*note_table(answered), *summary_tables(summarised(answered), fits)])
    if out is not None:
        typer.echo(f"\n{out}")
