"""The timeline for ui.perfetto.dev: a valid file whose sums are those of the ledger."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from random_lanes import random_lanes_case
from run_directories import run_directory
from trace_events import Events, read_events
from typer.testing import CliRunner, Result
from workloads import plan_of, random_case, tiny_trace

from moesim.cli import app
from moesim.errors import OutputError, UsageError
from moesim.report import load_run
from moesim.report.perfetto import events as perfetto_events
from moesim.report.perfetto import works as perfetto_works
from moesim.report.perfetto import write_perfetto
from moesim.report.perfetto.works import SOURCES, Work, arrows
from moesim.report.runs import Run
from moesim.serving.run_log import Issued, RunLog
from moesim.simulate import run as simulate
from moesim.simulate.build import serve

MS = 10**6
SLOW = {"profile": "rtx-4090", "h2d": {"bandwidth": "3GB/s", "chunk": "1MiB"}}
PLAIN: dict[str, Any] = {
    "trace": "trace",
    "hardware": SLOW,
    "cache": {"slots": 12},
    "bounds": False,
    "timeline": {"steps": 1000},
    "batching": {"max_sequences": 3},
    "workload": {"arrivals": {"kind": "poisson", "rate_per_s": 40}},
}
CASES: dict[str, dict[str, Any]] = {
    "demand": {},
    "ahead": {"prefetch": {"policy": "predicted", "options": {"depth": 2}}},
    "cpu": {"placement": "two_queue"},
    "part": {"timeline": {"first_step": 4, "steps": 3}},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    home = tmp_path_factory.mktemp("perfetto")
    trace = tiny_trace(requests=6, prompt_tokens=4, output_tokens=5, stickiness=0.3)
    trace.save(home / "trace")
    found = {}
    for name, changes in CASES.items():
        (home / f"{name}.yaml").write_text(yaml.safe_dump({**PLAIN, **changes}))
        simulate(home / f"{name}.yaml", out=home / name)
        found[name] = load_run(home / name)
    return found


def events_of(run: Run, folder: Path, name: str = "x.json") -> Events:
    write_perfetto(run, folder / name)
    return read_events(folder / name)


@pytest.mark.parametrize("name", CASES)
def test_a_file_obeys_the_format(runs: dict[str, Run], name: str, tmp_path: Path) -> None:
    """The reader checks phases, ids, nesting, overlaps, ends of flows and the order of times."""
    run = runs[name]
    events = events_of(run, tmp_path)
    works = [each for each in events.slices if each.track != "steps"]
    assert len(works) == run.arrow("timeline").num_rows
    assert events.flows
    assert "SYNTHETIC ROUTING" in events.about["caption"]


def test_busy_times_and_stalls_are_those_of_the_ledger(
    runs: dict[str, Run], tmp_path: Path
) -> None:
    for name in ("demand", "ahead", "cpu"):
        run = runs[name]
        events = events_of(run, tmp_path)
        busy: dict[str, int] = defaultdict(int)
        in_step: dict[int, int] = defaultdict(int)
        for each in events.slices:
            busy[each.track] += each.finish_ns - each.start_ns
            if each.track == "GPU compute":
                in_step[each.args["step"]] += each.finish_ns - each.start_ns
        assert busy["GPU compute"] == round(run.value("busy_s") * 1e9)
        window_ns = run.value("makespan_s") * 1e9
        assert busy["GPU to host copy"] == round(run.value("d2h_busy_share") * window_ns)
        steps = events.on("steps")
        assert len(steps) == run.value("steps")
        for step in steps:
            lasts = step.finish_ns - step.start_ns
            assert lasts - in_step[step.args["step"]] == step.args["stall_ns"]


def test_phases_of_requests_are_their_latencies(runs: dict[str, Run], tmp_path: Path) -> None:
    run = runs["demand"]
    events = events_of(run, tmp_path)
    phases: dict[str, dict[int, int]] = defaultdict(dict)
    for span in events.spans:
        name = "whole" if span.depth == 0 else span.name
        phases[name][span.request] = span.finish_ns - span.start_ns
    assert set(phases) == {"whole", "queue", "prefill", "decode"}
    number = len(phases["whole"])
    assert number == run.value("requests")
    ttft = sum(phases["queue"].values()) + sum(phases["prefill"].values())
    assert ttft / number / MS == pytest.approx(run.value("ttft_mean_ms"))
    assert sum(phases["whole"].values()) / number / MS == pytest.approx(run.value("e2e_mean_ms"))
    assert max(phases["queue"].values()) / MS == pytest.approx(run.value("wait_max_ms"))


def test_counters_are_of_the_whole_run(runs: dict[str, Run], tmp_path: Path) -> None:
    run = runs["part"]
    events = events_of(run, tmp_path)
    assert events.about["lanes"] == f"steps 4 to 6 of {run.value('steps'):.0f}"
    assert [each.args["step"] for each in events.on("steps")] == [4, 5, 6]
    blocks = events.counters["KV blocks"]
    assert max(value for _, value in blocks) == run.value("peak_kv_blocks")
    assert blocks[-1][0] == round(run.value("makespan_s") * 1e9)
    assert blocks[-1][1] == 0
    # The area under the queue is the time that all requests waited.
    queue = events.counters["queue"]
    area = sum(one[1] * (other[0] - one[0]) for one, other in pairwise(queue))
    table = run.table("requests", ["arrival_ns", "scheduled_ns"])
    arrived, scheduled = (sum(column.tolist()) for column in table.values())
    assert area == scheduled - arrived
    assert queue[-1][1] == 0


def test_experts_keep_their_slots_between_steps(runs: dict[str, Run], tmp_path: Path) -> None:
    run = runs["demand"]
    ends, residents = run.table("steps", ["finish_ns", "residents"]).values()
    points = dict(events_of(run, tmp_path).counters["experts with a slot"])
    assert points == {  # a point where the number changes
        end: number
        for end, number, before in zip(
            ends.tolist(), residents.tolist(), [-1, *residents.tolist()], strict=False
        )
        if number != before
    }
    assert max(points.values()) == run.value("cache_slots")


def test_a_rejected_request_ends_when_it_arrives_and_never_waits(tmp_path: Path) -> None:
    path = run_directory(tmp_path / "run", steps=4, layers=2, requests=2, output_tokens=3)
    table = pq.read_table(path / "requests.parquet").to_pydict()
    changes = {"status": ["rejected", "finished"], "scheduled_ns": [-1, 2 * MS]}
    changes |= {"arrival_ns": [MS, MS], "first_token_ns": [-1, 3 * MS], "finish_ns": [-1, 4 * MS]}
    pq.write_table(pa.table({**table, **changes}), path / "requests.parquet")
    events = events_of(load_run(path), tmp_path)
    spans = [(each.start_ns, each.finish_ns) for each in events.spans if each.request == 0]
    assert spans == [(MS, MS)]
    assert events.counters["queue"] == [(MS, 1), (2 * MS, 0)]


def test_a_compressed_file_says_no_time(runs: dict[str, Run], tmp_path: Path) -> None:
    write_perfetto(runs["demand"], tmp_path / "lanes.json.gz")
    assert (tmp_path / "lanes.json.gz").read_bytes()[4:8] == bytes(4)


def test_between_steps_counters_are_zero(runs: dict[str, Run], tmp_path: Path) -> None:
    run = runs["demand"]
    table = run.table("steps", ["start_ns", "finish_ns"])
    gaps = table["finish_ns"][:-1][table["start_ns"][1:] > table["finish_ns"][:-1]]
    assert len(gaps)
    points = dict(events_of(run, tmp_path).counters["requests in the batch"])
    assert all(points[time] == 0 for time in gaps.tolist())


Edge = tuple[tuple[str, str, int, int], tuple[str, str, int, int]]


def derived(ledger: Any) -> set[Edge]:
    """Return the arrows of a ledger's timeline, but for those of the router's choices."""
    rows = zip(*ledger.timeline_columns().values(), strict=True)
    works = sorted((Work(*row) for row in rows), key=lambda it: (it.start_ns, -it.finish_ns))
    # Waits for the router's choices are the host's, and no dependency of a work.
    return {(a[:4], b[:4]) for a, b in arrows(works) if a.kind != "readback"}


def issued(log: RunLog) -> set[Edge]:
    """Return what ended the wait of each work whose lane was idle."""
    kinds = {id(it.work): it.kind for it in log.of(Issued)}
    works = sorted((it.work for it in log.of(Issued)), key=lambda it: (it.start_ns, -it.finish_ns))
    clock: dict[str, int] = {}
    found: set[Edge] = set()
    for work in works:
        idle_from = clock.get(work.lane, 0)
        clock[work.lane] = max(idle_from, work.finish_ns)
        sources = SOURCES.get((work.lane, kinds[id(work)]), ())
        last: dict[str, Any] = {}
        for other in sorted(work.after, key=lambda it: it.finish_ns):
            waited = idle_from < other.finish_ns <= work.start_ns and idle_from < work.start_ns
            if waited and (other.lane, kinds.get(id(other))) in sources:
                last[other.lane if work.lane == "gpu" else ""] = other
        found |= {(_row(other, kinds), _row(work, kinds)) for other in last.values()}
    return found


def _row(work: Any, kinds: dict[int, str]) -> tuple[str, str, int, int]:
    return work.lane, kinds[id(work)], work.start_ns, work.finish_ns


@pytest.mark.parametrize(("lanes", "seeds", "right"), [(False, 40, 1.0), (True, 40, 0.99)])
def test_arrows_are_the_dependencies_that_the_server_issued(
    lanes: bool, seeds: int, right: float
) -> None:
    """The oracle is what the server told the machine to wait for, `Work.after`.

    On a machine with a CPU and a disk, times leave a few waits ambiguous.
    """
    both = wrong = 0
    for seed in range(seeds):
        scenario, trace = (random_lanes_case if lanes else random_case)(21_000 + seed)
        scenario |= {"timeline": {"steps": 10_000}, "bounds": False}
        log = RunLog(Issued)
        server, now_ns = serve(plan_of(scenario, trace), observers=(log,))
        server.ledger.finish(now_ns)
        found, wanted = derived(server.ledger), issued(log)
        both, wrong = both + len(found & wanted), wrong + len(found ^ wanted)
    assert both > 1000
    assert both >= right * (both + wrong), (both, wrong)


def test_a_compressed_file_holds_the_same_and_is_the_same_again(
    runs: dict[str, Run], tmp_path: Path
) -> None:
    run = runs["demand"]
    plain, packed = events_of(run, tmp_path), events_of(run, tmp_path, "x.json.gz")
    assert packed == plain
    first = (tmp_path / "x.json.gz").read_bytes()
    write_perfetto(run, tmp_path / "x.json.gz")
    assert (tmp_path / "x.json.gz").read_bytes() == first
    assert len(first) < (tmp_path / "x.json").stat().st_size / 5


def test_a_long_run_stays_small(
    runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole steps are left out at the end, and counters keep their peaks."""
    run = runs["demand"]
    before = events_of(run, tmp_path)
    monkeypatch.setattr(perfetto_works, "MOST_WORKS", 100)
    monkeypatch.setattr(perfetto_events, "MOST_POINTS", 8)
    after = events_of(run, tmp_path)
    works = [each for each in after.slices if each.track != "steps"]
    assert 0 < len(works) <= 100
    kept = {each.args["step"] for each in works}
    assert kept == set(range(len(kept)))
    assert "cut from the" in after.about["lanes"]
    for name, points in after.counters.items():
        assert len(points) <= 8
        assert max(it[1] for it in points) == max(it[1] for it in before.counters[name])
    assert after.spans == before.spans


