"""What each kind of router reveals of future experts, and which waits that saves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import simpy
from costed_traces import costed_trace
from oracles.eviction import furthest_next_use, replay
from watched_machines import enlist
from workloads import (
    REFACTORED_CONFIG,
    TINY_CONFIG,
    decisions,
    everything,
    plan_of,
    random_case,
    run_on,
    shuffled,
    static_trace,
    tiny_scenario,
    tiny_trace,
)

from moesim.errors import ScenarioError
from moesim.hardware.ops import Experts
from moesim.machine.events import EventMachine
from moesim.machine.prices import Durations
from moesim.machine.sim import SimMachine
from moesim.policies.eviction import LRU
from moesim.policies.prefetch import Prefetch
from moesim.policies.view import View
from moesim.serving.knowledge import KNOWLEDGE
from moesim.serving.stalls import READBACK
from moesim.simulate import Outcome, build_server, summarise
from moesim.trace import Trace

AHEAD = {"policy": "oracle", "options": {"depth": 1}}


def run(router: str, **changes: Any) -> Outcome:
    trace = tiny_trace(requests=4, prompt_tokens=6, output_tokens=6)
    trace = static_trace(trace, 2) if router == "static" else trace.with_meta(router=router)
    batching = {"token_budget": 4, "max_sequences": 3}
    return run_on(plan_of(tiny_scenario(batching=batching, **changes), trace))


def readback_ns(outcome: Outcome) -> int:
    return sum(outcome.ledger.stall_ns[READBACK][: outcome.plan.trace.num_layers])


def test_no_step_waits_for_ids_that_are_already_known() -> None:
    waits = {router: readback_ns(run(router)) for router in KNOWLEDGE}
    assert waits["layerwise"] > waits["pregated"] > 0
    assert waits["decoupled"] == waits["static"] == 0


def test_ids_known_in_advance_change_times_and_no_decision() -> None:
    layerwise, decoupled = run("layerwise"), run("decoupled")
    assert decisions(layerwise) == decisions(decoupled)
    assert decoupled.now_ns < layerwise.now_ns


@pytest.mark.parametrize("router", ["pregated", "decoupled", "static"])
@pytest.mark.parametrize("seed", range(10))
def test_the_machines_agree_whatever_is_known(seed: int, router: str) -> None:
    scenario, trace = random_case(9000 + seed)
    options = {"recent_rows": seed % 3}
    scenario["cache"] = {"policy": "lookahead", "slots": 3 + 2 * seed, "options": options}
    if router == "static":
        trace = static_trace(trace, min(3, trace.num_requests))
        scenario["prefetch"] = {"policy": "layer_ahead", "options": {"depth": 1 + seed}}
        scenario["batching"]["policy"] = "task_aware"
    config = REFACTORED_CONFIG if router == "decoupled" else TINY_CONFIG
    plan = plan_of(scenario, trace.with_meta(router=router, model_config=config))
    folded = everything(run_on(plan))
    assert everything(run_on(plan, lambda env, prices: EventMachine(env, prices))) == folded
    assert everything(run_on(plan, shuffled(seed))) == folded


@pytest.mark.parametrize("router", ["layerwise", "decoupled"])
@pytest.mark.parametrize("config", [TINY_CONFIG, REFACTORED_CONFIG], ids=["in layers", "ahead"])
def test_notes_say_what_a_router_reveals_and_how_it_is_costed(
    router: str, config: dict[str, Any]
) -> None:
    trace = tiny_trace(requests=1).with_meta(router=router, model_config=config)
    notes = [
        n for n in summarise(run_on(plan_of(tiny_scenario(), trace)))["notes"] if "router" in n
    ]
    if router == "layerwise" and config is TINY_CONFIG:
        assert not notes
        return
    (note,) = notes
    assert ("choices ahead" in note) == (router == "decoupled")
    assert ("in the tail of each step" in note) == (config is REFACTORED_CONFIG)


def changed_after(trace: Trace, row: int) -> Trace:
    """Return another future of a trace: from a row on, all tokens have other experts."""
    ids = np.array(trace.expert_ids[:], np.int64)
    ids[row:] = (ids[row:] + 3) % trace.num_experts
    return Trace.from_arrays(
        expert_ids=ids,
        seq_len=trace.requests["num_rows"],
        prompt_tokens=trace.requests["prompt_tokens"],
        num_experts=trace.num_experts,
        router=trace.meta.router,
        model_config=trace.meta.model_config,
    )


def misses_by_step(trace: Trace, recent_rows: int) -> list[int]:
    options = {"recent_rows": recent_rows}
    one = tiny_scenario(
        batching={"token_budget": 2, "max_sequences": 1},
        cache={"policy": "lookahead", "slots": "2/layer", "options": options},
    )
    return list(run_on(plan_of(one, trace)).ledger.step_columns()["misses"])


@pytest.mark.parametrize("recent_rows", [0, 3])
def test_look_ahead_sees_queued_prompts_and_no_token_that_is_not_sampled(recent_rows: int) -> None:
    trace = tiny_trace(requests=1, prompt_tokens=8, output_tokens=8, stickiness=0.0)
    trace = trace.with_meta(router="decoupled")
    before = misses_by_step(trace, recent_rows)
    decoded = misses_by_step(changed_after(trace, 12), recent_rows)
    # Rows from 8 on are decoded, one a step.
    assert decoded[:8] == before[:8]  # four steps of prompt, then rows 8 to 11


def test_look_ahead_in_a_layerwise_model_is_lru_less_the_event_itself() -> None:
    trace = tiny_trace(requests=3, prompt_tokens=6, output_tokens=6)
    outcomes = [
        run_on(plan_of(tiny_scenario(cache={"policy": policy, "slots": "3/layer"}), trace))
        for policy in ("lookahead", "lru")
    ]
    first, second = (sum(outcome.ledger.hits) for outcome in outcomes)
    assert first == second


def test_look_ahead_hits_more_often_the_more_is_queued() -> None:
    trace = tiny_trace(requests=40, prompt_tokens=12, output_tokens=1, stickiness=0.0)
    trace = trace.with_meta(router="decoupled")

    def hits(policy: str) -> int:
        scenario = tiny_scenario(
            batching={"token_budget": 1, "max_sequences": 1},
            cache={"policy": policy, "slots": "3/layer"},
        )
        return sum(run_on(plan_of(scenario, trace)).ledger.hits)

    lru, ahead, least = hits("lru"), hits("lookahead"), hits("min")
    assert lru < ahead <= least
    assert ahead > 0.9 * least


@dataclass
class Simple(Durations):
    """Prices of a model whose experts take a while to load and to compute, and nothing else."""

    computing: int
    loading: int
    layers: int
    landing_ns: int = 0

    def compute_ns(self, op: Any) -> int:
        return self.computing if isinstance(op, Experts) else 0

    def experts_ns(self, tokens: tuple[int, ...]) -> int:
        return self.computing

    def layers_ns(self, batch: Any) -> list[int]:
        return [0] * self.layers

    def copy_ns(self, lane: str, nbytes: int) -> int:
        return self.loading

    def readback_ns(self, nbytes: int) -> int:
        return 0


def tokens_ns(
    layers: int, c: int, load: int, tokens: int = 1, router: str = "decoupled", **scenario: Any
) -> int:
    """Return the time of a request of one prompt token with the same expert in each layer."""
    trace = tiny_trace(
        requests=1, prompt_tokens=1, output_tokens=tokens, num_layers=layers, top_k=1, stickiness=1
    )
    config = {**TINY_CONFIG, "num_hidden_layers": layers, "num_experts_per_tok": 1}
    trace = trace.with_meta(router=router, model_config=config)
    env = simpy.Environment()
    machine = SimMachine(env, Simple(c, load, layers))
    server = build_server(plan_of(tiny_scenario(**scenario), trace), machine)
    env.run(until=env.process(server.run()))
    return machine.now_ns


@pytest.mark.parametrize(("c", "load"), [(5, 3), (3, 5), (4, 4), (1, 100), (100, 1)])
@pytest.mark.parametrize("layers", [1, 2, 7])
@pytest.mark.parametrize("prefetch", ["none", "layer_ahead"])
def test_layer_ahead_takes_what_its_closed_form_says(
    prefetch: str, layers: int, c: int, load: int
) -> None:
    """One token, nothing resident, L layers that load in l and compute in c: L (c + l) on demand,
    c + l + (L - 1) max(c, l) a layer ahead."""
    ahead = c + load + (layers - 1) * max(c, load)
    took = tokens_ns(layers, c, load, prefetch=prefetch, cache={"slots": "1/layer"})
    assert took == (ahead if prefetch == "layer_ahead" else layers * (c + load))


@pytest.mark.parametrize(("c", "load"), [(5, 3), (3, 5), (4, 4), (1, 100), (100, 1)])
@pytest.mark.parametrize("initial", [1, 2, 7])
@pytest.mark.parametrize("prefetch", ["none", "layer_ahead"])
@pytest.mark.parametrize("scope", ["per_layer", "global"])
def test_resident_initial_layers_hide_the_first_load_too(
    scope: str, prefetch: str, initial: int, c: int, load: int
) -> None:
    """As above with the first n of L layers resident: n c + (L - n) (c + l) on demand,
    n c + (L - n) max(c, l) a layer ahead, where no load is left bare."""
    layers = 7
    cache = {"initial_layers": initial, "scope": scope, "slots": 8 * initial + layers - initial}
    each = max(c, load) if prefetch == "layer_ahead" else c + load
    took = tokens_ns(layers, c, load, prefetch=prefetch, cache=cache)
    assert took == initial * c + (layers - initial) * each


@pytest.mark.parametrize(("c", "load"), [(5, 3), (3, 5), (4, 4), (1, 100), (100, 1)])
@pytest.mark.parametrize("layers", [3, 7])
@pytest.mark.parametrize("tokens", [1, 2, 6])
@pytest.mark.parametrize("router", ["decoupled", "static"])
def test_a_static_router_hides_the_first_load_of_decoded_tokens(
    router: str, tokens: int, layers: int, c: int, load: int
) -> None:
    """Two slots for L layers, so every step loads all of them again. A decoupled router takes
    c + l + (L - 1) max(c, l) a token, since layer 0 of the next is not known before it is sampled;
    of a static one that is so of the first alone, and n tokens take c + l + (n L - 1) max(c, l)."""
    took = tokens_ns(
        layers,
        c,
        load,
        tokens,
        router,
        prefetch="layer_ahead",
        cache={"slots": 2, "scope": "global"},
    )
    bare = 1 if router == "static" else tokens
    assert took == bare * (c + load) + (tokens * layers - bare) * max(c, load)


# --- a static router ------------------------------------------------------------------------------

A, B, C = ((1, 8 + 2), (3, 8 + 4), (5, 8 + 6))  # the keys of three tasks, by layer
# Two requests run at a time. KV memory must not limit them: a request without memory has to wait.
TWO, ROOMY = {"max_sequences": 2}, {"kv": "100MB"}


def three_tasks(router: str, outputs: Sequence[int] = (2, 3, 2)) -> Trace:
    """Return one request of each task, each with one prompt token."""
    rows = [[[key % 8] for key in task] for task in (A, B, C)]
    return costed_trace(
        np.repeat(np.array(rows), outputs, axis=0),
        seq_len=list(outputs),
        prompt_tokens=[1, 1, 1],
        domain=["a", "b", "c"],
        router=router,
    )


class Fetches(Prefetch):
    """A prefetch policy that records all experts that the view shows ahead."""

    seen: list[tuple[int, list[list[int]]]]

    def wanted(self, view: View) -> Any:
        self.seen.append((view.layer, [list(view.exact(depth)) for depth in range(1, 7)]))
        return ()


def seen_ahead(monkeypatch: pytest.MonkeyPatch, router: str) -> list[list[list[int]]]:
    """Return what the view shows of the next six layers at the start of each step."""
    monkeypatch.setattr(Fetches, "seen", [], raising=False)
    name = enlist(monkeypatch, "prefetch", Fetches)
    scenario = tiny_scenario(prefetch={"policy": name}, batching=TWO, memory=ROOMY)
    run_on(plan_of(scenario, three_tasks(router)))
    return [ahead for layer, ahead in Fetches.seen if layer == -1]


def test_the_view_of_a_static_router_continues_into_the_next_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four steps of two requests at most: a and b; a's last token and b; b's last and c; c's last.

    The view of the next step shows requests that continue. It shows neither requests that end nor
    those that replace them.
    """
    ab = [[A[0], B[0]], [A[1], B[1]]]
    b, bc, c = [[B[0]], [B[1]]], [[B[0], C[0]], [B[1], C[1]]], [[C[0]], [C[1]]]
    none: list[list[int]] = [[], []]
    static = [[*ab, *ab, *none], [*ab, *b, *none], [*bc, *c, *none], [*c, *none, *none]]
    assert seen_ahead(monkeypatch, "static") == static
    decoupled = [[*now, *none, *none] for now in (ab, ab, bc, c)]
    assert seen_ahead(monkeypatch, "decoupled") == decoupled


