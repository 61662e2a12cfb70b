"""What the plots of pages share: their frame in Altair, their colours, and thinned series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from moesim.report.style import BLUE, OUTCOMES, STALLS

if TYPE_CHECKING:
    import altair as alt
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

__all__ = ["EDGE", "IDLE", "POINTS"]
__all__ += [
    "binned",
    "colors",
    "data",
    "framed",
    "gpu_parts",
    "names",
    "outcome_colors",
    "stall_colors",
    "strokes",
]

POINTS: Final = 200
"""The most points of a curve. A page holds no more than its reader can see."""
IDLE: Final = "#C9CCD1"
EDGE: Final = "#57606a"
"""The edge of bars: their fills alone may be too close to the page's colour."""


def data() -> alt.NamedData:
    """Return the rows of the plot, which the page holds apart from the specification."""
    import altair as alt

    return alt.NamedData("rows")


def framed(chart: Any, height: int = 0) -> dict[str, Any]:
    """Return the specification of a chart as wide as its place; without a height, by its rows."""
    tall = {"height": height} if height else {}
    spec: dict[str, Any] = chart.properties(width="container", **tall).to_dict()
    # The page has one version of Vega-Lite and one theme, so that no plot carries its own.
    return {key: value for key, value in spec.items() if key not in ("$schema", "config")}


def colors(domain: Sequence[str], range_: Sequence[str]) -> Any:
    """Return a scale that gives each name its colour."""
    import altair as alt

    return alt.Scale(domain=list(domain), range=list(range_))


def strokes() -> Any:
    """Return a legend with lines as symbols."""
    import altair as alt

    return alt.Legend(symbolType="stroke", symbolStrokeWidth=2.5)


def names(spelled: Sequence[str]) -> int:
    """Return the characters of the longest name, which decides the columns of a legend."""
    return max(map(len, spelled), default=0)


def outcome_colors(labels: Sequence[str]) -> list[str]:
    """Return the colours of hits, late hits and misses."""
    return [OUTCOMES[label][0] for label in labels]


def stall_colors(causes: Sequence[str]) -> list[str]:
    """Return the colours of the causes of stalls."""
    return [STALLS[cause][0] for cause in causes]


def gpu_parts(causes: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Return the parts of the GPU's time: label, key in the summary, and colour.

    `causes` are the labels of the causes of stalls, by cause.
    """
    stalled = [(f"stalled: {label}", f"stall_{cause}_s", STALLS[cause][0])
               for cause, label in causes.items()]  # fmt: skip
    return [("computing", "busy_s", BLUE), *stalled, ("idle, no request", "idle_s", IDLE)]


def binned(times: Numbers, end: float, most: int) -> tuple[Numbers, Numbers]:
    """Return at most `most` even bins of a span, as their edges, and the count in each."""
    import numpy as np

    edges = np.linspace(0, end, most + 1)
    counts, _ = np.histogram(times, edges)
    return edges, counts.astype(np.float64)
