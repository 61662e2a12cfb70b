"""The view of a policy hides the future: data beyond it changes no earlier decision.

A run is repeated with another future: from some layer event on, ids, gate weights and predictions
are different. Everything decided up to there, by whatever policies, must be the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from costed_traces import costed_trace
from watched_machines import enlist
from workloads import TINY_CONFIG, plan_of, run_on, scored_trace, tiny_scenario, tiny_trace

from moesim.errors import PolicyViolation
from moesim.machine.events import EventMachine
from moesim.machine.sim import SimMachine
from moesim.policies import find, names
from moesim.policies.eviction import LFU, LRU, Static
from moesim.policies.prefetch import Learned, Prefetch
from moesim.policies.view import View
from moesim.serving.scheduler import Scheduler
from moesim.simulate import summarise
from moesim.simulate.curve import curve
from moesim.trace import Trace

LAYERS, EXPERTS, TOP_K = 4, 8, 2
EVICTIONS = [name for name in names("eviction") if not find("eviction", name).clairvoyant]
PREFETCHES = [
    name
    for name in names("prefetch")
    if not (find("prefetch", name).clairvoyant or find("prefetch", name).needs_routing)
]  # of a layer-wise router
CUTS = 10
both_machines = pytest.mark.parametrize("make", [SimMachine, EventMachine])


class Diary:
    """The decisions of policies, each with the number of layer events decided before it.

    It also holds the trace rows of each step.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, eviction: str, prefetch: str) -> None:
        self.entries: list[tuple[int, str, Any]] = []
        self.steps: list[list[int]] = []
        self._events = 0
        caches, fetches = find("eviction", eviction), find("prefetch", prefetch)
        decide, victim, wanted = caches.decide, caches.victim, fetches.wanted
        next_step = Scheduler.next_step

        def decided(policy: Any, view: View) -> Any:
            answer = decide(policy, view)
            self._events += 1
            self._note("leave", (view.layer, sorted(view.union), sorted(answer)))
            return answer

        def given_up(policy: Any, protected: Any) -> Any:
            answer = victim(policy, protected)
            self._note("victim", answer)
            return answer

        def asked(policy: Any, view: View) -> Any:
            answer = list(wanted(policy, view))
            self._note("wanted", (view.layer, answer))
            return answer

        def planned(scheduler: Scheduler) -> Any:
            batch = next_step(scheduler)
            if batch:
                rows = [request.next_rows(count).tolist() for request, count in batch]
                self.steps.append([row for part in rows for row in part])
            return batch

        monkeypatch.setattr(caches, "decide", decided)
        monkeypatch.setattr(caches, "victim", given_up)
        monkeypatch.setattr(fetches, "wanted", asked)
        monkeypatch.setattr(Scheduler, "next_step", planned)

    def _note(self, kind: str, answer: Any) -> None:
        self.entries.append((self._events, kind, answer))

    def until(self, event: int) -> list[tuple[int, str, Any]]:
        """Return all decisions up to a layer event, counted from 1, and right after it."""
        return [entry for entry in self.entries if entry[0] <= event]


def arrays(trace: Trace) -> dict[str, Any]:
    ids, guesses = np.asarray(trace.expert_ids[:]), np.asarray(trace.predictions[:])
    return {
        "expert_ids": ids.astype(int),
        "predictions": np.where(guesses == trace.meta.unused, -1, guesses.astype(int)),
        "gate_weights": np.asarray(trace.gate_weights[:]).astype(float),
        "probabilities": np.asarray(trace.probabilities[:]).astype(float),
    }


