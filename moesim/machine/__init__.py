"""Machines run a server. `sim` folds virtual time, `events` runs one SimPy event per chunk,
`threads` sleeps in real time, and `real` computes with torch."""

from moesim.machine.base import Machine, Ticket

__all__ = ["Machine", "Ticket"]
