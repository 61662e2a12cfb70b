"""Blame: which code an error comes from. An error of another package's policy is a violation.

Such an error becomes a `PolicyViolation`, which names the policy, its method and the line. An
error in a policy of moesim is a mistake of moesim, so it keeps its type and traceback.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath

from moesim.errors import MoesimError, PolicyViolation

_PACKAGE = __name__.partition(".")[0]
_LONGEST = 300  # characters of an error message that are repeated

PASSED_ON = (MoesimError, MemoryError)
"""Errors that are raised unchanged: moesim's own, and a lack of memory, which no policy causes."""

CAUGHT = (Exception, SystemExit)
"""Errors that become violations. `SystemExit` would end a run with no message of moesim."""


class WrongType(Exception):
    """A return value of the wrong type; the message names the value and the right type."""


def is_foreign(policy: object) -> bool:
    """Return whether a policy class comes from outside moesim."""
    return getattr(policy, "__module__", "").partition(".")[0] != _PACKAGE


def violation(name: str, method: str, error: BaseException) -> PolicyViolation:
    """Return the violation of policy `name`, in whose `method` the `error` was raised."""
    return PolicyViolation(name, method, one_line(error))


@contextmanager
def blamed(policy: type, method: str) -> Iterator[None]:
    """Turn errors of the block into violations of `policy`, if it comes from outside moesim."""
    try:
        yield
    except PASSED_ON:
        raise
    except CAUGHT as error:
        if not is_foreign(policy):
            raise
        name = getattr(policy, "name", policy.__name__)  # an unregistered class has no name
        raise violation(str(name), method, error) from error


def one_line(error: BaseException) -> str:
    """Return what was raised and in which line; of a `WrongType`, its message alone."""
    text = " ".join(str(error).split())
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]} ..."
    if isinstance(error, WrongType):
        return text
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({PurePath(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"raises {type(error).__name__}{f': {text}' if text else ''}{where}"
