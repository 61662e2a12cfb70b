"""Whose fault an error is: what a policy of somebody else's package raises is a `PolicyViolation`.

Policies of moesim itself are tested here, so an error in one of them is a mistake of moesim and
keeps its traceback.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath

from moesim.errors import MoesimError, PolicyViolation

_PACKAGE = __name__.partition(".")[0]
_LONGEST = 300

PASSED_ON = (MoesimError, MemoryError)
"""Errors that keep their kind: those that say already what is wrong, and a machine too small."""

CAUGHT = (Exception, SystemExit)
"""What a policy is blamed for. One that exits would end a run in silence, by its own exit code."""


class Nonsense(Exception):
    """An answer of the wrong type; the message says of what type."""


def is_foreign(policy: object) -> bool:
    """Whether a policy class comes from outside moesim."""
    return getattr(policy, "__module__", "").partition(".")[0] != _PACKAGE


def violation(name: str, question: str, error: BaseException) -> PolicyViolation:
    """The violation of policy `name`, which was asked `question` when `error` was raised."""
    return PolicyViolation(name, question, _one_line(error))


@contextmanager
def blamed(policy: type, question: str) -> Iterator[None]:
    """Make errors of the block violations of `policy`, if it comes from outside moesim."""
    try:
        yield
    except PASSED_ON:
        raise
    except CAUGHT as error:
        if not is_foreign(policy):
            raise
        name = getattr(policy, "name", policy.__name__)
        raise violation(str(name), question, error) from error


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]} ..."
    if isinstance(error, Nonsense):
        return text
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({PurePath(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"raises {type(error).__name__}{f': {text}' if text else ''}{where}"
