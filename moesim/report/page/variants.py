"""What the plots of a comparison share: names of settings, choices, and colours of variants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from moesim.report.comparison import Comparison
from moesim.report.marks import FORESEES
from moesim.report.metrics import Metric
from moesim.report.page.charts import colors
from moesim.report.page.parts import Choice
from moesim.report.style import BLUE, Style, styles_of

__all__ = [
    "EVERY",
    "MOST_COLORS",
    "by_variant",
    "choice",
    "defined_metrics",
    "inside_by_variant",
    "setting_name",
    "variant_colors",
]

MOST_COLORS: Final = 12
"""With more variants, colours tell nothing apart; points then have one colour and a tooltip."""
EVERY: Final = "all settings"


def setting_name(setting: str) -> str:
    return setting or EVERY


def defined_metrics(comparison: Comparison) -> list[Metric]:
    """Return the headline metrics that any row defines; older runs lack some."""
    rows = comparison.rows
    return [metric for metric in comparison.headline
            if any(row.estimate(metric).defined for row in rows)]  # fmt: skip


def choice(field: str, label: str, options: Sequence[str]) -> tuple[Choice, ...]:
    return (Choice(field, label, tuple(options)),)


def by_variant(variants: Sequence[str]) -> Any:
    """Return the colour of points by variant, in the style of all figures; one colour if many."""
    import altair as alt

    if len(variants) > MOST_COLORS:
        return alt.ColorValue(BLUE)
    return alt.Color("variant:N", scale=colors(variants, variant_colors(variants)))


def inside_by_variant(variants: Sequence[str]) -> Any:
    """Return the colour inside the points of each variant: variants of one colour differ in it."""
    import altair as alt

    if len(variants) > MOST_COLORS:
        return alt.FillValue(BLUE)
    inside = [look.color if look.filled else "transparent" for look in _looks(variants)]
    return alt.Fill("variant:N", scale=colors(variants, inside))


def variant_colors(labels: Sequence[str]) -> list[str]:
    """Return the colours of variants, which a mark behind the name does not change."""
    return [look.color for look in _looks(labels)]


def _looks(labels: Sequence[str]) -> list[Style]:
    variants = [label.removesuffix(f" [{FORESEES}]") for label in labels]
    by_variant = styles_of(variants)
    return [by_variant[variant] for variant in variants]
