"""The time model of `moesim measured`: what prices a row."""

from __future__ import annotations

from moesim.measured.fit import TimeModel
from moesim.measured.simulated import Simulated

__all__ = ["known_times"]


def known_times() -> TimeModel:
    """Return the model that prices rows with what moesim knows of models, machines and engines."""
    return Simulated()
