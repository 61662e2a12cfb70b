"""The points of a command: simulate them, show progress, and say which failed and why."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated, Final

import typer

from moesim.cli.debug import report_of
from moesim.cli.progress import sweep_progress
from moesim.errors import MoesimError, UsageError, described
from moesim.files import output_errors, without_leftovers

if TYPE_CHECKING:
    from moesim.sweep import Backend, Cluster, Point

__all__ = [
    "OnOption",
    "WorkersOption",
    "backend_of",
    "check_writable",
    "echo_failures",
    "echo_repeated",
    "exit_code",
    "run_into",
]

_MOST_FAILURES: Final = 20  # a sweep has hundreds of points, and they often fail for one reason

OnOption = Annotated[
    str,
    typer.Option(
        help="Where runs are simulated: local, ray, ray://auto or ray://HOST:PORT "
        "(docs/scaling.md)."
    ),
]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Worker processes (default: one per processor).")
]


def check_writable(folder: Path) -> None:
    """Raise `OutputError` if no file can be written in `folder`, which is created if missing."""
    # Permission bits do not tell: the disk may be full or mounted read-only.
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass


def run_points(
    points: Sequence[Point],
    total: int,
    backend: Backend | Cluster,
    *,
    force: bool,
    saved: Callable[[Path], None] | None = None,
) -> list[tuple[Point, Exception]]:
    """Simulate points; return those that failed, in order, with their errors.

    `total` also counts the points that were finished before. `saved` is called with the folder of
    each run that ends.
    """
    from moesim.sweep import simulate_all

    done, failed = total - len(points), 0
    try:
        with sweep_progress("points", total) as show:

            def ended(point: Point, error: Exception | None) -> None:
                nonlocal done, failed
                if error is not None:
                    failed += 1
                else:
                    done += 1
                    if saved is not None:
                        saved(point.folder)
                show(done + failed)

            show(done)
            failures = simulate_all(points, backend, force=force, ended=ended)
    except KeyboardInterrupt:
        typer.echo(
            f"{done} of {total} points are done and kept; the same command continues from there",
            err=True,
        )
        raise
    echo_repeated(backend)
    return failures


def echo_repeated(backend: Backend | Cluster) -> None:
    """Print on stderr how many runs began again on a cluster, if any."""
    if repeated := getattr(backend, "repeated", 0):
        typer.echo(f"runs that began again, as a worker or machine had died: {repeated}", err=True)


def backend_of(on: str, workers: int | None) -> AbstractContextManager[Backend | Cluster]:
    """Return the backend of an `--on`, as a context; `workers` None is one for each processor.

    Raises:
        UsageError: `on` is no address, or its packages are not installed.
    """
    from moesim.sweep import LocalProcesses
    from moesim.sweep.addresses import Address

    address = Address.of(on)
    if address.is_local:
        return nullcontext(LocalProcesses(workers or os.cpu_count() or 1))
    from moesim.sweep.ray_tasks import RayTasks, require_ray

    require_ray(address)
    return RayTasks(address, workers)


def run_into(
    folder: Path,
    points: Sequence[Point],
    total: int,
    backend: AbstractContextManager[Backend | Cluster],
    *,
    force: bool,
    saved: Callable[[Path], None] | None = None,
) -> list[tuple[Point, Exception]]:
    """Simulate points whose runs lie in a locked folder, as `run_points`; remove partial runs.

    No cluster is started or joined if there is nothing to simulate.
    """
    with without_leftovers(folder):
        if not points:
            return []
        with backend as place:
            return run_points(points, total, place, force=force, saved=saved)


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
        typer.echo(f"\nerror: {report_of(unforeseen[0])}", err=True)


def exit_code(failures: Sequence[tuple[Point, Exception]], *, wrote: bool) -> int:
    """Return 2 if only the scenario is wrong and nothing was written, else 1."""
    usage = all(isinstance(error, UsageError) for _, error in failures)
    return 2 if usage and not wrote else 1
