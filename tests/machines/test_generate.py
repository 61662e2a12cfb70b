"""The text of a model whose experts do not all fit is the text of the model.

The proof that residency, pinning and waves are right: a wrong expert, or a right one that is
overwritten while it is read, changes the logits.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the real machine needs the torch extra")

from plain_texts import logit_tolerance  # noqa: E402
from router_models import tiny  # noqa: E402

from moesim.errors import DeviceError, UsageError  # noqa: E402
from moesim.executor.device import DEVICES, open_device  # noqa: E402
from moesim.executor.fake import FakeDevice  # noqa: E402
from moesim.executor.generate import Generation, Serving, generate  # noqa: E402

PROMPTS = ([5, 9, 31, 7, 12, 40, 3, 28, 19], [11, 22, 33, 44], [50, 2], [17] * 6)
NEW = 6
FAMILIES = ("qwen3_moe", "mixtral", "deepseek_v3", "gpt_oss", "qwen2_moe")


@cache
def model_of(family: str, dtype: str = "float64") -> Any:
    model = tiny(family).to(getattr(torch, dtype))
    model.set_experts_implementation("eager")  # the loop over experts, which knows all types
    return model


@cache
def plain(family: str, dtype: str = "float64") -> list[tuple[list[int], Any]]:
    """Greedy text of each prompt, and the logits of its tokens, by full forward passes."""
    texts = []
    for prompt in PROMPTS:
        tokens, rows = list(prompt), []
        for _ in range(NEW):
            with torch.no_grad():
                rows.append(model_of(family, dtype)(input_ids=torch.tensor([tokens])).logits[0, -1])
            tokens.append(int(rows[-1].argmax()))
        texts.append((tokens[len(prompt) :], torch.stack(rows)))
    return texts


def check(ours: Generation, theirs: list[tuple[list[int], Any]], tolerance: float) -> None:
    for tokens, logits, (expected, rows) in zip(ours.tokens, ours.logits, theirs, strict=True):
        assert tokens == expected
        torch.testing.assert_close(logits, rows, rtol=0, atol=tolerance)


def served(family: str, device: Any = "cpu", dtype: str = "float64", **serving: Any) -> Generation:
    defaults: dict[str, Any] = {"token_budget": 7, "max_sequences": 3}
    model = model_of(family, dtype)
    return generate(model, PROMPTS, NEW, Serving(**{**defaults, **serving}), device=device)


@pytest.mark.parametrize("slots", range(25))
def test_the_text_is_the_models_at_every_capacity(slots: int) -> None:
    policies: tuple[str, ...] = ("lru", "lfu", "fifo", "random", "lfu_decay", "lfu_in_cache")
    policies += ("activation_matrix", "arc", "least_stale", "lfru", "lirs", "s3_fifo", "sieve")
    ours = served(
        "qwen3_moe",
        slots=slots,
        eviction=policies[slots % len(policies)],
        staging=1 + slots % 3,
        admission=("bypass", "always")[slots % 2],
        scope=("global", "per_layer")[slots // 2 % 2],
        prefetch=("none", "predicted")[slots // 3 % 2],
    )
    check(ours, plain("qwen3_moe"), 1e-9)


@pytest.mark.parametrize("slots", [0, 3, 11, 20])
def test_the_text_is_the_models_with_prefetch_buffers(slots: int) -> None:
    used = 0
    for buffers in (1, 3):
        ours = served(
            "qwen3_moe", slots=slots, prefetch="predicted", prefetch_buffers=buffers, staging=1
        )
        check(ours, plain("qwen3_moe"), 1e-9)
        ledger = ours.server.ledger
        assert ledger.prefetch_pollution == 0
        used += ledger.prefetch_useful + ledger.prefetch_late
    assert used > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_the_text_is_the_models_in_every_family(family: str) -> None:
    for slots, prefetch in product((0, 1, 10, 24), ("none", "predicted")):
        ours = served(family, slots=slots, prefetch=prefetch)
        check(ours, plain(family), logit_tolerance(family))


def test_generate_of_transformers_gives_the_same_text() -> None:
    model, prompt = model_of("qwen3_moe"), torch.tensor([PROMPTS[0]])
    said = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW, min_new_tokens=NEW
    )
    unbound = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW)
    assert unbound[0].tolist() == said[0].tolist()  # no end token came in between
    assert said[0, len(PROMPTS[0]) :].tolist() == served("qwen3_moe", slots=5).tokens[0]


@pytest.mark.parametrize("batching", ["decode_first", "prefill_first", "fcfs"])
def test_preempted_requests_get_the_same_text(batching: str) -> None:
    ours = served("qwen3_moe", slots=7, kv_tokens=20, batching=batching)
    assert ours.server.scheduler.preemptions > 0
    check(ours, plain("qwen3_moe"), 1e-9)


def test_logits_do_not_depend_on_what_is_resident() -> None:
    """Nor on the order in which experts land: the same batches are equal bit by bit."""
    first = served("mixtral", dtype="float32", slots=0)
    for eviction, slots, prefetch in product(("lru", "lfu"), (1, 9, 24), ("none", "predicted")):
        again = served(
            "mixtral", dtype="float32", eviction=eviction, slots=slots, prefetch=prefetch
        )
        assert again.tokens == first.tokens
        for ours, theirs in zip(again.logits, first.logits, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_single_precision_gives_the_same_text_until_two_tokens_are_nearly_equal(
    family: str,
) -> None:
    tolerance = 1e-4
    for slots in (0, 5, 24):
        ours = served(family, dtype="float32", slots=slots)
        for tokens, logits, (expected, rows) in zip(
            ours.tokens, ours.logits, plain(family, "float32"), strict=True
        ):
            for step in range(NEW):
                best = rows[step].topk(2).values
                if float(best[0] - best[1]) < tolerance:
                    break
                torch.testing.assert_close(logits[step], rows[step], rtol=0, atol=tolerance)
                assert tokens[step] == expected[step]


@pytest.mark.parametrize("name", DEVICES)
def test_every_device_gives_the_same_text(name: str) -> None:
    try:
        device = open_device(name)
    except UsageError as error:
        pytest.skip(str(error))
    try:
        for slots in (0, 9, 24):
            ours = served("qwen3_moe", device, slots=slots, staging=2, prefetch="predicted")
            check(ours, plain("qwen3_moe"), logit_tolerance("qwen3_moe", device.torch_device))
    finally:
        device.close()


def test_sequences_are_forgotten_once_they_are_over(monkeypatch: pytest.MonkeyPatch) -> None:
    from moesim.executor.attention import KvStore

    forgotten: list[int] = []
    monkeypatch.setattr(KvStore, "release", lambda _, sequence: forgotten.append(sequence))
    served("mixtral")
    assert sorted(forgotten) == [0, 1, 2, 3]


def test_static_placement_needs_a_profile() -> None:
    profile = {key: key % 5 for key in range(24)}
    ours = served("qwen3_moe", slots=12, eviction="static", profile=profile)
    assert len(ours.server.caches[0].preloaded) == 4
    check(ours, plain("qwen3_moe"), 1e-9)
    with pytest.raises(UsageError, match="static needs popularity counts"):
        served("qwen3_moe", slots=12, eviction="static")


def test_the_predictions_are_the_later_routers_and_help() -> None:
    without, with_ = (served("mixtral", slots=18, prefetch=name) for name in ("none", "predicted"))
    assert sum(with_.server.ledger.prefetch_copies) > 0
    assert sum(with_.server.ledger.demand_copies) < sum(without.server.ledger.demand_copies)


def test_the_model_is_restored_unchanged() -> None:
    model = model_of("deepseek_v3")
    ids = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        served("deepseek_v3", slots=3)
        assert torch.equal(model(input_ids=ids).logits, before)
    assert "StandIn" not in str(model)
    assert all(p.device.type == "cpu" for p in model.parameters())


def test_arguments_that_make_no_sense_are_refused() -> None:
    model = model_of("mixtral")
    clairvoyant: list[dict[str, Any]] = [{"eviction": "min"}, {"prefetch": "oracle"}]
    for policy in clairvoyant:
        with pytest.raises(UsageError, match="sees the future"):
            Serving(**policy)
    with pytest.raises(UsageError, match=r"staging \(0\) must be at least 1"):
        Serving(staging=0)
    with pytest.raises(UsageError, match="at least"):
        generate(model, [[]], 1)
    with pytest.raises(UsageError, match="needs room for the keys and values of 14 tokens"):
        served("mixtral", kv_tokens=13)


def test_a_device_that_fails_leaves_the_model_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from moesim.executor.layer_event import LayerEvent

    def fail(*_: Any) -> None:
        raise RuntimeError("a bit fell over")

    monkeypatch.setattr(LayerEvent, "compute", fail)
    with pytest.raises(DeviceError, match="a bit fell over"):
        served("mixtral", FakeDevice(latest_s=0.0001))
    monkeypatch.undo()
    check(served("mixtral"), plain("mixtral"), 1e-9)
