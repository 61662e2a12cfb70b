"""A chart: a figure, the caption under it, and the numbers that it draws.

Every chart is saved three times under one name: PNG, SVG, and a CSV with its data, so that anyone
can draw it again. Same data, same bytes: no dates, no versions, a fixed hash salt. Figures are
matplotlib objects made without `pyplot`, which would keep global state.
"""

from __future__ import annotations

import csv
import io
import math
import textwrap
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moesim.files import whole_file, whole_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "WIDTH_IN",
    "Chart",
    "drawn",
    "grid",
    "mark_undefined",
    "save_charts",
    "write_csv",
    "write_whole",
]

WIDTH_IN: Final = 7.0
"""Width of every figure in inches: the text block of a two-column page."""

MOST_LINES: Final = 4
"""Lines that a label takes at most; a longer one is shortened, and whole in the chart's CSV."""
_CHARACTERS: Final = 150
_LINE_IN: Final = 0.125


@dataclass(slots=True)
class Chart:
    """A figure under construction; `columns` and `rows` are its data as CSV."""

    name: str
    title: str
    figure: Figure
    axes: list[list[Axes]]
    caption: str
    columns: tuple[str, ...] = ()
    rows: list[Sequence[Any]] = field(default_factory=list)

    def record(self, *values: Any) -> None:
        """Add one row of data, a value a column."""
        self.rows.append(values)


def grid(
    name: str,
    title: str,
    caption: str,
    columns: Sequence[str],
    *,
    shape: tuple[int, int] = (1, 1),
    height_in: float,
    widths: Sequence[float] | None = None,
    **options: Any,
) -> Chart:
    """A chart of `shape` (rows, columns) panels, `height_in` inches high without its caption."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    lines = textwrap.wrap(caption, _CHARACTERS)
    size = (WIDTH_IN, height_in + _LINE_IN * len(lines) + 0.1)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.07, h_pad=0.05))
    FigureCanvasAgg(figure)
    axes = figure.subplots(*shape, squeeze=False, width_ratios=widths, **options)
    figure.supxlabel(drawn("\n".join(lines)), x=0.008, ha="left", fontsize=6.5, color="#444444")
    return Chart(name, title, figure, axes.tolist(), caption, tuple(columns))


def drawn(text: str, width: int = 0) -> str:
    """A text as matplotlib shows it: dollars are no formulas, a leading underscore hides nothing,
    what the font lacks is written as its number, and lines break at `width`."""
    glyphs = _glyphs()
    text = "".join(c if c == "\n" or ord(c) in glyphs else f"\\u{ord(c):04x}" for c in text)
    if width:
        text = "\n".join(textwrap.wrap(_shortened(text, width * MOST_LINES), width))
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def _shortened(text: str, most: int) -> str:
    """A text of at most so many characters: too long a one without its middle, but with a checksum
    that tells it from others."""
    if len(text) <= most:
        return text
    keep, checksum = (most - 20) // 2, zlib.crc32(text.encode())
    return f"{text[:keep]} … #{checksum:08x} … {text[-keep:]}"


@cache
def _glyphs() -> frozenset[int]:
    """The characters that the font of the figures has."""
    from matplotlib.font_manager import findfont, get_font

    from moesim.report.style import HOUSE

    return frozenset(get_font(findfont(HOUSE["font.family"])).get_charmap())


def mark_undefined(axes: Axes, why: str) -> None:
    """Say in the middle of a panel that there is nothing to draw, and why."""
    axes.text(
        0.5, 0.5, f"undefined\n({why})", transform=axes.transAxes, ha="center", va="center",
        color="#666666", style="italic",
    )  # fmt: skip
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)


def save_charts(folder: Path, makers: Iterable[Callable[[], Chart | None]]) -> list[Chart]:
    """Make charts and write them into `folder`, which they replace as a whole; returns those made.

    A maker that has nothing to draw returns None.

    Raises:
        OutputError: the folder cannot be written.
    """
    from moesim.report.style import house_style

    charts = []
    with whole_folder(folder, force=True) as partial, house_style():
        for maker in makers:
            chart = maker()
            if chart is not None:
                _save(chart, partial)
                charts.append(chart)
    return charts


def write_csv(file: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table as a whole; floats to ten significant digits, undefined as an empty field.

    Raises:
        OutputError: the file cannot be written.
    """
    handle = io.StringIO()
    writer = csv.writer(handle, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_field(value) for value in row] for row in rows)
    write_whole(file, handle.getvalue())


def write_whole(file: Path, text: str) -> None:
    """Write a text file under a temporary name and rename it when it is whole.

    Raises:
        OutputError: the file cannot be written.
    """
    with whole_file(file) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


def _save(chart: Chart, folder: Path) -> None:
    chart.figure.savefig(folder / f"{chart.name}.png", metadata={"Software": None})
    chart.figure.set_layout_engine("none")  # as laid out for the PNG: doing it again is slow
    chart.figure.savefig(
        folder / f"{chart.name}.svg",
        metadata={
            "Date": None,
            "Creator": None,
            "Title": chart.title,
            "Description": chart.caption,
        },
    )
    write_csv(folder / f"{chart.name}.csv", chart.columns, chart.rows)


def _field(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.10g}"
    return value
