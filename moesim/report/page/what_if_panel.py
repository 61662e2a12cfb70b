"""The what-if panel: what each change of the machine would bring, and what it needs."""

from __future__ import annotations

import shlex
from typing import Final

from moesim.report.marks import marked, routing_mark
from moesim.report.page.charts import EDGE, colors, data, framed
from moesim.report.page.parts import Block, Code, Hidden, Paragraph, Plot, from_table
from moesim.report.runs import Run
from moesim.report.style import BLUE, GREY
from moesim.report.what_ifs import AS_RUN, sentences, what_if_table
from moesim.results.what_if import WhatIfs

__all__ = ["what_if_panel"]

NOT_COMPUTED: Final = (
    "Not computed. `moesim report RUN --html --what-if` simulates the run again with twice the "
    "link, twice the expert slots, twice the CPU, and a perfect prefetch."
)
RATE: Final = "output_tokens_per_s"


def what_if_panel(run: Run, found: WhatIfs | None) -> list[Block]:
    """Return the panel, or a line that says how to compute it."""
    if found is None:
        return [Paragraph(NOT_COMPUTED)]
    table = what_if_table(run, found)
    table.title = marked(table.title, routing_mark(run))
    sets = [shlex.join([part for key in each.sets for part in ("--set", key)])
            for each in found.answers if each.sets]  # fmt: skip
    keys: list[Block] = [Hidden("The changed keys", [Code("\n".join(sets))])] if sets else []
    told = [Paragraph(f"{text[:1].upper()}{text[1:]}.") for text in sentences(found)]
    return [_plot(found), from_table("what-if-table", table), *told, *keys]


def _plot(found: WhatIfs) -> Plot:
    import altair as alt

    runs = [(AS_RUN, found.base), *((each.title, each.summary) for each in found.answers)]
    rows = [(title, float(summary[RATE]), "as it was" if title == AS_RUN else "changed")
            for title, summary in runs if summary and summary.get(RATE) is not None]  # fmt: skip
    title = "output tokens/s"
    chart = (
        alt.Chart(data())
        .mark_bar(stroke=EDGE, strokeWidth=0.5)
        .encode(
            alt.X("value:Q", title=title),
            alt.Y("change:N", title=None, sort=[row[0] for row in rows]),
            alt.Color("kind:N", legend=None,
                      scale=colors(["as it was", "changed"], [GREY, BLUE])),
            tooltip=[
                alt.Tooltip("change:N", title="change"),
                alt.Tooltip("value:Q", title=title, format=",.4~r"),
            ],
        )
    )  # fmt: skip
    return Plot(
        "plot-what-if", "Throughput with one change each",
        "Bars: output tokens per second of the run and of each changed run.",
        "Simulated again, each with one change. Gains do not add up.",
        framed(chart), ("change", "value", "kind"), rows, {"change": "change", "value": title},
        rising=("change", 26),
    )  # fmt: skip