class Evicts(LRU):
    """An eviction policy that records when each key is wanted again."""

    looks_ahead = True
    seen: list[list[int | None]]

    def decide(self, view: View) -> Any:
        self.seen.append([view.next_use(key) for key in (*A, *B, *C)])
        return super().decide(view)


def seen_again(
    monkeypatch: pytest.MonkeyPatch, router: str, recent_rows: int = 0
) -> list[list[int | None]]:
    monkeypatch.setattr(Evicts, "seen", [], raising=False)
    monkeypatch.setattr(Evicts, "recent_rows", recent_rows)
    name = enlist(monkeypatch, "eviction", Evicts)
    scenario = tiny_scenario(cache={"policy": name}, batching=TWO, memory=ROOMY)
    run_on(plan_of(scenario, three_tasks(router)))
    return Evicts.seen


def test_the_view_of_a_static_router_says_when_everything_is_wanted_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each row is layer 0 or 1 of a step; each column a key of a, b or c.

    Requests that run and continue are wanted first, then those that wait. Requests that have ended
    are never wanted again.
    """
    assert seen_again(monkeypatch, "static") == [
        [2, 1, 4, 1, 6, 7],
        [1, 2, 3, 4, 5, 6],
        [None, 1, 2, 1, 4, 5],
        [None, None, 1, 2, 3, 4],
        [None, None, None, 1, 2, 1],
        [None, None, None, None, 1, 2],
        [None, None, None, None, None, 1],
        [None] * 6,
    ]
    assert seen_again(monkeypatch, "decoupled") == [
        [None, 1, None, 1, 2, 3],
        [None, None, None, None, 1, 2],
        [None, 1, None, 1, 2, 3],
        [None, None, None, None, 1, 2],
        [None, None, None, 1, None, 1],
        [None] * 6,
        [None, None, None, None, None, 1],
        [None] * 6,
    ]


def test_guesses_are_right_where_all_tokens_of_a_request_are_routed_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are then what a static router reveals, which needs no guesses."""
    revealed = seen_again(monkeypatch, "static")
    assert seen_again(monkeypatch, "decoupled", recent_rows=1) == revealed
    assert seen_again(monkeypatch, "static", recent_rows=1) == revealed


