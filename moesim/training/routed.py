"""A decoder of transformers whose FFNs were replaced by experts, as a model of transformers.

So the code that generates with, saves, loads, records or offloads models of transformers also works
with these. A router may run before all layers; it reads token ids and has its own KV cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.generation.utils import GenerationMixin

from moesim.errors import UsageError
from moesim.training.readme.ffn import GatedFfn, find_ffns
from moesim.training.readme.router import PreGatingRouter, RouterCache
from moesim.training.routed_ffn import RoutedFfn

try:
    from transformers.configuration_utils import SubConfigSpec
except ImportError:  # before transformers 5.23, where a class has `sub_configs` instead
    SubConfigSpec = None  # type: ignore[assignment,misc]

_DEFAULT_BASE: Final = "llama"
_ROUTED = "moesim_router_cache"  # attribute of transformers' KV cache that holds the router's cache


class RoutedConfig(PreTrainedConfig):
    """The configuration `base` of a dense decoder, and of the experts that replace its FFNs.

    Each FFN became `num_experts` experts of `expert_ffn` channels, of which a token uses
    `num_experts_per_tok`. `routing` says how far ahead routing is known, as in a trace's header.
    """

    if SubConfigSpec is None:
        sub_configs = {"base": AutoConfig}
    else:
        sub_configs_defaults = {
            "base": SubConfigSpec(config_class=AutoConfig, model_type=_DEFAULT_BASE)
        }
    base: dict[str, Any] | PreTrainedConfig | None = None
    num_experts: int = 2
    num_experts_per_tok: int = 1
    expert_ffn: int = 0
    routing: str = ""
    router: dict[str, Any] | None = None
    vocab_size: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        if SubConfigSpec is None and not isinstance(self.base, PreTrainedConfig):
            self.base = _config_of(self.base or {})
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        base: Any = self.base
        self.vocab_size = base.vocab_size
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"):
            setattr(self, name, getattr(base, name, None))

    def get_text_config(self, *_: Any, **__: Any) -> Any:
        """Return the dense model's configuration: transformers sizes its caches by it."""
        return self.base


class RoutedForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[no-untyped-call]
    """A dense decoder `base` whose FFNs are `RoutedFfn`s, and perhaps a `router` before its layers.

    `config.base` is the configuration of `base`.
    """

    base_model_prefix = "base"
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        build: Any = AutoModelForCausalLM.from_config
        self.base = build(config.base)
        self.router: PreGatingRouter | None = None

    def exchange(self, make: Callable[[GatedFfn], RoutedFfn]) -> None:
        """Replace every FFN of `base` by the module that `make` returns for it."""
        for ffn in find_ffns(self.base):
            owner, _, name = ffn.name.rpartition(".")
            setattr(self.base.get_submodule(owner), name, make(ffn))

    @property
    def blocks(self) -> list[RoutedFfn]:
        """Return the layers' FFNs, in order."""
        return [module for module in self.modules() if isinstance(module, RoutedFfn)]

    def route(
        self, input_ids: Tensor, *, seen: Tensor | None = None, cache: RouterCache | None = None
    ) -> Tensor:
        """Return the logits `[B, T, N]` of the router before the layers; nothing else runs."""
        assert self.router is not None
        logits: Tensor = self.router(input_ids, seen=seen, cache=cache)
        return logits

    def route_ahead(self, input_ids: Tensor, attention_mask: Tensor | None, past: Any) -> Tensor:
        """Return `route` of ids with the arguments of a model of transformers: mask and cache."""
        tokens = input_ids.shape[1]
        seen = None if attention_mask is None else attention_mask[:, -tokens:].bool()
        cache = None if past is None else _router_cache(past)
        return self.route(input_ids, seen=seen, cache=cache)

    def caching(self, use_cache: bool | None, past: Any) -> tuple[bool, Any]:
        """Return whether to cache, and the cache.

        `base` would decide the same. But the cache must exist before `base` runs, because the
        router stores its own keys and values in it.
        """
        if use_cache is None:
            use_cache = getattr(self.config.get_text_config(), "use_cache", True)
        if use_cache and past is None:
            past = DynamicCache(config=self.config.get_text_config())
        return bool(use_cache), past

    def _beam_search(self, *args: Any, **options: Any) -> Any:
        # Silently wrong texts otherwise: the router would route by another beam's tokens.
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
        """Initialise the router; experts are set by the code that builds the model."""
        if isinstance(module, PreGatingRouter):
            module.initialise()


def _router_cache(past: Any) -> RouterCache:
    """Return the router's part of a KV cache of transformers.

    Raise `UsageError` if the two caches hold different numbers of tokens: the router would then
    route by another text than the layers see.
    """
    length = int(past.get_seq_length())
    cache: RouterCache | None = getattr(past, _ROUTED, None) if length else None
    if cache is None:
        cache = RouterCache()
        setattr(past, _ROUTED, cache)
    if cache.length != length:
        raise UsageError(
            f"the KV cache holds {length} tokens, but the router has seen {cache.length}: "
            "pass a cache that only this model filled and that was not cut"
        )
    return cache


def _config_of(values: Mapping[str, Any]) -> Any:
    """Return a dense model's configuration, as transformers builds it since 5.23."""
    kind: Any = CONFIG_MAPPING[values.get("model_type", _DEFAULT_BASE)]
    return kind(**values)
