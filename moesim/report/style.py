"""The style of figures: a policy has one colour and one marker wherever it appears.

Colours are those of Okabe and Ito (Color Universal Design, 2008), which people with every common
colour vision can distinguish. Markers and line styles distinguish policies in greyscale. Bounds
are black or grey and dashed, and have no markers. Any other policy gets its colour from a checksum
of its name, so the colour stays the same from figure to figure.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from moesim.report.comparison import Comparison
from moesim.report.names import ORACLE

__all__ = ["BOUNDS", "KINDS", "OUTCOMES", "STALLS", "Style", "house_style", "styles"]
__all__ += ["BLACK", "BLUE", "GREEN", "GREY", "ORANGE", "styles_of"]

BLUE, ORANGE, GREEN, GREY, BLACK = "#0072B2", "#D55E00", "#009E73", "#8C8C8C", "#000000"
POLICIES: Final = {
    "LRU": (BLUE, "o"),
    "LFU": (ORANGE, "s"),
    "LFU in cache": ("#E69F00", "D"),
    "LFU decay": ("#CC79A7", "^"),
    "FIFO": (GREEN, "v"),
    "random": (GREY, "X"),
    "static": ("#882255", "P"),
    "MIN (misses)": (BLACK, "*"),
    "no prefetch": (GREY, "o"),
    "oracle prefetch": (BLACK, "*"),
    "predicted prefetch": (BLUE, "s"),
    "prefill-first batching": (ORANGE, "s"),
    "decode-first batching": (BLUE, "o"),
    "fcfs batching": (GREEN, "v"),
    "copy placement": (BLUE, "o"),
    "cpu-layers placement": ("#E69F00", "D"),
    "cpu-experts placement": (ORANGE, "s"),
    "cost placement": (GREEN, "^"),
    "two-queue placement": ("#CC79A7", "v"),
}
# For all other policies: mostly Paul Tol's muted scheme, without the colours above.
OTHERS: Final = (
    "#332288", "#117733", "#56B4E9", "#999933", "#AA4499", "#44AA99", "#DDCC77", "#CC6677",
)  # fmt: skip
OTHER_MARKERS: Final = ("h", "<", ">", "d", "p", "8", "H")
LINES: Final[tuple[Any, ...]] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))

BOUNDS: Final[dict[str, dict[str, Any]]] = {
    # Unlike any variant's line, and wider: it shows beside the line of a policy that reaches it.
    "MIN bound (misses)": {
        "color": "#8A8A8A", "linestyle": (0, (3, 1, 1, 1, 1, 1)), "linewidth": 2.0,
    },
    "infinite cache": {"color": "#555555", "linestyle": (0, (1, 1.5)), "linewidth": 1.6},
    "infinite link": {"color": "#999999", "linestyle": (0, (6, 2, 1, 2)), "linewidth": 1.3},
}  # fmt: skip
# Hatches keep the parts of a bar apart in greyscale.
STALLS: Final = {
    "demand": (ORANGE, ""),
    "late": ("#F0C000", "////"),
    "readback": ("#56B4E9", "\\\\\\\\"),
    "cpu": (GREEN, "..."),
    "disk": ("#B5739D", "----"),
    "host": ("#CFC3EE", "++++"),
    "other": ("#9A9A9A", "xxxx"),
}
OUTCOMES: Final = {
    "hit": (BLUE, ""),
    "late hit": ("#8CC6EC", "////"),
    "miss, on the CPU": ("#7FCDB5", "..."),
    "miss, copied": ("#EBEBEB", ""),
    "miss": ("#EBEBEB", ""),
}
# The kinds of work in `timeline.parquet`: warm colours copy to the GPU.
KINDS: Final = {
    "front": BLUE,
    "dense": "#004C77",
    "experts": GREEN,
    "tail": GREY,
    "demand": ORANGE,
    "prefetch": "#F0C000",
    "load": "#CC79A7",
    "readback": "#56B4E9",
    "states": "#A6761D",
    "read": "#882255",
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
        """Return the colour inside the marker."""
        return self.color if self.filled else "white"


def styles(comparison: Comparison) -> dict[str, Style]:
    """Return each variant's style: colour and marker by its first policy, line by the rest."""
    return styles_of(comparison.variants)


def styles_of(variants: Sequence[str]) -> dict[str, Style]:
    """Return the styles of these labels, as `styles` does for the variants of a comparison."""
    by_variant: dict[str, Style] = {}
    line_numbers: dict[str, int] = {}
    taken: dict[str, tuple[str, str]] = {}
    # Sorted, so that the order of a sweep changes no colour.
    for variant in sorted(variants):
        first, _, rest = variant.partition(", ")
        index = line_numbers.setdefault(rest, len(line_numbers))
        color, marker = _look(first, taken)
        by_variant[variant] = Style(color, marker, LINES[index % len(LINES)], index % 2 == 0)
    return {variant: by_variant[variant] for variant in variants}


@contextmanager
def house_style() -> Iterator[None]:
    """Apply matplotlib's defaults and `HOUSE` inside the context, then restore the user's style.

    Fonts, sizes and the hash salt are fixed, so equal data give equal bytes. The style that
    `moesim.report.drawing` has chosen comes on top.
    """
    from moesim.report.drawing import current
    from moesim.report.figure_styles import style_context

    with style_context(current().style, HOUSE):
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
    "legend.handlelength": 3,  # long enough to show the dashes
    "hatch.linewidth": 0.5,
    "figure.dpi": 200,
    "savefig.dpi": 200,
    "svg.hashsalt": "moesim",
    "svg.fonttype": "none",  # letters, not shapes: they can be searched, copied and edited
    "pdf.fonttype": 42,  # TrueType: publishers refuse Type 3
    "path.simplify": False,
}


def _look(name: str, taken: dict[str, tuple[str, str]]) -> tuple[str, str]:
    """Return colour and marker of a policy; `taken` holds those given to other names so far."""
    if name.removesuffix(ORACLE) in POLICIES:
        return POLICIES[name.removesuffix(ORACLE)]
    if name not in taken:
        # Open addressing: from the checksum's colour on, the first that is used least; the same for
        # markers with that colour. So up to 56 policies look different.
        checksum = zlib.crc32(name.encode())
        color = _least_used(OTHERS, checksum, [color for color, _ in taken.values()])
        markers = [marker for other, marker in taken.values() if other == color]
        taken[name] = (color, _least_used(OTHER_MARKERS, checksum // 8, markers))
    return taken[name]


def _least_used(choices: Sequence[str], start: int, used: Sequence[str]) -> str:
    """Return the choice that is used least; of several, the first from place `start` on."""
    order = [choices[(start + step) % len(choices)] for step in range(len(choices))]
    return min(order, key=used.count)
