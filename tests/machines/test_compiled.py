"""The compiled back end equals the reference to the byte, in all that a run records."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simpy
from costed_traces import costed_trace
from overlapping_cases import KNOWN, OPTIONS, overlapping
from paths import ROOT
from timed_cases import timed_at_once
from workloads import everything, plan_of, tiny_scenario, tiny_trace

from moesim.errors import InvariantError, PolicyViolation, ScenarioError, TraceError
from moesim.machine.sim import SimMachine
from moesim.policies.eviction.lru import LRU
from moesim.scenario import Scenario, load_scenario
from moesim.scenario.sweep import expand_sweep
from moesim.serving.ledger import STEP_COLUMNS, TIMELINE_COLUMNS
from moesim.simulate import (
    Outcome,
    Plan,
    backend,
    bounds_of,
    finish,
    prepare,
    simulate,
    summarise,
)
from moesim.simulate.backend import why_not_compiled
from moesim.simulate.bounds import hindsight
from moesim.simulate.build import build_server, serve
from moesim.simulate.rundir import TABLES
from moesim.simulate.simulation import result_of, run
from moesim.trace import load_trace

numba = pytest.importorskip("numba", reason="the extra `fast` is not installed")

from moesim.serving.compiled import log, stretch  # noqa: E402
from moesim.serving.compiled.policies import KERNELS, Kernel  # noqa: E402

BLOCKS = 8
UNIFIED = {"gpu": "Radeon 8060S", "cpu": "Ryzen AI MAX+ 395", "memory": "128GB LPDDR5X-8000"}
QUIET = {
    "profile": "llama.cpp", "launch": 0, "layer_event": 0, "copy_launch": 0, "sorting": "host",
}  # fmt: skip


def case(seed: int, **changes: Any) -> Plan:
    """Return the plan of a random case that the compiled back end knows."""
    scenario, trace = timed_at_once(seed)
    rng = random.Random(-seed)
    cache = scenario["cache"]
    cache["policy"] = policy = rng.choice(KNOWN)
    if policy == "min":
        scenario["workload"]["arrivals"] = "all_at_once"
    if policy == "static":
        cache["admission"] = "bypass"
    cache["options"] = OPTIONS.get(policy, lambda _: {})(rng)
    if rng.random() < 0.2:
        cache["initial_layers"] = 1
        cache["slots"] = min(32, 8 + cache["slots"])
    return plan_of({**scenario, **changes}, trace)


def both(plan: Plan, **options: Any) -> tuple[Outcome, Outcome]:
    """Return the outcomes of the reference and of the compiled back end."""
    found = []
    for name in ("reference", "compiled"):
        chosen = replace(plan, scenario=plan.scenario.model_copy(update={"simulation": name}))
        server, now_ns = serve(chosen, **options)
        assert (server.compiled is not None) == (name == "compiled")
        found.append(finish(chosen, server, now_ns))
    return found[0], found[1]


def first_difference(one: Outcome, other: Outcome) -> str:
    """Return the first event that differs, "" if none does."""
    for names, rows in (
        (TIMELINE_COLUMNS, [sorted(each.ledger.timeline) for each in (one, other)]),
        (STEP_COLUMNS, [each.ledger.steps for each in (one, other)]),
    ):
        for pair in zip_longest(*rows):
            if pair[0] != pair[1]:
                shown = [row and dict(zip(names, row, strict=True)) for row in pair]
                return f"reference {shown[0]}, compiled {shown[1]}"
    return ""


def check(plan: Plan, seed: int, **options: Any) -> None:
    one, other = both(plan, **options)
    assert everything(one) == everything(other), f"seed {seed}: {first_difference(one, other)}"
    assert summarise(one) == summarise(other), seed
    assert one.ledger.layer_events() == other.ledger.layer_events(), seed
    for name in ("demand_bytes", "demand_copies", "missed_rows", "rows", "waves_sum", "waves_max"):
        assert getattr(one.ledger, name) == getattr(other.ledger, name), (seed, name)
    assert one.pool.peak == other.pool.peak, seed
    assert_same_residents(one, other)


def assert_same_residents(one: Outcome, other: Outcome) -> None:
    for pair in zip(one.caches, other.caches, strict=True):
        assert len({frozenset(cache.residents) for cache in pair}) == 1
        assert len({cache.unused_prefetches for cache in pair}) == 1


@pytest.mark.parametrize("block", range(BLOCKS))
def test_it_equals_the_reference_on_random_cases(block: int) -> None:
    for seed in range(7000 + block, 7200, BLOCKS):
        check(case(seed), seed)


def test_stretches_of_many_keys_are_logged_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_FEW_KEYS", 9)
    for seed in range(7200, 7220):
        check(case(seed), seed)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(BLOCKS))
def test_it_equals_the_reference_on_thousands_of_random_cases(block: int) -> None:
    for seed in range(10_000 + block, 12_000, BLOCKS):
        check(case(seed), seed)


@pytest.mark.parametrize("block", range(BLOCKS))
def test_it_equals_the_reference_where_layer_events_overlap(block: int) -> None:
    for seed in range(block, 240, BLOCKS):
        check(plan_of(*overlapping(seed)), seed)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(BLOCKS))
def test_it_equals_the_reference_on_thousands_of_cases_that_overlap(block: int) -> None:
    for seed in range(1000 + block, 4000, BLOCKS):
        check(plan_of(*overlapping(seed)), seed)


@pytest.mark.parametrize("block", range(2))
def test_it_equals_the_reference_where_many_tokens_are_decoded(block: int) -> None:
    """Long answers, so that stretches have many steps and are cut by arrivals and full memory."""
    repeated = 0
    for seed in range(7300 + block, 7340, 2):
        rng = random.Random(seed)
        trace = tiny_trace(requests=4, prompt_tokens=3, output_tokens=40, seed=seed)
        arrivals: Any = {"kind": "poisson", "rate_per_s": rng.choice([30, 3000])}
        plan = plan_of(
            tiny_scenario(
                cache={"policy": rng.choice(KNOWN[:-2]), "slots": rng.randint(0, 20)},
                batching={
                    "policy": rng.choice(["decode_first", "prefill_first", "fcfs"]),
                    "max_sequences": rng.randint(1, 4),
                },
                memory={"kv_block_tokens": 4, "kv": rng.randint(22, 60) * 16384},
                workload={"arrivals": rng.choice([arrivals, "all_at_once"])},
                timeline={"first_step": rng.randint(0, 30), "steps": rng.choice([0, 1, 9])},
            ),
            trace,
        )
        calls = count_repeats()
        with calls as numbers:
            check(plan, seed)
        repeated += max(numbers)
    assert repeated > 100  # else no stretch was longer than a step


def test_a_request_that_arrives_as_a_step_ends_belongs_to_the_next_step() -> None:
    first = tiny_trace(requests=2, prompt_tokens=2, output_tokens=20)
    alone = plan_of(tiny_scenario(workload={"requests": 1}), first)
    ends = [row[2] for row in both(alone)[0].ledger.steps]
    for end_ns in (ends[5] - 1, ends[5], ends[5] + 1):
        trace = costed_trace(
            first.expert_ids[:],
            seq_len=first.requests["num_rows"],
            prompt_tokens=first.requests["prompt_tokens"],
            arrival_s=[0.0, end_ns / 1e9],
        )
        scenario = tiny_scenario(
            workload={"arrivals": {"kind": "recorded"}}, batching={"max_sequences": 2}
        )
        plan = plan_of(scenario, trace)
        check(plan, end_ns)
        served = both(plan)[1].requests[1]
        assert served.arrival_ns == end_ns
        assert served.scheduled_ns == (ends[5] if end_ns <= ends[5] else ends[6])


class count_repeats:  # noqa: N801
    """Record how many steps repeat the first one of each stretch."""

    def __enter__(self) -> list[int]:
        numbers: list[int] = [0]
        self.original = original = stretch.Stretches.repeats

        def counted(own: stretch.Stretches, *given: Any) -> Any:
            requests, more = original(own, *given)
            numbers.append(more)
            return requests, more

        stretch.Stretches.repeats = counted  # type: ignore[method-assign, assignment]
        return numbers

    def __exit__(self, *_: object) -> None:
        stretch.Stretches.repeats = self.original  # type: ignore[method-assign]


def test_results_have_the_same_bounds_and_verdict() -> None:
    for seed in (7001, 7004, 7013, 7021):
        plan = case(seed, bounds=True)
        results = [
            result_of(replace(plan, scenario=plan.scenario.model_copy(update={"simulation": name})))
            for name in ("reference", "compiled")
        ]
        assert repr(results[0].summary) == repr(results[1].summary), seed
        for name, table in results[0].columns.items():
            for column, values in table.items():
                assert list(values) == list(results[1].columns[name][column]), (seed, name, column)


def test_written_runs_are_the_same_but_for_what_the_manifest_says(tmp_path: Path) -> None:
    tiny_trace(requests=3, output_tokens=9).save(tmp_path / "trace")
    files = []
    for name in ("reference", "compiled"):
        scenario = tiny_scenario(trace=str(tmp_path / "trace"), simulation=name)
        result = run(Scenario.model_validate(scenario), out=tmp_path / name)
        again = run(Scenario.model_validate(scenario), out=tmp_path / name)
        assert result.simulation == again.simulation == name
        assert json.loads((tmp_path / name / "manifest.json").read_text())["simulation"] == name
        names = ("summary.json", *(f"{table}.parquet" for table in TABLES))
        files.append([(tmp_path / name / file).read_bytes() for file in names])
    assert files[0] == files[1]


def test_the_residents_at_the_end_are_the_same() -> None:
    """Where no expert left, a run is its own bound, and is not simulated again."""
    for seed in range(7500, 7530):
        one, other = both(case(seed))
        for pair in zip(one.distinct_caches, other.distinct_caches, strict=True):
            assert sorted(pair[0].residents) == sorted(pair[1].residents), seed


def told_bounds(outcome: Outcome) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
    """Return the bounds of a run, and what was last told of the progress of each."""
    told: dict[str, tuple[int, int]] = {}
    bounds = bounds_of(outcome, lambda what, *done: told.update({what: done}))
    return bounds, told


def test_bounds_of_the_steps_that_a_run_kept_are_those_that_are_simulated() -> None:
    timed = {"MIN": 0, "infinite cache": 0}
    for seed in range(7600, 7660):
        plan = case(seed, bounds=True)
        found = []
        for name in ("reference", "compiled"):
            scenario = plan.scenario.model_copy(update={"simulation": name})
            outcome = simulate(replace(plan, scenario=scenario))
            bounds, told = told_bounds(outcome)
            found.append(bounds)
        assert found[0] == found[1] == bounds_of(replace(outcome, steps=None)), seed
        for name in timed:  # a run that is timed again alone is told of at its end alone
            timed[name] += told.get(name) == (1, 1)
    assert timed["MIN"] > 40
    assert timed["infinite cache"] > 20


def test_min_refuses_a_future_that_does_not_come() -> None:
    plan = plan_of(tiny_scenario(cache={"policy": "min", "slots": 9}), tiny_trace(requests=2))
    one, _ = both(plan)
    events = one.ledger.layer_events()
    for wrong in (events[::-1], [*events[:6], events[5], *events[6:]], events[:-3]):
        raised = []
        for name in ("reference", "compiled"):
            chosen = replace(plan, scenario=plan.scenario.model_copy(update={"simulation": name}))
            with pytest.raises(InvariantError) as caught:
                serve(chosen, evictions=hindsight(replace(one, plan=chosen), wrong))
            raised.append(str(caught.value))
        assert raised[0] == raised[1]
        assert "promised" in raised[0]


def test_windows_and_observed_plans_are_the_same() -> None:
    checked = 0
    for seed in range(7400, 7420):
        if timed_at_once(seed)[1].num_requests > 2:
            check(case(seed, metrics={"window": {"skip_requests": 1}}), seed)
            checked += 1
    assert checked > 5
    for seed in range(80):
        scenario, trace = overlapping(seed)
        scenario["metrics"] = {"window": {"skip_requests": 1}}
        with suppress(ScenarioError):  # no request or no step is in the window
            plan = plan_of(scenario, trace)
            summarise(both(plan)[0])
            check(plan, seed)
            checked += 1
    assert checked > 25


def test_results_of_runs_that_overlap_have_the_same_bounds_and_baseline() -> None:
    for seed in range(3000, 3012):
        plan = plan_of(*overlapping(seed))
        found = []
        for name in ("reference", "compiled"):
            scenario = plan.scenario.model_copy(update={"simulation": name, "bounds": True})
            found.append(result_of(replace(plan, scenario=scenario)).summary)
        assert found[0] == found[1], seed


@pytest.mark.parametrize(
    "placement",
    [{"policy": "cpu_layers", "options": {"copy_rows": None}}, {"policy": "cpu_experts"}],
    ids=lambda placement: placement["policy"],
)
def test_bounds_with_copies_under_way_whose_experts_run_on_the_cpu_are_the_same(
    placement: dict[str, Any],
) -> None:
    """With a slot for every expert, those on the CPU are copied for later, and arrive late."""
    hardware = {
        "profile": "rtx-4090", "h2d": {"bandwidth": "100MB/s"}, "cpu_flops": "1TFLOPS",
        "host_memory_bandwidth": "60GB/s",
    }  # fmt: skip
    sections = {"hardware": hardware, "placement": placement, "cache": {"slots": 3}}
    found = [
        result_of(
            plan_of(tiny_scenario(**sections, bounds=True, simulation=name), tiny_trace(requests=3))
        ).summary
        for name in ("reference", "compiled")
    ]
    assert found[0] == found[1]


def test_copies_ahead_may_queue_up_without_limit() -> None:
    """A link so slow that most copies ahead are still queued when their slots are given away."""
    link = {"bandwidth": "300MB/s", "latency": "1us", "chunk": "100kB"}
    trace = tiny_trace(requests=3, prompt_tokens=9, output_tokens=40)
    plan = plan_of(
        tiny_scenario(
            hardware={"profile": "rtx-4090", "h2d": link},
            cache={"policy": "lru", "scope": "global", "slots": 16},
            prefetch={"policy": "oracle", "options": {"depth": 4}},
            placement={"policy": "cost"},
        ),
        trace,
    )
    check(plan, 0)


# What a policy brings


class Newest(LRU):
    """The key that was used last leaves first."""

    name = "newest"
    stack = False

    def decide(self, view: Any) -> Sequence[int]:
        excess = len({*self.book, *view.union}) - self.capacity
        for key in view.union:
            self.book.pop(key, None)
            self.book[key] = None
        return [self.book.popitem()[0] for _ in range(max(0, excess))]


def newest_kernel() -> Kernel:
    observe, _, left, *_ = KERNELS["lfu"]

    @numba.njit
    def score(key, cache, ints, floats):  # type: ignore[no-untyped-def]
        return 0.0, -ints[key, 0]

    return Kernel(observe, score, left)


def policies_of(plan: Plan, policy: type[LRU]) -> Iterator[LRU]:
    from moesim.policies.eviction.base import CacheContext
    from moesim.simulate.build import universe_of

    for number in range(len(plan.slots)):
        universe = universe_of(plan, number)
        rng = np.random.default_rng(0)
        yield policy(CacheContext(plan.capacity(number), universe, "bypass", rng))


def test_a_policy_may_bring_its_own_functions() -> None:
    plan = plan_of(
        tiny_scenario(cache={"slots": 9}, batching={"max_sequences": 2}, simulation="compiled"),
        tiny_trace(requests=3, output_tokens=20),
    )
    server, now_ns = serve(plan, evictions=list(policies_of(plan, Newest)))
    assert server.compiled is None
    reference = finish(plan, server, now_ns)
    fast = type("Fast", (Newest,), {"kernel": newest_kernel(), "name": "newest"})
    server, now_ns = serve(plan, evictions=list(policies_of(plan, fast)))
    assert server.compiled is not None
    assert everything(finish(plan, server, now_ns)) == everything(reference)


def test_a_subclass_does_not_inherit_the_functions() -> None:
    assert stretch.kernel_of(next(policies_of(case(7001), LRU))) is KERNELS["lru"]
    assert stretch.kernel_of(next(policies_of(case(7001), Newest))) is None


SCORED = """
from numba import njit
from moesim.policies.eviction.lru import LRU
from moesim.serving.compiled.policies import KERNELS, Kernel

