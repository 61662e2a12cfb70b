"""Published files of requests are served to the end on traces of other origin."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from workloads import plan_of, run_on, tiny_scenario, tiny_trace

from moesim.serving.request import Request
from moesim.simulate import summarise
from moesim.trace import Trace

MOONCAKE = "data/requests/mooncake_conversation_trace.jsonl"


@pytest.mark.slow
def test_all_azure_requests_run_to_the_end_on_an_imported_trace(
    shared: Path, esft: Callable[[str], Trace]
) -> None:
    path = shared / "data/requests/AzureLLMInferenceTrace_code.csv"
    plan = plan_of(
        tiny_scenario(
            model={"shape": "deepseek-v2-lite", "expert_bits": 4, "weight_bits": 8},
            workload={"arrivals": {"kind": "file", "path": str(path)}, "pairing": "length"},
            memory={"kv": "auto"},
            batching={"token_budget": 8192},
            cache={"slots": "100%"},
        ),
        esft("intent"),
    )
    summary = summarise(run_on(plan))
    assert (summary["requests"], summary["finished"]) == (8819, 8819)
    assert summary["output_tokens"] == 245_896
    assert summary["makespan_s"] > 3435  # the last one arrives after 3,436 s
    notes = " ".join(summary["notes"])
    assert "the 8,819 requests of" in notes
    assert "paired by length" in notes
    assert "8819 requests repeat the 127 of the trace" in notes


@pytest.mark.slow
def test_mooncake_conversations_hit_about_what_a_plain_lru_cache_of_units_does(
    shared: Path,
) -> None:
    arrivals = {"kind": "file", "path": str(shared / MOONCAKE)}
    scenario = tiny_scenario(
        workload={"arrivals": arrivals, "requests": 1000},
        memory={"kv": "10GiB", "prefix_cache": True},
        batching={"token_budget": 8192, "max_sequences": 64},
        cache={"slots": "100%"},
    )
    outcome = run_on(plan_of(scenario, tiny_trace(requests=20)))
    summary, blocks = summarise(outcome), outcome.pool
    assert summary["finished"] == 1000
    # Units of running requests and their private blocks take room that a plain cache has not lost,
    # and units of a running prompt are not cached before it is computed.
    units = blocks.total * blocks.block_tokens // 512
    busy = blocks.peak * blocks.block_tokens // 512
    most, least = (lru_hits(outcome.requests, size) for size in (units, units - busy))
    assert 0.75 * least < summary["prefix_hit_tokens"] <= most
    assert summary["prefix_evicted_blocks"] > 0


def lru_hits(requests: Sequence[Request], most_units: int) -> int:
    """Return the tokens that prompts, served one after another, find in an LRU cache of units."""
    cached: OrderedDict[int, None] = OrderedDict()
    tokens = 0
    for request in requests:
        for unit in request.prefix[: (request.prompt_tokens - 1) // 512]:
            if unit not in cached:
                break
            tokens += 512
        for unit in reversed(request.prefix):
            cached.pop(unit, None)
            cached[unit] = None
        while len(cached) > most_units:
            cached.popitem(last=False)
    return tokens


def test_all_mooncake_conversations_are_one_workload(shared: Path) -> None:
    arrivals = {"kind": "file", "path": str(shared / MOONCAKE)}
    plan = plan_of(
        tiny_scenario(
            workload={"arrivals": arrivals}, memory={"kv": "10GiB", "prefix_cache": True}
        ),
        tiny_trace(requests=20),
    )
    assert plan.workload is not None
    requests = plan.workload.requests
    assert len(requests) == 12_031
    assert sum(len(request.prefix) for request in requests) == 276_491
    assert max(len(request.rows) for request in requests) > 126_000
