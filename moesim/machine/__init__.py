"""Machines run a server. `sim` folds virtual time, `events` runs one SimPy event per chunk,
`threads` sleeps in real time, and `real` computes with torch."""

from moesim.machine.protocol import Machine
from moesim.machine.work import Work

__all__ = ["Machine", "Work"]