fed = KERNELS["lfu"]


@njit
def score(key, cache, ints, floats):
    {score}


class Mine(LRU):
    kernel = {kernel}
"""


def in_file(folder: Path, score: str = "return 0.0, ints[key, 0]", kernel: str = "") -> str:
    """Return the place of a class in a file, with a score and a kernel of its own."""
    text = SCORED.format(score=score, kernel=kernel or "Kernel(fed.observe, score, fed.left)")
    (folder / "own.py").write_text(text)
    return f"{folder / 'own.py'}:Mine"


def served_by(policy: str, simulation: str, **sections: Any) -> Outcome:
    cache = {"policy": policy, "slots": 9}
    scenario = tiny_scenario(cache=cache, simulation=simulation, **sections)
    plan = plan_of(scenario, tiny_trace(requests=3, output_tokens=20))
    return finish(plan, *serve(plan))


def test_a_policy_in_a_file_is_compiled_by_its_own_functions(tmp_path: Path) -> None:
    policy = in_file(tmp_path)
    one, other = served_by(policy, "reference"), served_by(policy, "compiled")
    assert (one.simulation, other.simulation) == ("reference", "compiled")
    assert everything(one) == everything(other)


def test_a_policy_needs_no_insert_where_nothing_is_copied_ahead(tmp_path: Path) -> None:
    policy, slow = in_file(tmp_path), {"engine": {"launch": "1us"}}
    one, other = served_by(policy, "reference", **slow), served_by(policy, "compiled", **slow)
    assert everything(one) == everything(other)


def test_the_example_in_the_documentation_runs(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "back-ends.md").read_text()
    (tmp_path / "example.py").write_text(text.split("```python")[1].split("```")[0])
    policy = f"{tmp_path / 'example.py'}:MyPolicy"
    one, other = served_by(policy, "reference"), served_by(policy, "compiled")
    assert other.simulation == "compiled"
    assert everything(one) == everything(other)


@pytest.mark.parametrize("name", ["infinite", "resident"])
def test_a_policy_in_a_file_is_not_taken_for_one_of_moesim(name: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        f"from moesim.policies.eviction.fifo import FIFO\nclass {name}(FIFO): pass\n"
    )
    with pytest.raises(ScenarioError, match="policy is not compiled"):
        served_by(f"{tmp_path / 'own.py'}:{name}", "compiled")


@pytest.mark.parametrize(
    ("own", "why"),
    [
        ({"score": "return 0.0"}, "TypingError"),
        ({"score": "assert ints[key, 0] < 9, 'no score'; return 0.0, ints[key, 0]"}, "no score"),
        ({"kernel": "{'score': score}"}, "must be a Kernel"),
        ({"kernel": "Kernel(fed.observe, score, fed.left, lambda _: {}['x'])"}, "KeyError"),
        ({"kernel": "Kernel(fed.observe, score, fed.left, head=score)"}, "TypingError"),
    ],
)
def test_a_mistake_in_the_functions_of_a_policy_names_it(
    own: dict[str, str], why: str, tmp_path: Path
) -> None:
    with pytest.raises(PolicyViolation, match=rf"'Mine'.*kernel.*{why}"):
        served_by(in_file(tmp_path, **own), "compiled")


def test_a_list_that_lacks_keys_is_refused(tmp_path: Path) -> None:
    kernel = "Kernel(fed.observe, score, fed.left, head=head, following=following)"
    text = SCORED.format(score="return 0.0, 0", kernel=kernel)
    lists = """