def with_another_future(trace: Trace, steps: list[list[int]], event: int, seed: int) -> Trace:
    """Return another trace that equals this one up to layer event `event` (from 1) of the run."""
    rng = np.random.default_rng(seed)
    same = arrays(trace)
    other = {
        "expert_ids": rng.random((trace.num_rows, LAYERS, EXPERTS)).argsort(axis=-1)[..., :TOP_K],
        "predictions": rng.integers(0, EXPERTS // 2, same["predictions"].shape) * 2 + [0, 1],
        "gate_weights": rng.random(same["gate_weights"].shape),
        "probabilities": rng.random(same["probabilities"].shape),
    }
    step, layer = divmod(event - 1, LAYERS)
    seen = np.zeros((trace.num_rows, LAYERS), bool)
    for earlier in steps[:step]:
        seen[earlier] = True
    seen[steps[step], : layer + 1] = True
    mixed = {
        role: np.where(seen.reshape(seen.shape + (1,) * (same[role].ndim - 2)), same[role], values)
        for role, values in other.items()
    }
    columns: dict[str, Any] = {
        name: trace.requests[name] for name in ("prompt_tokens", "domain", "arrival_s")
    }
    return Trace.from_arrays(
        **mixed,
        **columns,
        seq_len=trace.requests["num_rows"],
        num_experts=EXPERTS,
        model_config=TINY_CONFIG,
    )


def diary_of(scenario: Any, trace: Trace, make: Any = SimMachine) -> Diary:
    with pytest.MonkeyPatch.context() as monkeypatch:
        diary = Diary(monkeypatch, scenario["cache"]["policy"], scenario["prefetch"]["policy"])
        run_on(plan_of(scenario, trace), make)
    return diary


def scenario_of(eviction: str, prefetch: str, scope: str, profile: Path) -> dict[str, Any]:
    options = {"profile": str(profile)} if eviction == "static" else {}
    ahead: dict[str, Any] = {} if prefetch == "none" else {"depth": 2}
    if prefetch == "stride":
        ahead = {"stride": 2}
    if issubclass(find("prefetch", prefetch), Learned):  # from requests that are not replayed
        ahead["profile"] = str(profile.with_name("lessons"))
    return tiny_scenario(
        cache={"policy": eviction, "scope": scope, "slots": 14, "options": options},
        prefetch={"policy": prefetch, "options": ahead},
        batching={"token_budget": 5, "max_sequences": 3},
    )


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """Return a trace of four requests, also saved as the profile from which `static` learns.

    Prefetch policies learn from another one beside it.
    """
    trace = tiny_trace(requests=4, prompt_tokens=4, output_tokens=4, prediction_accuracy=0.6)
    folder = tmp_path_factory.mktemp("view")
    tiny_trace(requests=6, prompt_tokens=4, output_tokens=4, seed=11).save(folder / "lessons")
    return scored_trace(trace).save(folder / "trace")


@pytest.mark.parametrize("scope", ["per_layer", "global"])
@pytest.mark.parametrize("prefetch", PREFETCHES)
@pytest.mark.parametrize("eviction", EVICTIONS)
def test_another_future_changes_no_decision_taken_before_it(
    recorded: Trace, eviction: str, prefetch: str, scope: str
) -> None:
    assert recorded.path is not None
    scenario = scenario_of(eviction, prefetch, scope, recorded.path)
    known = diary_of(scenario, recorded)
    events = len(known.steps) * LAYERS
    differs = 0
    for cut in np.linspace(1, events - 1, CUTS).astype(int).tolist():
        changed = with_another_future(recorded, known.steps, cut, seed=cut)
        other = diary_of(scenario, changed)
        assert other.steps == known.steps
        assert other.until(cut) == known.until(cut), cut
        differs += other.entries != known.entries
    assert differs == CUTS, "the futures are all the same: nothing was shown"


@pytest.mark.parametrize(
    ("eviction", "prefetch"), [("min", "none"), ("lru", "oracle"), ("lru", "dial")]
)
def test_clairvoyant_policies_do_look_beyond(recorded: Trace, eviction: str, prefetch: str) -> None:
    """They are marked as such. This also shows that the comparison above can fail."""
    assert recorded.path is not None
    scenario = scenario_of(eviction, prefetch, "per_layer", recorded.path)
    known = diary_of(scenario, recorded)
    looked = 0
    for cut in range(9, len(known.steps) * LAYERS, 7):
        changed = with_another_future(recorded, known.steps, cut, seed=cut)
        looked += diary_of(scenario, changed).until(cut) != known.until(cut)
    assert looked > 0
    assert find("eviction", eviction).clairvoyant or find("prefetch", prefetch).clairvoyant


def test_a_prefetch_policy_sees_which_experts_are_resident_and_for_how_many_rows_they_are_predicted(
    recorded: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, set[int], dict[int, int]]] = []

    class Notes(Prefetch):
        """Fetches nothing, and notes what it sees."""

        def wanted(self, view: View) -> Any:
            assert not any(view.resident(key) for key in (-1, LAYERS * EXPERTS))
            keys = {key for key in range(LAYERS * EXPERTS) if view.resident(key)}
            both = zip(view.predicted(1), view.predicted_tokens(1), strict=True)
            seen.append((view.layer, keys, dict(both)))
            return ()

    name = enlist(monkeypatch, "prefetch", Notes)
    scenario = scenario_of("lru", name, "per_layer", Path())
    scenario["prefetch"] = {"policy": name}
    diary = diary_of(scenario, recorded)
    kept: list[dict[int, None]] = [{} for _ in range(LAYERS)]  # by last use
    slots = [4, 4, 3, 3]
    number = 0
    for rows in diary.steps:
        assert seen[number] == (-1, {key for layer in kept for key in layer}, {})
        for layer in range(LAYERS):
            number += 1
            ids = np.asarray(recorded.expert_ids[rows])[:, layer].reshape(-1).tolist()
            for expert in dict.fromkeys(ids):
                kept[layer].pop(layer * EXPERTS + expert, None)
                kept[layer][layer * EXPERTS + expert] = None
            kept[layer] = dict.fromkeys(list(kept[layer])[-slots[layer] :])
            counts: dict[int, int] = {}
            if layer < LAYERS - 1:
                guesses = np.asarray(recorded.predictions)[rows][:, layer, 0].reshape(-1).tolist()
                for expert in guesses:
                    key = (layer + 1) * EXPERTS + expert
                    counts[key] = counts.get(key, 0) + 1
            assert seen[number] == (layer, {key for each in kept for key in each}, counts)
        number += 1


