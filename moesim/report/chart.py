"""A chart: a figure, the caption under it, and the numbers that it draws.

Every chart is saved three times under one name: as PNG, as SVG, and its data as CSV. Equal data
give equal bytes: files have no dates and no versions, and a fixed hash salt. Figures are
matplotlib objects made without `pyplot`, which would keep global state.
"""

from __future__ import annotations

import csv
import io
import math
import textwrap
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moesim.files import whole_file, whole_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.textpath import TextPath

__all__ = [
    "WIDTH_IN",
    "Chart",
    "drawn",
    "grid",
    "mark_undefined",
    "onto",
    "save_charts",
    "write_csv",
    "write_whole",
]

WIDTH_IN: Final = 7.0
"""Width of every figure in inches: the text block of a two-column page."""

MOST_LINES: Final = 4
"""The most lines of a label. A longer label is shortened; the chart's CSV has it in full."""
# Of captions: characters that fit across a figure, and the height of a line.
_CHARACTERS: Final = 150
_CAPTION_POINTS: Final = 6.5
_LINE_IN: Final = 0.125


@dataclass(slots=True)
class Chart:
    """A figure under construction, its panels by row, and its data as `columns` and `rows`."""

    name: str
    title: str
    figure: Figure
    axes: list[list[Axes]]
    caption: str
    columns: tuple[str, ...] = ()
    rows: list[Sequence[Any]] = field(default_factory=list)

    def record(self, *values: Any) -> None:
        """Add one row of data, with a value for each column."""
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
    """Return a chart with `shape` (rows, columns) panels, `height_in` inches without its caption.

    `columns` names its data, `widths` are relative, `options` go to `Figure.subplots`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    lines = _caption_lines(caption)
    size = (WIDTH_IN, height_in + _LINE_IN * len(lines) + 0.1)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.07, h_pad=0.05))
    FigureCanvasAgg(figure)
    axes = figure.subplots(*shape, squeeze=False, width_ratios=widths, **options)
    panels = axes.tolist()
    if (chosen := _onto.get()) is not None:
        given, row, column = chosen
        panels[row][column] = given
    # As a label of the figure, so that the layout makes room for it.
    figure.supxlabel(
        drawn("\n".join(lines)), x=0.008, ha="left", fontsize=_CAPTION_POINTS, color="#444444"
    )
    return Chart(name, title, figure, panels, caption, tuple(columns))


@contextmanager
def onto(axes: Axes, row: int = 0, column: int = 0) -> Iterator[None]:
    """Make `axes` the panel at a row and column of the chart that is drawn inside the context.

    So one panel of a chart can be drawn into a figure of the caller, by the same code.
    """
    token = _onto.set((axes, row, column))
    try:
        yield
    finally:
        _onto.reset(token)


_onto: ContextVar[tuple[Axes, int, int] | None] = ContextVar("onto", default=None)


def _caption_lines(caption: str) -> list[str]:
    """Return the lines of a caption, all narrower than the figure, as capital letters are wide."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    from moesim.report.style import HOUSE

    font = FontProperties(family=HOUSE["font.family"], size=_CAPTION_POINTS)
    room = WIDTH_IN * 72 * 0.975
    lines: list[str] = []
    for characters in range(_CHARACTERS, _CHARACTERS // 3, -5):
        lines = textwrap.wrap(caption, characters)
        paths = [TextPath((0, 0), drawn(line), prop=font) for line in lines]
        if all(_narrow(path, room) for path in paths):
            break
    return lines


def _narrow(path: TextPath, room: float) -> bool:
    """Return whether the outline of a text is at most `room` wide."""
    # Curves lie between their control points, so most lines need no exact extent, which is slow.
    across = path.vertices[:, 0]
    if len(across) and float(across.max() - across.min()) <= room:
        return True
    return bool(path.get_extents().width <= room)


def drawn(text: str, width: int = 0) -> str:
    """Return a text that matplotlib shows as it is, in lines of at most `width` characters.

    Dollars start no formula, and a leading underscore hides no legend entry. Characters that the
    font lacks are written as their numbers.
    """
    glyphs = _glyphs()
    text = "".join(c if c == "\n" or ord(c) in glyphs else f"\\u{ord(c):04x}" for c in text)
    if width:
        text = "\n".join(textwrap.wrap(_shortened(text, width * MOST_LINES), width))
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def _shortened(text: str, most: int) -> str:
    """Return a text of at most `most` characters; a longer one loses its middle."""
    if len(text) <= most:
        return text
    # The checksum tells labels apart that differ in the middle only.
    keep, checksum = (most - 20) // 2, zlib.crc32(text.encode())
    return f"{text[:keep]} … #{checksum:08x} … {text[-keep:]}"


@cache
def _glyphs() -> frozenset[int]:
    """Return the code points that the font of the figures has."""
    from matplotlib.font_manager import findfont, get_font

    from moesim.report.style import HOUSE

    return frozenset(get_font(findfont(HOUSE["font.family"])).get_charmap())


def mark_undefined(axes: Axes, why: str) -> None:
    """Write "undefined" and the reason in the middle of a panel that has nothing to draw."""
    axes.text(
        0.5, 0.5, f"undefined\n({why})", transform=axes.transAxes, ha="center", va="center",
        color="#666666", style="italic",
    )  # fmt: skip
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)


def save_charts(folder: Path, makers: Iterable[Callable[[], Chart | None]]) -> list[Chart]:
    """Make charts, write them into `folder`, and return them. They replace the folder's content.

    A maker that has nothing to draw returns None.

    Raises:
        OutputError: the folder cannot be written.
    """
    from moesim.report.style import house_style

    charts = []
    # Charts are made and saved one by one, all within our style: it applies when drawing, too.
    with whole_folder(folder, force=True) as partial, house_style():
        for maker in makers:
            chart = maker()
            if chart is not None:
                _save(chart, partial)
                charts.append(chart)
    return charts


def write_csv(file: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table as CSV, floats to ten significant digits, undefined as an empty field.

    Raises:
        OutputError: the file cannot be written.
    """
    handle = io.StringIO()
    writer = csv.writer(handle, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_field(value) for value in row] for row in rows)
    write_whole(file, handle.getvalue())


def write_whole(file: Path, text: str) -> None:
    """Write a text file in UTF-8 under a temporary name, then rename it.

    Raises:
        OutputError: the file cannot be written.
    """
    with whole_file(file) as partial:
        # `newline=""`: the same bytes on every system.
        partial.write_text(text, encoding="utf-8", newline="")


def _save(chart: Chart, folder: Path) -> None:
    chart.figure.savefig(folder / f"{chart.name}.png", metadata={"Software": None})
    chart.figure.set_layout_engine("none")  # keep the PNG's layout: to compute it again is slow
    chart.figure.savefig(
        folder / f"{chart.name}.svg",
        metadata={
            "Date": None,  # matplotlib would write today's date and its version
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
