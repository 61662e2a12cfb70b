"""The torch extra: recording and training need torch and transformers, simulating does not."""

from __future__ import annotations

from importlib.util import find_spec

from moesim.errors import MissingExtra

_PACKAGES = ("torch", "transformers", "safetensors", "tokenizers")


def require_torch(purpose: str) -> None:
    """Raise `MissingExtra` saying what to install, if `purpose` cannot run here."""
    if any(find_spec(package) is None for package in _PACKAGES):
        raise MissingExtra("torch", purpose)