def test_predictions_become_visible_at_their_layer_and_not_at_the_start_of_a_step() -> None:
    """Predictions made at layer 0 are visible after layer 0, not before."""
    trace = tiny_trace(requests=1, prompt_tokens=1, output_tokens=3)
    scenario = scenario_of("lru", "predicted", "per_layer", Path())
    asked = [entry[2] for entry in diary_of(scenario, trace).entries if entry[1] == "wanted"]
    assert [layer for layer, _ in asked] == [-1, 0, 1, 2, 3] * 3
    for number, (layer, keys) in enumerate(asked):
        row = number // (LAYERS + 1)
        expected = [
            (layer + depth) * EXPERTS + int(expert)
            for depth in (1, 2)
            if 0 <= layer < LAYERS - depth
            for expert in trace.predictions[row][layer, depth - 1]
        ]
        assert keys == expected


# --- looking past it ------------------------------------------------------------------------------


class PeeksWhenEvicting(LRU):
    def decide(self, view: View) -> Any:
        view.exact(1)
        return super().decide(view)


class PeeksWhenFetching(Prefetch):
    def wanted(self, view: View) -> Any:
        return view.exact(1)


class PeeksFarther(Prefetch):
    def wanted(self, view: View) -> Any:
        return view.exact(-1)


class PredictsNow(Prefetch):
    def wanted(self, view: View) -> Any:
        return view.predicted(0)


@both_machines
@pytest.mark.parametrize("prefetch", ["none", "predicted", "oracle"])
def test_an_eviction_policy_that_looks_ahead_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, make: Any, prefetch: str
) -> None:
    """Even beside an oracle prefetch, whose foresight is its own."""
    name = enlist(monkeypatch, "eviction", PeeksWhenEvicting)
    scenario = tiny_scenario(cache={"policy": name}, prefetch={"policy": prefetch})
    with pytest.raises(PolicyViolation) as caught:
        run_on(plan_of(scenario, tiny_trace(requests=1)), make)
    assert caught.value.policy == name
    assert caught.value.key == "layer 0 + 1"
    assert "past the view" in caught.value.reason


@both_machines
@pytest.mark.parametrize(
    ("policy", "key"),
    [(PeeksWhenFetching, "layer -1 + 1"), (PeeksFarther, "layer -1 + -1"), (PredictsNow, 0)],
)
def test_a_prefetch_policy_that_looks_ahead_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, make: Any, policy: type[Any], key: Any
) -> None:
    name = enlist(monkeypatch, "prefetch", policy)
    scenario = tiny_scenario(prefetch={"policy": name})
    with pytest.raises(PolicyViolation) as caught:
        run_on(plan_of(scenario, tiny_trace(requests=1)), make)
    assert (caught.value.policy, caught.value.key) == (name, key)


class Clairvoyant(Prefetch):
    """Writes down how far it may see."""

    clairvoyant = True
    seen: list[tuple[int, list[list[int]]]]

    def wanted(self, view: View) -> Any:
        self.seen.append((view.layer, [list(view.exact(depth)) for depth in range(LAYERS + 1)]))
        return ()


