"""The recorder changes nothing in a model, and writes what its routers decided."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers as hf
from router_models import DECODERS, FAMILIES, batch, tiny
from torch import nn

from moesim.errors import TraceError, UsageError
from moesim.record.calls import Routing
from moesim.record.recorder import Recorder
from moesim.record.routers import find_moe_layers
from moesim.record.scores import infer_scoring

Array = npt.NDArray[Any]


def generate(model: Any, *, sample: bool = False, tokens: int = 6) -> Any:
    ids, mask, _ = batch()
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=tokens,
            do_sample=sample,
            return_dict_in_generate=True,
            output_logits=True,
        )


def num_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class Gates:
    """An independent record of every gate's input: its hidden states, in order."""

    def __init__(self, model: nn.Module) -> None:
        self.layers = find_moe_layers(model)
        self.hidden: list[list[Array]] = [[] for _ in self.layers]
        self.handles = [
            layer.router.register_forward_pre_hook(self._look(index))
            for index, layer in enumerate(self.layers)
            if layer.router is not None
        ]

    def _look(self, index: int) -> Any:
        def look(_: Any, args: Any) -> None:
            self.hidden[index].append(args[0].detach().double().numpy())

        return look

    def __enter__(self) -> Gates:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def states(self, layer: int, num_sequences: int) -> Array:
        """Return the input (sequences, columns, hidden) of the gate of `layer`."""
        parts = [h.reshape(num_sequences, -1, h.shape[-1]) for h in self.hidden[layer]]
        return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("sample", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_outputs_are_bit_identical_with_hooks_attached(family: str, sample: bool) -> None:
    model = tiny(family)
    bare = generate(model, sample=sample)
    state = torch.random.get_rng_state()
    with Recorder(model, prediction_depth=1, probabilities=True):
        watched = generate(model, sample=sample)
    assert torch.equal(bare.sequences, watched.sequences)
    assert all(map(torch.equal, bare.logits, watched.logits))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_what_the_experts_ran_is_what_was_recorded(family: str) -> None:
    model = tiny(family)
    layers = find_moe_layers(model)
    calls: list[list[tuple[Any, Any]]] = [[] for _ in layers]
    for index, layer in enumerate(layers):
        assert layer.experts is not None
        layer.experts.register_forward_pre_hook(
            lambda _, args, index=index: calls[index].append((args[1].clone(), args[2].clone()))
        )
    with Recorder(model) as recorder:
        generate(model)
        recording = recorder.take()
    for index in range(len(layers)):
        ids, weights = zip(*calls[index], strict=True)
        if family == "switch":  # a one-hot mask, (T, 1, experts)
            ids = tuple(torch.where(i.sum(-1) > 0, i.argmax(-1), -1) for i in ids)
        columns = [i.reshape(3, -1, i.shape[-1]).numpy() for i in ids]
        np.testing.assert_array_equal(
            np.concatenate(columns, axis=1), recording.expert_ids[:, :, index]
        )
        columns = [w.reshape(3, -1, w.shape[-1]).float().numpy() for w in weights]
        np.testing.assert_array_equal(
            np.concatenate(columns, axis=1), recording.gate_weights[:, :, index]
        )


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe"])
def test_decisions_and_predictions_equal_matmul_and_top_k_by_hand(family: str) -> None:
    model = tiny(family)
    with Gates(model) as gates, Recorder(model, prediction_depth=2, probabilities=True) as recorder:
        generate(model)
        recording = recorder.take()
    num_layers, k = recording.expert_ids.shape[2:]
    assert recording.predictions is not None
    assert recording.predictions.shape == (*recording.expert_ids.shape[:3], 2, k)
    assert recording.probabilities is not None
    real = np.ones(recording.expert_ids.shape[:2], dtype=bool)
    real[:, :9] = batch()[1].bool().numpy()  # the state of padding is all zeros: every expert ties
    weights = [layer.router.weight.detach().double().numpy() for layer in gates.layers]
    for index in range(num_layers):
        hidden = gates.states(index, len(real))[real]
        probabilities = softmax(hidden @ weights[index].T)
        order = np.argsort(-probabilities, axis=-1)[:, :k]
        np.testing.assert_array_equal(recording.expert_ids[real, index], order)
        chosen = np.take_along_axis(probabilities, order, axis=-1)
        if family not in ("qwen2_moe", "olmoe"):
            chosen /= chosen.sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(recording.gate_weights[real, index], chosen, atol=1e-5)
        np.testing.assert_allclose(recording.probabilities[real, index], probabilities, atol=1e-3)
        for ahead in range(2):
            predicted = recording.predictions[real, index, ahead]
            if index + 1 + ahead >= num_layers:
                assert (predicted == -1).all()
            else:
                logits = hidden @ weights[index + 1 + ahead].T
                np.testing.assert_array_equal(predicted, np.argsort(-logits, axis=-1)[:, :k])


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("family", DECODERS)
def test_rows_equal_a_teacher_forced_pass_over_the_same_tokens(family: str) -> None:
    """Prefill and decode with a cache decide as one pass over the finished sequence would."""
    model = tiny(family)
    _, _, lengths = batch()
    with Recorder(model) as recorder:
        tokens = generate(model).sequences
        decoded = recorder.take()
        for row, length in enumerate(lengths):
            start = tokens.shape[1] - 6 - length
            model(input_ids=tokens[row : row + 1, start:-1])
            forced = recorder.take()
            assert forced.num_columns == length + 5
            np.testing.assert_array_equal(decoded.expert_ids[row, start:], forced.expert_ids[0])
            np.testing.assert_allclose(
                decoded.gate_weights[row, start:], forced.gate_weights[0], atol=1e-4
            )


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v3", "dbrx", "switch"])
def test_probabilities_are_distributions_that_order_the_chosen_experts(family: str) -> None:
    model = tiny(family)
    with Recorder(model, probabilities=True) as recorder:
        generate(model)
        recording = recorder.take()
    assert recorder.scoring == ("sigmoid" if family == "deepseek_v3" else "softmax")
    assert recording.probabilities is not None
    np.testing.assert_allclose(recording.probabilities.sum(axis=-1), 1, atol=2e-3)
    chosen = np.take_along_axis(
        recording.probabilities.astype(np.float32), recording.expert_ids.clip(0), axis=-1
    )
    ratio = chosen / recording.gate_weights
    np.testing.assert_allclose(ratio / ratio[..., :1], 1, rtol=5e-2)


def test_scores_that_already_are_probabilities_are_recognised() -> None:
    probabilities = torch.softmax(3 * torch.randn(64, 8), dim=-1)
    weights, ids = probabilities.topk(3, dim=-1)
    assert infer_scoring(Routing(ids, weights / weights.sum(-1, keepdim=True), probabilities)) == (
        "probabilities"
    )


def test_unused_places_do_not_hide_that_scores_are_probabilities() -> None:
    probabilities = torch.tensor([[0.75, 0.25, 0.0], [0.0, 1.0, 0.0]])
    ids = torch.tensor([[0, 1], [1, -1]])
    weights = torch.tensor([[0.75, 0.25], [1.0, 0.0]])
    assert infer_scoring(Routing(ids, weights, probabilities)) == "probabilities"


def test_router_logits_asked_of_the_model_are_not_disturbed() -> None:
    """transformers captures router outputs by hooks of its own; predictions must not reach them."""
    model = tiny("mixtral")
    ids, mask, _ = batch()
    with torch.no_grad():
        bare = model(input_ids=ids, attention_mask=mask, output_router_logits=True)
        with Recorder(model, prediction_depth=2):
            watched = model(input_ids=ids, attention_mask=mask, output_router_logits=True)
    assert len(watched.router_logits) == len(bare.router_logits) == 3
    assert all(map(torch.equal, bare.router_logits, watched.router_logits))


def test_hooks_come_off_at_the_end_and_on_an_exception() -> None:
    model = tiny("mixtral")
    before = num_hooks(model)
    with Recorder(model, prediction_depth=1) as recorder:
        assert num_hooks(model) == before + 2 + 3 * 2  # the model, and gates beside experts
        generate(model)
    assert num_hooks(model) == before
    with pytest.raises(KeyboardInterrupt), recorder:
        raise KeyboardInterrupt
    assert num_hooks(model) == before
    broken = model.model.layers[1].register_forward_hook(_fail)
    with pytest.raises(RuntimeError, match="out of order"), recorder:
        generate(model)
    broken.remove()
    assert num_hooks(model) == before
    with recorder:
        generate(model)
        assert recorder.take().num_columns == 14 + 14  # the first block's, never taken, and these


def _fail(*_: object) -> None:
    raise RuntimeError("out of order")


def test_hooks_come_off_when_attaching_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("mixtral")
    before = num_hooks(model)
    monkeypatch.setattr(Recorder, "_hook", lambda *_: _fail())
    with pytest.raises(RuntimeError, match="out of order"), Recorder(model):
        pass
    assert num_hooks(model) == before


def test_a_layer_that_does_not_run_or_runs_twice_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny("mixtral")
    block = model.model.layers[1].mlp
    forward = block.forward
    monkeypatch.setattr(block, "forward", lambda hidden: hidden)
    missing = pytest.raises(TraceError, match=r"layer 1 \(model.layers.1.mlp\): did not run")
    with missing, Recorder(model):
        generate(model)
    monkeypatch.setattr(block, "forward", lambda hidden: forward(hidden) + forward(hidden))
    with pytest.raises(TraceError, match=r"layer 1 .*routed twice"), Recorder(model):
        generate(model)
    monkeypatch.setattr(block, "forward", lambda hidden: forward(hidden[:, -1:]))
    with pytest.raises(TraceError, match=r"layer 1 .*routed 3 tokens where 27"), Recorder(model):
        generate(model)


def test_nothing_recorded_is_an_error() -> None:
    with Recorder(tiny("mixtral")) as recorder, pytest.raises(TraceError, match="no forward pass"):
        recorder.take()


def test_a_model_in_training_mode_is_refused() -> None:
    with (
        pytest.raises(UsageError, match=r"call model.eval\(\) first"),
        Recorder(tiny("phimoe").train()),
    ):
        pass


@pytest.mark.parametrize("depth", [-1, 3])
def test_a_prediction_depth_must_fit_the_model(depth: int) -> None:
    with pytest.raises(UsageError, match=rf"prediction depth \({depth}\) must be at least 0"):
        Recorder(tiny("mixtral"), prediction_depth=depth)


def test_a_dense_model_is_refused_by_name() -> None:
    config = hf.LlamaConfig(
        vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    with pytest.raises(UsageError, match="LlamaForCausalLM has no mixture-of-experts layers"):
        Recorder(hf.LlamaForCausalLM(config))


class CountingExperts(nn.Module):
    """Experts that are told how many rows each gets, and nothing of the rows."""

    def forward(self, hidden: Any, sizes: Any) -> Any:
        return hidden


def test_experts_that_cannot_be_read_are_refused_by_name() -> None:
    model = nn.ModuleDict({"block": nn.ModuleDict({"experts": CountingExperts()})})
    with pytest.raises(UsageError, match=r"CountingExperts at block is called with: .*sizes"):
        Recorder(model)


class ToyExperts(nn.Module):
    """Experts alone: their block chooses by itself, and no router shows."""

    num_experts = 4

    def forward(self, hidden: Any, top_k_index: Any, top_k_weights: Any) -> Any:
        return hidden * top_k_weights.sum(dim=-1, keepdim=True)


class ToyBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = ToyExperts()

    def forward(self, hidden: Any) -> Any:
        weights, ids = hidden.reshape(-1, 4).softmax(-1).topk(2, dim=-1)
        return self.experts(hidden.reshape(-1, 4), ids, top_k_weights=weights).reshape(hidden.shape)


def test_experts_without_a_router_are_read_from_their_call() -> None:
    model = nn.Sequential(ToyBlock(), ToyBlock()).eval()
    hidden = torch.randn(2, 5, 4)
    with Recorder(model) as recorder:
        model(hidden)
        recording = recorder.take()
    np.testing.assert_array_equal(
        recording.expert_ids[:, :, 0], hidden.softmax(-1).topk(2, dim=-1).indices.numpy()
    )
    with pytest.raises(UsageError, match="ToyBlock at 0 has no router that can predict"):
        Recorder(model, prediction_depth=1)
    refused = pytest.raises(UsageError, match="does not return scores of all experts")
    with refused, Recorder(model, probabilities=True):
        model(hidden)


def test_a_switch_token_beyond_the_capacity_has_no_expert() -> None:
    model = tiny("switch")
    for layer in find_moe_layers(model):
        layer.router.expert_capacity = 1
    ids = torch.full((1, 6), 7)
    with Recorder(model) as recorder, torch.no_grad():
        model(input_ids=ids, decoder_input_ids=ids)
        recording = recorder.take()
    unused = recording.expert_ids == -1
    assert unused.any()
    assert not unused.all()
    assert (recording.gate_weights[unused] == 0).all()
    assert (recording.gate_weights[~unused] > 0).all()
