"""The times of a machine that may read weights faster than its named parts do.

Times are those of `moesim.measured.simulated`. There, the CPU reads weights at most at the peak of
its memory, and at most as fast as its cores multiply. A log may show faster reads, where the parts
were assumed or named wrongly: then memory and cores are taken to be that much faster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moesim.hardware.hardware import Hardware
from moesim.measured.cached import ExpertCache
from moesim.measured.fit import Fitted
from moesim.measured.predict import Answer, Reading
from moesim.measured.simulated import NamedModel, Simulated

__all__ = ["OpenMachine", "memory_figures", "reading_figures"]


def memory_figures(hardware: Hardware, factor: float) -> dict[str, Any]:
    """Return the figures of a machine whose memory of weights is faster by a factor.

    That is host memory, or the only memory of a unified one.
    """
    return _scaled(_memory_rates(hardware), factor)


def reading_figures(hardware: Hardware, factor: float) -> dict[str, Any]:
    """Return the figures of a machine that reads weights faster by a factor, with its cores."""
    cores: dict[str, float | None] = {
        "cpu_flops": hardware.cpu_flops_per_s,
        "cpu_int8_ops": hardware.cpu_int8_ops_per_s or None,
    }
    return _scaled({**_memory_rates(hardware), **cores}, factor)


def _scaled(rates: Mapping[str, float | None], factor: float) -> dict[str, Any]:
    return {key: round(factor * rate) for key, rate in rates.items() if rate is not None}


def _memory_rates(hardware: Hardware) -> dict[str, float | None]:
    rates: dict[str, float | None] = {
        "host_memory_bandwidth": hardware.host_memory_bytes_per_s,
        "cpu_memory_bandwidth": hardware.cpu_memory_bytes_per_s,
        "core_memory_bandwidth": hardware.core_memory_bytes_per_s,
    }
    if hardware.unified or hardware.host_memory_bytes_per_s is None:
        rates["memory_bandwidth"] = hardware.memory_bytes_per_s
    return rates


class OpenMachine:
    """A `TimeModel` without the peaks of the named parts. Arguments are those of `Simulated`."""

    def __init__(
        self,
        models: Mapping[str, NamedModel] | None = None,
        overrides: Mapping[str, Any] | None = None,
        cache: ExpertCache | None = None,
    ) -> None:
        self._models, self._overrides, self._cache = models or {}, overrides or {}, cache
        self._plain = Simulated(models=self._models, overrides=self._overrides, cache=cache)

    def predict(self, reading: Reading) -> Answer:
        """Return the simulated tokens per second without a fit, or why there are none."""
        return self._plain.predict(reading)

    def hardware(self, reading: Reading) -> Hardware:
        """Return the machine of a row."""
        return self._plain.case_of(reading).machine.hardware

    def assumed(self, reading: Reading) -> tuple[float, float]:
        """Return the read bandwidth (bytes per second) and the host time of a layer (ns)."""
        return self._plain.assumed(reading)

    def seconds(self, reading: Reading, read_bandwidth: float, layer_ns: float) -> float:
        """Return the seconds of a token at another bandwidth of reads and time of a layer."""
        model = self.at(reading, read_bandwidth)
        return model.seconds(reading, read_bandwidth, layer_ns)

    def at(self, reading: Reading, read_bandwidth: float) -> Simulated:
        """Return the model whose machine reads at a bandwidth."""
        factor = read_bandwidth / self.assumed(reading)[0]
        if factor <= 1:
            return self._plain
        figures = reading_figures(self.hardware(reading), factor)
        overrides = {**self._overrides, **figures}
        return Simulated(models=self._models, overrides=overrides, cache=self._cache)

    def with_fitted(self, fits: Sequence[Fitted]) -> Simulated:
        """Return the model that predicts the fitted machines with their fitted numbers."""
        return self._plain.with_fitted(fits)
