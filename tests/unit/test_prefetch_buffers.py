"""Prefetch into buffers of its own: an expert takes a slot when it is used, and not before."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from costed_traces import costed_trace
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_events import run_on_five_lanes
from oracles import eviction as naive
from oracles.prefetch_buffers import replay_staged
from watched_machines import check_buffers, enlist, watch
from workloads import (
    buffered_case,
    decisions,
    everything,
    plan_of,
    run_on,
    shuffled,
    static_trace,
    tiny_scenario,
    tiny_trace,
)

from moesim.errors import BudgetError, InvariantError
from moesim.machine.events import EventMachine
from moesim.machine.sim import SimMachine
from moesim.policies.eviction import LRU
from moesim.policies.prefetch import Prefetch
from moesim.policies.view import View
from moesim.scenario import load_scenario
from moesim.serving.experts.prefetch_buffers import PrefetchBuffers
from moesim.serving.experts.slots import Slot
from moesim.serving.run_log import Decided, DecidedAhead, RunLog
from moesim.simulate import Outcome, prepare, summarise

BLOCKS = 4
EXPERTS = 8


# --- by hand --------------------------------------------------------------------------------------


class FetchesOnce(Prefetch):
    """Asks for experts 6 and 7 in the third step, when the two slots hold experts 0 and 1."""

    keys = (7, 6)

    def wanted(self, view: View) -> Any:
        self.steps = getattr(self, "steps", 0) + (view.layer < 0)
        return self.keys if view.layer < 0 and self.steps == 4 else ()


def served_once(
    monkeypatch: pytest.MonkeyPatch, later: tuple[int, ...], buffers: int = 1, **changes: Any
) -> tuple[Outcome, list[Decided]]:
    """Serve a trace of one layer, top-1: experts 0, 1, 1 and then `later`, in two slots."""
    name = enlist(monkeypatch, "prefetch", FetchesOnce)
    rows = np.array([0, 1, 1, *later]).reshape(-1, 1, 1)
    prefetch = {"policy": name, "buffers": buffers}
    scenario = tiny_scenario(cache={"slots": 2}, prefetch=prefetch, **changes)
    log = RunLog(Decided)
    outcome = run_on(plan_of(scenario, costed_trace(rows, prompt=1)), observers=(log,))
    return outcome, log.of(Decided)


def residents_of(outcome: Outcome) -> set[int]:
    return set(outcome.caches[0].slots)


def test_a_wrong_guess_evicts_nothing_and_leaves_its_buffer_at_its_layer_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outcome, _ = served_once(monkeypatch, (0, 1))
    assert residents_of(outcome) == {0, 1}
    assert sum(outcome.ledger.demand_copies) == 2  # the first uses of experts 0 and 1
    assert outcome.ledger.prefetch_wasted == 1
    assert summarise(outcome)["prefetch_pollution"] == 0
    buffers = outcome.caches[0].buffers
    assert buffers is not None
    assert not buffers.held


def test_a_used_guess_becomes_resident_and_the_eviction_policy_chooses_who_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outcome, events = served_once(monkeypatch, (7, 1))
    assert residents_of(outcome) == {1, 7}
    assert list(events[3].decision.leavers) == [0]  # least recently used
    assert sum(outcome.ledger.demand_copies) == 2
    assert (outcome.ledger.prefetch_wasted, outcome.ledger.prefetch_pollution) == (0, 0)
    assert outcome.ledger.prefetch_useful + outcome.ledger.prefetch_late == 1


def test_the_buffer_and_the_slot_of_the_victim_swap_roles(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the second guess of the call finds no buffer."""
    outcome, _ = served_once(monkeypatch, (7, 1))
    assert outcome.ledger.prefetch_refused == 1  # expert 6
    buffers, cache = outcome.caches[0].buffers, outcome.caches[0]
    assert buffers is not None
    numbers = {slot.number for slot in cache.slots.values()}
    taken = buffers.take(5, lambda slot: True)
    assert taken is not None
    staging = {slot.number for slot in cache._staging.buffers}
    assert len(numbers | {taken.number} | staging) == 5
    assert numbers | {taken.number} == {2, 3, 4}  # two staging buffers come first
    assert taken.number != 2  # the number of the buffer at first: now that of expert 7's slot
    assert cache.slots[7].number == 2


