"""The grammar of a memory's text: `96 GB DDR5-6400 dual channel`, `8ch DDR5`, `~225 GB/s mlc`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from moesim.hardware.parts.scan import Measured, Scanner

__all__ = ["MOST_CHANNELS", "MemoryText", "memory_named"]

_GIB: Final = 2**30
MOST_CHANNELS: Final = 24
"""Channels of 64 bits of one socket; the processors of today have up to 16."""
_MOST_SOCKETS: Final = 8
_LEAST_MTS, _MOST_MTS = 200, 20_000
_MOST_BYTES: Final = 64 * 1024 * _GIB
_HARMLESS: Final = (
    "ram",
    "memory",
    "total",
    "system",
    "ECC",
    "registered",
    "[RU]DIMMs?",
    r"CL\d+",
)
_WORDS: Final = {
    "single": 1,
    "dual": 2,
    "triple": 3,
    "quad": 4,
    "hexa": 6,
    "six": 6,
    "octa": 8,
    "octo": 8,
    "eight": 8,
    "twelve": 12,
}


@dataclass(frozen=True, slots=True)
class MemoryText:
    """What a text says about host memory; None where it says nothing.

    `mts`: millions of transfers a second. `channels` of 64 bits, of one socket with `per_socket`.
    `seen_bytes`: what the operating system has of `nbytes`.
    """

    kind: str | None = None
    mts: int | None = None
    channels: int | None = None
    per_socket: bool = False
    nbytes: int | None = None
    seen_bytes: int | None = None
    unified: bool = False
    measured: tuple[Measured, ...] = ()
    unknown: tuple[str, ...] = ()
    understood: str = ""
    """The text without what is unknown."""

    @property
    def empty(self) -> bool:
        """Whether the text says nothing about memory."""
        return self == MemoryText(unknown=self.unknown, understood=self.understood)


def memory_named(text: str) -> MemoryText:
    """Return what `text` says about host memory.

    Raise UsageError for numbers that no memory has: of channels, of transfers, of bytes.
    """
    scanner = Scanner(text)
    measured = tuple(scanner.rates())
    seen = scanner.first(r"(\d+(?:\.\d+)?)\s*([GT])i?B\s*(?:seen|usable|visible|free)")
    modules = scanner.first(r"\b(\d+)\s*[x×]\s*(\d+)\s*Gi?B\b")
    sized = scanner.first(r"(?<![\w.])(\d+(?:\.\d+)?)\s*([GT])i?B\b")
    typed = scanner.first(
        r"\b(LPDDR[345]X?|DDR[345])(?:[\s@-]*(\d{4,}|0+)(?![\w.]*\s*ch))?"
        r"(?:\s*(?:MT/s|MHz|MT))?(?:\s*x\s*(\d+)\b)?"
    )
    speed = scanner.first(r"\b(\d+)\s*(?:MT/s|MHz|MT)\b")
    per_socket = scanner.first(r"\b(?:a|per|each|/)\s*(?:socket|cpu|node)\b") is not None
    counted = scanner.first(r"\b(\d+)[\s-]*(?:ch|channels?)\b")
    worded = scanner.first(rf"\b({'|'.join(_WORDS)})[\s-]*channel\b")
    unified = scanner.first(r"\bunified(?:\s+memory)?\b") is not None
    channels = int(counted[1]) if counted else _WORDS[worded[1].lower()] if worded else None
    if typed and typed[3] and channels is None:
        channels = int(typed[3])
    mts = int(typed[2]) if typed and typed[2] else int(speed[1]) if speed else None
    nbytes = _bytes(sized[1], sized[2]) if sized else _of_modules(modules)
    scanner.check(mts, _LEAST_MTS, _MOST_MTS, "the speed of memory", "MT/s")
    scanner.check(
        channels, 1, MOST_CHANNELS * (1 if per_socket else _MOST_SOCKETS), "the number of channels"
    )
    scanner.check(nbytes, 1, _MOST_BYTES, "the size of memory", "bytes")
    left = scanner.left(*_HARMLESS)
    return MemoryText(
        typed[1].upper() if typed else None,
        mts,
        channels,
        per_socket,
        nbytes,
        _bytes(seen[1], seen[2]) if seen else None,
        unified,
        measured,
        tuple(left.values()),
        scanner.without(dict.fromkeys(left, "")) if left else text,
    )


def _bytes(number: str, prefix: str) -> int:
    return round(float(number) * (_GIB if prefix.upper() == "G" else 1024 * _GIB))


def _of_modules(match: re.Match[str] | None) -> int | None:
    """Return the bytes of `2x16GB`: modules say nothing about channels."""
    if match is None:
        return None
    return int(match[1]) * int(match[2]) * _GIB
