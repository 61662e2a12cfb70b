"""Markers of the keys `policy` and `options`, whose rules depend on the family of policies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

from pydantic import GetCoreSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from moesim.config.markers import BASE_DIR
from moesim.config.validation import SEVERAL
from moesim.errors import UsageError
from moesim.policies.registry import find, option_mistakes

__all__ = ["FAMILIES", "OptionsOf", "PolicyOf", "finite_throughout"]

FAMILIES: Final = {
    "batching": "batching",
    "cache": "eviction",
    "prefetch": "prefetch",
    "placement": "placement",
}
"""The policy family of each section that names a policy."""


@dataclass(frozen=True, slots=True)
class PolicyOf:
    """The field is the name of a policy of `family`.

    The name is checked by `load_scenario` only. `Scenario.model_validate` loads no plug-ins.
    """

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
