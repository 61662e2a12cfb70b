"""What pydantic found wrong, in the words of the check that found it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["reason_of"]


def reason_of(error: Mapping[str, Any]) -> str:
    """Return the message of one pydantic error; of an error of ours without pydantic's prefix."""
    raised = error.get("ctx", {}).get("error")
    if error["type"] in ("value_error", "assertion_error") and raised is not None:
        return str(raised)
    return str(error["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