def test_foresight_ends_with_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.array([[[0, 1], [2, 3], [4, 5], [6, 7]], [[1, 2], [3, 4], [5, 6], [7, 0]]])
    monkeypatch.setattr(Clairvoyant, "seen", [], raising=False)
    name = enlist(monkeypatch, "prefetch", Clairvoyant)
    run_on(plan_of(tiny_scenario(prefetch={"policy": name}), costed_trace(rows, prompt=1)))
    unions = [
        [[layer * EXPERTS + expert for expert in rows[row, layer]] for layer in range(LAYERS)]
        for row in range(2)
    ]
    expected = [
        (layer, [[], *unions[row], [], [], [], []][layer + 1 : layer + 2 + LAYERS])
        for row in range(2)
        for layer in range(-1, LAYERS)
    ]
    assert Clairvoyant.seen == expected


class Weighs(LRU):
    """Writes down the gate weights it is shown."""

    seen: list[tuple[list[int], list[float]]]

    def decide(self, view: View) -> Any:
        self.seen.append((list(view.union), list(view.gate_weights())))
        return super().decide(view)


@both_machines
def test_gate_weights_are_summed_over_the_rows_of_the_batch(
    monkeypatch: pytest.MonkeyPatch, make: Any
) -> None:
    rows = np.array([[[0, 1]], [[1, 5]], [[5, -1]]])
    weights = np.array([[[0.75, 0.25]], [[0.5, 0.5]], [[0.125, 0]]])
    monkeypatch.setattr(Weighs, "seen", [], raising=False)
    name = enlist(monkeypatch, "eviction", Weighs)
    trace = costed_trace(rows, gate_weights=weights)
    run_on(plan_of(tiny_scenario(cache={"policy": name}), trace), make)
    assert Weighs.seen == [([0, 1, 5], [0.75, 0.75, 0.625])]


class Scores(LRU):
    """Writes down the probabilities it is shown."""

    seen: list[list[float]]

    def decide(self, view: View) -> Any:
        self.seen.append(list(view.probabilities()))
        return super().decide(view)


@both_machines
def test_probabilities_are_summed_over_the_rows_of_the_batch(
    monkeypatch: pytest.MonkeyPatch, make: Any
) -> None:
    rows = np.array([[[0, 1]], [[1, 2]]])
    scores = np.array([[[0.5, 0.25, 0.25, 0, 0, 0, 0, 0]], [[0.25, 0.5, 0, 0.25, 0, 0, 0, 0]]])
    monkeypatch.setattr(Scores, "seen", [], raising=False)
    name = enlist(monkeypatch, "eviction", Scores)
    for recorded, expected in ((scores, [0.75, 0.75, 0.25, 0.25, 0, 0, 0, 0]), (None, [])):
        Scores.seen.clear()
        trace = costed_trace(rows, probabilities=recorded)
        run_on(plan_of(tiny_scenario(cache={"policy": name}), trace), make)
        assert Scores.seen == [expected]


# --- read-only ------------------------------------------------------------------------------------

TUPLES = {
    "union": lambda view: view.union,
    "tokens": lambda view: view.tokens,
    "exact": lambda view: view.exact(0),
    "predicted": lambda view: view.predicted(1),
    "gate_weights": lambda view: view.gate_weights(),
    "probabilities": lambda view: view.probabilities(),
}


class Inspects(LRU):
    """Asks for everything that a view may answer."""

    answers: list[tuple[str, Any]]

    def decide(self, view: View) -> Any:
        self.answers += [(name, ask(view)) for name, ask in TUPLES.items()]
        return super().decide(view)


class InspectsToo(Prefetch):
    clairvoyant = True
    answers: list[tuple[str, Any]]

    def wanted(self, view: View) -> Any:
        depths = range(1, LAYERS + 1)
        self.answers += [("exact", view.exact(depth)) for depth in depths]
        self.answers += [("predicted", view.predicted(depth)) for depth in depths]
        return ()


@both_machines
@pytest.mark.parametrize("sequences", [1, 4, 64])
def test_all_that_a_view_answers_are_tuples(
    monkeypatch: pytest.MonkeyPatch, make: Any, sequences: int
) -> None:
    """One row, a few and many are read in three different ways."""
    answers: list[tuple[str, Any]] = []
    monkeypatch.setattr(Inspects, "answers", answers, raising=False)
    monkeypatch.setattr(InspectsToo, "answers", answers, raising=False)
    eviction = enlist(monkeypatch, "eviction", Inspects)
    prefetch = enlist(monkeypatch, "prefetch", InspectsToo)
    trace = scored_trace(tiny_trace(requests=sequences, prompt_tokens=3, output_tokens=4))
    batching = {"max_sequences": sequences}
    chosen = {"cache": {"policy": eviction}, "prefetch": {"policy": prefetch}}
    run_on(plan_of(tiny_scenario(batching=batching, **chosen), trace), make)
    run_on(plan_of(tiny_scenario(batching=batching, cache={"policy": eviction}), trace), make)
    assert {name for name, answer in answers if answer} == set(TUPLES)
    assert {type(answer) for _, answer in answers} == {tuple}