def test_a_buffer_that_waits_for_nothing_is_taken_first() -> None:
    slots = [Slot(number) for number in range(3)]
    buffers = PrefetchBuffers(slots)
    assert buffers.take(5, lambda slot: slot.number == 1) is slots[1]
    assert buffers.take(6, lambda slot: False) is slots[0]  # the one that is free for longest
    buffers.release(5)
    assert buffers.take(7, lambda slot: False) is slots[2]
    assert list(buffers.held) == [6, 7]


def test_a_second_buffer_takes_the_second_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, _ = served_once(monkeypatch, (6, 1), buffers=2)
    assert outcome.ledger.prefetch_refused == 0
    assert residents_of(outcome) == {1, 6}
    assert outcome.ledger.prefetch_wasted == 1  # expert 7


def test_an_expert_that_the_policy_bypasses_is_computed_from_its_buffer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outcome, events = served_once(monkeypatch, (7, 1), replay="atomic", memory={"staging": 1})
    assert residents_of(outcome) == {1, 7}
    name = enlist(monkeypatch, "prefetch", FetchesOnce)
    rows = np.array([0, 1, 1, 7, 1]).reshape(-1, 1, 1)
    scenario = tiny_scenario(cache={"slots": 0}, prefetch={"policy": name, "buffers": 1})
    outcome = run_on(plan_of(scenario, costed_trace(rows, prompt=1)))
    assert residents_of(outcome) == set()
    assert sum(outcome.ledger.demand_copies) == 4  # all but the guessed one
    assert outcome.ledger.prefetch_useful + outcome.ledger.prefetch_late == 1
    assert not events[0].decision.late


def test_without_buffers_the_same_guess_evicts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, _ = served_once(monkeypatch, (0, 1), buffers=0)
    assert sum(outcome.ledger.demand_copies) > 2
    assert outcome.ledger.prefetch_pollution > 0


class Observed(LRU):
    """LRU that fails if a copy ahead is reported to it."""

    def insert(self, key: Any) -> None:
        raise AssertionError("a key in a prefetch buffer has no slot")

    def victim(self, protected: Any) -> Any:
        raise AssertionError("no expert leaves for a prefetch")


def test_an_eviction_policy_is_not_asked_for_a_prefetch(monkeypatch: pytest.MonkeyPatch) -> None:
    name = enlist(monkeypatch, "eviction", Observed)
    scenario = tiny_scenario(
        cache={"policy": name, "slots": 9},
        prefetch={"policy": "oracle", "options": {"depth": 2}, "buffers": 3},
    )
    outcome = run_on(plan_of(scenario, tiny_trace()))
    assert sum(outcome.ledger.prefetch_copies) > 0


# --- access by access -----------------------------------------------------------------------------


class Scripted(Prefetch):
    """Asks for random keys, whatever it is shown."""

    def wanted(self, view: View) -> Any:
        rng = self.__dict__.setdefault("rng", random.Random(len(view.union)))
        return rng.sample(range(4 * EXPERTS), rng.randint(0, 4))


