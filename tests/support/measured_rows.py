"""Rows of measured throughput, and a model that prices them, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from moesim.measured.fit import Fitted, engine_of, machine_of
from moesim.measured.predict import Answer, Declined, Prediction, Reading, read
from moesim.measured.rows import Row

NUM_LAYERS = 40
FIXED_S = 1e-3
NBYTES = 4e8


def row(**fields: Any) -> Row:
    """Return a row that can be predicted, with some fields changed."""
    whole = Row(
        model="M", quant="Q4_K_M", engine="llama.cpp", gpu="RTX 3090", cpu="i7", setting="ncmoe=20",
        metric="decode_tok_s", depth=0,
    )  # fmt: skip
    return replace(whole, **fields)


def reading(**fields: Any) -> Reading:
    """Return what such a row says."""
    return read(row(**fields))


def layers_on_cpu(given: Reading) -> int:
    """Return the layers whose experts are on the CPU; `ncmoe` is the only form."""
    return sum(rule.layers.count for rule in given.setting.rules)


@dataclass
class Affine:
    """A model whose time is affine in 1 / bandwidth and in the host time of a layer.

    `calls` records all readings that it gets.
    """

    bandwidth: float = 50e9
    layer_ns: float = 60e3
    fits: Sequence[Fitted] = ()
    calls: list[Reading] = field(default_factory=list)

    def predict(self, given: Reading) -> Answer:
        self.calls.append(given)
        if given.row.model == "unknown":
            return Declined("model: not known")
        numbers = self.assumed(given)
        for fit in self.fits:
            if (fit.machine, fit.engine) == (machine_of(given), engine_of(given)):
                numbers = fit.read_bandwidth, fit.layer_ns
        value = 1 / self.seconds(given, *numbers)
        return Prediction(value, value / 1.3, value * 1.3, ("a note",))

    def assumed(self, given: Reading) -> tuple[float, float]:
        return self.bandwidth, self.layer_ns

    def seconds(self, given: Reading, read_bandwidth: float, layer_ns: float) -> float:
        layers = layers_on_cpu(given)
        return FIXED_S + layers * (NBYTES / NUM_LAYERS / read_bandwidth + layer_ns * 1e-9)

    def with_fitted(self, fits: Sequence[Fitted]) -> Affine:
        return replace(self, fits=fits)
