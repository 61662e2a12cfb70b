"""How figures look: one colour and one marker for a policy, wherever it appears.

Colours are those of Okabe and Ito (Color Universal Design, 2008), distinguishable with every
common colour vision; markers and line styles tell the same apart in greyscale. Bounds are black
or grey and dashed, so that they are never mistaken for a policy. A policy from another package
gets its colour from a checksum of its name, so it too keeps it from figure to figure.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from moesim.report.comparison import Comparison

__all__ = ["BOUNDS", "KINDS", "OUTCOMES", "STALLS", "Style", "house_style", "styles"]

POLICIES: Final = {
    "LRU": ("#0072B2", "o"),
    "LFU": ("#D55E00", "s"),
    "LFU in cache": ("#E69F00", "D"),
    "LFU decay": ("#CC79A7", "^"),
    "FIFO": ("#009E73", "v"),
    "random": ("#8C8C8C", "X"),
    "static": ("#882255", "P"),
    "static (oracle)": ("#882255", "P"),
    "MIN (misses)": ("#000000", "*"),
    "no prefetch": ("#8C8C8C", "o"),
    "oracle prefetch": ("#000000", "*"),
    "predicted prefetch": ("#0072B2", "s"),
    "prefill-first batching": ("#D55E00", "s"),
    "decode-first batching": ("#0072B2", "o"),
    "fcfs batching": ("#009E73", "v"),
}
# Mostly Paul Tol's muted scheme; none of these is among the colours above.
OTHERS: Final = (
    "#332288", "#117733", "#56B4E9", "#999933", "#AA4499", "#44AA99", "#DDCC77", "#CC6677",
)  # fmt: skip
OTHER_MARKERS: Final = ("h", "<", ">", "d", "p", "8", "H")
LINES: Final[tuple[Any, ...]] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))

BOUNDS: Final[dict[str, dict[str, Any]]] = {
    "MIN bound (misses)": {"color": "#000000", "linestyle": (0, (5, 2)), "linewidth": 1.3},
    "infinite cache": {"color": "#555555", "linestyle": (0, (1, 1.5)), "linewidth": 1.6},
    "infinite link": {"color": "#999999", "linestyle": (0, (6, 2, 1, 2)), "linewidth": 1.3},
}
STALLS: Final = {
    "demand": ("#D55E00", ""),
    "late": ("#F0C000", "////"),
    "readback": ("#56B4E9", "\\\\\\\\"),
    "other": ("#9A9A9A", "xxxx"),
}
OUTCOMES: Final = {
    "hit": ("#0072B2", ""),
    "late hit": ("#8CC6EC", "////"),
    "miss": ("#EBEBEB", ""),
}
KINDS: Final = {
    "front": "#0072B2",
    "dense": "#004C77",
    "experts": "#009E73",
    "tail": "#8C8C8C",
    "demand": "#D55E00",
    "prefetch": "#F0C000",
    "load": "#CC79A7",
    "readback": "#56B4E9",
    "write_back": "#6A3D7C",
}


@dataclass(frozen=True, slots=True)
class Style:
    """How one variant is drawn in every figure of a comparison."""

    color: str
    marker: str
    line: Any = "-"
    filled: bool = True

    @property
    def face(self) -> str:
        """The marker's inside."""
        return self.color if self.filled else "white"


def styles(comparison: Comparison) -> dict[str, Style]:
    """The style of each variant: colour and marker by its policy, line by what else differs."""
    made: dict[str, Style] = {}
    seconds: dict[str, int] = {}
    taken: dict[str, tuple[str, str]] = {}
    for variant in sorted(comparison.variants):
        first, _, rest = variant.partition(", ")
        index = seconds.setdefault(rest, len(seconds))
        color, marker = _of(first, taken)
        made[variant] = Style(color, marker, LINES[index % len(LINES)], index % 2 == 0)
    return {variant: made[variant] for variant in comparison.variants}


@contextmanager
def house_style() -> Iterator[None]:
    """Matplotlib's defaults and ours, whatever the user's own configuration is; then as before.

    Fixed fonts, hash salt and sizes, so that the same data give the same bytes.
    """
    from matplotlib import style

    with style.context(["default", HOUSE]):
        yield


HOUSE: Final[dict[str, Any]] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "hatch.linewidth": 0.5,
    "figure.dpi": 200,
    "savefig.dpi": 200,
    "svg.hashsalt": "moesim",
    "svg.fonttype": "path",
    "path.simplify": False,
}


def _of(name: str, taken: dict[str, tuple[str, str]]) -> tuple[str, str]:
    """Colour and marker of a policy; unknown names probe onwards from their checksum."""
    if name in POLICIES:
        return POLICIES[name]
    if name not in taken:
        checksum = zlib.crc32(name.encode())
        order = [OTHERS[(checksum + step) % len(OTHERS)] for step in range(len(OTHERS))]
        used = {color for color, _ in taken.values()}
        color = next((color for color in order if color not in used), order[0])
        taken[name] = (color, OTHER_MARKERS[checksum // 8 % len(OTHER_MARKERS)])
    return taken[name]
