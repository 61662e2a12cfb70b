"""The executor computes what the plain model computes, however its work is cut up."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the executor needs the torch extra")

import transformers as hf  # noqa: E402
from executor_driver import BATCH, Sequences, run_experts, run_step  # noqa: E402
from router_models import FAMILIES, tiny  # noqa: E402
from torch import nn  # noqa: E402

from moesim.errors import InvariantError, UsageError  # noqa: E402
from moesim.executor.batch import Batch, Span  # noqa: E402
from moesim.executor.executor import Executor  # noqa: E402
from moesim.executor.models import shaped_model  # noqa: E402
from moesim.hardware.ops import Dense, Experts, Front, Tail  # noqa: E402
from moesim.model.hf_config import shape_from_config  # noqa: E402
from moesim.model.shapes import named_shape  # noqa: E402
from moesim.record.header import model_config  # noqa: E402
from moesim.record.routers import find_moe_layers  # noqa: E402

DECODERS = [
    "deepseek_v2",
    "deepseek_v3",
    "gpt_oss",
    "granitemoe",
    "mixtral",
    "olmoe",
    "phimoe",
    "qwen2_moe",
    "qwen3_moe",
]
PROMPTS = ([5, 9, 31, 7, 12, 40, 3, 28, 19], [11, 22, 33, 44], [50, 2])


def model_of(family: str, dtype: Any = torch.float64) -> Any:
    """A tiny model with grouped queries, and random biases where it has any."""
    model = tiny(family)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if (parameter.ndim == 1 and "norm" not in name) or name.endswith("proj_bias"):
            parameter.data.normal_(0, 0.3, generator=generator)
    return model.to(dtype)


def moe_layers(model: Any) -> list[int]:
    return [layer.model_layer for layer in find_moe_layers(model)]


def plain_logits(model: Any, tokens: list[int]) -> Any:
    model.set_experts_implementation("eager")  # the loop over experts, which knows all types
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]


def continued(model: Any, buffers: int, cpu_share: float = 0.0) -> Sequences:
    """Chunked prefill mixed with decoding, several sequences, one of them preempted."""
    layers, total = moe_layers(model), model.config.num_hidden_layers
    executor = Executor(copy.deepcopy(model), buffers=buffers)
    texts = Sequences(executor, PROMPTS, layers, total, cpu_share)
    texts.step(s0=4, s1=4)
    texts.step(s0=3, s1=1)
    texts.step(s1=1, s0=1, s2=2)
    texts.step(s0=1, s1=1, s2=1)
    texts.preempt(1)
    texts.step(s0=1, s1=5, s2=1)
    texts.step(s0=1, s1=2, s2=1)
    texts.step(s2=1, s1=1, s0=1)
    return texts


def check(model: Any, texts: Sequences, tolerance: float) -> None:
    for prompt, tokens, logits in zip(PROMPTS, texts.tokens, texts.logits, strict=True):
        assert len(logits) == len(tokens) - len(prompt) >= 4
        expected = plain_logits(model, tokens[:-1])[len(prompt) - 1 :]
        torch.testing.assert_close(torch.stack(logits), expected, rtol=0, atol=tolerance)
        assert tokens[len(prompt) :] == expected.argmax(dim=-1).tolist()


@pytest.mark.parametrize("family", DECODERS)
def test_logits_are_the_plain_models(family: str) -> None:
    model = model_of(family)
    # DeepSeek's routers compute in float32, whatever the type of the weights.
    check(model, continued(model, buffers=3), 1e-5 if "deepseek" in family else 1e-9)


@pytest.mark.parametrize("buffers", [1, 2, 24])
def test_logits_are_bit_identical_whatever_the_number_of_buffers(buffers: int) -> None:
    model = model_of("deepseek_v3", torch.float32)
    few, many = continued(model, buffers), continued(model, 5)
    for ours, theirs in zip(few.logits, many.logits, strict=True):
        assert torch.equal(torch.stack(ours), torch.stack(theirs))


@pytest.mark.parametrize("family", DECODERS)
def test_logits_are_bit_identical_whatever_is_computed_on_the_cpu(family: str) -> None:
    model = model_of(family, torch.float32)
    without = continued(model, 3)
    for share in (0.5, 1.0):
        for ours, theirs in zip(continued(model, 3, share).logits, without.logits, strict=True):
            assert torch.equal(torch.stack(ours), torch.stack(theirs))


def test_queries_share_keys() -> None:
    sizes = dict(FAMILIES["qwen3_moe"]().config.to_dict(), num_attention_heads=4)
    model = hf.Qwen3MoeForCausalLM(hf.Qwen3MoeConfig(**sizes)).eval().double()
    check(model, continued(model, 3), 1e-9)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_windows_slide(family: str) -> None:
    sizes = dict(FAMILIES[family]().config.to_dict(), sliding_window=4)
    torch.manual_seed(0)
    config = {"mixtral": hf.MixtralConfig, "gpt_oss": hf.GptOssConfig}[family](**sizes)
    model = hf.AutoModelForCausalLM.from_config(config).eval().double()
    texts = continued(model, 3)
    check(model, texts, 1e-9)
    config.sliding_window = None
    model.config.layer_types = ["full_attention"] * 3
    if family == "mixtral":
        with pytest.raises(AssertionError):
            check(model, texts, 1e-3)


def one_step(executor: Executor, model: Any, batch: Batch) -> Any:
    run_step(executor, batch, moe_layers(model), model.config.num_hidden_layers)
    return executor.logits.clone()


def test_recorded_routing_is_followed() -> None:
    model = model_of("qwen3_moe")
    layers = moe_layers(model)
    spans = (Span(0, 0, 5, 5, True),)
    executor = Executor(copy.deepcopy(model), buffers=2)
    free = one_step(executor, model, Batch(spans, PROMPTS[0][:5]))
    routed: dict[int, Any] = {}
    gates = [layer.router for layer in find_moe_layers(model)]
    hooks = [
        gate.register_forward_hook(lambda *x, n=n: routed.__setitem__(n, x[2]))
        for n, gate in enumerate(gates)
        if gate is not None
    ]
    plain_logits(model, PROMPTS[0][:5])
    for hook in hooks:
        hook.remove()
    ids = np.stack([routed[n][2].numpy() for n in range(len(layers))], axis=1)
    weights = np.stack([routed[n][1].detach().numpy() for n in range(len(layers))], axis=1)
    told = one_step(executor, model, Batch(spans, PROMPTS[0][:5], ids, weights))
    torch.testing.assert_close(told, free, rtol=0, atol=1e-12)
    other = one_step(executor, model, Batch(spans, PROMPTS[0][:5], (ids + 1) % 8, weights))
    assert not torch.allclose(other, free, atol=1e-3)


def test_unused_places_count_for_nothing() -> None:
    model = model_of("mixtral")
    executor = Executor(copy.deepcopy(model), buffers=2)
    spans = (Span(0, 0, 3, 3, True),)
    ids = np.array([[[1, -1]] * 3, [[-1, 4]] * 3, [[-1, -1]] * 3])
    weights = np.where(ids < 0, 77, 0.5)
    unused = one_step(executor, model, Batch(spans, PROMPTS[0][:3], ids, weights))
    assert executor.ids(0).tolist() == [[1, -1], [-1, 4], [-1, -1]]
    nil = np.where(ids < 0, [2, 3], ids), np.where(ids < 0, 0, 0.5)
    assert torch.equal(unused, one_step(executor, model, Batch(spans, PROMPTS[0][:3], *nil)))
    shared = one_step(executor, model, Batch(spans, PROMPTS[0][:3], ids))  # 1/k each
    assert torch.equal(unused, shared)


def test_predictions_are_what_later_routers_say_of_an_earlier_hidden_state() -> None:
    model = model_of("mixtral")
    layers = find_moe_layers(model)
    seen: list[Any] = []
    hooks = [
        layer.router.register_forward_hook(lambda _, args, __: seen.append(args[0]))
        for layer in layers
        if layer.router is not None
    ]
    plain_logits(model, PROMPTS[0])
    for hook in hooks:
        hook.remove()
    executor = Executor(copy.deepcopy(model), buffers=2, prediction_depth=2)
    executor.begin(Batch((Span(0, 0, len(PROMPTS[0]), 9, True),), PROMPTS[0]))
    for layer in range(3):
        executor.run(Front(layer, BATCH))
        executor.fetch()
        for depth in (1, 2):
            ours = executor.predicted(layer, depth)
            if layer + depth < 3:
                theirs = layers[layer + depth].choose(seen[layer]).ids
                assert np.array_equal(ours, theirs)
            else:
                assert ours.shape == (9, 0)
        assert executor.ids(layer).shape == (9, 2)
        run_experts(executor, layer, np.random.default_rng(0))
    with pytest.raises(InvariantError, match="read outside of its layer event"):
        executor.predicted(0, 1)


def test_tokens_may_be_arbitrary_and_a_step_may_sample_none() -> None:
    model = model_of("mixtral")
    executor = Executor(copy.deepcopy(model), buffers=2)
    ids = np.zeros((3, 3, 2), dtype=np.int64)
    ids[..., 1] = 5
    assert one_step(executor, model, Batch((Span(0, 0, 3, 3, False),), None, ids)).shape == (0, 61)


def test_batches_that_do_not_fit_are_refused() -> None:
    model = model_of("deepseek_v3")
    executor = Executor(copy.deepcopy(model), buffers=2)
    batch = Batch((Span(0, 0, 2, 4, True),), [3, 4], np.tile([0, 1, 2], (2, 2, 1)))

    def begin() -> None:
        executor.begin(batch)
        executor.run(Dense(0, BATCH))
        executor.run(Front(1, BATCH))

    begin()
    with pytest.raises(InvariantError, match="3 rows were announced for expert 1, 2 are routed"):
        executor.run(Experts(0, (1,), (3,)), (0,))
    begin()
    executor.run(Experts(0, (0, 1), (2, 2)), (0, 1))
    with pytest.raises(InvariantError, match="2 of its assignments were never computed"):
        executor.run(Front(2, BATCH))
    begin()
    with pytest.raises(InvariantError, match="experts of layer 1 before its router"):
        executor.run(Experts(1, (8,), (2,)), (0,))
    executor.begin(batch)
    with pytest.raises(InvariantError, match=r"ended Dense of layer 0, but .* asked for Front"):
        executor.run(Front(0, BATCH))
    with pytest.raises(InvariantError, match="2 rows in the step, 3 token_ids"):
        executor.begin(Batch((Span(0, 0, 2, 4, True),), [3, 4, 5]))
    executor.release(0)
    executor.begin(Batch((Span(0, 0, 2, 1, True),), [3, 4]))
    with pytest.raises(InvariantError, match="no room for rows 0 to 1"):
        executor.run(Dense(0, BATCH))
    executor.release(0)
    executor.begin(Batch((Span(0, 1, 1, 4, True),), [3]))
    with pytest.raises(InvariantError, match="no room for rows 1 to 1"):
        executor.run(Dense(0, BATCH))


def test_an_unsupported_model_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="DbrxExperts cannot be run from buffers"):
        Executor(tiny("dbrx"), buffers=1)
    with pytest.raises(UsageError, match=r"SwitchTransformers.* is not a Hugging Face decoder"):
        Executor(tiny("switch"), buffers=1)
    model = tiny("mixtral")
    model.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0}
    with pytest.raises(UsageError, match="dynamic rotary embeddings"):
        Executor(model, buffers=1)


class _Skips(nn.Module):
    """Attention of a kind of its own."""

    def forward(self, hidden_states: Any, **_: Any) -> tuple[Any, None]:
        return hidden_states, None


def test_a_layer_that_attends_in_its_own_way_is_noticed() -> None:
    model = tiny("mixtral")
    model.model.layers[1].self_attn = _Skips()
    executor = Executor(model, buffers=2)
    with pytest.raises(UsageError, match="only 2 of 3 layers of"):
        run_step(executor, Batch((Span(0, 0, 2, 2, True),), [3, 4]), [0, 1, 2], 3)


def test_a_sequence_that_starts_again_may_be_longer() -> None:
    model = model_of("mixtral")
    executor = Executor(copy.deepcopy(model), buffers=2)
    for length in (2, 5):
        batch = Batch((Span(0, 0, length, length, True),), PROMPTS[0][:length])
        logits = one_step(executor, model, batch)[0]
        expected = plain_logits(model, PROMPTS[0][:length])[-1]
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", DECODERS)
def test_a_shaped_model_is_the_model_with_other_weights(family: str) -> None:
    model = tiny(family)
    config = model_config(model)
    shaped = shaped_model(config, dtype="float32")
    assert type(shaped) is type(model)
    theirs, ours = dict(model.named_parameters()), dict(shaped.named_parameters())
    assert all(ours[name].shape == theirs[name].shape for name in ours)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(dict(shaped.named_buffers())[name], buffer)
    layers, total = moe_layers(shaped), shaped.config.num_hidden_layers
    executor = Executor(shaped, buffers=2, distinct_experts=5)
    assert len(executor.host) == 5
    if family != "gpt_oss":  # its biases are in no shape
        assert (
            executor.expert_bytes
            == shape_from_config(config).with_bits(expert_bits=32).expert_bytes
        )
    batch = Batch((Span(0, 0, 4, 4, True), Span(1, 0, 2, 2, True)))
    run_step(executor, batch, layers, total)
    assert bool(executor.logits.isfinite().all())
    assert len({float(row.norm()) for row in executor.host}) == 5


def test_mixtrals_layers_share_their_memory() -> None:
    shape = named_shape("mixtral-8x7b")
    shaped = shaped_model(shape, dtype="bfloat16", distinct_layers=1)
    storages = {
        p.untyped_storage().data_ptr(): p.untyped_storage().nbytes()
        for p in shaped.parameters()
        if not p.is_meta
    }
    one_layer = 2 * shape.front_params
    embeddings = 2 * 2 * shape.vocabulary * shape.hidden
    assert len(shaped.model.layers) == 32
    assert sum(storages.values()) < 1.01 * (one_layer + embeddings)


def test_shapes_that_sizes_do_not_describe_are_refused() -> None:
    with pytest.raises(UsageError, match=r"latent attention.*config.json"):
        shaped_model(named_shape("deepseek-v2-lite"))
    with pytest.raises(UsageError, match=r"windows in some.*config.json"):
        shaped_model(named_shape("gpt-oss-20b"))
    with pytest.raises(UsageError, match=r"a decoupled router.*config.json"):
        shaped_model(named_shape("readme-llama-2-7b"))
    with pytest.raises(UsageError, match="model_type 'nonsense'"):
        shaped_model({"model_type": "nonsense"})
    with pytest.raises(UsageError, match="unknown dtype 'int4'"):
        shaped_model(named_shape("mixtral-8x7b"), dtype="int4")


def test_the_last_layer_may_be_dense() -> None:
    sizes = dict(FAMILIES["qwen3_moe"]().config.to_dict(), mlp_only_layers=[0, 2])
    sizes.pop("mlp_layer_types", None)
    model = hf.Qwen3MoeForCausalLM(hf.Qwen3MoeConfig(**sizes)).eval().double()
    assert moe_layers(model) == [1]
    check(model, continued(model, 2), 1e-9)
    executor = Executor(copy.deepcopy(model), buffers=2)
    executor.begin(Batch((Span(0, 0, 2, 2, True),), [3, 4]))
    executor.run(Dense(0, BATCH))
    executor.run(Front(1, BATCH))
    executor.fetch()
    run_experts(executor, 0, np.random.default_rng(0))
    executor.run(Dense(2, BATCH))
    executor.run(Tail(BATCH))
