"""The points of a command: simulate them, show progress, and say which failed and why."""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Final

import typer

from moesim.cli.progress import progress
from moesim.errors import MoesimError, UsageError
from moesim.files import clean_up, output_errors

if TYPE_CHECKING:
    from moesim.sweep import Point

__all__ = ["check_writable", "described", "echo_failures", "exit_code", "run_into"]

_MOST_FAILURES: Final = 20  # a sweep has hundreds of points, and they often fail for one reason


def check_writable(folder: Path) -> None:
    """Raise `OutputError` if no file can be written in `folder`, which is created if missing."""
    # Permission bits do not tell: the disk may be full or mounted read-only.
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass


def run_points(
    points: Sequence[Point], total: int, workers: int, *, force: bool
) -> list[tuple[Point, Exception]]:
    """Simulate points; return those that failed, in order, with their errors.

    `total` also counts the points that were finished before.
    """
    from moesim.sweep import LocalProcesses, simulate_points

    failures: dict[int, Exception] = {}
    done = total - len(points)
    try:
        with (
            # Closing ends the workers at once, also after an interrupt.
            closing(simulate_points(points, LocalProcesses(workers), force=force)) as results,
            progress() as show,
        ):
            if show is not None:
                show("points", done, total)
            for result in results:
                if result.error is None:
                    done += 1
                else:
                    failures[result.index] = result.error
                if show is not None:
                    show("points", done + len(failures), total)
    except KeyboardInterrupt:
        typer.echo(
            f"{done} of {total} points are done and kept; the same command continues from there",
            err=True,
        )
        raise
    return [(points[index], error) for index, error in sorted(failures.items())]


def run_into(
    folder: Path, points: Sequence[Point], total: int, workers: int | None, *, force: bool
) -> list[tuple[Point, Exception]]:
    """Simulate points whose runs lie in a locked folder, as `run_points`; remove partial runs.

    `workers` None is one for each processor.
    """
    clean_up(folder)
    try:
        return run_points(points, total, workers or os.cpu_count() or 1, force=force)
    finally:
        clean_up(folder)  # a worker that was killed could not do this itself


def echo_failures(failures: Sequence[tuple[Point, Exception]], total: int) -> None:
    """Print the points that failed and why, on stderr."""
    typer.echo(f"{len(failures)} of {total} points failed:", err=True)
    labels: dict[str, list[str]] = {}
    for point, error in failures[:_MOST_FAILURES]:
        labels.setdefault(described(error), []).append(point.label)
    # Points may fail for the same reason of many lines, which is then printed once.
    for reason, (first, *others) in labels.items():
        typer.echo(f"  {first}: {reason}", err=True)
        for label in others:
            typer.echo(f"  {label}: the same", err=True)
    if len(failures) > _MOST_FAILURES:
        typer.echo(f"  and {len(failures) - _MOST_FAILURES} more", err=True)
    # Only moesim's own mistakes need a traceback, and the first is enough for a report.
    unforeseen = [error for _, error in failures if not isinstance(error, MoesimError)]
    if unforeseen:
        typer.echo("\nthis error is a mistake in moesim; please report it:", err=True)
        typer.echo("".join(traceback.format_exception(unforeseen[0])), err=True)


def described(error: Exception) -> str:
    """Return the message of an error; only a foreseen one says enough without its type."""
    return str(error) if isinstance(error, MoesimError) else f"{type(error).__name__}: {error}"


def exit_code(failures: Sequence[tuple[Point, Exception]], *, wrote: bool) -> int:
    """Return 2 if only the scenario is wrong and nothing was written, else 1."""
    usage = all(isinstance(error, UsageError) for _, error in failures)
    return 2 if usage and not wrote else 1
