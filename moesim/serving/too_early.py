"""The error for a work that started before what it waits for was done."""

from __future__ import annotations

from moesim.errors import InvariantError
from moesim.hardware.ops import Copy, Experts, States
from moesim.hardware.topology import D2H, DISK, GPU, H2D
from moesim.machine.work import Work

__all__ = ["too_early"]


def too_early(work: Work, other: Work) -> InvariantError:
    """Return the error for `work`, which started before `other` was done."""
    op, at = work.op, f"at {work.start_ns} ns"
    if isinstance(op, Copy):
        return _copied_too_early(op, work.lane, other, at)
    if not isinstance(op, Experts):
        return InvariantError(4, f"{op} starts {at}, before its inputs were there")
    where = "" if work.lane == GPU else f" on lane {work.lane}"
    return InvariantError(4, f"an expert is computed{where} {at}, {_missing(other)}")


def _copied_too_early(op: Copy, lane: str, other: Work, at: str) -> InvariantError:
    if other.lane == DISK:
        return InvariantError(4, f"key {op.key} is copied {at}, before it was read from disk")
    if lane == D2H:
        return InvariantError(5, f"key {op.key} is written back {at}, while its slot is in use")
    return InvariantError(5, f"the copy of key {op.key} overwrites what is in use {at}")


def _missing(other: Work) -> str:
    """Return what an expert lacks as long as `other` is not done."""
    if other.lane == DISK:
        return "before it was read from disk"
    if other.lane == H2D and not isinstance(other.op, States):
        return "before it landed"
    return "before its inputs were there"
