"""Layer events are decided once, from sets, and realised without overwriting what is in use."""

from __future__ import annotations

import pickle
import random
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from costed_traces import costed_trace
from watched_machines import enlist, experts_alive, most_at_once, watch
from workloads import everything, plan_of, random_case, run_on, tiny_scenario, tiny_trace

from moesim.errors import PolicyViolation
from moesim.machine.events import EventMachine
from moesim.machine.sim import SimMachine
from moesim.policies.eviction import LRU, Static
from moesim.policies.prefetch import Prefetch
from moesim.policies.view import View
from moesim.results.metrics import layer_columns
from moesim.simulate import Outcome, summarise
from moesim.trace import Trace

LAYERS, EXPERTS = 4, 8
both_machines = pytest.mark.parametrize("make", [SimMachine, EventMachine])


def run(trace: Trace, make: Any = SimMachine, **changes: Any) -> Outcome:
    return run_on(plan_of(tiny_scenario(timeline={"steps": 1000}, **changes), trace), make)


def crowd(prompt: int = 6, output: int = 9, **knobs: Any) -> Trace:
    """Return a trace of five different requests whose steps mix prompts and decodes."""
    return tiny_trace(requests=5, prompt_tokens=prompt, output_tokens=output, seed=3, **knobs)


# --- the event ------------------------------------------------------------------------------------


def steps_by_hand(trace: Trace, prompt: int, output: int) -> Iterator[list[int]]:
    """Return the trace rows of each step: all prompts in the first, then one row per request."""
    starts = [trace.slice(request).start for request in range(trace.num_requests)]
    yield [row for start in starts for row in range(start, start + prompt)]
    for number in range(output - 1):
        yield [start + prompt + number for start in starts]


def events_by_hand(trace: Trace, prompt: int, output: int) -> Iterator[dict[int, int]]:
    """Return each layer event: the number of rows that want each key.

    Keys are in order of first appearance in the batch, then of their stored places.
    """
    for rows in steps_by_hand(trace, prompt, output):
        for layer in range(LAYERS):
            counts: dict[int, int] = {}
            for row in rows:
                for expert in trace.expert_ids[row][layer].tolist():
                    if expert != trace.meta.unused:
                        key = layer * EXPERTS + expert
                        counts[key] = counts.get(key, 0) + 1
            yield counts


class Witness(LRU):
    """LRU that writes down what it is shown."""

    seen: list[tuple[int, list[int], list[int]]]

    def decide(self, view: View) -> Any:
        self.seen.append((view.layer, list(view.union), list(view.tokens)))
        return super().decide(view)


@both_machines
@pytest.mark.parametrize("unused", [False, True])
def test_a_policy_is_asked_once_a_layer_event_with_the_whole_union(
    monkeypatch: pytest.MonkeyPatch, make: Any, unused: bool
) -> None:
    trace = crowd()
    if unused:  # a router may leave places unused, even all of a row
        ids = np.asarray(trace.expert_ids[:]).astype(int)
        ids[::3, 1, 1] = -1
        ids[5:12, 2] = -1
        trace = costed_trace(ids, seq_len=[14] * 5, prompt_tokens=[6] * 5)
    monkeypatch.setattr(Witness, "seen", [], raising=False)
    run(trace, make, cache={"policy": enlist(monkeypatch, "eviction", Witness), "slots": 12})
    expected = [
        (number % LAYERS, list(counts), list(counts.values()))
        for number, counts in enumerate(events_by_hand(trace, 6, 9))
    ]
    assert Witness.seen == expected


