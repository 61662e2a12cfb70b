"""The scripts of `benchmarks/`, for tests of what they compute."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def study(folder: str, name: str) -> Any:
    """A script of a folder as a module, imported as when it is run there."""
    place = str(BENCHMARKS / folder)
    sys.path.insert(0, place)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(place)
