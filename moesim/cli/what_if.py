"""`moesim report --what-if`: one run simulated again with changes, printed or for its page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from moesim.cli.output import echo_json
from moesim.cli.progress import progress
from moesim.errors import UsageError

if TYPE_CHECKING:
    from moesim.report import Run
    from moesim.results.what_if import WhatIfs

__all__ = ["print_what_ifs", "what_ifs_of"]


def what_ifs_of(runs: Sequence[Run]) -> WhatIfs:
    """Simulate the what-ifs of one run, with progress. Raise UsageError for several runs."""
    from moesim.simulate.what_if import what_ifs

    if len(runs) != 1:
        raise UsageError(f"--what-if is about one run, and {len(runs)} are named")
    with progress() as show:
        return what_ifs(runs[0], show)


def print_what_ifs(runs: Sequence[Run], *, as_json: bool) -> None:
    """Simulate the what-ifs of one run, and print them.

    Raises:
        UsageError: there are several runs, or the run cannot be simulated again.
    """
    from moesim.report import what_ifs as text
    from moesim.report.marks import routing_sentence
    from moesim.report.metrics import run_caption
    from moesim.report.tabular import write_tables

    found, run = what_ifs_of(runs), runs[0]
    if found.refused:
        raise UsageError(f"{run.path}: {found.refused}")
    if as_json:
        echo_json({"run": str(run.path), "mark": routing_sentence(run), **text.as_json(found)})
        return
    typer.echo(f"{run_caption(run)}\n")
    write_tables([text.what_if_table(run, found)])
    typer.echo()
    for sentence in text.sentences(found):
        typer.echo(f"- {sentence}")
