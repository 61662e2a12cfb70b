"""The cards that llama.cpp finds, which it prints before anything else."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from moesim.twin.log import MOST_LINE

__all__ = ["Devices", "devices_text", "gpu_of"]

_FORMS: Final = (
    re.compile(r"^\s*Device \d{1,2}: ([^,|]{1,200}), (?:compute capability|gfx)"),
    re.compile(r"^ggml_vulkan: \d{1,2} = ([^(|]{1,200}(?:\([^()]{1,100}\))?) \([^()|]{1,100}\) \|"),
    re.compile(r"using device \w{1,40} \(([^()]{1,200}(?:\([^()]{0,100}\)[^()]{0,100}){0,3})\)"),
)


def gpu_of(line: str) -> str:
    """Return the card that a line names, or ""."""
    if len(line) > MOST_LINE:
        return ""
    matches = (form.search(line) for form in _FORMS)
    return next((match[1].strip() for match in matches if match), "")


def devices_text(text: str) -> str:
    """Return the cards that `gpu_info` lists with commas as one text: `2x A`, or `A + B`."""
    names = [name.strip() for name in text.split(", ") if name.strip()]
    if len(names) > 1 and len(set(names)) == 1:
        return f"{len(names)}x {names[0]}"
    return " + ".join(names)


@dataclass(slots=True)
class Devices:
    """The cards that the run of the next measurement found, while a log is read."""

    names: list[str] = field(default_factory=list)
    measured: bool = False

    def see(self, line: str) -> None:
        """Take a line: the first card after a measurement is that of another run."""
        if name := gpu_of(line):
            if self.measured:
                self.names, self.measured = [], False
            self.names.append(name)

    @property
    def text(self) -> str:
        """The cards as one text, "" where none is named."""
        return devices_text(", ".join(self.names))