def test_guesses_start_with_the_newest_row_of_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two requests run and sample, with experts 0 1 4 and 2 3 5; a third waits with expert 6.

    The last event is the second step's. Its guesses are 1 and 3, then 0 and 2; then 6 follows.
    """
    rows = [[[expert]] for expert in (0, 1, 4, 2, 3, 5, 6)]
    trace = costed_trace(rows, seq_len=[3, 3, 1], prompt_tokens=[1] * 3, router="decoupled")
    next_uses: list[list[int | None]] = []

    class Watches(Evicts):
        def decide(self, view: View) -> Any:
            next_uses.append([view.next_use(expert) for expert in range(8)])
            return LRU.decide(self, view)

    monkeypatch.setattr(Watches, "recent_rows", 2)
    name = enlist(monkeypatch, "eviction", Watches)
    run_on(plan_of(tiny_scenario(cache={"policy": name}, batching=TWO, memory=ROOMY), trace))
    assert next_uses[0] == [1, None, 2, None, None, None, 3, None]
    assert next_uses[1] == [3, 1, 4, 2, None, None, 5, None]


@pytest.mark.parametrize(
    ("recent_rows", "misses"),
    [(0, [1, 1, 1, 1, 1, 0]), (1, [1, 1, 1, 1, 1, 0]), (2, [1, 1, 1, 0, 0, 1])],
)
def test_guessed_experts_outlive_those_that_a_waiting_request_wants(
    recent_rows: int, misses: list[int]
) -> None:
    """Two slots. A request decodes with experts 2 0 1 0 1; another waits, and wants 2 twice.

    As published, 2 stays for the waiting request, and the other slot loads 0 and 1 in turn. The
    newest row is that of the step itself, and admission `always` keeps its expert in any case. So
    only the second newest makes 2 leave, in the third step.
    """
    rows = [[[expert]] for expert in (2, 0, 1, 0, 1, 2, 2)]
    trace = costed_trace(rows, seq_len=[5, 2], prompt_tokens=[1, 2], router="decoupled")
    cache = {
        "policy": "lookahead",
        "slots": "2/layer",
        "admission": "always",
        "options": {"recent_rows": recent_rows},
    }
    scenario = tiny_scenario(cache=cache, batching={"token_budget": 2, "max_sequences": 1})
    ledger = run_on(plan_of(scenario, trace)).ledger
    assert list(ledger.step_columns()["misses"]) == misses


@pytest.mark.parametrize("scope", ["per_layer", "global"])
@pytest.mark.parametrize("seed", range(8))
def test_look_ahead_is_min_where_a_static_model_serves_one_request_at_a_time(
    seed: int, scope: str
) -> None:
    """All requests arrive at once and run in order, so all future experts are known.

    The oracle replays the run's own layer events; the key that is wanted furthest ahead leaves.
    """
    trace = tiny_trace(requests=12, prompt_tokens=3, output_tokens=4, stickiness=0.0, seed=seed)
    trace = static_trace(trace, 5)
    slots = 3 + seed % 3

    def hits(router: str, policy: str) -> int:
        scenario = tiny_scenario(
            batching={"token_budget": 1 + seed % 3, "max_sequences": 1},
            cache={"policy": policy, "scope": scope, "slots": 4 * slots},
        )
        ledger = run_on(plan_of(scenario, trace.with_meta(router=router))).ledger
        events = ledger.layer_events()
        layers = [events] if scope == "global" else [events[layer::4] for layer in range(4)]
        size = 4 * slots // len(layers)
        best.append(
            sum(len(hit) for own in layers for hit, _ in replay(furthest_next_use(own), own, size))
        )
        return sum(ledger.hits)

    best: list[int] = []
    assert hits("static", "lookahead") == best[0]
    assert hits("static", "lru") < best[1] == best[0]
    assert hits("decoupled", "lookahead") <= best[0]


def test_a_layerwise_router_reveals_nothing_to_fetch() -> None:
    with pytest.raises(ScenarioError, match=r"layer_ahead has depth 1.*reveals routing to depth 0"):
        plan_of(tiny_scenario(prefetch="layer_ahead"), tiny_trace())
    deep = {"policy": "layer_ahead", "options": {"depth": 2}}
    with pytest.raises(ScenarioError, match="pregated, which reveals routing to depth 1"):
        plan_of(tiny_scenario(prefetch=deep), tiny_trace().with_meta(router="pregated"))


@pytest.mark.parametrize("seed", range(5))
def test_what_is_fetched_ahead_by_knowledge_is_never_wasted(seed: int) -> None:
    trace = tiny_trace(requests=4, prompt_tokens=6, output_tokens=6, seed=seed, stickiness=0.2)
    scenario = tiny_scenario(prefetch="layer_ahead", cache={"policy": "lru", "slots": "8/layer"})
    ledger = run_on(plan_of(scenario, trace.with_meta(router="decoupled"))).ledger
    assert sum(ledger.prefetch_copies) > 0
    assert sum(ledger.demand_copies) == ledger.prefetch_wasted == 0
