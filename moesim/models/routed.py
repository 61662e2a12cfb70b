"""A decoder of transformers whose FFNs were exchanged for experts, as transformers sees it.

Whatever generates, saves, loads, records or offloads models of transformers takes these as it takes
any other. A router may stand before all layers; it reads token ids and has a KV cache of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.configuration_utils import SubConfigSpec
from transformers.generation.utils import GenerationMixin

from moesim.errors import UsageError
from moesim.models.experts import RoutedFfn
from moesim.models.readme.ffn import GatedFfn, find_ffns
from moesim.models.readme.router import PreGatingRouter, RouterCache

_ROUTED = "moesim_router_cache"  # where a KV cache of transformers carries the router's own


class RoutedConfig(PreTrainedConfig):
    """`base`: the dense decoder's configuration, whose every FFN has become `num_experts` experts
    of `expert_ffn` channels, of which a token uses `num_experts_per_tok`. `routing` is how far
    ahead that is known, as in a trace's header."""

    sub_configs_defaults = {  # noqa: RUF012
        "base": SubConfigSpec(config_class=AutoConfig, model_type="llama")
    }
    base: dict[str, Any] | PreTrainedConfig | None = None
    num_experts: int = 2
    num_experts_per_tok: int = 1
    expert_ffn: int = 0
    routing: str = ""
    router: dict[str, Any] | None = None
    vocab_size: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        base: Any = self.base
        self.vocab_size = base.vocab_size
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"):
            setattr(self, name, getattr(base, name, None))

    def get_text_config(self, *_: Any, **__: Any) -> Any:
        """The dense model's, from which transformers learns of layers and caches."""
        return self.base


class RoutedForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[no-untyped-call]
    """`base` (of the configuration `config.base`), whose FFNs are `RoutedFfn`s, and perhaps
    `router`, which chooses before any layer runs."""

    base_model_prefix = "base"
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        build: Any = AutoModelForCausalLM.from_config
        self.base = build(config.base)
        self.router: PreGatingRouter | None = None

    def exchange(self, make: Callable[[GatedFfn], RoutedFfn]) -> None:
        """Put what `make` gives in place of every FFN of `base`."""
        for ffn in find_ffns(self.base):
            owner, _, name = ffn.name.rpartition(".")
            setattr(self.base.get_submodule(owner), name, make(ffn))

    @property
    def blocks(self) -> list[RoutedFfn]:
        """The layers' FFNs, in order."""
        return [module for module in self.modules() if isinstance(module, RoutedFfn)]

    def route(
        self, input_ids: Tensor, *, seen: Tensor | None = None, cache: RouterCache | None = None
    ) -> Tensor:
        """`[B, T, N]`: what the router before the layers says, before anything else is computed."""
        assert self.router is not None
        logits: Tensor = self.router(input_ids, seen=seen, cache=cache)
        return logits

    def route_ahead(self, input_ids: Tensor, attention_mask: Tensor | None, past: Any) -> Tensor:
        """`route`, told of padding and of tokens past as transformers' models are."""
        tokens = input_ids.shape[1]
        seen = None if attention_mask is None else attention_mask[:, -tokens:].bool()
        cache = None if past is None else _router_cache(past)
        return self.route(input_ids, seen=seen, cache=cache)

    def caching(self, use_cache: bool | None, past: Any) -> tuple[bool, Any]:
        """Whether to cache, and where: as `base` would decide, but its caches lack the router's."""
        if use_cache is None:
            use_cache = getattr(self.config.get_text_config(), "use_cache", True)
        if use_cache and past is None:
            past = DynamicCache(config=self.config.get_text_config())
        return bool(use_cache), past

    def _beam_search(self, *args: Any, **options: Any) -> Any:
        if self.router is not None and options["generation_config"].use_cache:
            raise UsageError(
                "beam search reorders the sequences of a KV cache, which the router's own does not "
                "follow; pass use_cache=False"
            )
        return super()._beam_search(*args, **options)  # type: ignore[misc]

    def get_input_embeddings(self) -> Any:
        return self.base.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.base.set_input_embeddings(value)

    def get_output_embeddings(self) -> Any:
        return self.base.get_output_embeddings()

    def _init_weights(self, module: nn.Module) -> None:
        """What is not loaded is set by whoever made the model, or random as `base` has it."""
        if isinstance(module, PreGatingRouter):
            module.initialise()


def _router_cache(past: Any) -> RouterCache:
    """The router's part of a KV cache of transformers, which must know the same tokens."""
    length = int(past.get_seq_length())
    cache: RouterCache | None = getattr(past, _ROUTED, None) if length else None
    if cache is None:
        cache = RouterCache()
        setattr(past, _ROUTED, cache)
    if cache.length != length:
        raise UsageError(
            f"the KV cache holds {length} tokens, of which the router has seen {cache.length}: "
            "give it a cache of this model's own, neither cut nor filled otherwise"
        )
    return cache
