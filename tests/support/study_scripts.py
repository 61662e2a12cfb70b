"""The scripts of `studies/`, for tests of what they compute."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from paths import ROOT

STUDIES = ROOT / "studies"


def study(folder: str, name: str) -> Any:
    """A script of a folder as a module, imported as when it is run there."""
    place = str(STUDIES / folder)
    sys.path.insert(0, place)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(place)
