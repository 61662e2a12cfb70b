"""A chart: a figure, its caption, and the numbers that it draws.

Every chart is saved under one name: as PNG, SVG or PDF, its data as CSV, and its caption with the
command that draws it as Markdown. `moesim.report.drawing` says how. Equal data give equal bytes:
files have no dates and no versions, and a fixed hash salt. Figures are matplotlib objects made
without `pyplot`, which would keep global state.
"""

from __future__ import annotations

import csv
import io
import math
import textwrap
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moesim.errors import UsageError
from moesim.files import whole_file, whole_folder
from moesim.report.drawing import Size, current

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.textpath import TextPath

__all__ = [
    "Chart",
    "drawn",
    "grid",
    "mark_undefined",
    "onto",
    "save_charts",
    "write_csv",
    "write_whole",
]

MOST_LINES: Final = 4
"""The most lines of a label. A longer label is shortened; the chart's CSV has it in full."""
# Of captions: characters that fit across a page, and the height of a line.
_CHARACTERS: Final = 150
_CAPTION_POINTS: Final = 6.5
_LINE_IN: Final = 0.125
_MARKS: Final = ("synthetic routing", "foreign sizes", "knows the future")
"""Warnings that stay in the figure, because a picture is copied without its caption."""


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
    size: Size = field(default_factory=lambda: current().size)
    across: int = 1
    """How many panels are beside each other; a row of more panels is folded."""
    natural_in: float = 0.0
    """The height that the content needs in inches; figures of a fixed height have another."""

    def grow(self, inches: float) -> None:
        """Add `inches` of height, if positive, unless the figure's height is fixed."""
        if inches > 0:
            self.natural_in += inches
            self.figure.set_figheight(self.size.height(self.natural_in))

    @property
    def panels(self) -> list[Axes]:
        """Return all panels, row by row."""
        return [axes for row in self.axes for axes in row]

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
    note: str = "",
    names_in: float = 0.0,
    **options: Any,
) -> Chart:
    """Return a chart with `shape` (rows, columns) panels, `height_in` inches without its caption.

    `columns` names its data, `widths` are relative, `options` go to `Figure.subplots`. `note` is a
    line that stays in the figure: the number of requests, and where times are from. A narrow
    figure has fewer panels in a row. `names_in` are the inches that names at the left take.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    size, across = current().size, current().size.columns(shape[1], names_in)
    if across == 1 < shape[1]:  # panels below each other
        caption = caption.replace("Left:", "Top:").replace("Right:", "Bottom:")
    text = caption if current().captions == "inside" else _note(note, caption)
    lines = _caption_lines(text, size.width_in)
    folded = -(-shape[1] // across)
    natural = height_in * (1 + 0.8 * (folded - 1)) + _LINE_IN * len(lines) + 0.1
    figure = Figure(
        figsize=(size.width_in, size.height(natural)),
        layout=ConstrainedLayoutEngine(w_pad=0.07, h_pad=0.05),
    )
    FigureCanvasAgg(figure)
    if folded == 1:
        panels = figure.subplots(*shape, squeeze=False, width_ratios=widths, **options).tolist()
    else:
        panels = _folded(figure, shape, across, **options)
    if (chosen := _onto.get()) is not None:
        given, row, column = chosen
        panels[row][column] = given
    # As a label of the figure, so that the layout makes room for it.
    figure.supxlabel(
        drawn("\n".join(lines)), x=0.008, ha="left", fontsize=_CAPTION_POINTS, color="#444444"
    )
    return Chart(
        name, title, figure, panels, caption, tuple(columns), across=across, natural_in=natural
    )


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


def _folded(
    figure: Figure,
    shape: tuple[int, int],
    across: int,
    *,
    sharex: Any = False,
    sharey: Any = False,
) -> list[list[Axes]]:
    """Return panels by row, where each row of `shape` is folded into rows of `across` panels."""
    rows, columns = shape
    folds = -(-columns // across)
    places = figure.add_gridspec(rows * folds, across)
    axes: list[list[Axes]] = []
    for row in range(rows):
        axes.append([])
        for column in range(columns):
            place = places[row * folds + column // across, column % across]
            first = axes[0][0] if row or column else None
            beside = axes[row][0] if column else None
            panel = figure.add_subplot(
                place,
                sharex={"row": beside, True: first, "all": first}.get(sharex),
                sharey={"row": beside, True: first, "all": first}.get(sharey),
            )
            if sharey and column % across:
                panel.tick_params(labelleft=False)
            axes[row].append(panel)
    return axes


def _note(note: str, caption: str) -> str:
    """Return the line that stays in a figure: its note, and the marks that its caption has."""
    marks = [mark for mark in _MARKS if mark.upper() in caption and mark.upper() not in note]
    return "; ".join([*([note] if note else []), *(mark.upper() for mark in marks)])


def _caption_lines(caption: str, width_in: float) -> list[str]:
    """Return the lines of a caption, all narrower than the figure, as capital letters are wide."""
    from matplotlib import rcParams
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    font = FontProperties(family=rcParams["font.family"], size=_CAPTION_POINTS)
    room = width_in * 72 * 0.975
    most = current().size.across(_CHARACTERS)
    lines: list[str] = []
    for characters in range(most, most // 3, -5):
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
    from matplotlib import rcParams

    glyphs = _glyphs(tuple(rcParams["font.family"]))
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
def _glyphs(family: tuple[str, ...]) -> frozenset[int]:
    """Return the code points that the font of a family has."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties(family=list(family)))).get_charmap())


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
    from moesim.report.figure_styles import recolour

    drawing = current()
    with _fitting(chart):
        recolour(chart.figure, drawing.style)
        for kind in drawing.formats:
            file = folder / f"{chart.name}.{kind}"
            chart.figure.savefig(file, metadata=_metadata(kind, chart), dpi=chart.size.dpi)
            chart.figure.set_layout_engine("none")  # keep the layout: to compute it again is slow
    write_csv(folder / f"{chart.name}.csv", chart.columns, chart.rows)
    write_whole(folder / f"{chart.name}.md", "\n\n".join(_sidecar(chart, drawing.command)) + "\n")


@contextmanager
def _fitting(chart: Chart) -> Iterator[None]:
    """Raise `UsageError` where the panels of a chart get no room beside its letters."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="constrained_layout not applied")
        try:
            yield
        except UserWarning as error:
            width, height = chart.figure.get_size_inches()
            raise UsageError(
                f"the figure {chart.name} does not fit into {width:.3g} x {height:.3g} in; ask for "
                "a wider --size, or one without a height"
            ) from error


def _metadata(kind: str, chart: Chart) -> dict[str, str | None]:
    """Return what a file says of itself: matplotlib would write today's date and its version."""
    by_kind: dict[str, dict[str, str | None]] = {
        "png": {"Software": None},
        "svg": {
            "Date": None, "Creator": None, "Title": chart.title, "Description": chart.caption
        },
        "pdf": {
            "CreationDate": None, "Creator": None, "Producer": None, "Title": chart.title,
            "Subject": chart.caption,
        },
    }  # fmt: skip
    return by_kind[kind]


def _sidecar(chart: Chart, command: str) -> Iterator[str]:
    """Yield the paragraphs of the file beside a figure: title, caption, and how it is made."""
    from moesim.report.tabular import escaped

    yield f"# {escaped(chart.title)}"
    yield escaped(chart.caption)
    yield f"The numbers are in `{chart.name}.csv`."
    if command:
        yield f"The command that draws it:\n\n```sh\n{command}\n```"


def _field(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.10g}"
    return value
