"""The what-if panel: what each change of the machine would bring, and what it needs."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from typing import Any, Final

from moesim.report.metrics import number
from moesim.report.page.charts import EDGE, colors, data, framed
from moesim.report.page.parts import Block, DataCell, DataTable, Paragraph, Plot, number_cell
from moesim.results.what_if import WhatIf, WhatIfs

__all__ = ["what_if_panel"]

NOT_COMPUTED: Final = (
    "Not computed. `moesim report RUN --html --what-if` simulates the run again with twice the "
    "link, twice the expert slots, twice the CPU, and a perfect prefetch."
)
METRICS: Final = {
    "output_tokens_per_s": "output tokens/s",
    "decode_mean_tokens_per_s": "decode tokens/s of one user",
    "ttft_p95_ms": "TTFT p95 (ms)",
    "tpot_mean_ms": "TPOT mean (ms)",
    "e2e_p95_ms": "E2E p95 (ms)",
    "stall_s": "stalled (s)",
}
PLOTTED: Final = "output_tokens_per_s"


def what_if_panel(found: WhatIfs | None) -> list[Block]:
    """Return the panel, or a line that says how to compute it."""
    if found is None:
        return [Paragraph(NOT_COMPUTED)]
    blocks: list[Block] = [Paragraph(note) for note in found.notes]
    answered = [answer for answer in found.answers if answer.summary is not None]
    if answered:
        blocks.append(_plot(found, answered))
    return [*blocks, _table(found)]


def _table(found: WhatIfs) -> DataTable:
    keys = [key for key in METRICS if not math.isnan(_value(found.base, key))]
    base = [number_cell(_value(found.base, key)) for key in keys]
    rows = [[DataCell("this run"), *base, *_words("", "")]]
    for answer in found.answers:
        if answer.summary is None:
            cells = [DataCell("") for _ in keys]
            rows.append([DataCell(answer.title), *cells, *_words(answer.reason, "")])
            continue
        cells = [_changed(answer.summary, found.base, key) for key in keys]
        rows.append([DataCell(answer.title), *cells, *_words(answer.needs, _sets(answer))])
    heads = ["change", *(METRICS[key] for key in keys), "needs", "keys"]
    return DataTable("what-if-table", "The run with one change each", heads, rows)


def _words(needs: str, sets: str) -> tuple[DataCell, DataCell]:
    return DataCell(needs, None, "text"), DataCell(sets, None, "text")


def _sets(answer: WhatIf) -> str:
    return shlex.join([part for each in answer.sets for part in ("--set", each)])


def _changed(summary: Mapping[str, Any], base: Mapping[str, Any], key: str) -> DataCell:
    """Return a value with its relative change."""
    value, before = _value(summary, key), _value(base, key)
    change = f" ({(value - before) / abs(before):+.0%})" if before and value == value else ""
    return number_cell(value, digits=number(value) + change)


def _plot(found: WhatIfs, answered: list[WhatIf]) -> Plot:
    import altair as alt

    rows = [("this run", _value(found.base, PLOTTED), "as it is"),
            *((answer.title, _value(answer.summary or {}, PLOTTED), "changed")
              for answer in answered)]  # fmt: skip
    title = METRICS[PLOTTED]
    chart = (
        alt.Chart(data())
        .mark_bar(stroke=EDGE, strokeWidth=0.5)
        .encode(
            alt.X("value:Q", title=title),
            alt.Y("change:N", title=None, sort=[row[0] for row in rows]),
            alt.Color("kind:N", legend=None,
                      scale=colors(["as it is", "changed"], ["#8C8C8C", "#0072B2"])),
            tooltip=[
                alt.Tooltip("change:N", title="change"),
                alt.Tooltip("value:Q", title=title, format=",.4~r"),
            ],
        )
    )  # fmt: skip
    return Plot(
        "plot-what-if", "Throughput with one change each",
        "Bars: output tokens per second of the run and of each changed run.",
        "Simulated again, each with one change. Changes do not add up.",
        framed(chart), ("change", "value", "kind"), rows, {"change": "change", "value": title},
        rising=("change", 26),
    )  # fmt: skip


def _value(summary: Mapping[str, Any], key: str) -> float:
    value = summary.get(key)
    return float(value) if isinstance(value, int | float) else math.nan
