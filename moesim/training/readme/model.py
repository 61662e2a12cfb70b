"""A dense language model refactored into a mixture of experts, as a model of transformers.

`refactor` puts masks and routers in. `materialise` cuts the trained channels into separate experts.
Both make a `ReadMeForCausalLM`, which generates, saves and loads like any model of transformers.
The recorder and the real machine treat it like any other model too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from moesim.errors import UsageError
from moesim.training.readme.config import LAYOUTS, MODEL_TYPE, ROUTINGS, ReadMeConfig
from moesim.training.readme.ffn import GatedFfn, find_ffns
from moesim.training.readme.masked_experts import LayerRouter, MaskedExperts, PathRouter, decide
from moesim.training.readme.router import SIZES, PreGatingRouter
from moesim.training.routed import RoutedForCausalLM
from moesim.training.routed_ffn import ChannelExperts, PermanentExpert, RoutedFfn

__all__ = ["ReadMeForCausalLM", "materialise", "refactor"]


class ReadMeForCausalLM(RoutedForCausalLM):
    """A dense decoder `base` with masked or cut experts, and a `router` if routing is decoupled."""

    config_class = ReadMeConfig

    def __init__(self, config: ReadMeConfig) -> None:
        super().__init__(config)
        _check(config)
        if config.routing == "decoupled":
            self.router = PreGatingRouter(
                config.vocab_size, config.num_experts, **(config.router or {})
            )
        self.exchange(lambda ffn: _routed(config, ffn))
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        path_ids: Tensor | None = None,
        path_weights: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Run as `base` does.

        `path_ids [B, T]`: experts that `route` chose earlier; the router then does not run.
        `path_weights [B, T]`: their weights, needed if outputs are scaled.
        """
        use_cache, past_key_values = self.caching(use_cache, past_key_values)
        if self.router is not None:
            if path_ids is None:
                logits = self.route_ahead(input_ids, attention_mask, past_key_values)
                decision = decide(logits.flatten(0, 1), scaled=self.config.scaled)
            else:
                decision = self._given(path_ids, path_weights)
            for block in self.blocks:
                gate: Any = block.router
                gate.take(decision)
        output: CausalLMOutputWithPast = self.base(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        return output

    @contextmanager
    def unmasked(self) -> Iterator[Any]:
        """Yield `base` with its whole FFNs in place of masked experts: a dense model.

        Its weights are this model's own, as tuned so far.
        """
        base: Any = self.base
        routed = [(name, m) for name, m in base.named_modules() if isinstance(m, RoutedFfn)]
        try:
            for name, block in routed:
                base.set_submodule(name, block.experts.ffn)
            yield base
        finally:
            for name, block in routed:
                base.set_submodule(name, block)

    def _given(
        self, path_ids: Tensor, path_weights: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        ids = path_ids.reshape(-1, 1)
        logits = torch.zeros(len(ids), self.config.num_experts, device=ids.device, dtype=self.dtype)
        if not self.config.scaled:
            return logits, torch.ones_like(logits[:, :1]), ids
        if path_weights is None:
            raise UsageError("outputs are scaled by the router's probabilities: they are needed")
        return logits, path_weights.reshape(-1, 1), ids


def refactor(
    dense: Any,
    masks_NLD: Tensor,
    *,
    routing: str = "decoupled",
    scaled: bool = False,
    router: dict[str, Any] | None = None,
) -> ReadMeForCausalLM:
    """Return a masked model with copies of the weights of `dense` and experts of these channels.

    `masks_NLD` says which of the D channels of layer l expert n has. Routers are new, drawn from
    torch's generator. Raise `UsageError` for a model without gated FFNs, or masks that do not fit.
    """
    ffns = find_ffns(dense)
    shape = (len(ffns), ffns[0].width)
    if masks_NLD.ndim != 3 or tuple(masks_NLD.shape[1:]) != shape:
        raise UsageError(
            f"masks of shape {tuple(masks_NLD.shape)} do not fit {shape[0]} layers of {shape[1]} "
            "channels"
        )
    # Without the dense model's name, which would pass for the name of the new model.
    base = {key: value for key, value in dense.config.to_dict().items() if key != "_name_or_path"}
    config = ReadMeConfig(
        base=base,
        num_experts=len(masks_NLD),
        expert_ffn=int(masks_NLD.sum(dim=2).max()),
        routing=routing,
        scaled=scaled,
        router=_router_options(dense, router or {}) if routing == "decoupled" else None,
    )
    model = _build(config, dense)
    states = dict(dense.state_dict())
    for ffn, block, masks_ND in zip(ffns, model.blocks, masks_NLD.unbind(1), strict=True):
        experts: Any = block.experts
        experts.masks.copy_(masks_ND)
        for name in ("gate_proj", "up_proj", "down_proj"):
            weight = states.pop(f"{ffn.name}.{name}.weight")
            getattr(experts.ffn, name).weight.data.copy_(weight)
    _load_rest(model.base, states)
    if model.router is not None:
        model.router.initialise(dense.get_input_embeddings().weight.detach())
    return model


def materialise(masked: ReadMeForCausalLM, layout: str = "fused") -> ReadMeForCausalLM:
    """Return the same model with separate experts, `fused` or `unfused`.

    Channels are padded with zeros to the widest of all layers, because transformers' experts share
    one tensor. Raise `UsageError` for a model that is not masked, or an expert without channels.
    """
    if masked.config.layout != "masked" or layout not in LAYOUTS[1:]:
        raise UsageError(f"cannot make {layout!r} experts of a {masked.config.layout} model")
    experts: list[Any] = [block.experts for block in masked.blocks]
    masks_LND = torch.stack([each.masks for each in experts])
    permanent_LD = masks_LND.all(dim=1)
    if layout == "unfused":
        masks_LND = masks_LND & ~permanent_LD[:, None]
        if empty := (~masks_LND.any(dim=2)).nonzero().tolist():
            layer, expert = empty[0]
            raise UsageError(
                f"expert {expert} has no channel of its own in layer {layer}, so it would be empty "
                "beside the permanent one; take another share, or fused experts"
            )
    config = ReadMeConfig(
        **{
            **masked.config.to_dict(),
            "base": masked.config.base.to_dict(),
            "layout": layout,
            "expert_ffn": max(1, int(masks_LND.sum(dim=2).max())),
            "shared_ffn": int(permanent_LD.sum(dim=1).max()) if layout == "unfused" else 0,
        }
    )
    model = _build(config, masked)
    states = masked.state_dict()
    # Experts are cut below; all other weights stay the same.
    for name in [name for name in states if ".experts." in name]:
        del states[name]
    _load_rest(model, states)
    for layer, block in enumerate(model.blocks):
        cut: Any = block.experts
        for number, mask_D in enumerate(masks_LND[layer]):
            cut.fill(number, experts[layer].ffn, mask_D.nonzero()[:, 0])
        if block.shared_experts is not None:
            block.shared_experts.fill(experts[layer].ffn, permanent_LD[layer].nonzero()[:, 0])
    return model


def _build(config: ReadMeConfig, like: Any) -> ReadMeForCausalLM:
    """Build a model of this configuration, on the device and of the type of `like`."""
    model: Any = ReadMeForCausalLM(config)
    model.to(device=like.device, dtype=like.dtype)
    model.config._name_or_path = getattr(like.config, "_name_or_path", "")
    model.generation_config = like.generation_config
    model.eval()
    built: ReadMeForCausalLM = model
    return built


def _load_rest(model: Any, states: dict[str, Tensor]) -> None:
    """Load all weights but those of experts and routers; raise if any other is missing."""
    missing, unexpected = model.load_state_dict(states, strict=False)
    mlp = (".experts.", ".shared_experts.", ".router.", ".ffn.")
    if unexpected or any(not any(part in name for part in mlp) for name in missing):
        raise UsageError(f"weights do not fit: unknown {unexpected}, missing {missing}")


def _router_options(dense: Any, changes: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `PreGatingRouter`; the base of RoPE is the dense model's, if one."""
    rope = getattr(dense.config.get_text_config(), "rope_parameters", None) or {}
    shared = {"rope_base": float(rope["rope_theta"])} if "rope_theta" in rope else {}
    return {**SIZES, **shared, **changes}


def _check(config: ReadMeConfig) -> None:
    for name, choices in (("routing", ROUTINGS), ("layout", LAYOUTS)):
        if getattr(config, name) not in choices:
            raise UsageError(
                f"unknown {name} {getattr(config, name)!r}: choose one of {', '.join(choices)}"
            )
    if config.num_experts_per_tok != 1:
        raise UsageError("a token takes one expert here (num_experts_per_tok: 1)")


def _routed(config: ReadMeConfig, ffn: GatedFfn) -> RoutedFfn:
    """Return the replacement of one FFN; its weights are set later."""
    dense: Any = ffn.module
    hidden, count = dense.gate_proj.in_features, config.num_experts
    router: nn.Module
    if config.routing == "decoupled":
        router = PathRouter(count)
    else:
        router = LayerRouter(hidden, count, scaled=config.scaled)
    if config.layout == "masked":
        masks = torch.ones(count, ffn.width, dtype=torch.bool)
        return RoutedFfn(router, MaskedExperts(dense, masks))
    experts = ChannelExperts(count, hidden, config.expert_ffn, dense.act_fn)
    permanent = None
    if config.layout == "unfused":
        permanent = PermanentExpert(hidden, max(1, config.shared_ffn), dense.act_fn)
    return RoutedFfn(router, experts, permanent)


AutoConfig.register(MODEL_TYPE, ReadMeConfig, exist_ok=True)
AutoModelForCausalLM.register(ReadMeConfig, ReadMeForCausalLM, exist_ok=True)