def test_a_run_without_a_recorded_step_has_requests_and_counters(
    runs: dict[str, Run], tmp_path: Path
) -> None:
    folder = run_directory(tmp_path / "none", steps=20)
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "timeline.parquet")
    pq.write_table(table.slice(0, 0), folder / "timeline.parquet")
    events = events_of(load_run(folder), tmp_path)
    assert events.slices == []
    assert len(events.counters) > 3
    assert "no step was recorded" in events.about["lanes"]


def test_the_command_writes_the_file_and_names_the_steps(
    runs: dict[str, Run], tmp_path: Path
) -> None:
    run, file = runs["part"], tmp_path / "part.json"
    found = CliRunner().invoke(app, ["report", str(run.path), "--perfetto", str(file)])
    assert found.exit_code == 0, found.output
    assert found.stdout.splitlines()[0].startswith("lanes: steps 4 to 6 of ")
    assert found.stdout.splitlines()[-1] == str(file)
    read_events(file)
    told = CliRunner().invoke(app, ["report", str(run.path), "--perfetto", str(file), "--json"])
    assert json.loads(told.stdout)["out"] == str(file)
    several = CliRunner().invoke(
        app, ["report", str(run.path), str(runs["cpu"].path), "--perfetto", str(file)]
    )
    assert isinstance(several.exception, UsageError)


@pytest.mark.parametrize("name", ["part.json", "part.json.gz"])
def test_the_command_replaces_timelines_and_no_other_file(
    runs: dict[str, Run], tmp_path: Path, name: str
) -> None:
    file = tmp_path / name

    def write() -> Result:
        return CliRunner().invoke(app, ["report", str(runs["part"].path), "--perfetto", str(file)])

    assert write().exit_code == write().exit_code == 0
    file.write_text('{"traceEvents": []}')
    refused = write()
    assert isinstance(refused.exception, OutputError)
    assert "did not write it" in str(refused.exception)
    assert file.read_text() == '{"traceEvents": []}'
    file = tmp_path / "part.html"
    refused = write()
    assert isinstance(refused.exception, UsageError)
    assert "--perfetto" in str(refused.exception)
    assert not file.exists()
