"""The exceptions that moesim raises on purpose.

    MoesimError                exit code 1
     ├─ UsageError             2   the input or the options are wrong
     │   ├─ ScenarioError          every mistake of a scenario, each with file:line:column
     │   ├─ WorkloadError          a file of requests is wrong: file, line, why
     │   ├─ BudgetError            the memory that is needed exceeds what there is
     │   └─ MissingExtra           an optional dependency is not installed
     ├─ TraceError             1   a trace is broken: which file, where, why
     │   ├─ MissingTrace       2   what was named is no trace
     │   └─ SourceError        2   a file of another program is not readable as routing
     ├─ DamagedRun             1   a run directory is not as it was written: which file, why
     ├─ PolicyViolation        1   a policy returned what its contract forbids: which policy, key
     ├─ InvariantError         1   a rule of docs/invariants.md does not hold
     ├─ DeviceError            1   a device of the real machine failed: which device, at what, why
     ├─ OutputError            1   a result cannot be written: which path, why
     └─ ThresholdError         3   a stated threshold was not met

A message says what is wrong, where, by which rule, and what to try. Every error can be
pickled, because a sweep's worker processes send their errors to the parent.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Final

if TYPE_CHECKING:
    from moesim.scenario import Scenario

__all__ = [
    "BudgetError",
    "DamagedRun",
    "DeviceError",
    "InvariantError",
    "MissingExtra",
    "MissingTrace",
    "MoesimError",
    "OutputError",
    "PolicyViolation",
    "ScenarioError",
    "SourceError",
    "ThresholdError",
    "TraceError",
    "UsageError",
    "WorkloadError",
]


def described(error: Exception) -> str:
    """Return the message of an error; only a foreseen one says enough without its type."""
    return str(error) if isinstance(error, MoesimError) else f"{type(error).__name__}: {error}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if there is no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def shown(value: object, most: int = 60) -> str:
    """Return a value for a message, cut at `most` characters.

    Some values have no text: an integer of thousands of digits, or a list nested too deeply.
    """
    try:
        text = repr(value)
    except Exception:  # the `__repr__` of a user's class may raise anything
        return f"a value of type {type(value).__name__}"
    line = " ".join(text.splitlines())
    return line if len(line) <= most else f"{line[: most - 3]}..."


_MOST_SHOWN: Final = 100  # mistakes in the text of one error
_LONGEST: Final = 1000  # characters of one mistake
_DOUBLED: Final = re.compile(r"^(--set (\S+)): \2: ")  # a key that is its own place


def _line(message: str) -> str:
    """Return a message on one line of at most `_LONGEST` characters.

    File names and values inside it may hold line breaks or be very long.
    """
    line = " ".join(message.splitlines())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


class MoesimError(Exception):
    """Base class of all errors that moesim raises on purpose; its subclasses set `exit_code`."""

    exit_code: ClassVar[int] = 1


class UsageError(MoesimError):
    """The input or the options are wrong; nothing was run."""

    exit_code: ClassVar[int] = 2


class ScenarioError(UsageError):
    """All mistakes of one scenario: `problems` holds one `file:line:column: message` each.

    A message is cut where it repeats a value of thousands of characters, and the text of the error
    shows the first hundred mistakes.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems: list[str] = [_line(_DOUBLED.sub(r"\1: ", problem)) for problem in problems]
        # Pickle calls the class with `args`, so every error here passes its arguments to super.
        super().__init__(self.problems)

    def __str__(self) -> str:
        shown, more = self.problems[:_MOST_SHOWN], len(self.problems) - _MOST_SHOWN
        return "\n".join([*shown, *([f"and {more:,} more mistakes"] if more > 0 else ())])

    @classmethod
    def at(cls, scenario: Scenario, key: str, message: str) -> ScenarioError:
        """Return the error about one dotted `key` of a loaded scenario, with the key's line."""
        return cls([f"{scenario.mark(key)}: {key}: {message}"])


class WorkloadError(UsageError):
    """A file of requests cannot be read: `line` (from 1) of `file` is wrong for `reason`."""

    def __init__(self, file: str | os.PathLike[str], line: int, reason: str) -> None:
        self.file = os.fspath(file)
        self.line = line
        self.reason = _line(reason)
        super().__init__(self.file, self.line, self.reason)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


class BudgetError(UsageError):
    """The memory that is needed exceeds what there is; the message holds both numbers."""


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
    """A trace is broken: `file` is wrong at `where` (an offset, a row or a key)."""

    def __init__(self, file: str | os.PathLike[str], where: str, reason: str) -> None:
        self.file = os.fspath(file)
        self.where = _line(where)
        self.reason = _line(reason)
        super().__init__(self.file, self.where, self.reason)

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.where, self.reason) if part)


class MissingTrace(TraceError):
    """What was named as a trace is none: `file` is missing, or something else."""

    exit_code: ClassVar[int] = 2


class SourceError(TraceError):
    """A file of another program cannot be read as routing: `file` is wrong at `where`."""

    exit_code: ClassVar[int] = 2


class DamagedRun(MoesimError):
    """A finished run cannot be read: `file` is missing, or not as it was written."""

    def __init__(self, file: str | os.PathLike[str], reason: str) -> None:
        self.file = os.fspath(file)
        self.reason = _line(reason)
        super().__init__(self.file, self.reason)

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


class PolicyViolation(MoesimError):
    """`policy` returned a value that its contract forbids; `key` is the subject of the value.

    `when` says in which step and layer of a run; it is "" outside a run.
    """

    def __init__(self, policy: str, key: object, reason: str, when: str = "") -> None:
        self.policy = policy
        self.key = key
        self.reason = reason
        self.when = when
        super().__init__(policy, key, reason, when)

    def __str__(self) -> str:
        when = f" in {self.when}" if self.when else ""
        return f"policy {self.policy!r} broke its contract{when} at {self.key!r}: {self.reason}"


class InvariantError(MoesimError):
    """Rule `number` of docs/invariants.md does not hold: a fault of moesim, not of its input."""

    def __init__(self, number: int, message: str) -> None:
        self.number = number
        self.message = message
        super().__init__(number, message)

    def __str__(self) -> str:
        return f"invariant {self.number} is broken: {self.message}"


class DeviceError(MoesimError):
    """`device` of the real machine failed at the operation `what`."""

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
    """A command ran to its end, and its result misses a threshold that the user stated."""

    exit_code: ClassVar[int] = 3
