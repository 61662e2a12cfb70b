"""Saved figures in the Markdown page beside them, in whichever formats they were drawn."""

from __future__ import annotations

from moesim.report.chart import Chart
from moesim.report.drawing import current

__all__ = ["embedded", "other_files"]


def embedded(chart: Chart) -> str:
    """Return the Markdown of a figure: its picture, or a link where it is drawn as PDF alone."""
    kind = _shown()
    return f"{'' if kind == 'pdf' else '!'}[{chart.title}](plots/{chart.name}.{kind})"


def other_files(chart: Chart) -> str:
    """Return links in Markdown to a figure's further formats, and to its data."""
    kinds = [kind for kind in current().formats if kind != _shown()]
    links = [f"[{kind.upper()}](plots/{chart.name}.{kind})" for kind in kinds]
    return ", ".join([*links, f"[data](plots/{chart.name}.csv)"])


def _shown() -> str:
    """Return the format that a page shows: Markdown has no pictures in PDF."""
    return next((kind for kind in current().formats if kind != "pdf"), "pdf")
