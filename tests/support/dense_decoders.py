"""Tiny random dense decoders for the tests of refactoring."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf

torch.set_num_threads(1)

VOCABULARY = 61
WIDTH = 24
LAYERS = 3

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
    "initializer_range": 0.3,
}


def tiny_llama(seed: int = 0, **changes: Any) -> Any:
    """Return a Llama of 3 layers of 24 channels, with random weights, in evaluation mode."""
    return tiny("Llama", seed, **changes)


def tiny(family: str, seed: int = 0, **changes: Any) -> Any:
    """Return a random decoder of a family of transformers, such as `Qwen3`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = getattr(hf, f"{family}Config")(**(COMMON | changes))
        return getattr(hf, f"{family}ForCausalLM")(config).eval()


def ids(windows: int, length: int, seed: int = 0) -> torch.Tensor:
    """Return random ids `[windows, length]`."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCABULARY, (windows, length), generator=draw)


def inner_activations(model: Any, ids_T: torch.Tensor, layer: int) -> torch.Tensor:
    """Return the inner activations `[T, D]` of a Llama's layer, without a hook on its FFN."""
    with torch.no_grad():
        states: list[torch.Tensor] = []
        block = model.model.layers[layer]
        hook = block.post_attention_layernorm.register_forward_hook(
            lambda *args: states.append(args[2])
        )
        model(input_ids=ids_T[None])
        hook.remove()
        ffn = block.mlp
        gate = states[0][0] @ ffn.gate_proj.weight.T
        up = states[0][0] @ ffn.up_proj.weight.T
        activations: torch.Tensor = torch.nn.functional.silu(gate) * up
        return activations
