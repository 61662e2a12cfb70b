"""One finding of the doctor: what was looked at, how it is, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, get_args

__all__ = ["STATES", "Check", "State", "worst"]

State = Literal["ok", "absent", "warning", "broken"]
STATES: Final[tuple[State, ...]] = get_args(State)


@dataclass(frozen=True, slots=True)
class Check:
    """A finding.

    `state`: ok; absent, where something optional is not installed; warning, where moesim works with
    a limit; broken, where something that must work does not. `remedy` is what to try, or "".
    """

    name: str
    state: State
    found: str
    remedy: str = ""


def worst(checks: Iterable[Check]) -> State:
    """Return the worst state of the checks: ok, warning or broken. What is absent is no fault."""
    states = (check.state for check in checks if check.state != "absent")
    return max(states, key=STATES.index, default="ok")
