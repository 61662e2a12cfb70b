"""A strict reader of Chrome trace event files, as `moesim report --perfetto` writes them.

It checks what ui.perfetto.dev needs and mostly drops without a message: required keys, slices that
do not overlap on a track, flows with one start and one end inside slices, spans that nest, and
counters whose times do not go back. Times become integer nanoseconds.
"""

from __future__ import annotations

import gzip
import json
import math
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple


class Slice(NamedTuple):
    track: str
    name: str
    kind: str
    start_ns: int
    finish_ns: int
    args: dict[str, Any]


class Span(NamedTuple):
    request: int
    name: str
    start_ns: int
    finish_ns: int
    depth: int


@dataclass(slots=True)
class Events:
    """What a file holds."""

    about: dict[str, Any]
    slices: list[Slice] = field(default_factory=list)
    flows: list[tuple[Slice, Slice]] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    counters: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    def on(self, track: str) -> list[Slice]:
        return [each for each in self.slices if each.track == track]


_KEYS = {
    "M": {"name", "args"},
    "X": {"name", "cat", "dur", "args"},
    "s": {"name", "cat", "id"},
    "f": {"name", "cat", "id", "bp"},
    "b": {"name", "cat", "id"},
    "e": {"name", "cat", "id"},
    "C": {"name", "args"},
}
_METADATA = {"process_name", "process_sort_index", "thread_name", "thread_sort_index"}


def read_events(file: Path) -> Events:
    """Return the events of a file. Raise AssertionError where a rule of the format is broken."""
    raw = file.read_bytes()
    document = json.loads(gzip.decompress(raw) if file.suffix == ".gz" else raw)
    assert set(document) == {"displayTimeUnit", "otherData", "traceEvents"}
    assert document["displayTimeUnit"] in ("ms", "ns")
    by_phase: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in document["traceEvents"]:
        phase = event["ph"]
        assert phase in _KEYS, event
        assert {"pid", "tid", "ts"} | _KEYS[phase] <= set(event), event
        assert type(event["pid"]) is type(event["tid"]) is int, event
        assert 0 <= event["ts"] < math.inf, event
        by_phase[phase].append(event)
    events = Events(document["otherData"])
    names = _names(by_phase["M"])
    places = _slices(by_phase["X"], names, events)
    _flows(by_phase["s"], by_phase["f"], places, events)
    _spans([each for each in document["traceEvents"] if each["ph"] in "be"], events)
    for event in by_phase["C"]:
        (value,) = event["args"].values()
        assert math.isfinite(value), event
        points = events.counters.setdefault(event["name"], [])
        assert not points or points[-1][0] <= _ns(event["ts"]), event
        points.append((_ns(event["ts"]), value))
    return events


def _ns(microseconds: float) -> int:
    nanoseconds = round(microseconds * 1000)
    assert abs(nanoseconds - microseconds * 1000) < 1e-3, "a time is no whole nanosecond"
    return nanoseconds


def _names(metadata: list[dict[str, Any]]) -> dict[tuple[int, int], str]:
    names = {}
    for event in metadata:
        assert event["name"] in _METADATA, event
        if event["name"] == "thread_name":
            place = event["pid"], event["tid"]
            assert place not in names, f"a thread has two names: {event}"
            names[place] = event["args"]["name"]
    assert len(set(names.values())) == len(names), "two threads have one name"
    return names


def _slices(
    complete: list[dict[str, Any]], names: dict[tuple[int, int], str], events: Events
) -> dict[tuple[int, int], list[Slice]]:
    places: dict[tuple[int, int], list[Slice]] = defaultdict(list)
    for event in complete:
        place = event["pid"], event["tid"]
        assert place in names, f"a slice is on a track without a name: {event}"
        start = _ns(event["ts"])
        assert event["dur"] >= 0, event
        finish = start + _ns(event["dur"])
        places[place].append(
            Slice(names[place], event["name"], event["cat"], start, finish, event["args"])
        )
    for place, on_track in places.items():
        for before, after in pairwise(on_track):
            assert before.start_ns <= after.start_ns, f"{after} goes back on {names[place]}"
            assert before.finish_ns <= after.start_ns, f"{before} and {after} overlap"
        events.slices += on_track
    return places


def _flows(
    starts: list[dict[str, Any]],
    ends: list[dict[str, Any]],
    places: dict[tuple[int, int], list[Slice]],
    events: Events,
) -> None:
    by_id = {event["id"]: event for event in starts}
    assert len(by_id) == len(starts), "two flows start with one id"
    assert sorted(by_id) == sorted(event["id"] for event in ends), "a flow has only one end"
    for end in ends:
        assert end["bp"] == "e"
        start = by_id[end["id"]]
        assert (start["cat"], start["name"]) == (end["cat"], end["name"])
        source, target = _around(start, places), _around(end, places)
        assert source.track != target.track
        assert source.finish_ns <= target.start_ns, (source, target)
        events.flows.append((source, target))


def _around(event: dict[str, Any], places: dict[tuple[int, int], list[Slice]]) -> Slice:
    time = _ns(event["ts"])
    found = [
        each
        for each in places[event["pid"], event["tid"]]
        if each.start_ns <= time < each.finish_ns
    ]
    assert len(found) == 1, f"{len(found)} slices are around {event}"
    return found[0]


def _spans(nested: list[dict[str, Any]], events: Events) -> None:
    stacks: dict[tuple[int, str, int], list[tuple[str, int]]] = defaultdict(list)
    last: dict[tuple[int, str, int], int] = {}
    for event in nested:
        key, time = (event["pid"], event["cat"], event["id"]), _ns(event["ts"])
        assert last.get(key, 0) <= time, f"{event} goes back"
        last[key] = time
        if event["ph"] == "b":
            stacks[key].append((event["name"], time))
            continue
        name, start = stacks[key].pop()
        assert name == event["name"], f"{event} ends {name}"
        events.spans.append(Span(event["id"], name, start, time, len(stacks[key])))
    assert not any(stacks.values()), "a span does not end"