@pytest.mark.parametrize("attribute", ["layer", "union", "tokens"])
def test_nothing_of_a_view_can_be_set(attribute: str) -> None:
    shown = [1, 2]
    view = View(0, shown, shown)
    with pytest.raises(AttributeError):
        setattr(view, attribute, 0)
    shown.reverse()
    assert (view.union, view.tokens) == ((1, 2), (1, 2))


class SortsInPlace(LRU):
    def decide(self, view: View) -> Any:
        view.union.sort()  # type: ignore[attr-defined]
        return super().decide(view)


class MovesTheView(LRU):
    """To see the last layer before its time."""

    def decide(self, view: View) -> Any:
        view.layer = LAYERS - 1  # type: ignore[misc]
        return super().decide(view)


class Unprotects(LRU):
    def victim(self, protected: Any) -> Any:
        protected.clear()
        return next(iter(self.book))


@both_machines
@pytest.mark.parametrize("policy", [SortsInPlace, MovesTheView, Unprotects])
def test_a_policy_that_changes_what_it_is_shown_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, make: Any, policy: type[Any]
) -> None:
    name = enlist(monkeypatch, "eviction", policy)
    scenario = tiny_scenario(cache={"policy": name, "slots": "2/layer"}, prefetch="oracle")
    with pytest.raises(PolicyViolation) as caught:
        run_on(plan_of(scenario, tiny_trace(requests=2)), make)
    assert caught.value.policy == name


class LearnsInHindsight(LRU):
    """Asks how often each expert will be used."""

    def __init__(self, context: Any, options: Any = None) -> None:
        super().__init__(context, options)
        context.popularity(None)


@pytest.mark.parametrize("clairvoyant", [False, True])
def test_counts_of_the_replayed_trace_are_for_the_clairvoyant(
    monkeypatch: pytest.MonkeyPatch, clairvoyant: bool
) -> None:
    monkeypatch.setattr(LearnsInHindsight, "clairvoyant", clairvoyant)
    name = enlist(monkeypatch, "eviction", LearnsInHindsight)
    scenario, trace = tiny_scenario(cache={"policy": name}), tiny_trace(requests=2)
    if clairvoyant:
        notes = summarise(run_on(plan_of(scenario, trace)))["notes"]
        assert any(name in note and "bound" in note for note in notes)
        return
    for replay in (lambda: run_on(plan_of(scenario, trace)), lambda: curve(trace, [name])):
        with pytest.raises(PolicyViolation, match=r"popularity.*tell of the future") as caught:
            replay()
        assert caught.value.policy == name


class AsksForTheFuture(LRU):
    seen: list[Any]

    def __init__(self, context: Any, options: Any = None) -> None:
        super().__init__(context, options)
        self.seen.append(context.future)


class AsksInOnePass(LFU):
    """As above, where all capacities are replayed at once."""

    stack = True
    seen: list[Any]

    def __init__(self, context: Any, options: Any = None) -> None:
        super().__init__(context, options)
        self.seen.append(context.future)


@pytest.mark.parametrize("policy", [AsksForTheFuture, AsksInOnePass])
def test_the_future_is_for_the_clairvoyant_in_a_curve_too(
    monkeypatch: pytest.MonkeyPatch, policy: Any
) -> None:
    monkeypatch.setattr(policy, "seen", [], raising=False)
    name = enlist(monkeypatch, "eviction", policy)
    trace = tiny_trace(requests=2)
    run_on(plan_of(tiny_scenario(cache={"policy": name}), trace))
    curve(trace, [name], capacities=[1, 2])
    assert policy.seen
    assert all(future is None for future in policy.seen)


class CountsFromNowOn(Static):
    """Changes the counts that other caches learn from as well."""

    clairvoyant = True

    def __init__(self, context: Any, options: Any = None) -> None:
        context.popularity(None).clear()
        super().__init__(context, options)


def test_counts_that_caches_share_cannot_be_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    name = enlist(monkeypatch, "eviction", CountsFromNowOn)
    with pytest.raises(PolicyViolation, match="has no attribute 'clear'"):
        run_on(plan_of(tiny_scenario(cache={"policy": name}), tiny_trace(requests=2)))
