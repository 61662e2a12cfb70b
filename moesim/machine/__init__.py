"""Machines run a server. `sim` folds virtual time, `events` runs one SimPy event per chunk, and
`threads` sleeps in real time. The real machine, which computes, is `moesim.executor`."""

from moesim.machine.protocol import Machine
from moesim.machine.work import Work

__all__ = ["Machine", "Work"]
