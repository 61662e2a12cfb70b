"""The figures of an assembled machine, as the data of a profile."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from moesim.hardware.parts.tables import Share

__all__ = ["Figures", "Notes"]


@dataclass(slots=True)
class Notes:
    """What was assumed for lack of text, one sentence each."""

    supposed: list[str] = field(default_factory=list)


class Figures:
    """Figures by their keys in a profile, each with its kind and source."""

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}

    def add(self, key: str, value: float | str, source: str, *, kind: str = "assumed") -> None:
        """Add a figure; the key `h2d.latency` is that of a section."""
        *sections, last = key.split(".")
        at = self.data
        for section in sections:
            at = at.setdefault(section, {})
        # Text, because a bare number would be reported as one whose unit was forgotten.
        text = value if isinstance(value, str) else _spelt(last, value)
        at[last] = {"value": text, "kind": kind, "source": source}

    def share(self, key: str, share: Share) -> None:
        """Add a figure of shares.yaml."""
        self.add(key, share.value, share.source)


def _spelt(key: str, value: float) -> str | float:
    if key.endswith("bandwidth"):
        return f"{value:d}B/s"
    if key.endswith(("flops", "_ops")):
        return f"{value:d}FLOPS"
    if key in ("vram", "host_memory"):
        return f"{value:d}B"
    if key.endswith(("latency", "overhead")):
        return f"{value:d}ns"
    return value
