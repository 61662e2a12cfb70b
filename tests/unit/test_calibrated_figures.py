"""Calibration writes the figures that it measured, and no others."""

from __future__ import annotations

from typing import Any

from measured_profiles import random_times, tiny_shape

from moesim.calibrate.calibrate import _figures
from moesim.calibrate.design import Subject
from moesim.hardware import Link, hardware_from
from moesim.hardware.measurement import OperationTimes


def calibrated(*, on_cpu: bool) -> dict[str, Any]:
    shape = tiny_shape()
    times = OperationTimes.model_validate(random_times(0, shape))
    link = Link(5, 10**9, 10**9)
    return _figures(
        times,
        Subject(shape),
        {"h2d": link, "d2h": link},
        flops=10**12,
        moved=10**11,
        memory=10**10,
        on_cpu=on_cpu,
    )


def test_rates_of_a_gpu_are_not_those_of_its_host() -> None:
    figures = calibrated(on_cpu=False)
    assert figures.keys().isdisjoint({"host_memory_bandwidth", "cpu_flops"})
    hardware = hardware_from({"name": "a GPU", **figures})
    assert hardware.host_memory_bytes_per_s is hardware.cpu_flops_per_s is None
    assert hardware.cost_kind == "measured"


def test_rates_of_the_cpu_are_those_of_the_host_too() -> None:
    hardware = hardware_from({"name": "a CPU", **calibrated(on_cpu=True)})
    assert hardware.host_memory_bytes_per_s == hardware.memory_bytes_per_s == 10**11
    assert hardware.cpu_flops_per_s == hardware.flops_per_s == 10**12
