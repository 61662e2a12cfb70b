"""The figures of the link between host and GPU.

A link has the lower generation and the fewer lanes of the card, the processor and the text. Copies
from page-locked memory reach a share of its bandwidth, and those from ordinary memory about half.
"""

from __future__ import annotations

from typing import Final

from moesim.config.units import parse_share
from moesim.hardware.parts.cpu_text import CpuText
from moesim.hardware.parts.figures import Figures, Notes
from moesim.hardware.parts.pcie_text import PcieText, pcie_named
from moesim.hardware.parts.tables import Gpu, shares

__all__ = ["link_figures", "no_link"]

_DIRECTIONS: Final = ("h2d", "d2h")


def no_link(figures: Figures, bytes_per_s: int, source: str) -> None:
    """Add a link over which copies take no time of their own."""
    for direction in _DIRECTIONS:
        figures.add(f"{direction}.latency", 0, source)
        for key in ("pinned_bandwidth", "pageable_bandwidth"):
            figures.add(f"{direction}.{key}", bytes_per_s, source)


def link_figures(
    figures: Figures, card: Gpu, processor: CpuText, text: PcieText, notes: Notes
) -> None:
    """Add both directions of a card's link."""
    peak, what = _peak(card, processor, text, notes)
    share = shares()
    pinned_share, pageable_share = (
        parse_share(figure.value) for figure in (share.link_pinned, share.link_pageable)
    )
    for direction in _DIRECTIONS:
        figures.share(f"{direction}.latency", share.link_latency)
        pinned = round(peak * pinned_share)
        measured = next((rate for rate in text.measured if rate.of == direction), None)
        if measured is None:
            source = f"{what}. {share.link_pinned.source}"
            figures.add(f"{direction}.pinned_bandwidth", pinned, source)
        else:
            pinned = measured.bytes_per_s
            source = f"Measured, as the text says: {measured.text}"
            figures.add(f"{direction}.pinned_bandwidth", pinned, source, kind="measured")
        figures.add(
            f"{direction}.pageable_bandwidth",
            round(pinned * pageable_share),
            share.link_pageable.source,
        )


def _peak(card: Gpu, processor: CpuText, text: PcieText, notes: Notes) -> tuple[int, str]:
    """Return the bandwidth of one direction in bytes/s after coding, and what it is."""
    if card.link is not None:
        return round(card.link * 10**9), f"{card.link:g} GB/s in each direction ({card.family})"
    own = pcie_named(card.pcie or "4.0 x16")
    board = pcie_named(processor.cpu.pcie) if processor.cpu is not None else own
    generation = _least(own.generation, text.generation or board.generation)
    lanes = _least(own.lanes, text.lanes or board.lanes)
    if text.generation is None or text.lanes is None:
        notes.supposed.append(
            f"the link is PCIe {generation}.0 x{lanes}, the most that the card and the processor "
            "share, because no text has all of it"
        )
    rate = float(shares().pcie_lane[str(generation)])
    return round(rate * lanes * 10**9), f"PCIe {generation}.0 x{lanes}: {rate * lanes:.1f} GB/s"


def _least(first: int | None, second: int | None) -> int:
    return min(number for number in (first, second) if number is not None)
