"""Requests reuse the KV blocks of earlier prompts with the same first tokens."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import simpy
from oracles.naive_prefixes import NaivePrefixes
from workloads import TINY_CONFIG, plan_of, run_on, tiny_scenario, tiny_trace

from moesim.errors import InvariantError, ScenarioError, TraceError
from moesim.machine.events import EventMachine
from moesim.machine.sim import SimMachine
from moesim.serving.prefix import PrefixPool
from moesim.serving.request import Request
from moesim.simulate import Outcome, build_server, prepare, summarise
from moesim.simulate.backend import why_not_compiled
from moesim.simulate.simulation import result_of
from moesim.trace import Trace, load_trace, validate_trace
from moesim.workload.prefixes import nodes

# --- the pool, against a naive one ----------------------------------------------------------------


def drawn_requests(rng: Random, unit: int) -> tuple[list[Request], list[tuple[int, ...]]]:
    """Return requests whose prompts share prefixes, and their ids; ids repeat at other places."""
    ids = [tuple(rng.randrange(3) for _ in range(rng.randrange(6))) for _ in range(25)]
    requests = []
    for index, (blocks, path) in enumerate(zip(ids, nodes(ids), strict=True)):
        prompt = max(1, len(blocks) * unit + rng.randrange(unit))
        output = rng.randrange(1, 2 * unit)
        requests.append(
            Request(
                index,
                arrival_ns=0,
                prompt_tokens=prompt,
                output_tokens=output,
                rows=np.zeros(prompt + output - 1, np.int64),
                prefix=path,
                unit_tokens=unit,
            )
        )
    return requests, ids


@pytest.mark.parametrize("seed", range(150))
def test_the_pool_holds_shares_and_evicts_what_a_naive_prefix_cache_does(seed: int) -> None:
    rng = Random(seed)
    block = rng.choice((1, 2, 4))
    unit = block * rng.choice((1, 2, 3))
    requests, ids = drawn_requests(rng, unit)
    total = max(-(-it.max_kv_tokens // block) for it in requests) + rng.randrange(12)
    pool, naive = PrefixPool(total, block, unit), NaivePrefixes(total, block, unit)
    waiting, running = list(requests), list[Request]()
    outcomes: set[object] = set()
    for _ in range(300):
        for request in running:  # at the start of each step
            pool.publish(request)
            naive.publish(
                request.index, ids[request.index], min(request.position, request.prompt_tokens)
            )
        action = rng.random()
        if waiting and action < 0.4:
            request = rng.choice(waiting[:3])
            pool.find_prefix(request)
            hits = naive.hits(ids[request.index], request.prompt_tokens)
            assert request.position == hits * unit
            tokens = rng.randint(1, request.tokens_wanted)
            other = rng.choice(waiting[:3])
            if rng.random() < 0.3 and other is not request:
                # Another one is admitted in between, and may evict what was found.
                pool.find_prefix(other)
                place = other.position // unit
                took = pool.grow(other, other.tokens_wanted)
                assert took == naive.admit(
                    other.index, ids[other.index], place, other.position + other.tokens_wanted
                )
                if took:
                    other.position += other.tokens_wanted
                    waiting.remove(other)
                    running.append(other)
            took = pool.grow(request, tokens)
            rows = request.position + tokens
            assert took == naive.admit(request.index, ids[request.index], hits, rows)
            outcomes.add(("admitted", took, hits > 0))
            if took:
                request.position += tokens
                waiting.remove(request)
                running.append(request)
        elif running and action < 0.75:
            request = rng.choice(running)
            if tokens := min(rng.randint(1, 2 * unit), request.max_kv_tokens - request.position):
                took = pool.grow(request, tokens)
                assert took == naive.extend(request.index, request.position + tokens)
                outcomes.add(("grown", took))
                request.position += took * tokens
        elif running:
            request = running.pop(rng.randrange(len(running)))
            naive.publish(
                request.index, ids[request.index], min(request.position, request.prompt_tokens)
            )
            naive.release(request.index)
            pool.release(request)
            if rng.random() < 0.5 or request.position < request.max_kv_tokens:
                request.restart()
                waiting.append(request)
                outcomes.add("preempted")
        assert pool.total - pool.free == naive.in_use()
        assert len(pool._holders) == len(naive.cached)
        assert {*pool._idle} == {path(ids, prefix) for prefix in naive.idle()}
    assert ("admitted", True, True) in outcomes
    for request in running:
        pool.release(request)
    assert pool.free == pool.total


def path(ids: list[tuple[int, ...]], prefix: tuple[int, ...]) -> int:
    """Return the tree node of a prefix of some request."""
    owner = next(number for number, blocks in enumerate(ids) if blocks[: len(prefix)] == prefix)
    return nodes(ids)[owner][len(prefix) - 1]


def request_of(index: int, prompt: int, output: int, prefix: tuple[int, ...]) -> Request:
    rows = np.zeros(prompt + output - 1, np.int64)
    return Request(
        index, arrival_ns=0, prompt_tokens=prompt, output_tokens=output, rows=rows, prefix=prefix
    )


def test_the_last_token_of_a_prompt_that_is_cached_whole_is_computed() -> None:
    pool = PrefixPool(20, 1, 4)
    first, second = request_of(0, 8, 1, (0, 1)), request_of(1, 8, 1, (0, 1))
    pool.grow(first, 8)
    first.position = 8
    pool.release(first)
    pool.find_prefix(second)
    assert second.position == 4  # the second unit ends with the last token
    assert pool.grow(second, 4)
    assert second.reused_tokens == 4


def test_two_copies_of_a_unit_become_one() -> None:
    pool = PrefixPool(20, 1, 4)
    pair = request_of(0, 9, 2, (0, 1)), request_of(1, 9, 2, (0, 1))
    for request in pair:
        pool.grow(request, 9)
        request.position = 9
    assert pool.total - pool.free == 18
    for request in pair:
        pool.publish(request)
    assert pool.total - pool.free == 10  # two units once, and a private row each
    for request in pair:
        pool.release(request)
    assert pool.free == 20


def test_the_unit_that_was_released_first_is_evicted_first_and_deep_units_before() -> None:
    pool = PrefixPool(6, 1, 1)
    for index, prefix in enumerate([(0, 1), (0, 2), (3,)]):
        request = request_of(index, len(prefix) + 1, 1, prefix)
        pool.find_prefix(request)
        pool.grow(request, request.tokens_wanted)
        request.position = request.prompt_tokens
        pool.release(request)
    assert [*pool._idle] == [1, 2, 0, 3]
    big = request_of(9, 4, 1, ())
    pool.grow(big, 4)
    assert [*pool._idle] == [0, 3]
    assert pool.evicted_blocks == 2


def test_blocks_given_back_twice_are_noticed() -> None:
    pool = PrefixPool(6, 1, 2)
    request = request_of(0, 3, 1, (0,))
    pool.grow(request, 3)
    request.position = 3
    pool.release(request)
    request.blocks = 3
    with pytest.raises(InvariantError, match="more than all 6"):
        pool.release(request)


# --- runs -----------------------------------------------------------------------------------------

UNIT = 8


def hashed(
    folder: Path, prompts: list[tuple[list[int], int]], *, gap_ms: int = 0, output: int = 3
) -> dict[str, Any]:
    """Return arrivals from a file of prompts: block ids, and tokens behind the full blocks."""
    rows = [
        {
            "timestamp": gap_ms * number,
            "input_length": len(ids) * UNIT + more,
            "output_length": output,
            "hash_ids": ids,
        }
        for number, (ids, more) in enumerate(prompts)
    ]
    path = folder / "hashed.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return {"kind": "file", "path": str(path), "block_tokens": UNIT}


def served(arrivals: dict[str, Any], *, cached: bool = True, **sections: Any) -> Outcome:
    memory = {"kv": "auto", "kv_block_tokens": 4, "prefix_cache": cached}
    memory |= sections.pop("memory", {})
    section = {"arrivals": arrivals, **sections.pop("workload", {})}
    scenario = tiny_scenario(workload=section, memory=memory, **sections)
    return run_on(plan_of(scenario, tiny_trace(requests=4)))


def computed(outcome: Outcome) -> int:
    """Return the rows that all steps computed."""
    return int(np.sum(outcome.ledger.step_columns()["tokens"]))


def test_hit_tokens_skip_the_prefill_and_are_reported_by_request(tmp_path: Path) -> None:
    prompts = [([1, 2, 3], 2), ([1, 2, 4], 1), ([1, 2, 3], 0), ([5], 4)]
    arrivals = hashed(tmp_path, prompts)
    one = {"max_sequences": 1, "token_budget": 512}
    outcome, plain = (served(arrivals, cached=cached, batching=one) for cached in (True, False))
    hits = [0, 2 * UNIT, 2 * UNIT, 0]  # of the third prompt, the last block has its last token
    assert [request.reused_tokens for request in outcome.requests] == hits
    assert computed(plain) - computed(outcome) == sum(hits)
    assert outcome.now_ns < plain.now_ns
    result = result_of(outcome.plan)
    assert list(result.columns["requests"]["prefix_hit_tokens"]) == hits
    tokens = sum(len(ids) * UNIT + more for ids, more in prompts)
    assert result.summary["prefix_hit_tokens"] == sum(hits)
    assert result.summary["prefix_hit_share"] == pytest.approx(sum(hits) / tokens)
    assert any("found in the prefix cache" in note for note in result.summary["notes"])
    assert "prefix_hit_tokens" not in summarise(plain)
    assert "prefix_hit_tokens" not in result_of(plain.plan).columns["requests"]


def test_running_requests_share_units_from_the_step_after_their_last_token(tmp_path: Path) -> None:
    arrivals = hashed(tmp_path, [([1, 2], 2)] * 3, output=6)
    # In the first step, two prompts of 18 tokens are cut at 20; neither unit is cached yet.
    outcome = served(arrivals, batching={"token_budget": 20, "max_sequences": 2})
    assert [request.reused_tokens for request in outcome.requests] == [0, 0, 2 * UNIT]
    outcome = served(arrivals, batching={"token_budget": 18, "max_sequences": 3})
    assert [request.reused_tokens for request in outcome.requests] == [0, 2 * UNIT, 2 * UNIT]
    # 18 prompt and 5 output rows each: 4 shared blocks, and 2 private ones for each request.
    assert outcome.pool.peak == 4 + 3 * 2


def test_identities_change_nothing_unless_the_cache_is_on(tmp_path: Path) -> None:
    arrivals = hashed(tmp_path, [([1, 2], 2), ([1, 2], 3), ([1], 1)], gap_ms=1)
    with_ids = result_of(served(arrivals, cached=False).plan)
    text = Path(arrivals["path"]).read_text().replace('"hash_ids"', '"other"')
    Path(arrivals["path"]).write_text(text)
    without = result_of(served(arrivals, cached=False).plan)
    assert with_ids.summary == without.summary
    assert repr(with_ids.columns) == repr(without.columns)


def test_prompts_that_share_nothing_are_served_as_without_a_cache(tmp_path: Path) -> None:
    arrivals = hashed(tmp_path, [([10 * n, 10 * n + 1], n) for n in range(6)], gap_ms=1)
    cached, plain = (served(arrivals, cached=cached) for cached in (True, False))
    assert summarise(cached)["prefix_hit_tokens"] == 0
    assert [it.token_ns for it in cached.requests] == [it.token_ns for it in plain.requests]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("policy", ["decode_first", "prefill_first", "fcfs"])
def test_runs_that_are_short_of_blocks_end_with_all_blocks_free(
    tmp_path: Path, seed: int, policy: str
) -> None:
    rng = Random(seed)
    prompts = [
        ([rng.randrange(2) for _ in range(rng.randrange(1, 5))], rng.randrange(1, UNIT))
        for _ in range(25)
    ]
    arrivals = hashed(tmp_path, prompts, gap_ms=seed % 2, output=rng.randrange(1, 20))
    batching = {"policy": policy, "token_budget": rng.choice((8, 24)), "max_sequences": 6}
    batching["chunked_prefill"] = seed % 3 != 0
    kv = (
        plan_of(tiny_scenario(), tiny_trace(requests=4)).cost.shape.kv_bytes_per_token
        * 4
        * rng.choice((14, 20))
    )
    outcome = served(arrivals, batching=batching, memory={"kv": kv})
    assert {request.status for request in outcome.requests} == {"finished"}
    assert outcome.pool.free == outcome.pool.total
    assert sum(request.reused_tokens for request in outcome.requests) > 0
    rows = sum(request.max_kv_tokens for request in outcome.requests)
    if not sum(request.preemptions for request in outcome.requests):
        reused = sum(request.reused_tokens for request in outcome.requests)
        assert computed(outcome) == rows - reused


def test_machines_agree_on_a_run_with_a_prefix_cache(tmp_path: Path) -> None:
    prompts = [([1, 2], 2), ([1, 3], 3), ([1, 2], 1), ([4], 2)] * 4
    batching = {"max_sequences": 3, "token_budget": 24}
    for prefetch in ("none", "oracle"):  # steps timed at once, and walked
        options: dict[str, Any] = {"prefetch": prefetch, "cache": {"policy": "lru", "slots": 12}}
        arrivals = hashed(tmp_path, prompts, gap_ms=1)
        outcome = served(arrivals, batching=batching, **options)
        events = run_on(outcome.plan, EventMachine)
        assert outcome.pool.reused_tokens > 0
        assert [it.token_ns for it in events.requests] == [it.token_ns for it in outcome.requests]
        assert summarise(events) == summarise(outcome)


@pytest.mark.parametrize("gap_ms", [0, 1])
def test_bounds_replay_the_steps_of_a_run_with_a_prefix_cache(tmp_path: Path, gap_ms: int) -> None:
    arrivals = hashed(tmp_path, [([1, 2], 2), ([1, 3], 3), ([1, 2], 1)] * 4, gap_ms=gap_ms)
    plan = served(
        arrivals, cache={"policy": "lru", "slots": 12}, batching={"max_sequences": 3}
    ).plan
    scenario = plan.scenario.model_copy(update={"bounds": True})
    summary = result_of(prepare(scenario, plan.trace)).summary
    assert summary["min_hit_rate"] >= summary["expert_hit_rate"]
    assert summary["prefix_hit_tokens"] > 0


def test_the_compiled_back_end_refuses_shared_blocks(tmp_path: Path) -> None:
    for cached, reason in ((True, "requests share KV blocks"), (False, "")):
        plan = served(hashed(tmp_path, [([1], 1)]), cached=cached).plan
        machine = SimMachine(simpy.Environment(), plan.prices(), plan.places.topology)
        assert why_not_compiled(plan, build_server(plan, machine)) == reason


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"memory": {"kv_block_tokens": 3}}, "memory.kv_block_tokens: is 3, .* blocks of 8 tokens"),
        (
            {"workload": {"cached_prefix": 2}},
            "workload.cached_prefix: says which tokens are cached",
        ),
        ({"workload": {"prefill": "skip"}}, "workload.prefill: says which tokens are cached"),
    ],
)
def test_a_scenario_that_contradicts_the_prefix_cache_is_refused(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ScenarioError, match=says):
        served(hashed(tmp_path, [([1], 1)]), **changes)


def test_a_workload_without_identities_is_refused() -> None:
    with pytest.raises(
        ScenarioError, match=r"memory\.prefix_cache: the workload identifies no blo"
    ):
        served({"kind": "all_at_once"})


# --- traces ---------------------------------------------------------------------------------------


def identified(**changes: Any) -> Trace:
    """Return a trace of three requests of 5, 4 and 3 prompt tokens, in blocks of 2."""
    arguments: dict[str, Any] = {
        "expert_ids": np.tile([3, 5], (15, 4, 1)),
        "seq_len": [6, 5, 4],
        "prompt_tokens": [5, 4, 3],
        "num_experts": 8,
        "model_config": TINY_CONFIG,
        "prefix_blocks": [[1, 2, 3], [1, 2], [1]],
        "prefix_block_tokens": 2,
    }
    return Trace.from_arrays(**{**arguments, **changes})


def test_a_trace_keeps_the_identities_of_its_prompts_blocks(tmp_path: Path) -> None:
    trace = identified().save(tmp_path / "t")
    header = json.loads((tmp_path / "t/trace.json").read_text())
    assert (header["version"], header["prefix_block_tokens"]) == ("1.1", 2)
    for again in (trace, load_trace(tmp_path / "t"), validate_trace(tmp_path / "t")):
        assert again.prefix_blocks == [(1, 2, 3), (1, 2), (1,)]
    assert trace.with_meta(model="x").prefix_blocks == trace.prefix_blocks
    assert trace.save(tmp_path / "u").prefix_blocks == trace.prefix_blocks


def test_a_trace_without_identities_is_written_as_before(tmp_path: Path) -> None:
    identified(prefix_blocks=None, prefix_block_tokens=None).save(tmp_path / "t")
    header = json.loads((tmp_path / "t/trace.json").read_text())
    assert header["version"] == "1.0"
    assert "prefix_block_tokens" not in header
    assert load_trace(tmp_path / "t").prefix_blocks is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prefix_blocks": [[1], [1, 2], [1]]}, "request 0: has 1 prefix blocks of 2 tokens for 5"),
        ({"prefix_blocks": [[1, 2, 3], [1, 2, 3], [1]]}, "request 1: has 3 prefix blocks"),
        ({"prefix_blocks": [[1, 2], [1, 2], [-1]]}, "request 2: prefix blocks must be whole"),
        ({"prefix_blocks": [[1, 2], [1, 2]]}, "one list of blocks a request"),
        ({"prefix_blocks": [[1, 2], [1, 2], [1.5]]}, "must hold a list of whole numbers"),
        ({"prefix_blocks": None}, "prefix_block_tokens: needs prefix_blocks"),
        ({"prefix_block_tokens": None}, "prefix_blocks: needs prefix_block_tokens"),
        ({"prefix_block_tokens": 0}, "prefix_block_tokens must lie between 1"),
    ],
)
def test_wrong_identities_of_a_trace_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(TraceError, match=says):
        identified(**changes)


def test_a_damaged_column_of_identities_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from moesim.trace.meta import REQUESTS

    identified().save(tmp_path / "t")
    file = tmp_path / "t" / REQUESTS
    table = pq.read_table(file)
    for column, says in (
        (None, "has no column 'prefix_blocks'"),
        (pa.array([1, 2, 3]), "prefix_blocks: is not readable"),
        (pa.array([["a"], ["b"], ["c"]]), "request 0: "),
        (pa.array([[1, 2, 3], None, [1]]), "prefix_blocks: is not readable"),
    ):
        other = table.drop(["prefix_blocks"])
        if column is not None:
            other = other.append_column("prefix_blocks", column)
        pq.write_table(other, file)
        header = json.loads((tmp_path / "t/trace.json").read_text())
        for entry in header["files"]:
            if entry["path"] == REQUESTS:
                entry["bytes"] = file.stat().st_size
        (tmp_path / "t/trace.json").write_text(json.dumps(header))
        with pytest.raises(TraceError, match=says):
            load_trace(tmp_path / "t")


def test_recorded_requests_share_the_blocks_of_their_trace() -> None:
    memory = {"kv": "auto", "kv_block_tokens": 1, "prefix_cache": True}
    batching = {"max_sequences": 1}
    plain: dict[str, Any] = tiny_scenario(memory=memory, batching=batching)
    outcome = run_on(plan_of(plain, identified()))
    assert [request.reused_tokens for request in outcome.requests] == [0, 2, 2]
    repeated = tiny_scenario(memory=memory, batching=batching, workload={"requests": 4})
    outcome = run_on(plan_of(repeated, identified()))
    assert [request.reused_tokens for request in outcome.requests] == [0, 2, 2, 4]
    lengths = tiny_scenario(memory=memory, workload={"lengths": {"prompt": 4, "output": 2}})
    with pytest.raises(ScenarioError, match="needs lengths: recorded"):
        plan_of(lengths, identified())
