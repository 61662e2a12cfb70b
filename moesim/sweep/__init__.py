"""A sweep: many scenarios that differ in chosen values, and the processes that simulate them."""

from moesim.sweep.backend import Backend, Cluster, TaskResult
from moesim.sweep.compare import comparison_of
from moesim.sweep.local import LocalProcesses
from moesim.sweep.points import (
    Point,
    check_points,
    points_of,
    simulate_all,
    simulate_points,
    unfinished,
)

__all__ = [
    "Backend",
    "Cluster",
    "LocalProcesses",
    "Point",
    "TaskResult",
    "check_points",
    "comparison_of",
    "points_of",
    "simulate_all",
    "simulate_points",
    "unfinished",
]
