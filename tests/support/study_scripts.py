"""The scripts of `studies/` and `benchmarks/`, for tests of what they compute."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
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


def module_at(file: Path) -> Any:
    """Return a file as a module, whatever its name and folder are called."""
    spec = importlib.util.spec_from_file_location(file.stem.strip("_"), file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
