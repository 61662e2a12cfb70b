"""Markers of the keys `policy` and `options`, whose rules depend on the family of policies."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any, Final

from pydantic import GetCoreSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from moesim.config.markers import BASE_DIR, PathTo, file_under
from moesim.config.validation import SEVERAL
from moesim.errors import PolicyViolation, UsageError
from moesim.policies.guard import find_policy
from moesim.policies.references import is_reference, referred_file, with_file
from moesim.policies.registry import find, option_mistakes

__all__ = ["FAMILIES", "OptionsOf", "PolicyOf", "finite_throughout"]

FAMILIES: Final = {
    "batching": "batching",
    "cache": "eviction",
    "prefetch": "prefetch",
    "placement": "placement",
}
"""The policy family of each section that names a policy."""

_FILE: Final = PathTo("policy file", os.path.isfile, (".py",))


@dataclass(frozen=True, slots=True)
class PolicyOf:
    """The field is the name of a policy of `family`, or a reference like `file.py:Class`.

    The name is checked by `load_scenario` only. `Scenario.model_validate` loads no plug-ins. The
    path in a reference becomes absolute, so that the policy is found from everywhere.
    """

    family: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.with_info_after_validator_function(self._check, handler(source))

    def _check(self, name: str, info: ValidationInfo) -> str:
        if not info.context or BASE_DIR not in info.context:
            return name
        try:
            if not is_reference(name):
                find(self.family, name)
                return name
            name = _with_absolute_path(name, info)
            find_policy(self.family, name)
        except (UsageError, PolicyViolation) as error:
            raise ValueError(str(error)) from None
        return name


def _with_absolute_path(name: str, info: ValidationInfo) -> str:
    """Return a reference whose path, if any, is absolute. Raise where there is no such file."""
    file = referred_file(name)
    if file is None:
        return name
    _FILE.check(file, info)
    return with_file(name, os.path.abspath(file_under((info.context or {})[BASE_DIR], file)))


@dataclass(frozen=True, slots=True)
class OptionsOf:
    """The field holds options of the policy that the field `policy` before it names."""

    family: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.with_info_after_validator_function(self._check, handler(source))

    def _check(self, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        finite_throughout(options)
        policy = info.data.get("policy")  # absent where the name itself is wrong
        if policy and info.context and BASE_DIR in info.context:
            mistakes = option_mistakes(find(self.family, policy), options)
            if mistakes:
                raise PydanticCustomError(SEVERAL, "wrong options", {"mistakes": mistakes})
        return options


def finite_throughout(value: Any) -> Any:
    """Return plain data unchanged. Raise ValueError for a number in it that is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value!r} must be a finite number")
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            finite_throughout(inner)
    return value
