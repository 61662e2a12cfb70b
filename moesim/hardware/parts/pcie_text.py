"""The grammar of a link's text: `PCIe 4.0 x16`, `PCIe 3`, `x8`, `OCuLink`, `H2D 26.08 GB/s`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from moesim.hardware.parts.scan import Measured, Scanner

__all__ = ["PcieText", "pcie_named"]

_MOST_LANES: Final = 16
_CABLES: Final = {"oculink": (4, 4), "thunderbolt": (3, 4), "usb4": (3, 4), "egpu": (3, 4)}
"""Generation and lanes of links through a cable; Thunderbolt and USB4 tunnel PCIe 3.0 x4."""


@dataclass(frozen=True, slots=True)
class PcieText:
    """Generation, lanes and measured bandwidths of a link; None where a text has none."""

    generation: int | None = None
    lanes: int | None = None
    measured: tuple[Measured, ...] = ()
    unknown: tuple[str, ...] = ()
    understood: str = ""
    """The text without what is unknown."""


def pcie_named(text: str) -> PcieText:
    """Return what `text` says about the link of a card. Raise UsageError for impossible lanes."""
    scanner = Scanner(text)
    measured = tuple(scanner.rates())
    generation = scanner.first(
        r"\b(?:PCI-?e(?:xpress)?)?\s*(?:gen\s*)?([1-6])(?:\.[01])?(?=\s|$|x|@)(?:\s*[x×@]\s*(\d+))?"
    )
    lanes = scanner.first(r"(?<![\w.])[x×]\s*(\d+)\b")
    cable = scanner.first(rf"\b({'|'.join(_CABLES)})(?:\s*\d)?\b")
    gen = int(generation[1]) if generation else None
    width = int(generation[2]) if generation and generation[2] else int(lanes[1]) if lanes else None
    if cable:
        usual_gen, usual_width = _CABLES[cable[1].lower()]
        gen, width = gen or usual_gen, width or usual_width
    scanner.check(width, 1, _MOST_LANES, "the number of lanes")
    left = scanner.left("PCI-?e(?:xpress)?", "lanes?", "link", "gen")
    understood = scanner.without(dict.fromkeys(left, "")) if left else text
    return PcieText(gen, width, measured, tuple(left.values()), understood)
