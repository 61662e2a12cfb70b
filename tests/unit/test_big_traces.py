"""A trace stays on disk: opening it reads no shard, and a run reads the rows that it serves."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from workloads import TINY_CONFIG, tiny_scenario

from moesim.scenario import Scenario
from moesim.simulate import bounds_of, prepare, result_of, simulate
from moesim.trace import Trace, TraceMeta, TraceWriter, load_trace

SMAPS = Path("/proc/self/smaps")
ROWS_EACH, REQUESTS = 512, 1024
pytestmark = pytest.mark.skipif(not SMAPS.exists(), reason="needs Linux's table of mapped pages")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of 524,288 rows: eight shards of 512 KiB of ids."""
    folder = tmp_path_factory.mktemp("big") / "trace"
    meta = TraceMeta(num_layers=4, num_experts=8, top_k=2, model_config=TINY_CONFIG)
    ids = np.random.default_rng(0).random((ROWS_EACH, 4, 8)).argsort(axis=-1)[..., :2]
    with TraceWriter(folder, meta) as writer:
        for _ in range(REQUESTS):
            writer.add_request(expert_ids=ids, prompt_tokens=ROWS_EACH, output_tokens=1)
    return folder


@pytest.fixture(scope="module")
def decoded(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """A trace of 64 requests that decode 128 tokens each."""
    folder = tmp_path_factory.mktemp("decoded") / "trace"
    meta = TraceMeta(num_layers=4, num_experts=8, top_k=2, model_config=TINY_CONFIG)
    rng = np.random.default_rng(0)
    with TraceWriter(folder, meta) as writer:
        for _ in range(64):
            ids = rng.random((128, 4, 8)).argsort(axis=-1)[..., :2]
            writer.add_request(expert_ids=ids, prompt_tokens=1, output_tokens=128)
    return load_trace(folder)


def resident_bytes(trace: Trace) -> int:
    """Return how many bytes of a trace's shards are in this process's memory."""
    assert trace.path is not None
    total, inside = 0, False
    for line in SMAPS.read_text().splitlines():
        if "-" in line.split()[0] and ":" not in line.split()[0]:
            inside = str(trace.path) in line
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) << 10
    return total


def shard_bytes(trace: Trace) -> int:
    return sum(shard.nbytes for _, shard in trace.expert_ids.pieces())


def test_opening_a_trace_maps_its_shards_and_reads_none(folder: Path) -> None:
    trace = load_trace(folder)
    assert trace.num_rows == ROWS_EACH * REQUESTS
    assert len(trace.expert_ids.pieces()) == 8
    assert resident_bytes(trace) == 0
    assert int(trace.expert_ids[:].max()) == 7
    assert resident_bytes(trace) >= shard_bytes(trace)


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(prepare, id="plan"),
        pytest.param(lambda *given: result_of(prepare(*given)), id="run"),
    ],
)
def test_a_run_reads_the_rows_that_it_serves(
    act: Callable[[Scenario, Trace], object], folder: Path
) -> None:
    trace = load_trace(folder)
    scenario = tiny_scenario(bounds=True, cache={"slots": 12}, workload={"requests": 2})
    act(Scenario.model_validate(scenario), trace)
    # A page that is touched brings its neighbours with it.
    assert resident_bytes(trace) <= shard_bytes(trace) // 8


def test_a_run_of_few_requests_takes_memory_by_its_tokens_not_by_the_trace(folder: Path) -> None:
    trace = load_trace(folder)
    scenario = tiny_scenario(cache={"slots": 12}, workload={"requests": 2})
    plan = prepare(Scenario.model_validate(scenario), trace)
    result_of(plan)  # imports take memory, too
    tracemalloc.start()
    try:
        result_of(plan)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < shard_bytes(trace) // 2


def peak_of_bounds(trace: Trace, requests: int) -> tuple[int, int]:
    """Return the peak memory of the bounds of a run, and the run's accesses."""
    scenario = tiny_scenario(
        bounds=True, cache={"slots": 12}, workload={"requests": requests}, timeline={"steps": 0},
        batching={"max_sequences": 1},
    )  # fmt: skip
    plan = prepare(Scenario.model_validate(scenario), trace)
    bounds_of(simulate(plan))  # imports take memory, too
    outcome = simulate(plan)
    # Python puts off its search for cycles while many older objects live, as those of other tests.
    gc.collect()
    gc.freeze()
    gc.collect()  # counts the older objects anew
    tracemalloc.start()
    try:
        bounds_of(outcome)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        gc.unfreeze()
    return peak, int(outcome.ledger.accesses_by_layer()[1].sum())


def test_bounds_take_some_dozen_bytes_for_each_further_access(
    decoded: Trace,
) -> None:
    """As lists of Python, the layer events and what MIN knows of them take 140 bytes."""
    (small, few), (large, many) = (peak_of_bounds(decoded, number) for number in (8, 32))
    assert (large - small) / (many - few) < 80