@njit
def head(cache, ints):
    return -1


@njit
def following(key, ints):
    return -1


class Mine"""
    (tmp_path / "own.py").write_text(text.replace("class Mine", lists))
    with pytest.raises(PolicyViolation, match=r"'Mine'.*keeps more than \d+ keys"):
        served_by(f"{tmp_path / 'own.py'}:Mine", "compiled")


# What is compiled


def reason_of(plan: Plan) -> str:
    machine = SimMachine(simpy.Environment(), plan.prices(), plan.places.topology)
    return why_not_compiled(plan, build_server(plan, machine))


def reason(**changes: Any) -> str:
    return reason_of(plan_of(tiny_scenario(**changes), tiny_trace()))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, ""),
        ({"cache": {"policy": "arc"}}, "policy"),
        ({"cache": {"policy": "random"}}, "policy"),
        ({"prefetch": {"policy": "oracle"}}, ""),
        ({"prefetch": {"policy": "oracle", "options": {"depth": 5}}}, "prefetch"),
        ({"prefetch": {"policy": "all"}}, "prefetch"),
        ({"prefetch": {"policy": "oracle", "buffers": 2}}, "buffers"),
        ({"prefetch": {"policy": "oracle", "cancel": True}}, "cancelled"),
        ({"cache": {"write_back": True}}, "written back"),
        ({"replay": "sequential"}, "sequential"),
        ({"engine": "llama.cpp"}, "sorts"),
        ({"engine": QUIET}, "sums"),
        ({"engine": {"launch": "1us"}}, ""),
        ({"model": {"expert_bits_by": {"layer": {"0": 8}}}}, "size"),
        ({"placement": {"policy": "cpu_experts"}}, ""),
        ({"placement": {"policy": "two_queue"}}, "placement"),
        ({"placement": {"policy": "cpu_layers", "options": {"whole_layers": 1}}}, "whole"),
        ({"placement": {"policy": "cost"}, "hardware": UNIFIED}, "one memory"),
    ],
)
def test_what_is_not_known_has_a_reason(changes: dict[str, Any], why: str) -> None:
    found = reason(**changes)
    assert why in found
    assert bool(why) == bool(found)


def test_the_known_policies_are_those_with_functions_and_those_that_need_none() -> None:
    needing_none = {"static", "resident", "infinite"}  # nothing leaves, or all that is missing
    assert set(backend._KNOWN) == {*KERNELS, *needing_none}


def test_asking_for_it_where_it_cannot_be_is_refused() -> None:
    plan = plan_of(tiny_scenario(simulation="compiled", cache={"policy": "arc"}), tiny_trace())
    with pytest.raises(ScenarioError, match=r"simulation.*cannot be compiled: the policy"):
        serve(plan)


def test_auto_takes_it_for_long_runs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend.AUTO_EVENTS >= 100_000  # loading it takes as long as some ten thousand events
    monkeypatch.setattr(backend, "AUTO_EVENTS", 5000)
    trace = tiny_trace(requests=2, output_tokens=5)
    scenario = tiny_scenario(workload={"requests": 2}, bounds=False)
    server, _ = serve(plan_of(scenario, trace))
    assert server.compiled is None
    layers, each = trace.num_layers, 5
    requests = 5000 // (layers * each) + 1
    scenario["workload"] = {"requests": requests, "order": "resampled"}
    scenario["batching"] = {"max_sequences": 64, "token_budget": 512}
    server, _ = serve(plan_of(scenario, trace))
    assert server.compiled is not None


def test_a_numba_that_cannot_be_imported_is_named_or_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text("raise ImportError('needs NumPy 2.3 or less')")
    monkeypatch.delitem(sys.modules, "numba")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(backend, "AUTO_EVENTS", 1)
    server, _ = serve(plan_of(tiny_scenario(), tiny_trace()))
    assert server.compiled is None
    with pytest.raises(ScenarioError, match=r"numba cannot be imported: needs NumPy 2\.3"):
        serve(plan_of(tiny_scenario(simulation="compiled"), tiny_trace()))


def test_progress_counts_the_rows_of_all_steps() -> None:
    last = []
    for name in ("reference", "compiled"):
        plan = plan_of(tiny_scenario(simulation=name), tiny_trace(requests=3, output_tokens=90))
        told: dict[str, tuple[int, int]] = {}
        serve(plan, progress=lambda what, *numbers, told=told: told.update({what: numbers}))
        last.append(told["run"])
    assert last[0] == last[1] == (last[0][1], last[0][1])


@pytest.mark.parametrize("figures", [{"kernel_overhead": 10**17}, {"h2d": {"latency": 10**18}}])
def test_times_that_cannot_be_counted_are_left_to_the_reference(figures: dict[str, Any]) -> None:
    hardware = {"profile": "rtx-4090", **figures}
    assert "takes over an hour" in reason(hardware=hardware)


@pytest.mark.parametrize("name", ["launch", "copy_launch", "layer_event"])
def test_host_times_that_cannot_be_counted_are_left_to_the_reference(name: str) -> None:
    assert "takes over an hour" in reason(engine={name: "1000000000s"})
    assert not reason(engine={name: "1000s"})


def test_a_row_with_an_expert_twice_is_refused(tmp_path: Path) -> None:
    """Its time would be read from behind the last entry of a table. Reading checks no values."""
    costed_trace(np.tile(np.arange(6), (9, 2, 1))).save(tmp_path / "trace")
    (file,) = (tmp_path / "trace").glob("**/*expert_ids*.npy")
    stored = np.load(file, mmap_mode="r+")
    stored[7, 1] = 3
    stored.flush()
    plan = plan_of(tiny_scenario(simulation="compiled"), load_trace(tmp_path / "trace"))
    with pytest.raises(TraceError, match=r"row 7, layer 1.*repeated"):
        serve(plan)


def test_the_ticks_of_lfru_are_numbers_that_both_can_count() -> None:
    with pytest.raises(ScenarioError, match=r"less than or equal to 1000000"):
        case(7001, cache={"policy": "lfru", "options": {"ticks": 10**400}})


def test_rates_of_any_size_are_timed_alike() -> None:
    trace = tiny_trace(requests=2, output_tokens=30)
    for flops in ("9PFLOPS", "20PFLOPS", "9000PFLOPS"):
        hardware = {"profile": "rtx-4090", "flops": flops}
        check(plan_of(tiny_scenario(hardware=hardware, cache={"slots": 9}), trace), 0)


def test_works_that_only_large_steps_have_are_left_to_the_reference() -> None:
    trace = tiny_trace(requests=8, prompt_tokens=90, output_tokens=2)
    hardware = {"profile": "rtx-4090", "flops": "160000FLOPS"}  # half a minute a row
    for budget, why in ((1, ""), (512, "one work takes over an hour")):
        scenario = tiny_scenario(hardware=hardware, batching={"token_budget": budget})
        assert reason_of(plan_of(scenario, trace)) == why


@pytest.mark.parametrize("overlaps", [False, True])
def test_a_run_that_is_too_long_is_refused_as_by_the_reference(overlaps: bool) -> None:
    raised = []
    trace = tiny_trace(requests=1, prompt_tokens=1, output_tokens=8)
    engine = {"launch": "1us"} if overlaps else "ideal"
    for name in ("reference", "compiled"):
        # Each of 4 layers of 7 steps copies 2 experts, and waits for 73 minutes: too short. A
        # slot for every expert, and a pause of the only client, make no difference.
        hardware = {"profile": "rtx-4090", "h2d": {"latency": (1 << 42) - 10**10}}
        arrivals = {"kind": "closed", "clients": 1, "think": {"mean": "4000000000s"}}
        workload = {"arrivals": arrivals, "requests": 3, "order": "resampled"}
        sections = {"hardware": hardware, "workload": workload, "engine": engine}
        plan = plan_of(tiny_scenario(**sections, simulation=name), trace)
        with pytest.raises(ScenarioError) as caught:
            serve(plan)
        raised.append(str(caught.value))
    assert raised[0] == raised[1]
    assert "146 years" in raised[0]


def test_the_schema_knows_the_key() -> None:
    assert Scenario.model_validate(tiny_scenario()).simulation == "auto"


# The shipped scenarios

SHIPPED = sorted((ROOT / "scenarios").glob("*.yaml"))
_FEW = 4


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_it_equals_the_reference_on_the_shipped_scenarios(file: Path) -> None:
    scenario = load_scenario(file)
    points = [point for _, point in expand_sweep(scenario)] if scenario.sweep else [scenario]
    plans = [prepare(point.model_copy(update={"bounds": False})) for point in points]
    known = [plan for plan in plans if not reason_of(plan)]
    if not known:
        pytest.skip("each point has something that is not compiled")
    for number, plan in enumerate(known[:: -(-len(known) // _FEW)]):
        check(plan, number)
