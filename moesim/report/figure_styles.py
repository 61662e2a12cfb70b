"""The styles of figures: settings of matplotlib, and how each colour of a chart is changed.

`paper` is the default. `serif` has the letters of a LaTeX paper. `grey` prints in one ink, and
`dark` suits dark slides. Any other name or file is a style of matplotlib, on top of `paper`.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moesim.config.suggest import suggest
from moesim.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["STYLES", "check_style", "recolour", "style_context"]

RGBA = tuple[float, float, float, float]
_NEARLY_GREY: Final = 0.25  # saturation below which a colour counts as grey


@dataclass(frozen=True, slots=True)
class FigureStyle:
    """Settings on top of the house style, and the change of every colour, if any."""

    settings: dict[str, Any] = field(default_factory=dict)
    change: Callable[[RGBA], RGBA] | None = None


def _grey(color: RGBA) -> RGBA:
    """Return the grey of the same brightness (Rec. 709)."""
    red, green, blue, alpha = color
    level = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return level, level, level, alpha


def _on_black(color: RGBA) -> RGBA:
    """Return greys inverted, and colours light enough to be seen on black."""
    red, green, blue, alpha = color
    hue, light, saturation = colorsys.rgb_to_hls(red, green, blue)
    if saturation < _NEARLY_GREY or light in (0.0, 1.0):
        return (*colorsys.hls_to_rgb(hue, 0.08 + 0.92 * (1 - light), saturation), alpha)
    return (*colorsys.hls_to_rgb(hue, max(light, 0.6), saturation), alpha)


STYLES: Final = {
    "paper": FigureStyle(),
    "serif": FigureStyle({"font.family": "DejaVu Serif", "mathtext.fontset": "dejavuserif"}),
    "grey": FigureStyle(change=_grey),
    "dark": FigureStyle(change=_on_black),
}


def check_style(name: str) -> None:
    """Raise `UsageError` unless `name` is a style of ours, of matplotlib, or a style file."""
    if name in STYLES:
        return
    from matplotlib import style

    if name in style.available or Path(name).is_file():
        return
    known = [*STYLES, *style.available]
    raise UsageError(
        f"--style {name!r} is no style and no file; moesim has {', '.join(STYLES)}, and matplotlib "
        f"has others, like ggplot{suggest(name, known)}"
    )


@contextmanager
def style_context(name: str, house: dict[str, Any]) -> Iterator[None]:
    """Apply matplotlib's defaults, `house` and the style `name`, then restore what was set."""
    from matplotlib import style

    own = STYLES.get(name)
    with style.context(["default", house, own.settings if own else _plain(name)]):
        yield


def _plain(name: str) -> str | Path:
    """Return the name or file of a style of matplotlib."""
    return Path(name) if Path(name).is_file() else name


def recolour(figure: Figure, name: str) -> None:
    """Change the colours of everything in a figure as the style `name` does."""
    change = STYLES[name].change if name in STYLES else None
    if change is None:
        return
    figure.draw_without_rendering()  # makes the ticks
    for artist in dict.fromkeys(figure.findobj()):  # some are listed twice
        if not hasattr(artist, "patch"):  # figures and panels: their patch is listed, too
            _recolour_artist(artist, change)


_PARTS: Final = ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor")


def _recolour_artist(artist: Any, change: Callable[[RGBA], RGBA]) -> None:
    from matplotlib.colors import to_rgba, to_rgba_array

    # All are read before any is set, because a marker may have the colour of its line.
    values = {part: getattr(artist, f"get_{part}")() for part in _PARTS if _has(artist, part)}
    for part, value in values.items():
        if isinstance(value, str) and value in ("none", "auto"):
            continue
        put = getattr(artist, f"set_{part}")
        if isinstance(value, str | tuple):
            put(change(_four(to_rgba(value))))
        else:
            put([change(_four(color)) for color in to_rgba_array(value)])


def _has(artist: Any, part: str) -> bool:
    """Return whether an artist has a colour of its own for this part."""
    # `color` of patches and collections stands for both of their other colours.
    both = part == "color" and hasattr(artist, "get_facecolor")
    return not both and hasattr(artist, f"get_{part}") and hasattr(artist, f"set_{part}")


def _four(color: Sequence[float]) -> RGBA:
    red, green, blue, alpha = map(float, color)
    return red, green, blue, alpha
