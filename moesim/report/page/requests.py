"""Requests and layers as tables, and the slowest requests with a timeline each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from moesim.report.distribution import in_window, latency_scale
from moesim.report.lane_names import STALL_CAUSES, causes_of
from moesim.report.page.charts import EDGE, colors, data, framed, names
from moesim.report.page.parts import DataCell, DataTable, Plot, number_cell
from moesim.report.runs import Run
from moesim.report.style import BLUE, GREEN, ORANGE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["layer_table", "request_table", "slowest"]

MOST_REQUESTS: Final = 1000
"""The most rows of the table of requests."""
SLOWEST: Final = 5
MARKS: Final = 200
"""The most marks of one kind in a timeline."""
PHASES: Final = {"queued": ORANGE, "prefill": GREEN, "decode": BLUE}
_COLUMNS: Final = (
    "request", "domain", "status", "arrival_ns", "scheduled_ns", "first_token_ns", "finish_ns",
    "prompt_tokens", "output_tokens", "preemptions",
)  # fmt: skip


def request_table(run: Run) -> DataTable:
    """Return one row a request; of more than `MOST_REQUESTS`, those with the longest E2E."""
    table = run.table("requests", _COLUMNS)
    order = _by_duration(table)
    shown = sorted(order[:MOST_REQUESTS])
    left_out = f"the slowest {len(shown)} of {len(order)}" if len(shown) < len(order) else ""
    return DataTable(
        "requests-table", "Requests", _HEADERS,
        [_request_row(table, place) for place in shown], interactive=True, note=left_out,
    )  # fmt: skip


_HEADERS: Final = (
    "request", "domain", "status", "prompt tokens", "output tokens", "arrival (s)",
    "queued (ms)", "served to first token (ms)", "TTFT (ms)", "mean gap (ms)", "E2E (ms)",
    "preemptions",
)  # fmt: skip


def _request_row(table: dict[str, Any], place: int) -> list[DataCell]:
    arrival, scheduled, first, finish = (
        int(table[f"{key}_ns"][place]) for key in ("arrival", "scheduled", "first_token", "finish")
    )
    tokens = int(table["output_tokens"][place])
    gaps = tokens - 1 if finish >= 0 and first >= 0 else 0
    return [
        _count(table, "request", place),
        DataCell(str(table["domain"][place]), mark="text"),
        DataCell(str(table["status"][place]), mark="text"),
        _count(table, "prompt_tokens", place),
        _count(table, "output_tokens", place),
        number_cell(arrival / 1e9),
        *(number_cell(_between(*ends)) for ends in (
            (arrival, scheduled), (scheduled, first), (arrival, first))),
        number_cell((finish - first) / gaps / 1e6 if gaps > 0 else math.nan),
        number_cell(_between(arrival, finish)),
        _count(table, "preemptions", place),
    ]  # fmt: skip


def _between(start_ns: int, end_ns: int) -> float:
    """Return milliseconds; NaN where either never happened."""
    return (end_ns - start_ns) / 1e6 if start_ns >= 0 and end_ns >= 0 else math.nan


def _count(table: dict[str, Any], key: str, place: int) -> DataCell:
    value = int(table[key][place])
    return DataCell(str(value), value)


def _by_duration(table: dict[str, Any]) -> list[int]:
    """Return the places of all requests: unfinished first, then the slowest."""
    durations = [
        math.inf if finish < 0 else finish - arrival
        for arrival, finish in zip(
            table["arrival_ns"].tolist(), table["finish_ns"].tolist(), strict=True
        )
    ]
    return sorted(range(len(durations)), key=lambda place: (-durations[place], place))


def layer_table(run: Run) -> DataTable:
    """Return one row a trace layer, with its accesses, shares and stalls."""
    causes = causes_of([run])
    stalls = [f"stall_{cause}_ns" for cause in causes]
    counts = ("layer", "model_layer", "events", "accesses", "hits", "late_hits", "misses")
    table = run.table("layers", [*counts, *stalls])
    rows = []
    for place in range(len(table["layer"])):
        accesses = int(table["accesses"][place]) or math.nan
        hits, late, misses = (int(table[key][place]) for key in ("hits", "late_hits", "misses"))
        rows.append(
            [
                *(_count(table, key, place) for key in counts),
                *(number_cell(100 * part / accesses) for part in (hits, late, misses)),
                *(number_cell(int(table[key][place]) / 1e9) for key in stalls),
            ]
        )
    headers = (
        "layer", "layer of the model", "events", "accesses", "hits in time", "late hits", "misses",
        "hits (%)", "late hits (%)", "misses (%)",
        *(f"stalled for {STALL_CAUSES[cause]} (s)" for cause in causes),
    )  # fmt: skip
    return DataTable("layers-table", "Layers", headers, rows, interactive=True)


def slowest(run: Run) -> Iterator[Plot]:
    """Yield a timeline for each of the slowest finished requests of the run's window."""
    import numpy as np

    table = run.table("requests", [*_COLUMNS, "token_ns"])
    finish, first = (table[f"{key}_ns"].astype(np.int64) for key in ("finish", "first_token"))
    inside = in_window(run, finish) & (finish >= 0) & (first >= 0)
    places = [place for place in _by_duration(table) if inside[place]]
    steps = run.table("steps", ["step", "start_ns", "finish_ns", "stall_ns", "misses"])
    for rank, place in enumerate(places[:SLOWEST], 1):
        yield _timeline(table, place, steps, rank)


