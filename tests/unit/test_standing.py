"""How a run stands while it is served: true at each moment, and read without any effect."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from workloads import plan_of, tiny_scenario, tiny_trace

from moesim.cli.watch import standing_line, watching
from moesim.serving.layers import LayerPlan
from moesim.serving.ledger import STEP_COLUMNS, Ledger
from moesim.serving.server import Server
from moesim.serving.standing import Readings, Standing
from moesim.simulate import run
from moesim.simulate.simulation import result_of

WAYS: dict[str, dict[str, Any]] = {
    "timed at once": {"simulation": "reference"},
    "layer by layer": {"simulation": "reference", "prefetch": {"policy": "predicted"}},
    "compiled": {"simulation": "compiled"},
    "compiled with copies ahead": {"simulation": "compiled", "prefetch": {"policy": "predicted"}},
}


class EveryStep:
    """A view that reads the run each time that progress is reported."""

    def __init__(self) -> None:
        self.readings: Readings | None = None
        self.seen: list[Standing] = []

    def watch(self, server: Server) -> None:
        assert self.readings is None, "only the run itself is watched, not its bounds"
        self.readings = Readings(server)

    def show(self, what: str, _done: int, _total: int) -> None:
        if what == "run" and self.readings is not None:
            self.seen.append(self.readings.read())


@pytest.fixture(scope="module", params=WAYS)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[EveryStep, Path, Path]:
    """A view of a run, its run directory, and that of the same run without a view."""
    if "compiled" in request.param:
        pytest.importorskip("numba")
    home = tmp_path_factory.mktemp("served")
    tiny_trace(requests=4, output_tokens=30).save(home / "trace")
    changes = {"workload": {"requests": 12}, "timeline": {"steps": 5}, **WAYS[request.param]}
    scenario = tiny_scenario(trace=str(home / "trace"), **changes)
    view = EveryStep()
    run(scenario, out=home / "with", progress=view.show, watch=view.watch)
    run(scenario, out=home / "without")
    return view, home / "with", home / "without"


def test_a_watched_run_writes_the_same_bytes(served: tuple[EveryStep, Path, Path]) -> None:
    _, watched, plain = served
    names = sorted(path.name for path in watched.iterdir())
    assert names == sorted(path.name for path in plain.iterdir())
    for name in names:
        if name != "manifest.json":
            assert (watched / name).read_bytes() == (plain / name).read_bytes(), name
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (watched, plain)]
    for manifest in manifests:
        del manifest["wall_s"]
    assert manifests[0] == manifests[1]


def test_the_last_standing_is_that_of_the_summary(served: tuple[EveryStep, Path, Path]) -> None:
    view, folder, _ = served
    summary = json.loads((folder / "summary.json").read_text())
    assert view.readings is not None
    end = view.readings.read()
    assert (end.hits, end.late_hits, end.misses) == tuple(
        summary[key] for key in ("hits", "late_hits", "misses")
    )
    assert end.accesses == summary["accesses"]
    assert (end.steps, end.ended) == (summary["steps"], summary["requests"])
    assert (end.running, end.queued, end.kv_blocks) == (0, 0, 0)
    assert end.now_ns == pytest.approx(summary["makespan_s"] * 1e9)
    # Each request's first token ends its prompt; all later ones are decoded.
    assert end.decode_tokens == summary["output_tokens"] - summary["requests"]
    assert end.decode_tokens_per_s == pytest.approx(end.decode_tokens / summary["makespan_s"])
    assert end.busy_shares["gpu"] == pytest.approx(summary["gpu_busy_share"])
    assert end.last_steps[-1]["step"] == end.steps - 1
    assert set(end.last_steps[-1]) == set(STEP_COLUMNS)


def test_counts_only_grow_and_requests_are_in_one_place(
    served: tuple[EveryStep, Path, Path],
) -> None:
    seen = served[0].seen
    assert seen
    for before, after in pairwise(seen):
        for name in ("now_ns", "steps", "ended", "hits", "late_hits", "misses", "decode_tokens"):
            assert getattr(before, name) <= getattr(after, name), name
    for it in seen:
        assert it.ended + it.running + it.queued <= it.requests
        assert (it.running > 0) == (it.kv_blocks > 0)
        assert it.kv_blocks <= it.kv_blocks_total
        assert all(0 <= share <= 1 for share in it.busy_shares.values())


def test_steps_are_read_from_any_number_on() -> None:
    ledger = Ledger(LayerPlan.of([0], 1), 2)
    table = np.arange(5)[:, None] + np.zeros(len(STEP_COLUMNS), np.int64)
    ledger.add_steps(table[:2])
    ledger.add_steps(table[2:3])
    ledger.add_steps(table[3:])
    for number in range(6):
        assert ledger.steps_from(number)[:, 0].tolist() == list(range(number, 5))


STANDING = Standing(
    now_ns=2_000_000_000, steps=7, requests=9, ended=2, running=3, queued=1, hits=60, late_hits=15,
    misses=25, decode_tokens=10, kv_blocks=4, kv_blocks_total=8, busy_shares={"gpu": 0.5},
    last_steps=(),
)  # fmt: skip


def test_a_line_has_hits_late_hits_and_misses_apart() -> None:
    assert standing_line(STANDING) == (
        "2 of 9 requests have ended, 3 run, 1 wait; simulated 2 s in 7 steps; 5 decode tokens/s; "
        "hits 60.0%, late 15.0%, misses 25.0%; KV blocks 4 of 8"
    )


def test_without_a_terminal_a_line_a_minute_says_how_the_run_stands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now_s, calls = 1000.0, 0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    with watching() as view:

        def show(what: str, done: int, total: int) -> None:
            nonlocal now_s, calls
            calls += 1
            now_s += 30.1  # so that every second call is a minute after the line before
            view.show(what, done, total)

        plan = plan_of(tiny_scenario(prefetch={"policy": "predicted"}), tiny_trace())
        result_of(plan, progress=show, watch=view.watch)
    note, *lines = capsys.readouterr().err.splitlines()
    assert note == "stderr is not a terminal that can be redrawn: --watch prints a line a minute"
    assert len(lines) == calls // 2 > 1
    assert all(" requests have ended, " in line for line in lines)
