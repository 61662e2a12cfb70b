"""The time model of `moesim measured`: what prices a row."""

from __future__ import annotations

from collections.abc import Sequence

from moesim.measured.fit import Fitted, TimeModel
from moesim.measured.predict import Answer, Declined, Reading

__all__ = ["known_times"]


class _NoTimes:
    """A model that declines each row by its engine."""

    def predict(self, reading: Reading) -> Answer:
        return Declined(f"no times are known for engine {reading.engine.name!r}")

    def assumed(self, reading: Reading) -> tuple[float, float]:
        raise NotImplementedError

    def seconds(self, reading: Reading, read_bandwidth: float, layer_ns: float) -> float:
        raise NotImplementedError

    def with_fitted(self, fits: Sequence[Fitted]) -> TimeModel:
        return self


def known_times() -> TimeModel:
    """Return the model that prices rows with what moesim knows of models, machines and engines."""
    return _NoTimes()
