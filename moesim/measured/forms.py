"""What the forms of the grammar share: a setting while it is read, and parts of patterns."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from moesim.measured.places import Rule
from moesim.measured.setting import Declining, Placement

__all__ = ["CPU", "DEVICES", "GPU", "NUMBER", "OF", "Form", "Handler", "Reading", "skip"]

NUMBER: Final = r"(?P<n>\d{1,9})(?![\w.])"
OF: Final = r"(?:\s*(?:of|/)\s*(?P<m>\d{1,6})(?!\w))?"
CPU: Final = r"(?:the )?(?:CPU|host|RAM|DRAM|system (?:RAM|memory))(?![\w.])"
GPU: Final = r"(?:the )?(?:GPU|VRAM)(?![\w.])"
DEVICES: Final = r"(?:CPU|(?:CUDA|ROCm|HIP|Vulkan|SYCL|Metal|MTL|GPU)\d*)"


@dataclass(slots=True)
class Reading:
    """A setting while it is read: fields with their values, rules, notes, unknown fragments."""

    fields: dict[str, Any] = field(default_factory=dict)
    rules: list[Rule] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def put(self, name: str, value: Any) -> None:
        """Set a field; note where the text says two different things."""
        if self.fields.get(name, value) != value:
            self.notes.append(f"{name} is {self.fields[name]!r} first, then {value!r}: the latter")
        self.fields[name] = value

    def place(self, placement: Placement, *rules: Rule) -> None:
        """Add rules; a placement of experts goes before one of whole layers and "gpu"."""
        self.rules.extend(rules)
        held = self.fields.get("placement", "")
        if _RANK.index(placement) > _RANK.index(held):
            self.fields["placement"] = placement

    def decline(self, kind: Declining) -> None:
        self.fields.setdefault("declining", kind)


_RANK: Final[tuple[Placement, ...]] = ("", "gpu", "layers", "experts", "cpu")
Handler = Callable[[Reading, "re.Match[str]"], None]
Form = tuple[str, Handler]
"""A pattern, and what it does to a reading where it matches; a space in it is any white space."""


def skip(reading: Reading, match: re.Match[str]) -> None:
    """Take a form that changes no time that is predicted."""
