"""The plots of one run over its steps: requests, KV blocks, and experts in GPU memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from moesim.report.page.charts import POINTS, colors, data, framed, names, strokes
from moesim.report.page.parts import Plot
from moesim.report.runs import Run
from moesim.report.style import BLUE, GREEN, ORANGE
from moesim.report.waiting import waiting_ns

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]


__all__ = ["occupancy"]


def occupancy(run: Run) -> Iterator[Plot]:
    """Yield requests, KV blocks and resident experts over the steps of the whole run."""
    import numpy as np

    optional = {"residents"} & set(run.arrow("steps").column_names)  # older runs lack it
    table = run.table("steps", ["start_ns", "finish_ns", "sequences", "kv_blocks", *optional])
    known = {name: values.astype(np.float64) for name, values in table.items()}
    start, finish = known["start_ns"], known["finish_ns"]
    if not len(start):
        return
    groups = np.array_split(np.arange(len(start)), min(POINTS, len(start)))
    note = f" Each point is the mean of up to {-(-len(start) // len(groups))} steps."
    note *= len(start) > POINTS
    peak = f"KV blocks held in each step; the peak is {run.text('peak_kv_blocks')}."
    slots = f"Experts with a slot when a step ends, of {run.text('cache_slots')} slots."
    batch = {"running": (known["sequences"], BLUE), "waiting": (_waiting(run, start), ORANGE)}
    for quantity, title, series, caption in (
        ("requests", "Requests in each step", batch, _BATCH),
        ("KV blocks", "KV blocks in use", {"KV blocks": (known["kv_blocks"], GREEN)}, peak),
        ("experts", "Experts in GPU memory",
         {"experts": (known["residents"], BLUE)} if "residents" in known else {}, slots),
    ):  # fmt: skip
        rows = [
            (line, start[group[0]] / 1e9, finish[group[-1]] / 1e9, part.mean(), part.max())
            for line, (values, _) in series.items()
            for group in groups
            for part in [values[group]]
        ]
        plain = [(line, *map(float, numbers)) for line, *numbers in rows]
        looks = [look for _, look in series.values()]
        if plain:
            yield _series(quantity, title, list(series), looks, caption + note, plain)


_BATCH: Final = (
    "Requests that a step serves, and requests that wait when it starts: they have arrived, and no "
    "step has served them."
)


def _waiting(run: Run, starts: Numbers) -> Numbers:
    """Return how many requests have arrived and not been served yet, at each time."""
    import numpy as np

    arrived, served = (np.searchsorted(times, starts, "right") for times in waiting_ns(run))
    return (arrived - served).astype(np.float64)


def _series(
    name: str, title: str, labels: list[str], looks: list[str], caption: str, rows: list[Any]
) -> Plot:
    import altair as alt

    tooltip = [
        alt.Tooltip("line:N", title="of"),
        alt.Tooltip("start:Q", title="from (s)", format=",.4~r"),
        alt.Tooltip("stop:Q", title="to (s)", format=",.4~r"),
        alt.Tooltip("mean:Q", title="mean", format=",.4~r"),
        alt.Tooltip("most:Q", title="most", format=",.4~r"),
    ]
    chart = (
        alt.Chart(data())
        .mark_rule(strokeWidth=2.5)
        .encode(
            alt.X("start:Q", title="time (s)", scale=alt.Scale(nice=False)),
            alt.X2("stop:Q"),
            alt.Y("mean:Q", title=name),
            alt.Color("line:N", scale=colors(labels, looks),
                      legend=strokes() if len(labels) > 1 else None),
            tooltip=tooltip,
        )
    )  # fmt: skip
    return Plot(
        f"plot-{name.replace(' ', '-').lower()}", title, f"Plot over time: {title.lower()}.",
        caption, framed(chart, 180), ("line", "start", "stop", "mean", "most"), rows,
        {"line": "line", "start": "from (s)", "stop": "to (s)", "mean": "mean", "most": "most"},
        longest_label=names(labels) if len(labels) > 1 else 0,
    )  # fmt: skip
