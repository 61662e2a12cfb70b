"""The grammar of a graphics card's text: `RTX 4090`, `A100-SXM4-80GB`, `2x Tesla P100 16GB`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Final

from moesim.errors import UsageError
from moesim.hardware.parts.names import Index, words_of
from moesim.hardware.parts.scan import Scanner
from moesim.hardware.parts.tables import Gpu, gpus

__all__ = ["GpuText", "gpu_named", "says_no_gpu"]

_NO_GPU: Final = frozenset(
    {"none", "no", "no gpu", "no dgpu", "without gpu", "cpu", "cpu only", "n/a", "na", "-"}
)
_JOINED: Final = re.compile(r"(?<!max)\s[+&]\s", re.IGNORECASE)  # `AI MAX + 395` is one name
_DOUBLED: Final = re.compile(r"\band\b", re.IGNORECASE)
# Cards that a text describes without naming them, and the card that stands for them.
_DESCRIBED: Final = {
    re.compile(r"8\s*GB Turing", re.IGNORECASE): (
        "rtx-2070",
        "the text names no card; a GeForce RTX 2070 stands for it, because the 8 GB cards of this "
        "architecture (RTX 2060 Super, 2070, 2070 Super, 2080) share its 448 GB/s",
    ),
}
_WORDS: Final = {"single": 1, "dual": 2, "two": 2, "three": 3, "quad": 4, "four": 4, "eight": 8}
_COUNTS: Final = (
    r"^\s*(\d{1,3}|\d+(?=\s*[x×*]\s))\s*[x×*]\s*",  # `7900XTX` is no number of cards
    r"(?:^|\s)[x×*]\s*(\d+)\s*$",
    rf"^\s*({'|'.join(_WORDS)})\b",
    r"^\s*(\d+)\s+(?=(?:nvidia|geforce|rtx|gtx|tesla|amd|radeon|rx|instinct|mi\d|intel|arc|[ahlv]\d))",
)
_COMPUTERS: Final = r"\b(?:MacBook(?: (?:Pro|Air))?|Mac (?:Studio|mini|Pro)|iMac(?: Pro)?)\b"
_POWER: Final = r"(?:@|\b(?:at|limited to|power limit(?:ed)?(?: (?:to|of))?)\b)?\s*\b(\d+)\s*W\b"


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
    understood: str = "none"
    """The text without what is unknown, and with the catalogue's name if that is a part of it."""


@cache
def _index() -> Index[Gpu]:
    return Index(gpus(), lambda card: card.aliases, kind="graphics card", listing="cards")


def says_no_gpu(text: str) -> bool:
    """Return whether a text says that there is no GPU, like `none (CPU only)` or `N/A`."""
    parts = [part for part in re.split(r"[(),;]", text.casefold()) if part.strip()]
    plain = [re.sub(r"(?<=\w)[\s-]+(?=\w)", " ", part.strip()) for part in parts]
    return bool(plain) and all(part in _NO_GPU or not part.strip("-–—") for part in plain)


