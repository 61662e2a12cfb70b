"""Which models can be refactored, and what runs through their channels."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from dense_decoders import LAYERS, WIDTH, ids, inner_activations, tiny, tiny_llama
from torch import nn

from moesim.errors import UsageError
from moesim.training.readme.ffn import find_ffns, frozen, watched


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2"])
def test_any_llama_like_model_has_one_gated_ffn_a_layer(family: str) -> None:
    model = tiny(family)
    ffns = find_ffns(model)
    assert [ffn.layer for ffn in ffns] == list(range(LAYERS))
    assert {ffn.width for ffn in ffns} == {WIDTH}
    for ffn in ffns:
        assert ffn.name == f"model.layers.{ffn.layer}.mlp"
        assert ffn.module is model.get_submodule(ffn.name)


@pytest.mark.parametrize("family", ["Llama", "Gemma2"])
def test_a_masked_channel_is_a_channel_that_is_not_there(family: str) -> None:
    """What is watched is what `down_proj` multiplies: zeros there equal a narrower FFN."""
    model = tiny(family)
    ffn = find_ffns(model)[1]
    kept = torch.arange(0, WIDTH, 2)
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        inner = ffn.module.act_fn(ffn.module.gate_proj(x)) * ffn.module.up_proj(x)
        narrow = inner[:, kept] @ ffn.module.down_proj.weight[:, kept].T
        mask = torch.zeros(WIDTH).index_fill_(0, kept, 1.0)
        with ffn.module.down_proj.register_forward_pre_hook(lambda _, inputs: inputs[0] * mask):
            masked = ffn.module(x)
    torch.testing.assert_close(masked, narrow)


def test_what_has_no_gated_ffn_is_refused_by_name() -> None:
    config = hf.GPT2Config(vocab_size=61, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    with pytest.raises(UsageError, match="GPT2LMHeadModel has no gated FFN: each layer needs"):
        find_ffns(hf.GPT2LMHeadModel(config))
    with pytest.raises(UsageError, match=r"Phi3ForCausalLM .*one matrix \(Phi3MLP.gate_up_proj\)"):
        find_ffns(tiny("Phi3"))


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("Mixtral", {"num_local_experts": 4}),
        ("Qwen3Moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}),
    ],
)
def test_a_mixture_of_experts_is_refused(family: str, sizes: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=f"{family}ForCausalLM is a mixture of experts already"):
        find_ffns(tiny(family, **sizes))


def test_layers_must_be_alike() -> None:
    model = tiny_llama()
    model.model.layers[1].mlp = nn.Linear(16, 16)
    with pytest.raises(UsageError, match="LlamaForCausalLM has no gated FFN in layer 1 of 3"):
        find_ffns(model)
    model = tiny_llama()
    model.model.layers[2].mlp = tiny_llama(intermediate_size=8).model.layers[2].mlp
    with pytest.raises(UsageError, match=r"FFNs of \[8, 24\] channels; one width is needed"):
        find_ffns(model)
    model = tiny_llama()
    model.model.layers[0].second = tiny_llama().model.layers[0].mlp
    with pytest.raises(UsageError, match="4 gated FFNs in 3 layers"):
        find_ffns(model)


def test_watching_shows_the_inner_activations_and_leaves_no_hook() -> None:
    model = tiny_llama().train()
    window = ids(1, 7)
    seen: dict[int, torch.Tensor] = {}
    with frozen(model) as decoder:
        assert not model.training
        with watched(find_ffns(model), seen.__setitem__):
            decoder(input_ids=window)
        kept = dict(seen)
        seen.clear()
        decoder(input_ids=window)
    assert model.training
    assert not seen
    assert not any(values.requires_grad for values in kept.values())
    model.eval()
    for layer in range(LAYERS):
        torch.testing.assert_close(kept[layer][0], inner_activations(model, window[0], layer))
