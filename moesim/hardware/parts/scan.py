"""Reading free text: phrases are taken out one by one, and what is left is reported.

A text is cut at commas, semicolons and brackets. In each part, phrases that a pattern describes are
taken out. Words that carry no figure are dropped. The rest of a part was not understood.
What is taken out leaves blanks, so that each character keeps its position in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from moesim.errors import UsageError

__all__ = ["Measured", "Scanner"]

_MARKS: Final = re.compile(r"\((?:r|tm|c)\)|[®™©]", re.IGNORECASE)  # of trade names
_CUT: Final = re.compile(r"[,;()\[\]]|\s[/|]\s|\bw/(?!o\b)|\bwith\b|\band\b")
_EDGES: Final = " -.:+~/|"
_NUMBER: Final = r"\d+(?:\.\d+)?"

RATE: Final = re.compile(
    rf"(?P<lead>(?:\b(?:gpu|cpu|stream|triad|copy|scale|add|mlc|measured|read|reads|sequential|"
    rf"bandwidth|peak|nominal|theoretical|about|h2d|d2h|ram|memory)\b\s*:?\s*)*)[~≈]?\s*"
    rf"(?<![\w.])(?P<low>{_NUMBER})(?:\s*[-–]\s*(?P<high>{_NUMBER}))?\s*(?P<unit>[GT]i?B/s)"
    rf"(?P<trail>(?:\s*\b(?:sequential|read|reads|measured|mlc|nominal|peak|theoretical|stream|"
    rf"triad|copy|bandwidth|gpu|cpu|h2d|d2h)\b|\s*\bat (?P<threads>\d+) threads\b)*)",
    re.IGNORECASE,
)
_NEGATIVE: Final = re.compile(
    r"(?:^|(?<=[\s(,;~]))[-−]\d[\d.]*\s*(?:[GT]i?B(?:/s)?|M[TH]z?(?:/s)?|ch(?:annels?)?)\b",
    re.IGNORECASE,
)
_MOST_RATE: Final = 10**14
_UNITS: Final = {"GB/s": 10**9, "TB/s": 10**12, "GiB/s": 2**30, "TiB/s": 2**40}


@dataclass(frozen=True, slots=True)
class Measured:
    """A bandwidth that a text states.

    `kind`: `read`, `triad`, `copy` or `peak`. `of`: `gpu`, `h2d`, `d2h`, or `host`.
    """

    bytes_per_s: int
    kind: str
    of: str
    text: str


class Scanner:
    """The parts of a text that no pattern has taken out yet."""

    def __init__(self, text: str) -> None:
        self._text = text
        plain = _MARKS.sub(_blanks, text)
        self.pieces: list[str] = []
        self._starts: list[int] = []
        start = 0
        for end, after in [*(match.span() for match in _CUT.finditer(plain)), (len(plain), 0)]:
            if plain[start:end].strip():
                self.pieces.append(plain[start:end])
                self._starts.append(start)
            start = after

    def take(self, pattern: str) -> Iterator[re.Match[str]]:
        """Take out each match of a pattern, without regard to case, and yield it."""
        yield from self._take(re.compile(pattern, re.IGNORECASE))

    def first(self, pattern: str) -> re.Match[str] | None:
        """Take out all matches of a pattern; return the first."""
        matches = list(self.take(pattern))
        return matches[0] if matches else None

    def first_of(self, number: int, pattern: str) -> re.Match[str] | None:
        """Take out all matches of a pattern in one piece; return the first."""
        matches = self._take(re.compile(pattern, re.IGNORECASE), [number])
        return matches[0] if matches else None

    def rates(self) -> list[Measured]:
        """Take out all bandwidths; the middle of a range counts.

        Raise UsageError for a negative number, and for a rate of 0 or over 100 TB/s.
        """
        if negative := _NEGATIVE.search(self._text):
            raise UsageError(f"{self._text.strip()!r}: {negative[0]} is negative")
        found = [_measured(match) for match in self._take(RATE)]
        for rate in found:
            self.check(
                rate.bytes_per_s, 1, _MOST_RATE, f"the bandwidth in {rate.text!r}", "bytes/s"
            )
        return found

    def check(self, number: int | None, least: int, most: int, what: str, unit: str = "") -> None:
        """Raise UsageError for a number outside a range."""
        if number is not None and not least <= number <= most:
            between = f"{least:,} to {most:,} {unit}".strip()
            raise UsageError(f"{self._text.strip()!r}: {what} is {number:,}; expected {between}")

    def rest(self, *harmless: str) -> tuple[str, ...]:
        """Return what is left, without words that carry no figure."""
        return tuple(self.left(*harmless).values())

    def left(self, *harmless: str) -> dict[int, str]:
        """Return what is left, as `rest`, by the index of its piece."""
        for word in harmless:
            list(self.take(rf"\b{word}\b"))
        pieces = (" ".join(piece.split()).strip(_EDGES) for piece in self.pieces)
        return {number: piece for number, piece in enumerate(pieces) if piece}

    def without(self, left: Mapping[int, str]) -> str:
        """Return the text with what is left of some pieces replaced, by position.

        A comma stands for each word that is cut, so that its neighbours are not read together.
        """
        kept = list(self._text)
        for number, instead in left.items():
            start = self._starts[number]
            for word in re.finditer(r"\S+", self.pieces[number]):
                kept[start + word.start() : start + word.end()] = [""] * len(word[0])
                kept[start + word.start()] = instead or ","
                instead = ""
        return re.sub(r"\s*(?:,\s*)+", ", ", " ".join("".join(kept).split())).strip(" ,;")

    def _take(
        self, pattern: re.Pattern[str], numbers: Iterable[int] | None = None
    ) -> list[re.Match[str]]:
        found: list[re.Match[str]] = []
        for number in range(len(self.pieces)) if numbers is None else numbers:
            piece = self.pieces[number]
            found += pattern.finditer(piece)
            self.pieces[number] = pattern.sub(_blanks, piece)
        return found


def _blanks(match: re.Match[str]) -> str:
    return " " * len(match[0])


def _measured(match: re.Match[str]) -> Measured:
    words = f"{match['lead']} {match['trail']}".lower()
    low, high = float(match["low"]), float(match["high"] or match["low"])
    unit = next(size for unit, size in _UNITS.items() if unit.lower() == match["unit"].lower())
    kind = "read"
    if re.search(r"\b(?:nominal|peak|theoretical)\b", words):
        kind = "peak"
    elif re.search(r"\b(?:triad|add)\b", words):
        kind = "triad"
    elif re.search(r"\b(?:copy|scale)\b", words):
        kind = "copy"
    elif "stream" in words:
        kind = "triad"
    of = next((where for where in ("gpu", "h2d", "d2h") if where in words), "host")
    return Measured(round((low + high) / 2 * unit), kind, of, " ".join(match[0].split()))
