"""A scenario: the YAML file that describes one run, or with `sweep:` a grid of runs."""

from moesim.scenario.arrivals import (
    AllAtOnce,
    Closed,
    Columns,
    FromFile,
    Gamma,
    Poisson,
    Recorded,
    Think,
)
from moesim.scenario.loader import load_scenario
from moesim.scenario.memory_share import MemoryShare
from moesim.scenario.scenario import Scenario
from moesim.scenario.schema import json_schema
from moesim.scenario.sections import (
    Batching,
    Cache,
    HardwareChoice,
    Lengths,
    Memory,
    ModelChoice,
    Pairing,
    Placement,
    Prefetch,
    Timeline,
    Workload,
)
from moesim.scenario.sweep import expand_sweep

__all__ = [
    "AllAtOnce",
    "Batching",
    "Cache",
    "Closed",
    "Columns",
    "FromFile",
    "Gamma",
    "HardwareChoice",
    "Lengths",
    "Memory",
    "MemoryShare",
    "ModelChoice",
    "Pairing",
    "Placement",
    "Poisson",
    "Prefetch",
    "Recorded",
    "Scenario",
    "Think",
    "Timeline",
    "Workload",
    "expand_sweep",
    "json_schema",
    "load_scenario",
]
