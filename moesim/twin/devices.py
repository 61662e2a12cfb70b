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


def gpu_of(line: str) -> tuple[int, str] | None:
    """Return which form names a card in a line, and the card; None where none does."""
    if len(line) > MOST_LINE:
        return None
    for number, form in enumerate(_FORMS):
        if match := form.search(line):
            return number, match[1].strip()
    return None


def devices_text(text: str) -> str:
    """Return the cards that `gpu_info` lists with commas as one text: `2x A`, or `A + B`."""
    names = [name.strip() for name in text.split(", ") if name.strip()]
    if len(names) > 1 and len(set(names)) == 1:
        return f"{len(names)}x {names[0]}"
    return " + ".join(names)


@dataclass(slots=True)
class Devices:
    """The cards that the run of the next measurement found, while a log is read.

    A log may list the cards that there are and then those that are used, in lines of two forms.
    """

    names: dict[int, list[str]] = field(default_factory=dict)
    measured: bool = False

    def see(self, line: str) -> None:
        """Take a line: the first card after a measurement is that of another run."""
        if found := gpu_of(line):
            if self.measured:
                self.names, self.measured = {}, False
            self.names.setdefault(found[0], []).append(found[1])

    @property
    def text(self) -> str:
        """The cards as one text, those that are used if they are said; "" where none is named."""
        last = self.names[max(self.names)] if self.names else []
        return devices_text(", ".join(last))
