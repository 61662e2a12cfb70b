"""Small dense models, and what Read-ME makes of them, for tests."""

from __future__ import annotations

from typing import Any

import torch

from moesim.training.readme.model import refactor

torch.set_num_threads(1)

ROUTER = {"hidden": 16, "heads": 2, "ffn": 8}
VOCABULARY = 61


def dense_model(family: str = "Llama", *, seed: int = 0, **sizes: Any) -> Any:
    """Return a model of transformers' class `<family>ForCausalLM` in float64.

    Its weights are so large that a wrong channel changes the output.
    """
    import transformers

    config = getattr(transformers, f"{family}Config")(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 4,
            "tie_word_embeddings": True,
            **sizes,
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, f"{family}ForCausalLM")(config).double().eval()
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.4)
    return model


def some_masks(num_experts: int = 4, layers: int = 3, width: int = 24, seed: int = 0) -> Any:
    """Return random masks `[N, L, D]` of unequal sizes, with two permanent channels per layer."""
    draw = torch.Generator().manual_seed(seed)
    masks = torch.rand(num_experts, layers, width, generator=draw) < 0.5
    masks[:, :, :2] = True
    return masks


def readme_model(family: str = "Llama", **options: Any) -> Any:
    """Return a masked model with random routers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model: Any = refactor(dense_model(family), some_masks(), **{"router": ROUTER, **options})
        model.eval()
        for block in model.blocks:
            if hasattr(block.router, "linear"):
                torch.nn.init.normal_(block.router.linear.weight)
    return model


def some_tokens(batch: int = 2, length: int = 11, seed: int = 0) -> torch.Tensor:
    """Return random tokens without special ones: `generate` takes token 0 for padding."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (batch, length), generator=draw)
