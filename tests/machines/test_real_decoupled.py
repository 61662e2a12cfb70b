"""A decoupled model on the real machine: its own text, by the simulator's decisions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partialmethod
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from workloads import decisions, plan_of, run_on, tiny_scenario

torch = pytest.importorskip("torch", reason="the real machine needs the torch extra")

from refactored_models import readme_model, some_tokens  # noqa: E402
from stand_in_machines import simulated  # noqa: E402

from moesim.errors import InvariantError, UsageError  # noqa: E402
from moesim.executor import run as real  # noqa: E402
from moesim.executor.batch import Batch, Span  # noqa: E402
from moesim.executor.device import open_device  # noqa: E402
from moesim.executor.executor import Executor  # noqa: E402
from moesim.executor.fake import FakeDevice  # noqa: E402
from moesim.executor.generate import Generation, Serving, generate  # noqa: E402
from moesim.executor.live import RevealedRouting  # noqa: E402
from moesim.executor.token_router import PackedRouter  # noqa: E402
from moesim.hardware.ops import Tail  # noqa: E402
from moesim.policies.eviction.lookahead import LookAhead, LookAheadOptions  # noqa: E402
from moesim.policies.eviction.lru import LRU  # noqa: E402
from moesim.record import record  # noqa: E402
from moesim.record.prompts import Prompt  # noqa: E402
from moesim.serving.request import Request  # noqa: E402
from moesim.simulate import Plan, finish  # noqa: E402
from moesim.trace import Trace  # noqa: E402
from moesim.training.readme.model import materialise  # noqa: E402
from moesim.training.readme.router import PreGatingRouter  # noqa: E402
from moesim.validate import Witness  # noqa: E402

PROMPTS: list[Any] = [
    some_tokens(1, length, seed=length)[0].tolist() for length in (9, 4, 1, 6, 13)
]
NEW = 6
LAYERS, EXPERTS = 3, 4
BATCHINGS = [("expert_aware", {"prefill": prefill}) for prefill in ("majority", "every")]
POLICIES = list(product(BATCHINGS, ("layer_ahead", "none"), ("lookahead", "lru")))
FLOAT64 = {"shape": "trace", "expert_bits": 64, "weight_bits": 64, "kv_bits": 64}
VARIANTS = [
    (routing, scaled, layout)
    for routing in ("decoupled", "layerwise")
    for scaled in (False, True)
    for layout in ("fused", "unfused")
]


pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def model_of(routing: str = "decoupled", scaled: bool = False, layout: str = "fused") -> Any:
    return endless(materialise(readme_model(routing=routing, scaled=scaled), layout))


def endless(model: Any) -> Any:
    """Return a model whose text no token ends."""
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    return model


@cache
def plain(*variant: Any) -> list[tuple[list[int], Any]]:
    """The text of `generate` for each prompt alone, and its logits by one full forward pass."""
    texts, model = [], model_of(*variant)
    for prompt in PROMPTS:
        with torch.no_grad():
            said = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=NEW)
            logits = model(said).logits[0, len(prompt) - 1 : -1]
        texts.append((said[0, len(prompt) :].tolist(), logits))
    return texts


def served(*variant: Any, device: Any = "cpu", **serving: Any) -> Generation:
    defaults: dict[str, Any] = {"token_budget": 7, "max_sequences": 3}
    return generate(
        model_of(*variant), PROMPTS, NEW, Serving(**{**defaults, **serving}), device=device
    )


def check(ours: Generation, theirs: list[tuple[list[int], Any]]) -> None:
    for tokens, logits, (expected, rows) in zip(ours.tokens, ours.logits, theirs, strict=True):
        assert tokens == expected
        torch.testing.assert_close(logits, rows, rtol=0, atol=1e-9)


def serving_of(policies: Any) -> dict[str, Any]:
    (batching, options), prefetch, eviction = policies
    return {
        "batching": batching,
        "batching_options": options,
        "prefetch": prefetch,
        "eviction": eviction,
    }


# --- the text ---


@pytest.mark.parametrize("slots", range(LAYERS * EXPERTS + 1))
def test_the_text_is_the_models_at_every_capacity(slots: int) -> None:
    for number, policies in enumerate(POLICIES):
        if number % 3 == slots % 3:
            scope = ("per_layer", "global")[number % 2]
            check(served(slots=slots, scope=scope, **serving_of(policies)), plain())


@pytest.mark.parametrize("policies", POLICIES, ids=str)
def test_the_text_is_the_models_under_all_policies(policies: Any) -> None:
    for slots, device in product((0, 5, 12), ("cpu", FakeDevice(latest_s=0.0001))):
        check(served(slots=slots, device=device, **serving_of(policies)), plain())


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_the_text_is_the_models_in_every_layout(variant: Any) -> None:
    decoupled = variant[0] == "decoupled"
    chosen = serving_of(POLICIES[0]) if decoupled else {"prefetch": "predicted"}
    for slots in (0, 5, 12):
        check(served(*variant, slots=slots, token_budget=3, **chosen), plain(*variant))


def test_preempted_requests_keep_their_routing() -> None:
    ours = served(slots=5, kv_tokens=20, max_sequences=5, **serving_of(POLICIES[0]))
    assert ours.server.scheduler.preemptions > 0
    check(ours, plain())


def test_the_model_is_restored_unchanged() -> None:
    model, tokens = model_of(), torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        before = model(tokens).logits
        served(slots=3)
        assert torch.equal(model(tokens).logits, before)
    assert "StandIn" not in str(model)


# --- the decisions ---


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Trace]:
    """Return the traces of the plain models for the same prompts."""
    folder = tmp_path_factory.mktemp("recorded")
    prompts = [Prompt(tokens=tuple(prompt)) for prompt in PROMPTS]
    return {
        variant: record(model_of(*variant), None, prompts, folder / str(number), max_new_tokens=NEW)
        for number, variant in enumerate(VARIANTS)
    }


@pytest.fixture
def departures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the evicted keys of each decision of a policy."""
    heard: list[Any] = []
    for policy, name in product((LookAhead, LRU), ("decide", "victim")):

        def listen(self: Any, given: Any, answer: Any) -> Any:
            said = answer(self, given)
            heard.append(said if said is None or isinstance(said, int) else sorted(said))
            return said

        monkeypatch.setattr(policy, name, partialmethod(listen, answer=getattr(policy, name)))
    return heard


