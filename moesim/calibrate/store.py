"""Samples on disk: kept between the slices of a long calibration."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from moesim.calibrate.samples import ExpertWork, Layer, Readback, Samples, TailWork
from moesim.errors import OutputError
from moesim.files import whole_file
from moesim.hardware.ops import BatchShape

__all__ = ["load_samples", "save_samples"]

_READ: Final[dict[str, Callable[[Sequence[Any]], Any]]] = {
    "experts": lambda row: ExpertWork(tuple(row[0]), *row[1:]),
    "fronts": lambda row: Layer(row[0], BatchShape(*row[1]), *row[2:]),
    "dense": lambda row: Layer(row[0], BatchShape(*row[1]), *row[2:]),
    "readbacks": lambda row: Readback(*row),
    "tails": lambda row: TailWork(BatchShape(*row[0]), *row[1:]),
    "copies": lambda row: row,
}
_STEPS: Final = "steps"


def save_samples(path: Path, samples: Samples) -> None:
    """Write samples as JSON: the whole file or nothing. Raise `OutputError` on failure."""
    text = json.dumps({name: getattr(samples, name) for name in (*_READ, _STEPS)})
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def load_samples(path: Path) -> Samples:
    """Read what `save_samples` wrote. Raise `OutputError` for any other file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Samples(
            **{name: [(read(w), ns) for w, ns in data[name]] for name, read in _READ.items()},
            steps=[tuple(counts) for counts in data[_STEPS]],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(path, f"holds no samples: {error}") from None
