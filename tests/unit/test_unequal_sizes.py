"""Experts of unequal sizes, end to end: budgets, caches, copies and bounds in bytes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st
from oracles import eviction as naive
from watched_machines import enlist
from workloads import (
    everything,
    plan_of,
    random_case,
    run_on,
    shuffled,
    tiny_scenario,
    tiny_trace,
)

from moesim.cost.estimate import CostEstimate
from moesim.errors import BudgetError, PolicyViolation, ScenarioError
from moesim.executor.run import executor_for
from moesim.hardware.ops import Experts
from moesim.machine.events import EventMachine
from moesim.machine.sim import SimMachine
from moesim.machine.work import Work
from moesim.model.shapes import ModelShape
from moesim.policies import View
from moesim.policies.eviction import LRU, CacheContext
from moesim.scenario import load_scenario
from moesim.serving.budget import split_slots
from moesim.serving.experts.free_bytes import FreeBytes
from moesim.serving.experts.residency import ExpertCache
from moesim.serving.experts.slots import ExpertSizes, Slot, Staging
from moesim.simulate import Plan, bounds_of, group_by_cache, prepare, result_of, summarise

EXPERT = 3 * 512 * 1024 * 2
MIXED: dict[str, Any] = {
    "layer": {"1": 8, "2-3": 4},
    "expert": {"0/3": 4, "2/5": 16, "3/0": 24},
}
DISK = {"profile": "rtx-4090", "disk": {"latency": "80us", "bandwidth": "3GB/s"}}


def mixed(by: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"shape": "trace", "expert_bits_by": MIXED if by is None else by}


def plan(seed: int = 1, **changes: Any) -> Plan:
    trace = tiny_trace(requests=4, prompt_tokens=4, output_tokens=5, seed=seed, stickiness=0.4)
    return plan_of(tiny_scenario(**{"model": mixed(), **changes}), trace)


def random_bits(rng: random.Random) -> dict[str, Any]:
    bits = [2, 3.3, 4, 8, 24]
    experts = {f"{rng.randrange(4)}/{rng.randrange(8)}": rng.choice(bits) for _ in range(9)}
    return {"layer": {str(rng.randrange(4)): rng.choice(bits)}, "expert": experts}


# --- equal sizes in bytes -------------------------------------------------------------------------


@pytest.mark.parametrize("block", range(4))
def test_equal_sizes_in_bytes_give_the_times_of_slots(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    """Caches that count bytes of equal experts are those that count slots, to the nanosecond."""
    cases = [random_case(seed) for seed in range(block, 120, 4)]
    cases = [case for case in cases if case[0]["cache"]["policy"] != "random"]  # other draws
    in_slots = [list(everything(run_on(plan_of(*case)))) for case in cases]
    monkeypatch.setattr(ModelShape, "equal_sizes", property(lambda shape: False))
    for case, expected in zip(cases, in_slots, strict=True):
        made = plan_of(*case)
        assert sum(made.capacities) == sum(made.slots) * EXPERT
        found = list(everything(run_on(made)))
        found[-1] = tuple(nbytes // EXPERT for nbytes in found[-1])
        assert found == expected, case[0]


@pytest.mark.parametrize("by", [{"layer": {"0-3": 16}}, {"expert": {"1/2": 16}}, {}])
def test_equal_sizes_by_layer_or_expert_give_the_same_result(by: dict[str, Any]) -> None:
    changes: dict[str, Any] = {"cache": {"slots": 9}, "prefetch": "predicted", "bounds": True}
    given = result_of(plan(model=mixed(by), **changes))
    plain = result_of(plan(model={"shape": "trace"}, **changes))
    assert given.summary == plain.summary
    for name, columns in plain.columns.items():
        assert repr(given.columns[name]) == repr(columns)


def test_half_the_bits_for_all_is_half_the_bits_by_layer() -> None:
    by_layer = result_of(plan(model=mixed({"layer": {"0-3": 8}}), cache={"slots": 9}))
    for_all = result_of(plan(model={"shape": "trace", "expert_bits": 8}, cache={"slots": 9}))
    assert by_layer.summary == for_all.summary


# --- caches in bytes ------------------------------------------------------------------------------

WORTHS: dict[str, Any] = {
    "lru": naive.lru,
    "fifo": naive.fifo,
    "lfu": naive.lfu,
    "lfu_in_cache": naive.lfu_in_cache,
    "lfru": naive.lfru(),
}


@pytest.mark.parametrize("policy", WORTHS)
@pytest.mark.parametrize("scope", ["per_layer", "global"])
@pytest.mark.parametrize("admission", ["bypass", "always"])
def test_a_run_hits_what_a_naive_cache_of_as_many_bytes_hits(
    policy: str, scope: str, admission: str
) -> None:
    for seed in range(6):
        rng = random.Random(seed)
        cache = {"policy": policy, "scope": scope, "admission": admission}
        cache["slots"] = f"{rng.randrange(5, 60)}MB"
        made = plan(seed, model=mixed(random_bits(rng)), cache=cache)
        outcome = run_on(made)
        sizes = made.cost.shape.sizes()
        assert made.sizes == sizes
        events = group_by_cache(made, outcome.ledger.layer_events())
        expected = hits = 0
        for number, (own, cached) in enumerate(zip(events, outcome.distinct_caches, strict=True)):
            capacity, always = made.capacities[number], admission == "always"
            outcomes = naive.replay_bytes(WORTHS[policy], own, capacity, sizes, always)
            expected += sum(len(found) for found, _ in outcomes)
            assert set(cached.slots) == (outcomes[-1][1] if outcomes else set())
            assert sum(sizes[key] for key in cached.slots) <= capacity
        hits = sum(outcome.ledger.hits)
        assert hits == expected
        assert sum(outcome.ledger.late_hits) == 0


def test_copies_have_the_bytes_of_their_expert() -> None:
    made = plan(cache={"slots": 9}, timeline={"steps": 1000})
    ledger, sizes = run_on(made).ledger, made.cost.shape.sizes()
    copied = [key for lane, kind, *_, key in ledger.timeline if kind == "demand"]
    in_layer = [
        (layer, number) for _, kind, *_, layer, number in ledger.timeline if kind == "demand"
    ]
    assert len(copied) == sum(ledger.demand_copies) > 0
    keys = [number if number >= 8 else layer * 8 + number for layer, number in in_layer]
    assert sum(sizes[key] for key in keys) == ledger.moved_bytes["demand"]


@pytest.mark.parametrize("block", range(4))
def test_machines_agree_on_experts_of_unequal_sizes(block: int) -> None:
    for seed in range(500 + block, 560, 4):
        scenario, trace = random_case(seed)
        rng = random.Random(seed)
        scenario["model"] = mixed(random_bits(rng))
        if rng.random() < 0.5:
            scenario["placement"] = rng.choice(["cost", "two_queue"])
        if rng.random() < 0.4:
            scenario["hardware"].update(DISK)
            scenario["memory"]["host"] = rng.randrange(40, 90) * 10**6
        made = plan_of(scenario, trace)
        assert made.capacities
        outcome = run_on(made)
        assert everything(outcome) == everything(run_on(made, EventMachine))
        assert everything(outcome) == everything(run_on(made, shuffled(seed)))
        summarise(outcome)


@pytest.mark.parametrize("placement", ["cpu_layers", "cpu_experts"])
def test_fixed_residents_fit_in_bytes(placement: str) -> None:
    made = plan(placement=placement, cache={"slots": "90%"}, bounds=True)
    sizes, residents = made.cost.shape.sizes(), made.places.residents
    assert residents
    assert made.budget.slots_bytes == sum(sizes[key] for key in residents) == sum(made.capacities)
    assert made.budget.slots_bytes <= sum(sizes) * 0.9
    assert result_of(made).summary["cache_slots"] == len(residents)
    assert everything(run_on(made)) == everything(run_on(made, EventMachine))


def test_prefetches_are_counted_in_bytes() -> None:
    made = plan(cache={"slots": 9}, prefetch="predicted")
    outcome = run_on(made)
    found = summarise(outcome)
    parts = ("useful", "late", "wasted", "unused")
    issued = sum(outcome.ledger.prefetch_bytes)
    assert issued > 0
    assert sum(found[f"prefetch_{part}_bytes"] for part in parts) == issued


def test_a_prefetch_evicts_as_many_experts_as_its_bytes_need() -> None:
    """Four small experts leave for a large one; a larger one than the cache never comes."""
    small = {f"0/{number}": 4 for number in range(8)}
    made = plan(
        model=mixed({"expert": {**small, "1/0": 16, "1/1": 32}, "layer": {"2-3": 16}}),
        cache={"slots": "4MiB", "scope": "global"},
        prefetch="oracle",
    )
    outcome = run_on(made)
    assert outcome.ledger.prefetch_refused > 0
    (cache,) = outcome.distinct_caches
    held = sum(made.cost.shape.sizes()[key] for key in cache.slots)
    assert held <= made.capacities[0] == 4 * 2**20
    assert sum(outcome.ledger.prefetch_copies) > 0


def test_no_more_experts_leave_for_a_prefetch_than_its_bytes_need() -> None:
    sizes, rng = [4, 4, 2, 6, 11], np.random.default_rng(0)
    policy = LRU(CacheContext(10, range(5), "bypass", rng, sizes=sizes))
    env = simpy.Environment()
    made, ledger = plan(), run_on(plan()).ledger
    machine = SimMachine(env, made.prices())
    cache = ExpertCache(policy, machine, ledger, Staging(1), ExpertSizes(11, by_key=sizes))
    cache.decide(0, View(0, (0, 1), (1, 1)))
    assert cache.prefetch(0, 4, ()) is None  # larger than the cache
    assert set(cache.slots) == {0, 1}
    assert cache.prefetch(0, 3, ()) is not None  # 2 of its 6 bytes are free
    assert set(cache.slots) == {1, 3}
    cache.audit()
    assert cache.prefetch(0, 2, frozenset({1, 3})) is None  # nothing is free, all are protected


# --- free bytes -----------------------------------------------------------------------------------

ACTIONS = st.lists(
    st.tuples(st.sampled_from(["take", "leave", "sort"]), st.integers(0, 9)), max_size=40
)


@given(st.integers(0, 24), ACTIONS)
def test_free_bytes_are_a_list_of_single_bytes(
    capacity: int, actions: Sequence[tuple[str, int]]
) -> None:
    """Each byte knows the slot that left it; a slot with an odd number is still being read."""
    free = FreeBytes(capacity, 0)
    naive_bytes: list[Slot | None] = [None] * capacity
    held: list[Slot] = []
    for action, number in actions:
        if action == "take":
            slot = free.pop()
            taken = free.take(slot, number)
            assert taken == (number <= len(naive_bytes))
            if taken:
                cut = len(naive_bytes) - number
                over, naive_bytes = naive_bytes[cut:], naive_bytes[:cut]
                assert slot.units == number
                waits = {each.number for each in over if each is not None and busy(each)}
                assert {each.number for each in slot.over if busy(each)} == waits
                held.append(slot)
        elif action == "leave" and held:
            slot = held.pop(number % len(held))
            free.append(slot)
            naive_bytes += [slot] * slot.units
        elif action == "sort":
            free.sort(key=lambda slot: not busy(slot))
            naive_bytes.sort(key=lambda slot: slot is None or not busy(slot))
        assert free.nbytes == len(naive_bytes)
        assert free.nbytes + sum(slot.units for slot in held) == capacity


def busy(slot: Slot) -> bool:
    return slot.number % 2 == 1


def test_a_copy_waits_for_each_expert_whose_bytes_it_takes_and_that_is_still_read() -> None:
    bits = {
        f"{layer}/{expert}": 4 if expert % 3 else 24 for layer in range(4) for expert in range(8)
    }
    trace = tiny_trace(requests=6, prompt_tokens=4, output_tokens=8, stickiness=0.4)
    waits: list[list[str]] = []

    class Watched(EventMachine):
        def submit(self, work: Work) -> None:
            if work.lane == "h2d":
                waits.append([type(other.op).__name__ for other in work.after])
            super().submit(work)

    for sizes in (bits, {}):
        waits.clear()
        scenario = tiny_scenario(
            model=mixed({"expert": sizes}),
            cache={"slots": "25%", "policy": "fifo"},
            batching={"token_budget": 6},
        )
        run_on(plan_of(scenario, trace), Watched)
        assert {name for names in waits for name in names} == {"Experts"}
        assert (max(map(len, waits)) > 1) == bool(sizes)  # several experts left for one


# --- the budget -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slots", "share"),
    [("rest", 1), (32, 1), (16, 0.5), ("4/layer", 0.5), ("50%", 0.5), ("0%", 0), ("1TB", 1)],
)
def test_slots_of_every_form_are_a_part_of_all_bytes(slots: Any, share: float) -> None:
    made = plan(cache={"slots": slots, "scope": "global"})
    every = sum(made.cost.shape.sizes())
    assert made.budget.slots_bytes == int(every * share)
    assert made.capacities == (int(every * share),)
    assert made.budget.slots == sum(made.slots) == int(32 * share)
    found = summarise(run_on(made))
    parts = ("fixed", "kv", "slots", "staging", "activations", "free")
    assert sum(found[f"{part}_bytes"] for part in parts) == found["vram_bytes"]
    assert found["staging_bytes"] == 2 * max(made.cost.shape.sizes())
    assert any(note.startswith("slots are counted in experts of") for note in found["notes"])


def test_layers_share_bytes_in_proportion_to_their_experts() -> None:
    made = plan(cache={"slots": "100%", "initial_layers": 1})
    sizes = made.cost.shape.sizes()
    assert made.capacities == tuple(sum(sizes[8 * i : 8 * i + 8]) for i in range(4))
    assert list(made.slots) == split_slots(32, 4, 8)
    half = plan(cache={"slots": "50%", "initial_layers": 1})
    assert half.capacities[0] == made.capacities[0]
    assert sum(half.capacities) <= half.budget.slots_bytes


def test_bytes_that_do_not_fit_are_refused_with_a_size_that_does(tmp_path: Path) -> None:
    trace = tiny_trace(requests=1).save(tmp_path / "trace")
    path = tmp_path / "x.yaml"
    text = (
        f"trace: {trace.path}\nhardware: t4\nmodel:\n  expert_bits_by: {{layer: {{0: 8}}}}\n"
        "memory: {capacity: 70MB}\ncache: {slots: 30}\n"
    )
    path.write_text(text)
    with pytest.raises(BudgetError) as caught:
        prepare(load_scenario(path))
    said = str(caught.value)
    assert f"{path}:6:16: impossible memory" in said
    remedy = said.split("cache.slots: ")[1].split(",")[0]
    assert remedy.endswith("B")
    path.write_text(text.replace("slots: 30", f"slots: {remedy}"))
    assert prepare(load_scenario(path)).budget.free_bytes >= 0


def test_initial_layers_that_do_not_fit_are_refused_in_bytes() -> None:
    with pytest.raises(BudgetError, match="all experts of 2 initial layers take"):
        plan(cache={"slots": 5, "initial_layers": 2})


@pytest.mark.parametrize(("slots", "nbytes"), [(31, 31 / 32), ("3/layer", 12 / 32), ("30%", 0.3)])
def test_a_slot_has_the_mean_size_to_the_byte(slots: Any, nbytes: float) -> None:
    made = plan(model=mixed({"expert": {"0/0": 3.3, "1/1": 2.9}}), cache={"slots": slots})
    every = sum(made.cost.shape.sizes())
    assert every % 32 > 1  # so that dividing first would lose more than a byte
    assert abs(made.budget.slots_bytes - every * nbytes) < 1


# --- bounds and refusals --------------------------------------------------------------------------


@pytest.mark.parametrize("arrivals", ["all_at_once", {"kind": "poisson", "rate_per_s": 3000}])
def test_bounds_hold_the_bytes_of_all_experts(arrivals: Any) -> None:
    made = plan(cache={"slots": 9}, workload={"arrivals": arrivals}, bounds=True)
    roomy = made.with_all_slots()
    assert sum(roomy.capacities) == sum(made.cost.shape.sizes())
    assert sum(roomy.slots) == 32
    outcome = run_on(plan(cache={"slots": 9}, bounds=True))
    found = bounds_of(outcome)
    assert found["infinite_cache_hit_rate"] > summarise(outcome)["expert_hit_rate"]
    assert 0 <= found["min_hit_rate"] <= 1
    summary = result_of(made).summary
    assert summary["verdict"] is not None
    assert "experts have unequal sizes, so MIN is no bound" in summary["caveats"]


def test_prices_are_of_the_expert_s_own_bytes() -> None:
    made = plan()
    prices, sizes = made.prices(), made.cost.shape.sizes()
    for keys in ((0,), (3,), (0, 3)):
        (cost,) = prices.pieces("gpu", Experts(0, keys, (1,) * len(keys)))
        own = tuple(sizes[key] for key in keys)
        assert cost.fixed_ns == made.cost.experts_ns((1,) * len(keys), own)
    # A row of one expert reads its weights, so the time is that of its bytes.
    small, large = (prices.pieces("gpu", Experts(0, (key,), (1,)))[0].fixed_ns for key in (3, 0))
    assert small < large
    execution = made.execution()
    assert [execution.nbytes(key) for key in range(32)] == list(sizes)


def test_estimates_are_of_the_expert_s_own_bytes() -> None:
    made = plan()
    sizes = made.cost.shape.sizes()
    estimate = CostEstimate(made.cost, None, bytes_of=sizes.__getitem__)
    assert estimate.copy_ns(3) == made.cost.copy_ns("h2d", sizes[3]) < estimate.copy_ns(0)


def test_a_policy_that_counts_slots_is_refused_before_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    members = {"__module__": __name__, "by_bytes": False}
    name = enlist(monkeypatch, "eviction", type("Counting", (LRU,), members))
    with pytest.raises(ScenarioError, match=r"cache\.policy: counting counts slots"):
        plan(cache={"policy": name})
    assert plan(cache={"policy": name}, model={"shape": "trace"}).capacities == ()


def test_a_policy_that_keeps_too_many_bytes_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    class Greedy(LRU):
        def decide(self, view: View) -> Any:
            self.book.update(dict.fromkeys(view.union))
            return ()

    name = enlist(monkeypatch, "eviction", Greedy)
    with pytest.raises(PolicyViolation, match=r"keeps more than \d+ bytes"):
        run_on(plan(cache={"policy": name, "slots": 5}))


def test_the_real_machine_refuses_unequal_sizes() -> None:
    with pytest.raises(ScenarioError, match=r"model\.expert_bits_by: the real machine computes"):
        executor_for(plan(), None)  # type: ignore[arg-type]
