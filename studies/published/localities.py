"""The knobs of synthetic routing that match published hit rates, and how well they do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cache_replay import Locality
from published_rows import Row, median_error

__all__ = ["Found", "locality_table"]


@dataclass(frozen=True, slots=True)
class Found:
    """The knobs of one group of rows, and which rows they are fitted to."""

    group: str
    knobs: Locality
    fitted_to: str


def locality_table(found: Sequence[Found], rows: Sequence[Row]) -> str:
    """Return the knobs of each group as Markdown, with the errors of its predicted rows."""
    lines = [
        "| model and routing | skew | stickiness | fitted to | predicted rows: "
        "median error | largest error |",
        "|---|--:|--:|---|--:|--:|",
    ]
    for each in found:
        own = [row for row in rows if row.group == each.group]
        predicted = [row for row in own if row.kind == "predicted" and row.error is not None]
        worst = max(predicted, key=lambda row: abs(row.error or 0), default=None)
        median = median_error(own)
        cells = (
            each.group,
            f"{each.knobs.skew:g}",
            f"{each.knobs.stickiness:g}",
            each.fitted_to,
            "" if median is None else f"{median:.1f} points",
            ""
            if worst is None
            else f"{worst.error_text} ({worst.what.removeprefix(each.group)[2:]})",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
