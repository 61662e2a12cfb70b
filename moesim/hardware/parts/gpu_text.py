"""The grammar of a graphics card's text: `RTX 4090`, `A100-SXM4-80GB`, `2x Tesla P100 16GB`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Final

from moesim.errors import UsageError
from moesim.hardware.parts.names import Index
from moesim.hardware.parts.scan import Scanner
from moesim.hardware.parts.tables import Gpu, gpus

__all__ = ["GpuText", "gpu_named"]

_NO_GPU: Final = re.compile(r"\s*(?:none|no gpu|cpu only|cpu-only)\s*", re.IGNORECASE)
# Cards that a text describes without naming them, and the card that stands for them.
_DESCRIBED: Final = {
    re.compile(r"8\s*GB Turing", re.IGNORECASE): (
        "rtx-2070",
        "the text names no card; a GeForce RTX 2070 stands for it, because the 8 GB cards of this "
        "architecture (RTX 2060 Super, 2070, 2070 Super, 2080) share its 448 GB/s",
    ),
}


@dataclass(frozen=True, slots=True)
class GpuText:
    """A card that a text names; `card` is None for a machine without one.

    `size_bytes` is the size of memory in the text. `count` cards are there.
    """

    card: Gpu | None
    count: int = 1
    size_bytes: int | None = None
    supposed: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


@cache
def _index() -> Index[Gpu]:
    return Index(gpus(), lambda card: card.aliases, kind="graphics card", listing="cards")


def gpu_named(text: str | None) -> GpuText:
    """Return the card that `text` names.

    Raise UsageError, with the most similar name, for an unknown card or an unknown size of it.
    """
    if text is None or _NO_GPU.fullmatch(text):
        return GpuText(None, count=0)
    supposed: list[str] = []
    for pattern, (name, why) in _DESCRIBED.items():
        if pattern.search(text):
            text = pattern.sub(name, text)
            supposed.append(why)
    scanner = Scanner(text)
    counted = scanner.first(r"^\s*(\d{1,2})\s*[x×]\s*") or scanner.first(r"\s[x×]\s*(\d+)\s*$")
    list(scanner.take(r"\b(?:HBM|GDDR)\d\w*\b"))
    # Only a size that stands alone: `rtx-4060-ti-16gb` has it as well.
    sized = scanner.first(r"(?<![\d.])(\d+(?:\.\d+)?)[\s-]*Gi?B\b")
    size = round(float(sized[1]) * 2**30) if sized else None
    name, *remarks = [piece for piece in scanner.pieces if piece.strip()] or [text]
    named = _index().find(name)
    card = _of_size(named.parts, size, text, supposed)
    unknown = list(named.rest) + [piece for piece in remarks if not _agrees(card, piece)]
    count = int(counted[1]) if counted else 1
    if count > 1:
        supposed.append(f"the text names {count} cards; the figures are those of one")
    return GpuText(card, count, size, tuple(supposed), tuple(" ".join(u.split()) for u in unknown))


def _of_size(cards: tuple[Gpu, ...], size_bytes: int | None, text: str, supposed: list[str]) -> Gpu:
    """Return the card with this much memory; the first of the table where the text has no size."""
    if size_bytes is None:
        if len(cards) > 1:
            supposed.append(
                f"the memory of the card is not given; {cards[0].name} is the usual one"
            )
        return cards[0]
    for card in cards:
        # The memory of a processor with unified memory is as large as the machine's.
        if card.unified or abs(card.vram_bytes - size_bytes) < 2**29:
            return card
    sizes = " or ".join(f"{card.vram:g} GiB" for card in cards)
    raise UsageError(
        f"{text.strip()!r}: {cards[0].name} has {sizes} in the catalogue; for a card with other "
        f"memory give its name without a size, and `vram`"
    )


def _agrees(card: Gpu, remark: str) -> bool:
    """Return whether a remark in brackets only repeats what the catalogue says of the card."""
    plain = remark.strip().lower()
    if plain in ("unified", "unified memory"):
        return card.unified
    if plain == "sm_75":
        return card.architecture == "turing"
    if plain == card.architecture or plain in card.family.lower():
        return True
    try:
        return card in _index().find(plain).parts
    except UsageError:
        return False
