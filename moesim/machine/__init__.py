"""Machines: what runs a server. `sim` folds virtual time, `events` spells it out, `threads`
sleeps in real time."""

from moesim.machine.base import Machine, Ticket

__all__ = ["Machine", "Ticket"]
