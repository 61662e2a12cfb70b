"""The gate of `moesim report`: a run beside a baseline, and thresholds that fail a build."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from moesim.cli.drawing import this_command
from moesim.cli.output import echo_json
from moesim.errors import ThresholdError, UsageError

if TYPE_CHECKING:
    from moesim.report.gate import Judgement

__all__ = ["gate"]


def gate(
    paths: Sequence[Path],
    baselines: Sequence[Path],
    fail_if: Sequence[str],
    *,
    as_json: bool,
    as_markdown: bool,
) -> None:
    """Print the judgement of runs against baselines.

    Raises:
        UsageError: the runs cannot be compared, or a threshold is wrong.
        ThresholdError: a threshold is exceeded; everything is printed before.
    """
    from moesim.report import load_runs
    from moesim.report.gate import judge, parse_threshold, text

    if as_json and as_markdown:
        raise UsageError("--json and --markdown are two forms of one output; choose one")
    if as_markdown and not (baselines or fail_if):
        raise UsageError("--markdown prints a judgement; name a --baseline RUN or a --fail-if")
    thresholds = [parse_threshold(each) for each in fail_if]
    runs = load_runs(paths)
    judgement = judge(runs, load_runs(baselines) if baselines else [], thresholds)
    if as_json:
        echo_json(text.as_json(judgement))
    elif as_markdown:
        typer.echo(text.as_markdown(judgement, this_command()))
    else:
        _print(judgement)
    if judgement.exceeded:
        raise ThresholdError(text.failure(judgement))


def _print(judgement: Judgement) -> None:
    from moesim.report.gate import text
    from moesim.report.tabular import write_tables

    write_tables(text.tables(judgement))
    typer.echo()
    for sentence in text.sentences(judgement):
        typer.echo(f"- {sentence}")
    typer.echo(f"\n{text.verdict(judgement)}")
