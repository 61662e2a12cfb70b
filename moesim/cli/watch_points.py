"""What `moesim compare --watch` says: each point as it ends, and whether it is the best so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from moesim.cli.progress import say
from moesim.inputs import read_json

if TYPE_CHECKING:
    from moesim.sweep import Point

__all__ = ["ended_line", "telling"]

_METRIC: Final = "output_tokens_per_s"


def telling(
    points: Sequence[Point], kept: Sequence[Point], saved: Callable[[Path], None]
) -> Callable[[Path], None]:
    """Return `saved` for the folder of a run that ended, which also prints a line on stderr.

    `kept` points were finished before: they count for the best, and get no line.
    """
    labels = {point.folder: point.label for point in points}
    best = max(filter(None, (_speed(point.folder) for point in kept)), default=None)

    def tell(folder: Path) -> None:
        nonlocal best
        speed = _speed(folder)
        say(ended_line(labels[folder], speed, best), err=True)
        best = speed if best is None else max(best, speed or best)
        saved(folder)

    return tell


def ended_line(label: str, speed: float | None, best: float | None) -> str:
    """Return the line of a point that ended. `best` is the best speed before; None without any."""
    if speed is None:
        return f"{label}: no output tokens"
    told = f"{label}: {speed:.4g} output tokens/s"
    if best is None or speed > best:
        return f"{told}, the best so far"
    return f"{told}; the best so far has {best:.4g}"


def _speed(folder: Path) -> float | None:
    """Return the output tokens per second of a finished run; None if it has none."""
    found = read_json(folder / "summary.json")[_METRIC]
    return None if found is None else float(found)