POLICIES: dict[str, Any] = {
    "lru": naive.lru,
    "fifo": naive.fifo,
    "lfu": naive.lfu,
    "lfru": naive.lfru(),
}


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    policy=st.sampled_from(sorted(POLICIES)),
    scope=st.sampled_from(["per_layer", "global"]),
    replay=st.sampled_from(["atomic", "sequential"]),
    slots=st.integers(0, 32),
    buffers=st.integers(1, 6),
    bandwidth=st.sampled_from([1, 20, 2000]),
)
def test_every_access_is_that_of_sets_and_a_list_of_guesses(
    seed: int, policy: str, scope: str, replay: str, slots: int, buffers: int, bandwidth: int
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        name = enlist(patched, "prefetch", Scripted)
        trace = tiny_trace(requests=3, prompt_tokens=3, output_tokens=4, seed=seed)
        scenario = tiny_scenario(
            hardware={"profile": "rtx-4090", "h2d": {"bandwidth": bandwidth * 10**9}},
            cache={"policy": policy, "scope": scope, "slots": slots},
            prefetch={"policy": name, "buffers": buffers},
            replay=replay,
        )
        log, residents = Recorder(), []
        outcome = run_on(plan_of(scenario, trace), observers=(log,))
    assert outcome.ledger.prefetch_pollution == 0
    history = log.history(list(outcome.ledger.layer_events()), sequential=replay == "sequential")
    residents = list(replay_staged(history, POLICIES[policy], outcome.plan.slots, buffers, EXPERTS))
    answers = [it for it in residents if isinstance(it, bool)]
    events = [it for it in residents if not isinstance(it, bool)]
    assert log.granted == answers
    assert log.misses == [set(misses) for misses, _ in events]
    last = {cache: kept for (cache, *_), (_, kept) in zip(log.events, events, strict=True)}
    for number, cache in enumerate(dict.fromkeys(outcome.caches)):
        assert set(cache.slots) == last.get(number, set())


class Recorder(RunLog):
    """The decisions of a run, as the naive version wants them."""

    def __init__(self) -> None:
        super().__init__(Decided, DecidedAhead)

    @property
    def granted(self) -> list[bool]:
        return [it.decision is not None for it in self.of(DecidedAhead)]

    @property
    def misses(self) -> list[set[int]]:
        return [{key for key, *_ in it.decision.loads} for it in self.of(Decided)]

    @property
    def events(self) -> list[tuple[int, int]]:
        return [(it.cache, it.decision.layer) for it in self.of(Decided)]

    def history(self, unions: list[list[int]], *, sequential: bool) -> list[Any]:
        """Return events and requests in order; `unions` are those of the ledger."""
        layers = list(unions)
        if sequential:  # one event for each key; join them to layers again
            layers = joined([key for (key,) in unions], [layer for _, layer in self.events])
        history: list[Any] = []
        place = inside = 0
        for it in self.records:
            if isinstance(it, DecidedAhead):
                history.append((it.cache, it.key))
                continue
            assert isinstance(it, Decided)
            union = layers[place]
            keys = [union[inside]] if sequential else union
            history.append((it.cache, it.decision.layer, keys, union))
            inside += 1
            if not sequential or inside == len(union):
                place, inside = place + 1, 0
        return history


def joined(keys: list[int], layers: list[int]) -> list[list[int]]:
    """Return the unions of layer events whose keys are decided one by one."""
    unions: list[list[int]] = []
    last = -1
    for key, layer in zip(keys, layers, strict=True):
        if layer != last:
            unions.append([])
        unions[-1].append(key)
        last = layer
    return unions


# --- machines -------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", range(BLOCKS))
def test_machines_agree_and_every_prefetched_byte_is_accounted_for(block: int) -> None:
    outcomes = {"useful": 0, "late": 0, "wasted": 0, "unused": 0}
    for seed in range(block, 100, BLOCKS):
        plan = plan_of(*buffered_case(seed))
        outcome = run_on(plan)
        assert everything(outcome) == everything(run_on(plan, EventMachine)), seed
        ledger, summary = outcome.ledger, summarise(outcome)
        assert ledger.prefetch_pollution == 0
        found = {name: summary[f"prefetch_{name}_bytes"] for name in outcomes}
        assert sum(found.values()) == sum(ledger.prefetch_bytes), seed
        for name, nbytes in found.items():
            outcomes[name] += nbytes
    assert outcomes.pop("unused") == 0  # no guess is for a later step
    assert all(outcomes.values()), outcomes


@pytest.mark.parametrize("case", range(4))
def test_simultaneous_events_in_any_order_change_nothing(case: int) -> None:
    plan = plan_of(*buffered_case(1000 + case))
    expected = everything(run_on(plan))
    for seed in range(10):
        assert everything(run_on(plan, shuffled(seed))) == expected, seed


@pytest.mark.parametrize("block", range(BLOCKS))
def test_a_link_four_times_slower_changes_no_decision(block: int) -> None:
    for seed in range(block, 80, BLOCKS):
        scenario, trace = buffered_case(2000 + seed, at_once=True)
        fast = run_on(plan_of(scenario, trace))
        scenario["hardware"]["h2d"]["bandwidth"] //= 4
        assert decisions(fast) == decisions(run_on(plan_of(scenario, trace))), seed


@pytest.mark.parametrize("in_host", [None, 6, 20])
def test_machines_agree_with_experts_on_the_cpu_and_on_disk(
    monkeypatch: pytest.MonkeyPatch, in_host: int | None
) -> None:
    read = 0
    for seed in range(12):
        scenario, trace = buffered_case(4001 + 10 * seed)
        if scenario["cache"]["policy"] == "min":  # its rehearsal has one GPU alone
            scenario["cache"] |= {"policy": "lru"}
        plan = plan_of(scenario, trace)
        simulated, events = (
            run_on_five_lanes(plan, machine, monkeypatch, in_host=in_host, copies_later=True)
            for machine in (SimMachine, EventMachine)
        )
        assert everything(simulated) == everything(events), seed
        read += simulated.ledger.moved_bytes["read"]
    assert bool(read) == (in_host is not None)


@pytest.mark.parametrize("placement", ["cost", "two_queue"])
def test_machines_agree_where_a_placement_sees_what_arrives(placement: str) -> None:
    for seed in range(20):
        scenario, trace = buffered_case(5001 + 10 * seed)
        scenario["hardware"] |= {"cpu_flops": "200GFLOPS", "host_memory_bandwidth": "40GB/s"}
        scenario["placement"] = placement
        if scenario["cache"]["policy"] in ("min", "static"):
            scenario["cache"]["policy"] = "lru"
        plan = plan_of(scenario, trace)
        assert everything(run_on(plan)) == everything(run_on(plan, EventMachine)), seed


@pytest.mark.parametrize("depth", [1, 3, 7])
def test_guesses_of_a_router_that_knows_the_step_are_used_or_dropped_at_their_layer(
    depth: int,
) -> None:
    """A static router is known to the end of the step, and in the next one."""
    for seed in range(6):
        trace = static_trace(tiny_trace(requests=5, prompt_tokens=3, output_tokens=4, seed=seed), 2)
        scenario = tiny_scenario(
            cache={"slots": 6},
            prefetch={"policy": "layer_ahead", "options": {"depth": depth}, "buffers": 3},
            batching={"max_sequences": 2},
        )
        log = RunLog(Decided, DecidedAhead)
        outcome = run_on(plan_of(scenario, trace), observers=(log,))
        assert sum(outcome.ledger.prefetch_copies) > 0
        guessed: set[int] = set()
        for it in log.records:
            if isinstance(it, DecidedAhead):
                guessed |= {it.key} if it.decision is not None else set()
            elif isinstance(it, Decided):
                loaded = {key for key, *_ in it.decision.loads}
                assert not loaded & guessed  # all guesses are used at their layer's next event
                guessed = {key for key in guessed if key // EXPERTS != it.decision.layer}


@pytest.mark.parametrize("make", [SimMachine, EventMachine])
def test_a_dropped_guess_whose_copy_is_queued_lands_before_its_buffer_is_used_again(
    monkeypatch: pytest.MonkeyPatch, make: Any
) -> None:
    """The copy gets demand priority then, as that of a victim does."""
    slow = {"profile": "rtx-4090", "h2d": {"bandwidth": 10**9}}
    scenario = tiny_scenario(
        hardware=slow,
        cache={"slots": 4},
        prefetch={"policy": "dial", "options": {"recall": 0.2, "precision": 0.1}, "buffers": 1},
    )
    _, machine = watch(plan_of(scenario, tiny_trace(requests=2)), make)
    filled: dict[int, Any] = {}
    reused = 0
    for asked in machine.log:
        if asked.lane != "h2d":
            continue
        before = filled.get(asked.work.buffer)
        if before is not None and before in asked.after and before.urgency and asked.priority:
            assert before in machine.promoted
            assert before.finish_ns <= asked.start
            reused += 1
        filled[asked.work.buffer] = asked.work
    assert reused > 0


@pytest.mark.parametrize("router", ["layerwise", "decoupled"])
def test_no_buffer_is_overwritten_before_all_earlier_work_on_it_is_over(router: str) -> None:
    """With write-backs so slow that a victim's slot is a buffer before it was read."""
    for seed in range(24):
        scenario, trace = buffered_case(1 + 5 * (seed // 4) + seed % 4)
        scenario["cache"] = {"policy": "lru", "slots": 1 + seed % 12, "write_back": True}
        scenario["hardware"] |= {"d2h": {"bandwidth": 10**8}}
        check_buffers(watch(plan_of(scenario, trace.with_meta(router=router)))[1])


# --- memory ---------------------------------------------------------------------------------------


def test_buffers_are_a_part_of_gpu_memory() -> None:
    scenario = tiny_scenario(cache={"slots": 6}, prefetch={"policy": "predicted", "buffers": 4})
    plan = plan_of(scenario, tiny_trace())
    without = plan_of(scenario | {"prefetch": "predicted"}, tiny_trace())
    nbytes = 4 * plan.cost.expert_bytes
    assert plan.budget.buffers_bytes == nbytes
    assert plan.budget.free_bytes == without.budget.free_bytes - nbytes
    assert plan.buffers == without.buffers + 4
    found = summarise(run_on(plan))
    parts = ("fixed", "kv", "slots", "staging", "prefetch_buffers", "activations", "free")
    assert sum(found[f"{part}_bytes"] for part in parts) == found["vram_bytes"]
    assert "prefetch_buffers_bytes" not in summarise(run_on(without))


def test_buffers_that_do_not_fit_are_named_with_a_number_that_fits(tmp_path: Path) -> None:
    trace = tiny_trace(requests=1).save(tmp_path / "trace")
    path = tmp_path / "x.yaml"
    path.write_text(
        f"trace: {trace.path}\nhardware: t4\ncache: {{slots: 4}}\nmemory: {{capacity: 100MiB}}\n"
        "prefetch:\n  policy: predicted\n  buffers: 40\n"
    )
    with pytest.raises(BudgetError) as caught:
        prepare(load_scenario(path))
    message = str(caught.value)
    assert message.startswith(f"{path}:7:12: ")
    assert "40 prefetch buffers: 120 MiB" in message
    fits = int(message.split("prefetch.buffers: ")[-1].split(",")[0])
    text = path.read_text()
    path.write_text(text.replace("buffers: 40", f"buffers: {fits}"))
    assert prepare(load_scenario(path)).budget.free_bytes < 3 * 2**20
    path.write_text(text.replace("buffers: 40", f"buffers: {fits + 1}"))
    with pytest.raises(BudgetError):
        prepare(load_scenario(path))


def test_a_buffer_that_disappears_is_noticed() -> None:
    scenario = tiny_scenario(cache={"slots": 6}, prefetch={"policy": "predicted", "buffers": 4})
    cache = run_on(plan_of(scenario, tiny_trace())).caches[0]
    cache.audit()
    assert cache.buffers is not None
    cache.buffers._free.pop()
    with pytest.raises(InvariantError, match="prefetch buffers") as caught:
        cache.audit()
    assert caught.value.number == 2
