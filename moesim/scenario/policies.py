"""The policy of a section and its options, as fields that know which family they belong to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from moesim.config.markers import BASE_DIR
from moesim.config.validation import SEVERAL
from moesim.errors import UsageError
from moesim.policies.registry import find, option_mistakes

__all__ = ["OptionsOf", "PolicyOf", "finite_throughout"]


@dataclass(frozen=True, slots=True)
class PolicyOf:
    """The name of a policy of `family`. Names are checked where paths are: in files."""

    family: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.with_info_after_validator_function(self._check, handler(source))

    def _check(self, name: str, info: ValidationInfo) -> str:
        if info.context and BASE_DIR in info.context:
            try:
                find(self.family, name)
            except UsageError as error:
                raise ValueError(str(error)) from None
        return name


@dataclass(frozen=True, slots=True)
class OptionsOf:
    """The options of the policy of `family` that the field `policy` before them names."""

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
    """Return plain data as it is. Raise ValueError where a number in it is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value!r} must be a finite number")
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            finite_throughout(inner)
    return value
