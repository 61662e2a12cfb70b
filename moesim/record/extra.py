"""The torch extra: recording and training need torch and transformers, simulating does not."""

from __future__ import annotations

import os
from importlib.util import find_spec

from moesim.errors import MissingExtra

_PACKAGES = ("torch", "transformers", "safetensors", "tokenizers")


def require_torch(purpose: str) -> None:
    """Raise `MissingExtra` that says what to install, if `purpose` cannot run here."""
    if any(find_spec(package) is None for package in _PACKAGES):
        raise MissingExtra("torch", purpose)


def prepare_torch(purpose: str) -> None:
    """Check that torch can be imported, and set its threads to sleep while they wait.

    OpenMP's threads spin by default. On an idle machine that is fast. With a single other busy
    process it makes small operations up to twenty times slower. Call this before importing torch.
    """
    require_torch(purpose)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
