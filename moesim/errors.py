"""Everything that moesim raises on purpose.

    MoesimError                exit code 1
     ├─ UsageError             2   what was asked for makes no sense
     │   ├─ ScenarioError          every mistake of a scenario, each with file:line:column
     │   ├─ BudgetError            the memory asked for cannot exist, with the numbers
     │   └─ MissingExtra           an optional dependency is not installed
     ├─ TraceError             1   a trace is broken: which file, where, why
     ├─ PolicyViolation        1   a policy answered nonsense: which policy, key, why
     ├─ InvariantError         1   the simulator broke one of its own rules
     ├─ DeviceError            1   a device failed at its work: which device, at what, why
     ├─ OutputError            1   a result cannot be written: which path, why
     └─ ThresholdError         3   a stated threshold was not met

A message says what is wrong, where, by which rule, and what to try. Every error can be
pickled, so that it crosses the border of a worker process whole.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from moesim.scenario import Scenario

__all__ = [
    "BudgetError",
    "DeviceError",
    "InvariantError",
    "MissingExtra",
    "MoesimError",
    "OutputError",
    "PolicyViolation",
    "ScenarioError",
    "ThresholdError",
    "TraceError",
    "UsageError",
]


class MoesimError(Exception):
    """The root: `except MoesimError` catches every failure that moesim foresees."""

    exit_code: ClassVar[int] = 1


class UsageError(MoesimError):
    """What the user asked for makes no sense; nothing was run."""

    exit_code: ClassVar[int] = 2


class ScenarioError(UsageError):
    """All mistakes of one scenario: `problems` holds one `file:line:column: message` each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems: list[str] = list(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(self.problems)

    @classmethod
    def at(cls, scenario: Scenario, key: str, message: str) -> ScenarioError:
        """The error of one dotted `key` of a loaded scenario, pointing at its line."""
        return cls([f"{scenario.mark(key)}: {key}: {message}"])


class BudgetError(UsageError):
    """The memory asked for cannot be had; the message carries the numbers."""


class MissingExtra(UsageError):
    """`purpose` needs the optional dependencies `extra`, which are not installed."""

    def __init__(self, extra: str, purpose: str) -> None:
        self.extra = extra
        self.purpose = purpose
        super().__init__(extra, purpose)

    def __str__(self) -> str:
        return (
            f"{self.purpose} needs packages that are not installed; "
            f"from a clone of moesim, install them with: "
            f"pip install -c constraints.txt '.[{self.extra}]'"
        )


class TraceError(MoesimError):
    """A trace cannot be trusted: `file` is wrong at `where` (an offset, a row, a key)."""

    def __init__(self, file: str | os.PathLike[str], where: str, reason: str) -> None:
        self.file = os.fspath(file)
        self.where = where
        self.reason = reason
        super().__init__(self.file, where, reason)

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.where, self.reason) if part)


class PolicyViolation(MoesimError):
    """`policy` gave an answer that its contract forbids, about `key`."""

    def __init__(self, policy: str, key: object, reason: str) -> None:
        self.policy = policy
        self.key = key
        self.reason = reason
        super().__init__(policy, key, reason)

    def __str__(self) -> str:
        return f"policy {self.policy!r} broke its contract at {self.key!r}: {self.reason}"


class InvariantError(MoesimError):
    """Rule `number` of docs/invariants.md does not hold: a mistake of ours, not of the user."""

    def __init__(self, number: int, message: str) -> None:
        self.number = number
        self.message = message
        super().__init__(number, message)

    def __str__(self) -> str:
        return f"invariant {self.number} is broken: {self.message}"


class DeviceError(MoesimError):
    """The real machine's `device` failed at `what`."""

    def __init__(self, device: str, what: str, error: object) -> None:
        self.device = device
        self.what = what
        self.reason = str(error) or repr(error)
        super().__init__(device, what, self.reason)

    def __str__(self) -> str:
        return f"device {self.device!r} failed at {self.what}: {self.reason}"


class OutputError(MoesimError):
    """A result cannot be written to `path`."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        self.path = os.fspath(path)
        self.reason = reason
        super().__init__(self.path, reason)

    def __str__(self) -> str:
        return f"cannot write {self.path}: {self.reason}"


class ThresholdError(MoesimError):
    """Something ran, and a stated threshold was not met."""

    exit_code: ClassVar[int] = 3
