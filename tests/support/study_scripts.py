"""The scripts of `studies/` and `benchmarks/`, for tests of what they compute."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from paths import ROOT


def study(folder: str, name: str) -> Any:
    """Return a study of a folder as a module."""
    return script(f"studies/{folder}", name)


def script(folder: str, name: str) -> Any:
    """Return a script of a folder of the project as a module, imported as if it were run there."""
    directory = str(ROOT / folder)
    sys.path.insert(0, directory)  # scripts import the modules beside them
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(directory)