def _timeline(table: dict[str, Any], place: int, steps: dict[str, Any], rank: int) -> Plot:
    request = int(table["request"][place])
    arrival, finish = int(table["arrival_ns"][place]), int(table["finish_ns"][place])
    scale, unit = latency_scale(finish - arrival)
    marks = [*_phases(table, place), *_tokens(table["token_ns"][place])]
    merged, per_mark = _steps(steps, int(table["scheduled_ns"][place]), finish)
    rows = [
        (track, what, (start - arrival) / scale, (stop - arrival) / scale, detail, share)
        for track, what, start, stop, detail, share in (*marks, *merged)
    ]
    queued, until_first, whole = (_between(*ends) for ends in (
        (arrival, int(table["scheduled_ns"][place])),
        (arrival, int(table["first_token_ns"][place])), (arrival, finish)))  # fmt: skip
    title = f"{rank}. Request {request}: {whole / 1000:.4g} s from arrival to the last token"
    together = f", {per_mark} steps in each mark" if per_mark > 1 else ""
    return Plot(
        f"plot-request-{request}", title,
        f"Timeline of request {request}: queued {queued:.4g} ms, first token after "
        f"{until_first:.4g} ms, last token after {whole:.4g} ms.",
        f"Domain {table['domain'][place]}; {table['prompt_tokens'][place]} prompt tokens and "
        f"{table['output_tokens'][place]} output tokens; {table['preemptions'][place]} "
        "preemptions. Stalls: the stronger the colour of a step, the larger the share of it that "
        f"the GPU stalled{together}. Steps are all that ran meanwhile.",
        _timeline_spec(unit), ("track", "what", "start", "stop", "detail", "share"), rows,
        {"track": "track", "what": "what", "start": f"from ({unit})", "stop": f"to ({unit})",
         "detail": "detail"},
        longest_label=names(list(PHASES)),
    )  # fmt: skip


@cache  # requests that last about as long share it; to check it against the schema is slow
def _timeline_spec(unit: str) -> dict[str, Any]:
    import altair as alt

    tracks = ["phases", "tokens", "stalls"]
    base = alt.Chart(data()).encode(
        alt.X("start:Q", title=f"since the arrival ({unit})", scale=alt.Scale(nice=False)),
        alt.Y("track:N", title=None, sort=tracks, scale=alt.Scale(domain=tracks)),
        tooltip=[
            alt.Tooltip("what:N", title="what"),
            alt.Tooltip("start:Q", title=f"from ({unit})", format=",.4~r"),
            alt.Tooltip("stop:Q", title=f"to ({unit})", format=",.4~r"),
            alt.Tooltip("detail:N", title="detail"),
        ],
    )
    phases = (
        base.transform_filter("datum.track === 'phases'")
        .mark_bar(stroke=EDGE, strokeWidth=0.5)
        .encode(
            alt.X2("stop:Q"), alt.Color("what:N", scale=colors(list(PHASES), list(PHASES.values())))
        )
    )
    tokens = base.transform_filter("datum.track === 'tokens'").mark_tick(
        color=PHASES["decode"], thickness=1.5
    )
    stalls = (
        base.transform_filter("datum.track === 'stalls'")
        .mark_bar(color="#B5452C", stroke=EDGE, strokeWidth=0.3)
        .encode(
            alt.X2("stop:Q"),
            alt.Opacity("share:Q", scale=alt.Scale(domain=[0, 1], range=[0, 1]), legend=None),
        )
    )
    return framed(alt.layer(phases, tokens, stalls), 78)


Mark = tuple[str, str, int, int, str, float | None]


def _phases(table: dict[str, Any], place: int) -> Iterator[Mark]:
    ends = [int(table[f"{key}_ns"][place])
            for key in ("arrival", "scheduled", "first_token", "finish")]  # fmt: skip
    for phase, start, stop in zip(PHASES, ends[:-1], ends[1:], strict=True):
        yield "phases", phase, start, stop, f"{(stop - start) / 1e6:.4g} ms", None


def _tokens(times_ns: NDArray[np.int64]) -> Iterator[Mark]:
    times = [int(each) for each in times_ns]
    step = math.ceil(len(times) / MARKS) or 1
    for place in range(0, len(times), step):
        yield "tokens", "token", times[place], times[place], f"token {place + 1}", None


def _steps(steps: dict[str, Any], from_ns: int, to_ns: int) -> tuple[list[Mark], int]:
    """Return the steps between two times, merged to at most `MARKS`, and the steps in a mark."""
    inside = [place for place, (start, stop) in enumerate(
        zip(steps["start_ns"].tolist(), steps["finish_ns"].tolist(), strict=True))
        if start < to_ns and stop > from_ns]  # fmt: skip
    each = math.ceil(len(inside) / MARKS) or 1
    marks: list[Mark] = []
    for at in range(0, len(inside), each):
        group = inside[at : at + each]
        start, stop = int(steps["start_ns"][group[0]]), int(steps["finish_ns"][group[-1]])
        stalled = sum(int(steps["stall_ns"][place]) for place in group)
        misses = sum(int(steps["misses"][place]) for place in group)
        share = stalled / (stop - start) if stop > start else 0.0
        name = _step_names(steps, group)
        detail = f"stalled {stalled / 1e6:.4g} ms ({share:.0%}), {misses} misses"
        marks.append(("stalls", name, start, stop, detail, share))
    return marks, each


def _step_names(steps: dict[str, Any], group: list[int]) -> str:
    first, last = int(steps["step"][group[0]]), int(steps["step"][group[-1]])
    return f"step {first}" if first == last else f"steps {first} to {last}"