def lru_by_hand(trace: Trace, slots: int, scope: str) -> list[tuple[int, int, int]]:
    """Return (accesses, misses, residents at the end) of each step.

    Each event is compared with the residents before it; then its keys become the most recent, and
    the most recent keys stay.
    """
    share = [slots // LAYERS + (layer < slots % LAYERS) for layer in range(LAYERS)]
    caches: list[list[int]] = [[] for _ in range(LAYERS)]
    everywhere: list[int] = []
    result = []
    misses = accesses = 0
    for number, counts in enumerate(events_by_hand(trace, 6, 9)):
        layer = number % LAYERS
        cache = everywhere if scope == "global" else caches[layer]
        capacity = slots if scope == "global" else share[layer]
        accesses += len(counts)
        misses += sum(key not in cache for key in counts)
        for key in counts:
            if key in cache:
                cache.remove(key)
            cache.append(key)
        del cache[: max(0, len(cache) - capacity)]
        if layer == LAYERS - 1:
            held = len(everywhere) + sum(map(len, caches))
            result.append((accesses, misses, held))
            misses = accesses = 0
    return result


@pytest.mark.parametrize("scope", ["per_layer", "global"])
@pytest.mark.parametrize("slots", [0, 1, 5, 8, 14, 17, 24, 31, 32])
def test_misses_and_residents_of_every_step_are_those_of_a_naive_lru_of_sets(
    slots: int, scope: str
) -> None:
    trace = crowd()
    columns = run(trace, cache={"scope": scope, "slots": slots}).ledger.step_columns()
    names = ("accesses", "misses", "residents")
    served = list(zip(*(columns[name].tolist() for name in names), strict=True))
    assert served == lru_by_hand(trace, slots, scope)
    assert (columns["hits"] + columns["late_hits"] + columns["misses"] == columns["accesses"]).all()


def test_sequential_replay_inflates_the_misses_of_lru_and_not_of_static() -> None:
    trace = crowd(stickiness=0.5)
    misses = {
        (policy, replay): summarise(
            run(trace, cache={"policy": policy, "slots": 16}, replay=replay)
        )["misses"]
        for policy in ("lru", "static")
        for replay in ("atomic", "sequential")
    }
    assert misses["lru", "sequential"] > misses["lru", "atomic"]
    assert misses["static", "sequential"] == misses["static", "atomic"]


# --- how it is realised ---------------------------------------------------------------------------


@pytest.mark.parametrize("slots", range(33))
def test_any_capacity_works_and_nothing_needed_is_overwritten(slots: int) -> None:
    """At no time must more experts be kept than there are slots and staging buffers."""
    scope = "global" if slots % 2 else "per_layer"
    for staging in (1, 2):
        scenario = tiny_scenario(
            cache={"policy": "lfu", "slots": slots, "scope": scope},
            memory={"staging": staging},
            prefetch={"policy": "predicted"},
        )
        outcome, machine = watch(plan_of(scenario, crowd(3, 3)))
        alive = experts_alive(machine, outcome.now_ns)
        assert most_at_once(alive) <= slots + staging


@pytest.mark.parametrize("block", range(4))
def test_every_expert_computed_has_landed_before(block: int) -> None:
    """And so has every expert that is written back."""
    written = 0
    for seed in range(block, 60, 4):
        scenario, trace = random_case(5000 + seed)
        if seed % 3 == 0 and scenario["cache"]["policy"] != "static":
            scenario["cache"]["write_back"] = True
            scenario["prefetch"] = {"policy": "predicted", "options": {"depth": 2}}
        plan = plan_of(scenario, trace)
        outcome, machine = watch(plan)
        loaded = {key for cache in outcome.caches for key in cache.policy.preload()}
        landed: dict[int, int] = {}
        for work in machine.log:
            if work.lane == "h2d":
                landed[work.keys[0]] = work.finish
            if work.lane == "d2h" and work.kind == "copy":
                assert work.start >= landed[work.keys[0]], seed
                written += 1
            for key in work.keys if work.kind == "experts" else ():
                assert key in landed or key in loaded, seed
                assert work.start >= landed.get(key, 0), seed
        spans = experts_alive(machine, outcome.now_ns)
        assert most_at_once(spans) <= sum(plan.slots) + plan.scenario.memory.staging, seed
    assert written > 0


@both_machines
@pytest.mark.parametrize("staging", [1, 2, 3, 7])
def test_experts_without_a_slot_pass_through_staging_in_waves(make: Any, staging: int) -> None:
    trace = crowd()
    outcome = run(trace, make, cache={"slots": 0}, memory={"staging": staging})
    waves = [-(-len(counts) // staging) for counts in events_by_hand(trace, 6, 9)]
    summary = summarise(outcome)
    assert summary["waves_max"] == max(waves)
    assert summary["waves_mean"] == pytest.approx(sum(waves) / len(waves))
    assert outcome.ledger.step_columns()["waves"].sum() == sum(waves)
    assert summary["expert_hit_rate"] == 0


def test_decisions_do_not_depend_on_the_number_of_staging_buffers() -> None:
    one, many = (
        run(crowd(), cache={"policy": "lfu", "slots": 10}, memory={"staging": staging})
        for staging in (1, 9)
    )
    columns = one.ledger.step_columns(), many.ledger.step_columns()
    assert (columns[0]["misses"] == columns[1]["misses"]).all()
    assert one.ledger.layer_events() == many.ledger.layer_events()
    assert one.now_ns > many.now_ns


def one_expert_a_layer(*experts: int) -> Any:
    """Return rows (tokens, 1, 1): each token's expert of the only layer."""
    return np.array(experts).reshape(-1, 1, 1)


def test_a_victim_in_flight_lands_before_its_slot_is_reused() -> None:
    """Two layers, one slot each. The prefetch for layer 1 is wrong, still being copied when layer
    1 is known, and would be overtaken by demand: its slot's new tenant waits for it to land."""
    rows = np.array([[[0], [1]]])
    guesses = np.array([[[[7]], [[-1]]]])
    slow = {
        "profile": "rtx-4090",
        "h2d": {"bandwidth": "100MB/s", "latency": "10us", "chunk": 100_000},
    }
    scenario = tiny_scenario(
        hardware=slow, cache={"slots": "1/layer"}, prefetch={"policy": "predicted"}
    )
    outcome, machine = watch(plan_of(scenario, costed_trace(rows, predictions=guesses)))
    copies = {work.keys[0]: work for work in machine.on("h2d")}
    wrong, right = copies[8 + 7], copies[8 + 1]
    assert wrong.priority > right.priority
    assert right.issued_ns < wrong.finish, "the victim was in flight"
    assert right.start >= wrong.finish
    ledger = outcome.ledger
    assert (ledger.prefetch_wasted, sum(ledger.late_hits), sum(ledger.hits)) == (1, 0, 0)


class FetchesInOrder(Prefetch):
    """Asks for certain keys once, in this order."""

    order = (2 * EXPERTS + 1, 3 * EXPERTS + 1, 1 * EXPERTS + 7)

    def wanted(self, view: View) -> Any:
        return self.order if view.layer == 0 else ()


@both_machines
def test_a_victim_in_flight_goes_before_prefetches_that_no_copy_waits_for(
    monkeypatch: pytest.MonkeyPatch, make: Any
) -> None:
    """Layer 1 needs the slot of a prefetch that is third in line: it is promoted past the second,
    so that the copy behind it can begin."""
    name = enlist(monkeypatch, "prefetch", FetchesInOrder)
    slow = {"profile": "rtx-4090", "h2d": {"bandwidth": "100MB/s"}}
    scenario = tiny_scenario(hardware=slow, cache={"slots": "1/layer"}, prefetch={"policy": name})
    _, machine = watch(plan_of(scenario, costed_trace(np.ones((1, LAYERS, 1), int))), make)
    copies = sorted(machine.on("h2d"), key=lambda work: work.start)
    first, second, wrong = FetchesInOrder.order
    assert [work.keys[0] for work in copies] == [1, first, wrong, EXPERTS + 1, second]


class FetchesBackwards(Prefetch):
    """Fetches the next layer's experts, the last wanted first."""

    clairvoyant = True

    def wanted(self, view: View) -> Any:
        return view.exact(1)[::-1]


@both_machines
def test_late_experts_are_computed_in_the_order_in_which_they_were_fetched(
    monkeypatch: pytest.MonkeyPatch, make: Any
) -> None:
    """They land in that order, which is not that of the union: none waits for a later one."""
    name = enlist(monkeypatch, "prefetch", FetchesBackwards)
    slow = {"profile": "rtx-4090", "h2d": {"bandwidth": "100MB/s"}}
    rows = np.tile([1, 2, 3], (1, LAYERS, 1))
    scenario = tiny_scenario(hardware=slow, cache={"slots": "3/layer"}, prefetch={"policy": name})
    outcome, machine = watch(plan_of(scenario, costed_trace(rows)), make)
    assert outcome.ledger.late_hits == [3] * LAYERS
    backwards = [layer * EXPERTS + expert for layer in range(LAYERS) for expert in (3, 2, 1)]
    assert [work.keys[0] for work in machine.log if work.kind == "copy"] == backwards
    assert [work.keys[0] for work in machine.log if work.kind == "experts"] == backwards
    landed = [ticket.finish_ns for ticket in machine.promoted]
    assert landed == sorted(landed)


class Counter(LRU):
    """LRU that counts the residents it evicts."""

    evicted = 0

    def decide(self, view: View) -> Any:
        before = set(self.book)
        leavers = super().decide(view)
        type(self).evicted += len(before.intersection(leavers))
        return leavers


@both_machines
@pytest.mark.parametrize("slots", [0, 3, 16, 32])
def test_write_back_copies_every_evicted_resident_once(
    monkeypatch: pytest.MonkeyPatch, make: Any, slots: int
) -> None:
    monkeypatch.setattr(Counter, "evicted", 0)
    cache = {"policy": enlist(monkeypatch, "eviction", Counter), "slots": slots}
    outcome = run(crowd(), make, cache={**cache, "write_back": True})
    summary = summarise(outcome)
    assert summary["write_back_bytes"] == Counter.evicted * outcome.plan.cost.expert_bytes
    assert (Counter.evicted > 0) == (0 < slots < 32)
    without = summarise(run(crowd(), make, cache=cache))
    assert without["write_back_bytes"] == 0
    assert without["d2h_bytes"] + summary["write_back_bytes"] == summary["d2h_bytes"]
    assert without["misses"] == summary["misses"]


def test_a_slot_is_written_only_after_its_expert_was_written_back() -> None:
    experts = [0, 1, 0, 2, 1]
    scenario = tiny_scenario(cache={"slots": 1, "write_back": True}, batching={"token_budget": 1})
    _, machine = watch(plan_of(scenario, costed_trace(one_expert_a_layer(*experts))))
    ins = [work for work in machine.on("h2d") if work.kind == "copy"]
    backs = [work for work in machine.on("d2h") if work.kind == "copy"]
    reads = [work for work in machine.on("gpu") if work.kind == "experts"]
    assert [work.keys[0] for work in ins] == experts
    assert [work.keys[0] for work in backs] == experts[:-1]
    for number, back in enumerate(backs):
        assert back.start >= reads[number].finish
        assert ins[number + 1].start >= back.finish


def test_a_static_placement_starts_loaded_and_its_bytes_are_apart() -> None:
    trace = crowd()
    outcome = run(trace, cache={"policy": "static", "slots": 13})
    summary = summarise(outcome)
    size = outcome.plan.cost.expert_bytes
    assert summary["load_bytes"] == 13 * size
    assert summary["h2d_bytes"] == summary["demand_bytes"] == summary["misses"] * size
    kept = [set(cache.policy.preload()) for cache in outcome.caches]
    assert [len(keys) for keys in kept] == [4, 3, 3, 3]
    popularity: dict[int, int] = {}
    for counts in events_by_hand(trace, 6, 9):
        for key, rows in counts.items():
            popularity[key] = popularity.get(key, 0) + rows
    for layer, keys in enumerate(kept):
        ranked = sorted(
            range(layer * EXPERTS, (layer + 1) * EXPERTS), key=lambda k: -popularity.get(k, 0)
        )
        least = min(popularity.get(key, 0) for key in keys)
        assert all(popularity.get(key, 0) <= least for key in ranked[len(keys) :])
    events = enumerate(events_by_hand(trace, 6, 9))
    hits = sum(key in kept[number % LAYERS] for number, counts in events for key in counts)
    assert summary["hits"] == hits
    full = summarise(run(trace, cache={"policy": "static", "slots": "100%"}))
    assert (full["expert_hit_rate"], full["h2d_bytes"]) == (1.0, 0)
    assert full["load_bytes"] == LAYERS * EXPERTS * size


def test_only_a_static_placement_loads_anything_beforehand() -> None:
    for policy in ("lru", "fifo", "random", "min"):
        assert summarise(run(crowd(), cache={"policy": policy}))["load_bytes"] == 0


# --- prefetching ----------------------------------------------------------------------------------


@pytest.mark.parametrize("block", range(5))
def test_every_prefetched_byte_is_useful_late_wasted_or_unused(block: int) -> None:
    asked = flying = 0
    for seed in range(block, 200, 5):
        scenario, trace = random_case(6000 + seed)
        policy, depth = ["predicted", "oracle"][seed % 2], 1 + seed % 3
        if policy == "predicted":  # a deeper prediction than the trace records is refused
            depth = min(depth, trace.meta.prediction_depth)
        scenario["prefetch"] = {"policy": policy, "options": {"depth": depth}}
        outcome = run_on(plan_of(scenario, trace))
        summary = summarise(outcome)
        plan = outcome.plan
        size = plan.cost.expert_bytes
        layers = layer_columns(outcome.ledger, plan.layers.model_layers)
        issued = int(layers["prefetch_bytes"].sum())
        kinds = ("useful", "late", "wasted", "unused")
        assert sum(summary[f"prefetch_{kind}_bytes"] for kind in kinds) == issued, seed
        in_flight = issued - summary["prefetch_bytes"]
        assert in_flight >= 0
        assert in_flight % size == 0
        assert summary["prefetch_late_bytes"] <= summary["late_hits"] * size
        assert summary["h2d_bytes"] == summary["demand_bytes"] + summary["prefetch_bytes"]
        assert summary["demand_bytes"] == summary["misses"] * size
        asked += issued
        flying += in_flight
    assert asked > flying > 0, "the cases show nothing"


def test_a_prefetch_counts_for_the_layer_it_is_for() -> None:
    guesses = np.full((1, LAYERS, 2, 1), -1)
    guesses[0, 0] = [[3], [4]]  # at layer 0: for layers 1 and 2
    rows = np.array([[[0], [3], [4], [0]]])
    outcome = run(
        costed_trace(rows, predictions=guesses),
        cache={"slots": "2/layer"},
        prefetch={"policy": "predicted", "options": {"depth": 2}},
    )
    ledger = outcome.ledger
    assert ledger.prefetch_copies == [0, 1, 1, 0]
    assert [a + b for a, b in zip(ledger.hits, ledger.late_hits, strict=True)] == [0, 1, 1, 0]


def test_what_is_there_or_on_its_way_is_not_fetched_again() -> None:
    guesses = np.full((3, LAYERS, 1, 1), -1)
    guesses[:, 0, 0, 0] = 3
    rows = np.tile([[0], [3], [4], [0]], (3, 1, 1))
    outcome = run(
        costed_trace(rows, prompt=1, predictions=guesses),
        cache={"slots": "2/layer"},
        prefetch={"policy": "predicted"},
    )
    assert outcome.ledger.prefetch_copies == [0, 1, 0, 0]


# --- nonsense -------------------------------------------------------------------------------------


class KeepsAll(LRU):
    def decide(self, view: View) -> Any:
        self.book.update(dict.fromkeys(view.union))
        return ()


class DropsStrangers(LRU):
    def decide(self, view: View) -> Any:
        return [*super().decide(view), 999]


class DropsTwice(LRU):
    def decide(self, view: View) -> Any:
        return [*super().decide(view)] * 2


class EvictsWhatItKeeps(LRU):
    """Evicts a resident that it still keeps in its book."""

    def decide(self, view: View) -> Any:
        leavers = list(super().decide(view))
        return [next(iter(self.book)), *leavers[1:]] if leavers else leavers


class ForgetsOne(LRU):
    def decide(self, view: View) -> Any:
        leavers = super().decide(view)
        self.book.popitem()
        return leavers


class InventsOne(LRU):
    def decide(self, view: View) -> Any:
        leavers = super().decide(view)
        self.book[view.layer * EXPERTS + EXPERTS - 1] = None
        return leavers


class Loaded(Static):
    """Static as learnt on the replayed trace."""

    clairvoyant = True


class PreloadsTooMuch(Loaded):
    def preload(self) -> Any:
        return range(self.capacity + 1)


class PreloadsTwice(Loaded):
    def preload(self) -> Any:
        return [key for key in list(self.book)[:1] for _ in range(2)]


class PreloadsAnotherLayer(Loaded):
    """Preloads keys of another layer."""

    def preload(self) -> Any:
        return [(key + EXPERTS) % (LAYERS * EXPERTS) for key in self.book]


EVICTIONS = [
    (KeepsAll, "keeps more than 4 keys"),
    (DropsStrangers, "neither resident nor wanted"),
    (DropsTwice, "leave"),
    (EvictsWhatItKeeps, "book is not the residency"),
    (ForgetsOne, ""),
    (InventsOne, ""),
    (PreloadsTooMuch, "preload"),
    (PreloadsTwice, "preload"),
    (PreloadsAnotherLayer, "preload"),
]


@both_machines
@pytest.mark.parametrize(("policy", "reason"), EVICTIONS, ids=[p.__name__ for p, _ in EVICTIONS])
def test_nonsense_of_an_eviction_policy_is_named(
    monkeypatch: pytest.MonkeyPatch, make: Any, policy: type[Any], reason: str
) -> None:
    name = enlist(monkeypatch, "eviction", policy)
    with pytest.raises(PolicyViolation) as caught:
        run(crowd(), make, cache={"policy": name, "slots": "4/layer"})
    assert caught.value.policy == name
    assert reason in caught.value.reason
    assert caught.value.key is not None
    assert repr(caught.value.key) in str(caught.value)


class KeepsAllLater(LRU):
    """Keeps too many keys in layer 2 of step 1."""

    events = 0

    def decide(self, view: View) -> Any:
        self.events += 1
        if view.layer == 2 and self.events == 2:
            self.book.update(dict.fromkeys(view.union))
            return ()
        return super().decide(view)


@both_machines
def test_nonsense_of_an_eviction_policy_is_told_with_its_step_and_layer(
    monkeypatch: pytest.MonkeyPatch, make: Any
) -> None:
    name = enlist(monkeypatch, "eviction", KeepsAllLater)
    with pytest.raises(PolicyViolation) as caught:
        run(crowd(), make, cache={"policy": name, "slots": "2/layer"})
    assert caught.value.when == "step 1, MoE layer 2"
    said = str(caught.value)
    assert said.startswith(f"policy {name!r} broke its contract in step 1, MoE layer 2 at ")
    assert str(pickle.loads(pickle.dumps(caught.value))) == said


class ForgetsOneAtLast(LRU):
    def decide(self, view: View) -> Any:
        leavers = super().decide(view)
        if view.layer == LAYERS - 1:
            self.book.popitem()
        return leavers


@both_machines
@pytest.mark.parametrize(
    ("policy", "scope", "when"),
    # One cache is audited after each step, in turn: first that of layer 1.
    [(ForgetsOne, "per_layer", "step 0, MoE layer 1"), (ForgetsOneAtLast, "global", "step 0")],
)
def test_a_book_that_is_not_the_residency_is_told_with_a_step_and_what_to_call(
    monkeypatch: pytest.MonkeyPatch, make: Any, policy: type[Any], scope: str, when: str
) -> None:
    name = enlist(monkeypatch, "eviction", policy)
    with pytest.raises(PolicyViolation) as caught:
        run(crowd(), make, cache={"policy": name, "slots": "4/layer", "scope": scope})
    assert caught.value.when == when
    assert "call `insert` for each key that gets a slot, and `remove`" in caught.value.reason


class WantsTheMoon(Prefetch):
    def wanted(self, view: View) -> Any:
        return [LAYERS * EXPERTS]


class WantsTheCellar(Prefetch):
    def wanted(self, view: View) -> Any:
        return [-1]


@both_machines
@pytest.mark.parametrize("policy", [WantsTheMoon, WantsTheCellar])
def test_a_prefetch_of_no_expert_is_named(
    monkeypatch: pytest.MonkeyPatch, make: Any, policy: type[Any]
) -> None:
    name = enlist(monkeypatch, "prefetch", policy)
    with pytest.raises(PolicyViolation) as caught:
        run(crowd(), make, cache={"slots": "4/layer"}, prefetch={"policy": name})
    assert (caught.value.policy, caught.value.key) == (name, policy().wanted(View(0, ()))[0])


class OffersAWantedExpert(LRU):
    """Offers as victim an expert that the event or prefetch itself needs."""

    def victim(self, protected: Any) -> Any:
        return next((key for key in self.book if key in protected), None)


class GivesTheAbsent(LRU):
    def victim(self, protected: Any) -> Any:
        return next(key for key in range(LAYERS * EXPERTS) if key not in self.book)


class IgnoresInsertions(LRU):
    """Does not record in its book what a prefetch loaded."""

    def insert(self, key: int) -> None: ...


class LosesTheBook(LRU):
    def remove(self, key: int) -> None:
        self.book = OrderedDict()


@both_machines
@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (OffersAWantedExpert, "prefetch"),
        (GivesTheAbsent, "prefetch"),
        (IgnoresInsertions, ""),
        (LosesTheBook, ""),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_wrong_victim_of_a_prefetch_is_named(
    monkeypatch: pytest.MonkeyPatch, make: Any, policy: type[Any], reason: str
) -> None:
    name = enlist(monkeypatch, "eviction", policy)
    with pytest.raises(PolicyViolation) as caught:
        run(
            crowd(),
            make,
            cache={"policy": name, "slots": "4/layer"},
            prefetch={"policy": "predicted", "options": {"depth": 2}},
        )
    assert caught.value.policy == name
    assert reason in caught.value.reason


class RefusesPrefetches(LRU):
    """Refuses every prefetch that needs a slot."""

    def victim(self, protected: Any) -> Any:
        return None


def test_a_policy_may_refuse_prefetches_and_they_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = enlist(monkeypatch, "eviction", RefusesPrefetches)
    changes = {"prefetch": {"policy": "oracle"}}
    outcome = run(crowd(), cache={"policy": name, "slots": "4/layer"}, **changes)
    assert outcome.ledger.prefetch_refused > 0
    assert sum(outcome.ledger.prefetch_copies) <= 4 * LAYERS
    none = run(crowd(), cache={"slots": 0}, **changes)
    assert sum(none.ledger.prefetch_copies) == 0


def odd_case(seed: int) -> tuple[dict[str, Any], Trace]:
    """Return a random case with rare features.

    They are unused places, even all of a layer event; layers without experts; skipped or resampled
    prompts; lengths that tile; bursts.
    """
    scenario, trace = random_case(seed)
    rng = random.Random(seed)
    ids, guesses = (np.asarray(a[:]).astype(int) for a in (trace.expert_ids, trace.predictions))
    guesses[guesses == trace.meta.unused] = -1
    unused = np.random.default_rng(seed).random(ids.shape) < rng.choice([0.1, 0.5, 0.9])
    trace = costed_trace(
        np.where(unused, -1, ids),
        dense=rng.choice([(), (0, 3)]),
        seq_len=trace.requests["num_rows"],
        prompt_tokens=trace.requests["prompt_tokens"],
        predictions=guesses,
    )
    workload = scenario["workload"]
    workload["prefill"] = rng.choice(["recorded", "skip", "resample"])
    workload["order"] = rng.choice(["recorded", "shuffled", "resampled"])
    workload["requests"] = rng.choice([None, 1, 3, 9])
    if rng.random() < 0.4:
        workload["lengths"] = {"prompt": rng.randint(1, 12), "output": rng.randint(1, 10)}
        scenario["memory"]["kv"] = rng.choice(["auto", 24 * 16384, 50 * 16384])
    if isinstance(workload["arrivals"], dict) and workload["arrivals"]["kind"] == "poisson":
        burst = {"kind": "gamma", "burstiness": rng.choice([0.5, 3.0])}
        workload["arrivals"] = burst | {"rate_per_s": rng.choice([10.0, 500.0, 5000.0])}
    return scenario, trace


@pytest.mark.parametrize("block", range(4))
def test_machines_agree_on_what_is_rare(block: int) -> None:
    """Timed step by step, walked layer by layer, and one event per chunk."""
    for seed in range(block, 80, 4):
        plan = plan_of(*odd_case(7000 + seed))
        expected = everything(run_on(plan, EventMachine))
        assert everything(run_on(plan)) == expected, seed
        assert everything(watch(plan, SimMachine)[0]) == expected, seed
