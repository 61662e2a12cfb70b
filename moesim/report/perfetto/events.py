"""Trace events: metadata, slices, arrows, spans of requests and counters.

Times are in microseconds, as the format wants them, with three decimals for nanoseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from moesim.machine.work import FAR
from moesim.report.lane_names import LANES
from moesim.report.perfetto.works import Work, arrows
from moesim.report.runs import Run
from moesim.report.waiting import waiting_ns

__all__ = ["counter_events", "lane_events", "request_events"]

Event = dict[str, Any]

_MACHINE, _REQUESTS, _COUNTERS = 1, 2, 3
_STEPS_TRACK: Final = 1
MOST_POINTS: Final = 20_000
"""The most points of a counter. Beyond them, each point is the largest of several steps."""
_REQUEST_COLUMNS: Final = (
    "request", "arrival_ns", "scheduled_ns", "first_token_ns", "finish_ns", "prompt_tokens",
    "output_tokens", "preemptions", "status",
)  # fmt: skip
_STEP_COLUMNS: Final = (
    "step", "start_ns", "finish_ns", "prefill_tokens", "decode_tokens", "sequences", "hits",
    "late_hits", "misses", "stall_ns", "kv_blocks",
)  # fmt: skip


def _us(time_ns: float) -> float:
    return time_ns / 1000


def _process(pid: int, name: str) -> Iterator[Event]:
    common = {"ph": "M", "pid": pid, "tid": 0, "ts": 0}
    yield {**common, "name": "process_name", "args": {"name": name}}
    yield {**common, "name": "process_sort_index", "args": {"sort_index": pid}}


def _thread(pid: int, tid: int, name: str) -> Iterator[Event]:
    common = {"ph": "M", "pid": pid, "tid": tid, "ts": 0}
    yield {**common, "name": "thread_name", "args": {"name": name}}
    yield {**common, "name": "thread_sort_index", "args": {"sort_index": tid}}


def lane_events(run: Run, works: Sequence[Work], steps: Sequence[int]) -> Iterator[Event]:
    """Yield a track of the shown steps and one for each lane, and the arrows between lanes."""
    yield from _process(_MACHINE, "machine")
    yield from _thread(_MACHINE, _STEPS_TRACK, "steps")
    lanes = [lane for lane in LANES if any(work.lane == lane for work in works)]
    lanes += sorted({work.lane for work in works} - set(lanes))
    # Two tracks a lane: on a link, a demand copy may run between the chunks of a copy ahead.
    tids = {(lane, deep): 2 + 2 * at + deep for at, lane in enumerate(lanes) for deep in (0, 1)}
    places = [_place(open_until, work) for open_until, work in _open(works)]
    for lane in lanes:
        yield from _thread(_MACHINE, tids[lane, 0], LANES.get(lane, lane).replace("\n", " "))
        if any(deep and work.lane == lane for deep, work in zip(places, works, strict=True)):
            yield from _thread(_MACHINE, tids[lane, 1], f"{lane}, under way too")
    yield from _step_slices(run, steps)
    track = {work: tids[work.lane, deep] for deep, work in zip(places, works, strict=True)}
    for work in works:
        yield _slice(work, track[work])
    for number, (source, target) in enumerate(arrows(works)):
        yield from _arrow(number, source, track[source], target, track[target])


def _open(works: Sequence[Work]) -> Iterator[tuple[int, Work]]:
    """Yield each work with the time until which another work of its lane is under way."""
    until: dict[str, int] = {}
    for work in works:
        yield until.get(work.lane, 0), work
        until[work.lane] = max(until.get(work.lane, 0), work.finish_ns)


def _place(open_until: int, work: Work) -> int:
    """Return 1 for a work that starts while another one of its lane is under way, else 0."""
    return int(work.start_ns < open_until)


def _slice(work: Work, tid: int) -> Event:
    expert = f" E{work.expert}" if work.expert >= 0 else ""
    return {
        "ph": "X", "pid": _MACHINE, "tid": tid, "cat": work.kind,
        "name": f"{work.kind} L{work.layer}{expert}",
        "ts": _us(work.start_ns), "dur": _us(work.finish_ns - work.start_ns),
        "args": {"step": work.step, "layer": work.layer, "expert": work.expert},
    }  # fmt: skip


def _arrow(number: int, source: Work, source_tid: int, target: Work, tid: int) -> Iterator[Event]:
    common = {"pid": _MACHINE, "cat": "wait", "name": "waited for", "id": number}
    # A flow belongs to the slice around its time, so it must lie inside, not at the slice's end.
    yield {**common, "ph": "s", "tid": source_tid, "ts": _us(source.start_ns)}
    yield {**common, "ph": "f", "bp": "e", "tid": tid, "ts": _us(target.start_ns)}


def _step_slices(run: Run, steps: Sequence[int]) -> Iterator[Event]:
    table = run.table("steps", _STEP_COLUMNS)
    for row in np.flatnonzero(np.isin(table["step"], steps)).tolist():
        values = {key: int(column[row]) for key, column in table.items()}
        start, finish = values.pop("start_ns"), values.pop("finish_ns")
        yield {
            "ph": "X", "pid": _MACHINE, "tid": _STEPS_TRACK, "cat": "step",
            "name": f"step {values['step']}", "ts": _us(start), "dur": _us(finish - start),
            "args": values,
        }  # fmt: skip


def request_events(run: Run) -> Iterator[Event]:
    """Yield each request as a span with the phases queue, prefill and decode."""
    yield from _process(_REQUESTS, "requests")
    table = run.table("requests", _REQUEST_COLUMNS)
    ended_ns = round(run.value("makespan_s") * 1e9)
    order = np.argsort(table["arrival_ns"], kind="stable").tolist()
    for row in order:
        values = {key: column[row] for key, column in table.items()}
        yield from _request(values, ended_ns)


def _request(values: Mapping[str, Any], ended_ns: int) -> Iterator[Event]:
    arrival, scheduled, first, finish = (
        int(values[key]) for key in ("arrival_ns", "scheduled_ns", "first_token_ns", "finish_ns")
    )
    number, status = int(values["request"]), str(values["status"])
    if arrival < 0:  # a closed client never sent it
        return
    # A rejected request ends when it arrives, one that did not finish with the run.
    end = arrival if status == "rejected" else finish if finish >= 0 else ended_ns
    args = {
        "status": status,
        **{key: int(values[key]) for key in ("prompt_tokens", "output_tokens", "preemptions")},
    }
    yield _span("b", number, f"request {number}", arrival, args)
    times = [arrival, scheduled, first, finish]
    for name, begin, until in zip(("queue", "prefill", "decode"), times, times[1:], strict=False):
        if begin < 0 or status == "rejected":
            break
        yield _span("b", number, name, begin)
        yield _span("e", number, name, until if until >= 0 else end)
    yield _span("e", number, f"request {number}", end)


def _span(
    phase: str, number: int, name: str, time_ns: int, args: Mapping[str, Any] | None = None
) -> Event:
    event = {
        "ph": phase, "pid": _REQUESTS, "tid": 0, "cat": "request", "id": number, "name": name,
        "ts": _us(time_ns),
    }  # fmt: skip
    return event if args is None else {**event, "args": args}


def counter_events(run: Run) -> Iterator[Event]:
    """Yield counters of the whole run: requests that wait, and facts of each step."""
    yield from _process(_COUNTERS, "whole run")
    yield from _queue(run)
    yield from _residents(run)
    table = _numbers(run, "steps", _STEP_COLUMNS)
    starts = table["start_ns"]
    if not len(starts):
        return
    duration = np.maximum(1, table["finish_ns"] - starts)
    accesses = np.maximum(1, table["hits"] + table["late_hits"] + table["misses"])
    series = {
        "KV blocks": table["kv_blocks"],
        "requests in the batch": table["sequences"],
        "prefill tokens": table["prefill_tokens"],
        "hits (% of accesses)": np.round(100 * table["hits"] / accesses, 1),
        "stalled (% of the step)": np.round(100 * table["stall_ns"] / duration, 1),
    }
    # Each is 0 where no step is in progress: behind the last step, and in gaps.
    ends = starts + duration
    gaps = np.flatnonzero(np.append(starts[1:], FAR) > ends)
    times = np.insert(starts, gaps + 1, ends[gaps])
    for name, values in series.items():
        yield from _counter(name, times, np.insert(values, gaps + 1, 0))


def _residents(run: Run) -> Iterator[Event]:
    """Yield the experts in GPU memory, from the end of each step on; nothing for older runs."""
    if "residents" not in run.arrow("steps").column_names:
        return
    # They stay while no step is in progress, unlike what belongs to the requests of a step.
    table = _numbers(run, "steps", ["finish_ns", "residents"])
    yield from _counter("experts with a slot", table["finish_ns"], table["residents"])


def _queue(run: Run) -> Iterator[Event]:
    """Yield the number of requests that have arrived and are in no step yet."""
    arrived, served = waiting_ns(run)
    times = np.concatenate([arrived, served])
    steps = np.concatenate([np.ones(len(arrived)), -np.ones(len(served))])
    at, where = np.unique(times, return_inverse=True)
    lengths = np.cumsum(np.bincount(where, weights=steps)).astype(np.int64)
    yield from _counter("queue", at, lengths)


def _numbers(run: Run, name: str, columns: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    table = run.table(name, columns)
    return {column: values.astype(np.int64) for column, values in table.items()}


def _counter(name: str, times_ns: Any, values: Any) -> Iterator[Event]:
    """Yield the points at which a counter changes, thinned to `MOST_POINTS`."""
    if len(values) > MOST_POINTS:
        starts = np.unique(np.linspace(0, len(values), MOST_POINTS, endpoint=False).astype(int))
        times_ns, values = times_ns[starts], np.maximum.reduceat(values, starts)
    last = None
    for time_ns, value in zip(times_ns.tolist(), values.tolist(), strict=True):
        if value != last:
            yield _point(name, time_ns, value)
            last = value


def _point(name: str, time_ns: int, value: float) -> Event:
    return {
        "ph": "C", "pid": _COUNTERS, "tid": 0, "name": name, "ts": _us(time_ns),
        "args": {"value": value},
    }  # fmt: skip
