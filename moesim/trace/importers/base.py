"""What every importer has: a name, what it expects, a test of the content, and a reader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moesim.errors import SourceError
from moesim.progress import Counter
from moesim.trace.importers.source import Glimpse

if TYPE_CHECKING:
    from moesim.trace.trace import Trace

__all__ = ["MOST_EXPERTS", "Format", "Imported", "Options", "need", "small_number"]

MOST_EXPERTS: Final = 65_535
"""Experts of a layer that a trace can number."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a file does not say, and its owner may; None: not stated.

    `prompt_tokens` is the number of prompt tokens of every request, or of every synthetic one.
    `decoded_only` leaves out the rows of prompts. `guess_requests` joins the tokens of requests
    where a dump leaves two readings.
    `requests`, `output_tokens` and `seed` are those of a synthetic trace that is fitted to
    statistics. `progress(done, total)` counts lines of long texts.
    """

    num_experts: int | None = None
    top_k: int | None = None
    num_layers: int | None = None
    model: str | None = None
    prompt_tokens: int | None = None
    decoded_only: bool = False
    guess_requests: bool = False
    requests: int = 32
    output_tokens: int = 32
    seed: int = 0
    progress: Counter | None = None


@dataclass(frozen=True, slots=True)
class Imported:
    """A trace, and sentences on what was concluded rather than read."""

    trace: Trace
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Format:
    """One format of routing that another program writes.

    `expects` completes "expected ..." in a message. `sniff` says whether a file's content fits this
    format; it never raises. `read` raises `SourceError` with the file and the line or place.
    """

    name: str
    expects: str
    sniff: Callable[[Glimpse], bool]
    read: Callable[[Path, Options], Imported]


def need(value: int | None, option: str, why: str, file: Path) -> int:
    """Return a stated number, or raise `SourceError` that names the option and the reason."""
    if value is None:
        raise SourceError(file, "", f"{why}; state it with {option}")
    return value


def small_number(value: Any, file: Path, where: str, name: str, most: int = 2**31) -> int:
    """Return a value of JSON as a whole number from 0 to `most`. Raise `SourceError` otherwise."""
    if type(value) is not int or not 0 <= value <= most:
        from moesim.errors import shown

        raise SourceError(
            file, where, f"{name} must be a whole number from 0 to {most}, not {shown(value)}"
        )
    return value
