"""How figures are drawn: their size, style, caption and file formats, and the command for each.

Charts say what is drawn, and a `Drawing` how. It applies to all charts that are made inside
`drawn_as`, as matplotlib's own `rc_context` does, so no chart has to pass it on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from moesim.config.suggest import suggest
from moesim.errors import UsageError

__all__ = ["FORMATS", "SIZES", "Drawing", "Size", "commanded", "current", "drawn_as"]
__all__ += ["parse_formats", "parse_size"]

FORMATS: Final = ("png", "svg", "pdf")
_USUAL: Final = FORMATS[:2]  # a PDF takes as long as both, because its fonts are cut to size
_LEAST: Final = 0.7
"""The share of the height that a figure needs below which its parts would cover each other."""
_NARROWER: Final = 0.7
"""The least width of a panel, as a share of that on a page."""
Captions = Literal["outside", "inside"]


@dataclass(frozen=True, slots=True)
class Size:
    """The width of figures and, if `height_in` is set, their height, in inches.

    Without a height, a figure is as high as its content needs. A figure whose content needs much
    more than `height_in` is higher. `dpi` is the resolution of PNG files.
    """

    width_in: float
    height_in: float | None = None
    dpi: float = 200.0

    def height(self, natural_in: float) -> float:
        """Return the height of a figure whose content needs `natural_in` inches."""
        if self.height_in is None:
            return natural_in
        return max(self.height_in, _LEAST * natural_in)

    def across(self, characters: int) -> int:
        """Return how many characters fit where `characters` fit on a page."""
        return max(8, int(characters * self.width_in / PAGE.width_in))

    def columns(self, wanted: int, names_in: float = 0.0) -> int:
        """Return how many of `wanted` panels fit beside each other, about as wide as on a page.

        `names_in` inches at the left are taken by names, which all panels of a row share.
        """
        panel_in = (PAGE.width_in - names_in) / wanted
        fitting = math.floor((self.width_in - names_in) / (_NARROWER * panel_in) + 1e-9)
        return max(1, min(wanted, fitting))


PAGE: Final = Size(7.0)
SIZES: Final = {
    "column": Size(3.5, dpi=300.0),
    "page": PAGE,
    # Small, so that 8 points are large letters once the figure fills a slide of 16:9.
    "slide": Size(6.4, 3.6, dpi=300.0),
}
"""The named sizes: a column and the text block of a two-column paper, and a slide of 16:9."""
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)(?:x(\d+(?:\.\d+)?))?(in|cm|mm)?")
_INCHES: Final = {"in": 1.0, "cm": 1 / 2.54, "mm": 1 / 25.4}
_NARROWEST_IN, _WIDEST_IN = 2.0, 40.0


@dataclass(frozen=True, slots=True)
class Drawing:
    """How to draw: see `moesim run --help`. `command` draws the figures again, "" if unknown."""

    size: Size = field(default_factory=lambda: PAGE)
    style: str = "paper"
    captions: Captions = "outside"
    formats: Sequence[str] = _USUAL
    command: str = ""


_CURRENT: Final[ContextVar[Drawing]] = ContextVar("drawing")


def current() -> Drawing:
    """Return how charts are drawn here."""
    return _CURRENT.get(Drawing())


@contextmanager
def drawn_as(drawing: Drawing) -> Iterator[None]:
    """Draw all charts inside the context like this."""
    token = _CURRENT.set(drawing)
    try:
        yield
    finally:
        _CURRENT.reset(token)


@contextmanager
def commanded(command: str) -> Iterator[None]:
    """Name the command that draws the charts inside the context, unless a command is running."""
    drawing = current()
    with drawn_as(drawing if drawing.command else replace(drawing, command=command)):
        yield


def parse_size(text: str) -> Size:
    """Return the size of a name, or of `WIDTHxHEIGHT` or `WIDTH` in `in` (default), `cm` or `mm`.

    Raises:
        UsageError: the text is neither, or no figure of that size can be read.
    """
    if text in SIZES:
        return SIZES[text]
    found = _SIZE.fullmatch(text.strip().lower().replace(" ", ""))
    if found is None:
        raise UsageError(
            f"--size {text!r} is neither {', '.join(SIZES)} nor a width and height like 8.5x6cm, "
            f"3.3x2.5in or 89mm{suggest(text, SIZES)}"
        )
    inches = _INCHES[found[3] or "in"]
    width, height = (None if part is None else float(part) * inches for part in found.groups()[:2])
    for side in (width, height):
        if side is not None and not _NARROWEST_IN / 2 <= side <= _WIDEST_IN:
            raise UsageError(
                f"--size {text!r}: a side of {side:.3g} in; figures have {_NARROWEST_IN / 2:g} to "
                f"{_WIDEST_IN:g} in. Without a unit, numbers are inches"
            )
    assert width is not None
    if width < _NARROWEST_IN:
        raise UsageError(f"--size {text!r}: a figure is at least {_NARROWEST_IN:g} in wide")
    return Size(width, height, dpi=300.0 if width < PAGE.width_in else 200.0)


def parse_formats(text: str) -> tuple[str, ...]:
    """Return the file formats of a list like `png,pdf`, in the order of `FORMATS`.

    Raises:
        UsageError: a name is not one of them.
    """
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    for name in names or [""]:
        if name not in FORMATS:
            raise UsageError(
                f"--formats {text!r}: {name!r} is none of {', '.join(FORMATS)}"
                f"{suggest(name, FORMATS)}"
            )
    return tuple(name for name in FORMATS if name in names)
