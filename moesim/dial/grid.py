"""The grid of the dial: recalls, precisions, depths, link speeds and seeds, and how to read them.

A link speed is a factor of the scenario's own bandwidths (`2x`), or a bandwidth (`16GB/s`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from moesim.config.units import exact_bandwidth, parse_bandwidth, parse_share
from moesim.errors import UsageError
from moesim.hardware import Hardware

__all__ = ["Grid", "Link", "parse_depths", "parse_links", "parse_shares"]

T = TypeVar("T")

_DEEPEST: Final = 1000  # as the policy's option allows
_LARGEST_FACTOR: Final = 1000.0


@dataclass(frozen=True, slots=True)
class Link:
    """A speed of both copy directions: `factor` times their own, or `bytes_per_s`."""

    text: str
    factor: float = 1.0
    bytes_per_s: int | None = None

    def changes(self, hardware: Hardware) -> dict[str, str]:
        """Return the keys of a scenario that give a machine this link; none for its own link."""
        if self.is_own:
            return {}
        return {
            f"hardware.{direction}.{kind}_bandwidth": exact_bandwidth(self._scaled(own))
            for direction in ("h2d", "d2h")
            for kind, own in _own(hardware, direction).items()
        }

    def speed(self, hardware: Hardware, *, pinned: bool) -> int:
        """Return the bytes per second of copies to the GPU."""
        return self._scaled(_own(hardware, "h2d")["pinned" if pinned else "pageable"])

    def name(self, hardware: Hardware, *, pinned: bool) -> str:
        """Return the speed of copies to the GPU, with the factor that it is of the own one."""
        speed = exact_bandwidth(self.speed(hardware, pinned=pinned))
        return speed if self.is_own or self.bytes_per_s is not None else f"{speed} ({self.text})"

    @property
    def is_own(self) -> bool:
        """Whether this is the scenario's own link."""
        return self.bytes_per_s is None and self.factor == 1

    def _scaled(self, own: int) -> int:
        return round(own * self.factor) if self.bytes_per_s is None else self.bytes_per_s


def _own(hardware: Hardware, direction: str) -> Mapping[str, int]:
    link = hardware.h2d if direction == "h2d" else hardware.d2h
    return {"pinned": link.pinned_bytes_per_s, "pageable": link.pageable_bytes_per_s}


@dataclass(frozen=True, slots=True)
class Grid:
    """What is swept, each ascending; `seeds` is a number of seeds, from that of the scenario on."""

    recalls: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    precisions: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9, 1.0)
    depths: tuple[int, ...] = (1, 2, 3)
    links: tuple[Link, ...] = (Link("0.5x", 0.5), Link("1x"), Link("2x", 2.0))
    seeds: int = 3


def parse_shares(option: str, text: str, *, zero: bool) -> tuple[float, ...]:
    """Return the shares in `0.5,90%`, ascending; `zero` allows 0. Raise UsageError."""

    def read(part: str) -> float:
        share = parse_share(part)
        if not share and not zero:
            raise ValueError("0 is no precision: all predicted experts would be wrong")
        return share

    return _listed(option, text, read)


def parse_depths(option: str, text: str) -> tuple[int, ...]:
    """Return the numbers of layers in `1,2,3`, ascending. Raise UsageError."""

    def read(part: str) -> int:
        if not (part.isascii() and part.isdigit() and 1 <= int(part[:9]) <= _DEEPEST):
            raise ValueError(f"{part!r} is not a number of layers from 1 to {_DEEPEST}")
        return int(part)

    return _listed(option, text, read)


def parse_links(option: str, text: str) -> tuple[Link, ...]:
    """Return the link speeds in `0.5x,16GB/s`, in the order given. Raise UsageError."""
    return _listed(option, text, _link, key=None)


def _link(part: str) -> Link:
    if part.endswith("x"):
        try:
            factor = float(part[:-1])
        except ValueError:
            factor = math.nan
        if not 0 < factor <= _LARGEST_FACTOR:
            raise ValueError(f"{part!r} is not a factor like 0.5x, of at most 1000x")
        return Link(f"{factor:g}x", factor)
    try:
        speed = parse_bandwidth(part)
    except ValueError as error:
        raise ValueError(f"{error}; a factor of the own speed is written like 2x") from None
    if speed < 1:
        raise ValueError(f"{part!r} must be positive")
    return Link(exact_bandwidth(speed), bytes_per_s=speed)


def _ascending(value: Any) -> Any:
    return value


def _listed(
    option: str,
    text: str,
    read: Callable[[str], T],
    key: Callable[[T], Any] | None = _ascending,
) -> tuple[T, ...]:
    """Return the values in a list with commas, each once, sorted by `key` unless it is None."""
    values: dict[T, None] = {}
    for part in text.split(","):
        try:
            values[read(part.strip())] = None
        except ValueError as error:
            raise UsageError(f"{option} {text}: {error}") from None
    return tuple(values if key is None else sorted(values, key=key))
