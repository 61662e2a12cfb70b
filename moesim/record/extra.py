"""The torch extra: recording and training need torch and transformers, simulating does not."""

from __future__ import annotations

import os
from importlib.util import find_spec

from moesim.errors import MissingExtra

_PACKAGES = ("torch", "transformers", "safetensors", "tokenizers")


def require_torch(purpose: str) -> None:
    """Raise `MissingExtra` saying what to install, if `purpose` cannot run here."""
    if any(find_spec(package) is None for package in _PACKAGES):
        raise MissingExtra("torch", purpose)


def prepare_torch(purpose: str) -> None:
    """For a command that is about to import torch: check that it can, and let its threads sleep.

    OpenMP's threads spin while they wait for each other, which is fine on an idle machine and makes
    small operations up to twenty times slower on one with a single other busy process.
    """
    require_torch(purpose)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