def plan_for(
    trace: Trace, slots: int, policies: Any, *, kv_tokens: int | None = None, sequences: int = 3
) -> Plan:
    """The scenario of `served`."""
    (batching, options), prefetch, eviction = policies
    orders = {"policy": batching, "options": options, "token_budget": 7}
    scenario = tiny_scenario(
        model=FLOAT64,
        batching={**orders, "max_sequences": sequences},
        prefetch=prefetch,
        cache={"policy": eviction, "slots": slots, "scope": "per_layer"},
        memory={"staging": 1, "kv_block_tokens": 1},
    )
    plan = plan_of(scenario, trace)
    room = kv_tokens or sum(len(prompt) + NEW - 1 for prompt in PROMPTS)
    nbytes = room * plan.cost.shape.kv_bytes_per_token
    return plan_of({**scenario, "memory": {**scenario["memory"], "kv": nbytes}}, trace)


def check_decisions(ours: Generation, plan: Plan, departures: list[Any]) -> None:
    """Check that the simulation evicts what the real run evicted, which is in `departures`."""
    left, departures[:] = list(departures), []
    theirs = run_on(plan)
    assert left == departures
    witness = Witness()
    for issued in ours.works:
        witness.record(issued)
    found = witness.decisions()
    expected = simulated(plan).decisions
    assert (found.misses, found.prefetches) == (expected.misses, expected.prefetches)
    assert found.nbytes == expected.nbytes
    server = ours.server
    end: Any = SimpleNamespace(ledger=server.ledger, caches=list(dict.fromkeys(server.caches)))
    assert decisions(end) == decisions(theirs)  # the unions of all layer events among them


@pytest.mark.parametrize("policies", POLICIES, ids=str)
@pytest.mark.parametrize("slots", [0, 5, 9])
def test_decisions_are_the_simulators(
    slots: int, policies: Any, traces: dict[Any, Trace], departures: list[Any]
) -> None:
    ours = served(slots=slots, device=FakeDevice(latest_s=0.0001), **serving_of(policies))
    check_decisions(ours, plan_for(traces[VARIANTS[0]], slots, policies), departures)
    prefetched = sum(ours.server.ledger.prefetch_copies)
    assert bool(prefetched) == (policies[1] == "layer_ahead" and slots > 0)


@pytest.mark.parametrize("policies", POLICIES[::3], ids=str)
def test_decisions_are_the_simulators_where_requests_are_preempted(
    policies: Any, traces: dict[Any, Trace], departures: list[Any]
) -> None:
    ours = served(slots=5, kv_tokens=20, max_sequences=5, **serving_of(policies))
    assert ours.server.scheduler.preemptions > 0
    plan = plan_for(traces[VARIANTS[0]], 5, policies, kv_tokens=20, sequences=5)
    check_decisions(ours, plan, departures)


@dataclass(frozen=True)
class _ThreeRecentRows(LookAheadOptions):
    recent_rows: int = 3