def gpu_named(text: str | None) -> GpuText:
    """Return the card that `text` names.

    Raise UsageError, with the most similar name, for an unknown card or an unknown size of it, and
    for a text that counts no cards.
    """
    if text is None or says_no_gpu(text):
        return GpuText(None, count=0)
    whole, supposed = text, list[str]()
    for pattern, (name, why) in _DESCRIBED.items():
        if pattern.search(text):
            text = pattern.sub(name, text)
            supposed.append(why)
    scanner = Scanner(_JOINED.sub(" ; ", text))
    list(scanner.take(r"\b(?:HBM|GDDR)\d\w*\b"))
    list(scanner.take(_COMPUTERS))
    if power := scanner.first(_POWER):
        supposed.append(f"the power limit of {power[1]} W changes no figure")
    # Only a size that stands alone: `rtx-4060-ti-16gb` has it as well.
    sized = scanner.first(r"(?<![\w.])(\d+(?:\.\d+)?)[\s-]*Gi?B?\b(?!/)")
    size = round(float(sized[1]) * 2**30) if sized else None
    counts = [_count(scanner, number) for number in range(len(scanner.pieces))]
    left = scanner.left()
    first = next((number for number, piece in left.items() if words_of(piece)), None)
    if first is None:
        _index().find(text)  # which raises
        raise UsageError(f"{whole.strip()!r} names no graphics card")
    named = _index().find(left.pop(first))
    card = _of_size(named.parts, size, text, supposed)
    joined = bool(_JOINED.search(text) or _DOUBLED.search(text))
    unknown = [word for word in named.rest if not _agrees(card, word)]
    cut = {first: card.name} if unknown else {}
    count = _one(counts[first])
    if unknown and (other := _another(card, " ".join(named.rest), joined=False)):
        count += 1  # `RTX 3090 RTX 3060`
        supposed.append(f"the text also names {other}")
    for number in range(len(scanner.pieces)):
        if number == first:
            continue
        if (piece := left.get(number)) is None:  # `(x2)` counts the card before it
            count *= _one(counts[number])
        elif other := _another(card, piece, joined=joined):
            count += _one(counts[number])
            supposed.append(f"the text also names {other}")
        elif not _agrees(card, piece):
            unknown.append(piece)
            cut[number] = ""
    if 0 in counts:
        raise UsageError(f"{whole.strip()!r} names no cards: their number is 0")
    if count > 1:
        supposed.append(f"the text names {count} cards; the figures are those of one")
    understood = scanner.without(cut) if unknown else whole
    return GpuText(card, count, size, tuple(supposed), tuple(unknown), understood)


def _count(scanner: Scanner, number: int) -> int | None:
    """Take the number of cards out of a piece and return it; None without one."""
    for pattern in _COUNTS:
        if match := scanner.first_of(number, pattern):
            word = match[1].lower()
            return _WORDS[word] if word in _WORDS else int(word)
    return None


def _one(count: int | None) -> int:
    return 1 if count is None else count


def _another(card: Gpu, piece: str, *, joined: bool) -> str:
    """Return the name of another card that a piece names, or "".

    An alias in brackets repeats the card. After a plus sign it is one more.
    """
    try:
        found = _index().find(piece).parts
    except UsageError:
        return ""
    return found[0].name if joined or card not in found else ""


def _of_size(cards: tuple[Gpu, ...], size_bytes: int | None, text: str, supposed: list[str]) -> Gpu:
    """Return the card with this much memory; the first of the table where the text has no size."""
    if size_bytes is None:
        if len([card for card in cards if not card.modified]) > 1:
            supposed.append(
                f"the memory of the card is not given; {cards[0].name} is the usual one"
            )
        return cards[0]
    for card in cards:
        # The memory of a processor with unified memory is as large as the machine's.
        if card.unified or abs(card.vram_bytes - size_bytes) < 2**29:
            return card
    for card in cards:
        if card.board is not None and round(card.board * 2**30) == size_bytes:
            supposed.append(f"{card.board} GB are {card.board_source}")
            return card
    sizes = " or ".join(f"{card.vram:g} GiB" for card in cards)
    raise UsageError(
        f"{text.strip()!r}: {cards[0].name} has {sizes} in the catalogue; for a card with other "
        f"memory give its name without a size, and `vram`"
    )


def _agrees(card: Gpu, remark: str) -> bool:
    """Return whether a remark only repeats what the catalogue says of the card."""
    plain = remark.strip().lower()
    if plain in ("unified", "unified memory"):
        return card.unified
    if plain == "sm_75":
        return card.architecture == "turing"
    if plain == card.architecture or re.search(rf"\b{re.escape(plain)}\b", card.family.lower()):
        return True
    if card.cpu is not None and plain in card.cpu.split("-"):
        return True
    try:
        return card in _index().find(plain).parts
    except UsageError:
        return False