def test_decisions_by_guessed_experts_are_the_simulators(
    traces: dict[Any, Trace], departures: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    policies = POLICIES[0]
    plain_departures = _departures_of(policies, traces, departures)
    monkeypatch.setattr(LookAhead, "Options", _ThreeRecentRows)
    assert _departures_of(policies, traces, departures) != plain_departures


def _departures_of(policies: Any, traces: dict[Any, Trace], departures: list[Any]) -> list[Any]:
    """Return what a real run evicts, which must be what the simulation evicts."""
    departures.clear()
    ours = served(slots=5, device=FakeDevice(latest_s=0.0001), **serving_of(policies))
    evicted = list(departures)
    check_decisions(ours, plan_for(traces[VARIANTS[0]], 5, policies), departures)
    return evicted


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_recorded_trace_is_executed_in_its_shape(
    variant: Any, traces: dict[Any, Trace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With random weights; a decoupled router runs for all rows of a step, in its tail."""
    decoupled = variant[0] == "decoupled"
    policies = POLICIES[0] if decoupled else (("fcfs", {}), "none", "lru")
    plan, routed = plan_for(traces[variant], 5, policies), []
    route = PackedRouter.route

    def count(self: PackedRouter, tokens: Any, spans: Any) -> Any:
        routed.append(len(tokens))
        return route(self, tokens, spans)

    def across(*_: Any, **__: Any) -> Any:
        raise AssertionError("the model's own router would look across sequences")

    monkeypatch.setattr(PackedRouter, "route", count)
    monkeypatch.setattr(PreGatingRouter, "forward", across)
    device = open_device("cpu")
    executor = real.executor_for(plan, device)
    done = real.run_real(plan, executor, device, patience_s=20)
    executor.close()
    assert decisions(finish(plan, done.server, done.now_ns)) == decisions(run_on(plan))
    ops = [issued.work.op for issued in done.works]
    tails = [op.batch.tokens for op in ops if isinstance(op, Tail)]
    assert routed == (tails if decoupled else [])


def test_the_masked_form_is_executed_as_the_fused_one(
    tmp_path: Path, traces: dict[Any, Trace]
) -> None:
    prompts = [Prompt(tokens=tuple(p)) for p in PROMPTS]
    masked = record(endless(readme_model()), None, prompts, tmp_path / "masked", max_new_tokens=NEW)
    assert np.array_equal(masked.expert_ids, traces[VARIANTS[0]].expert_ids)
    executor = real.executor_for(plan_for(masked, 5, POLICIES[0]), open_device("cpu"))
    assert executor.expert_bytes == plan_for(masked, 5, POLICIES[0]).cost.shape.expert_bytes
    executor.close()


# --- what is revealed ---


def test_a_packed_router_decides_as_the_router_does() -> None:
    """Sequences side by side, in parts, and one that starts again."""
    model, ids = model_of(scaled=True), [torch.tensor(prompt) for prompt in PROMPTS[:2]]
    packed = PackedRouter.of(model)
    assert packed is not None
    cuts = [(0, 0, 5), (1, 0, 2)], [(1, 2, 1), (0, 5, 1)], [(0, 0, 9), (1, 3, 1)]
    with torch.inference_mode():
        alone = [model.route(each[None])[0].softmax(-1).max(-1) for each in ids]
        for parts in cuts:
            spans = [Span(which, first, count, 9, False) for which, first, count in parts]
            pieces = [slice(first, first + count) for _, first, count in parts]
            rows = [ids[which][piece] for (which, *_), piece in zip(parts, pieces, strict=True)]
            said = packed.route(torch.cat(rows), spans)
            both = zip(parts, pieces, strict=True)
            expected = [
                torch.stack([alone[which].indices[piece].double(), alone[which].values[piece]], 1)
                for (which, *_), piece in both
            ]
            torch.testing.assert_close(said, torch.cat(expected), rtol=0, atol=1e-12)


def test_only_tokens_that_exist_have_experts() -> None:
    executor = Executor(model_of(), buffers=1)
    lengths = [len(prompt) + NEW - 1 for prompt in PROMPTS[:2]]
    rows = np.split(np.arange(sum(lengths)), lengths[:1])
    requests = [
        Request(number, arrival_ns=0, prompt_tokens=len(p), output_tokens=NEW, rows=rows[number])
        for number, p in enumerate(PROMPTS[:2])
    ]
    routing = RevealedRouting(executor, PROMPTS[:2], requests)
    prompt = model_of().route(torch.tensor([PROMPTS[1]])).argmax(-1)[0].tolist()
    assert routing.experts(requests[1], 4) == [[expert] for expert in prompt]
    unions, counts = routing.unions(rows[1][:4])
    assert unions[2] == tuple(2 * EXPERTS + expert for expert in dict.fromkeys(prompt))
    assert [sum(each) for each in counts] == [4] * LAYERS
    uses = {layer * EXPERTS + e: prompt.index(e) for layer in range(LAYERS) for e in prompt}
    assert routing.first_uses(rows[1][:4]) == uses
    for ask in (routing.unions, routing.first_uses):
        with pytest.raises(InvariantError, match="the token of row 18 does not exist yet"):
            ask(rows[1][3:5])
    with pytest.raises(InvariantError, match="chooses experts before a step, not in it"):
        executor.begin(Batch((Span(0, 0, 1, 1, True),), [3]))
    executor.close()


def test_routers_in_each_layer_reveal_too_little_for_some_policies() -> None:
    with pytest.raises(UsageError, match="expert_aware needs the experts of queued tokens; the"):
        served("layerwise", batching="expert_aware")
    for routing in ("layerwise", "decoupled"):
        with pytest.raises(UsageError, match="task_aware needs the experts of all tokens"):
            served(routing, batching="task_aware")
    with pytest.raises(UsageError, match="layer_ahead has depth 1; the routers of ReadMe"):
        served("layerwise", prefetch="layer_ahead")
