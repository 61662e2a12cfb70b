"""A small language model of experts with any gate as its router.

Each layer's FFN is a mixture of `num_experts` smaller FFNs, weighted by one of the gates in
`gates/`. The gate's input decides how far ahead routing is known:

| routed_by | the gate reads | what it reveals (`routing`) |
|---|---|---|
| hidden | the layer's hidden state | layerwise |
| tokens | the token's id, in each layer | decoupled |
| prefix | the tokens so far, by Read-ME's router: one choice for all layers | decoupled |
| tasks | the sequence's task (its domain), in each layer | static |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from moesim.errors import UsageError
from moesim.training import gates
from moesim.training.gates import Gate, GateRouter
from moesim.training.readme.ffn import GatedFfn
from moesim.training.readme.masked_experts import PathRouter
from moesim.training.readme.router import PreGatingRouter
from moesim.training.routed import RoutedConfig, RoutedForCausalLM
from moesim.training.routed_ffn import ChannelExperts, RoutedFfn

__all__ = ["ROUTED_BY", "GatedConfig", "GatedForCausalLM", "check_gate"]

MODEL_TYPE = "moesim_gated"
ROUTED_BY: Final = MappingProxyType(
    {"hidden": "layerwise", "tokens": "decoupled", "prefix": "decoupled", "tasks": "static"}
)


class GatedConfig(RoutedConfig):  # type: ignore[no-untyped-call]
    """The configuration of a model with any gate.

    `gate`, `gate_options`: arguments of `gates.build`; the gate selects `num_experts_per_tok`.
    `tasks`: the names of the domains, if `routed_by` is tasks. `router`: sizes of the
    `PreGatingRouter`, if `routed_by` is prefix.
    """

    model_type = MODEL_TYPE
    expert_ffn: int = 1
    gate: str = "top_k"
    gate_options: dict[str, Any] | None = None
    routed_by: str = "hidden"
    tasks: list[str] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.routing = ROUTED_BY.get(self.routed_by, "")


class GatedForCausalLM(RoutedForCausalLM):
    """The model. In training every expert whose weight is not zero runs, and the gates' losses are
    added to the language model's. In evaluation at most k experts a token run, never at random."""

    config_class = GatedConfig

    def __init__(self, config: GatedConfig) -> None:
        super().__init__(config)
        _check(config)
        self.ahead: GateRouter | None = None
        if config.routed_by == "prefix":
            sizes = config.router or {}
            width = PreGatingRouter(1, 1, **sizes).embed.embedding_dim
            self.router = PreGatingRouter(config.vocab_size, width, **sizes)
            self.ahead = GateRouter(_gate(config, features=width))
        self.exchange(self._routed)
        # Gates have drawn their own weights; without this mark transformers would draw them again.
        for router in self.routers:
            for module in router.modules():
                module._is_hf_initialized = True  # type: ignore[assignment]
        self.post_init()  # type: ignore[no-untyped-call]

    def initialise(self, std: float = 0.02) -> None:
        """Draw the experts' weights, for training from scratch, then the router's."""
        for block in self.blocks:
            experts: Any = block.experts
            experts.initialise(std)
        if self.router is not None:
            self.router.initialise()

    @property
    def routers(self) -> list[GateRouter]:
        """Return the routers with a gate: one a layer, or the one before all layers."""
        return [module for module in self.modules() if isinstance(module, GateRouter)]

    def inputs_of(self, domains: Sequence[str | None]) -> dict[str, Tensor]:
        """Return the arguments of `forward`, other than ids, for sequences of these domains.

        Raise `UsageError` for a domain that gates by task do not know.
        """
        tasks = self.config.tasks
        if self.config.routed_by != "tasks":
            return {}
        if unknown := [domain for domain in domains if domain not in tasks]:
            raise UsageError(
                f"a sequence of domain {unknown[0]!r} cannot be routed: this model's gates know "
                f"the tasks {', '.join(tasks)}"
            )
        ids = [tasks.index(domain) for domain in domains]
        return {"task_ids": torch.tensor(ids, device=self.device)}

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        task_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Run as `base` does; `task_ids [B]` is each sequence's task, if gates route by it."""
        use_cache, past_key_values = self.caching(use_cache, past_key_values)
        self._pass_to_routers(input_ids, attention_mask, past_key_values, task_ids)
        output: CausalLMOutputWithPast = self.base(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            labels=labels,
            **kwargs,
        )
        if self.training and output.loss is not None:
            losses = [router.loss for router in self.routers if router.loss is not None]
            output.loss = torch.stack([output.loss, *losses]).sum()
        return output

    def _pass_to_routers(
        self, input_ids: Tensor, attention_mask: Tensor | None, past: Any, task_ids: Tensor | None
    ) -> None:
        """Pass to the layers' routers the inputs that the hidden state does not contain."""
        inputs: Any
        if self.ahead is not None:
            inputs = self.ahead(self.route_ahead(input_ids, attention_mask, past).flatten(0, 1))
        elif self.config.routed_by == "tokens":
            inputs = input_ids.flatten()
        elif self.config.routed_by == "tasks":
            if task_ids is None or len(task_ids) != len(input_ids):
                raise UsageError(
                    f"this model routes by task and needs one for each of {len(input_ids)} "
                    f"sequences, not {0 if task_ids is None else len(task_ids)}: "
                    "pass task_ids, as inputs_of returns them for domains"
                )
            # All tokens of a sequence have its task.
            inputs = task_ids.repeat_interleave(input_ids.shape[1])
        else:
            return
        for block in self.blocks:
            router: Any = block.router
            router.take(inputs)

    def _routed(self, ffn: GatedFfn) -> RoutedFfn:
        config: Any = self.config
        dense = ffn.module
        hidden = dense.gate_proj.in_features
        experts = ChannelExperts(config.num_experts, hidden, config.expert_ffn, dense.act_fn)
        if config.routed_by == "prefix":
            return RoutedFfn(PathRouter(config.num_experts), experts)
        if config.routed_by == "hidden":
            return RoutedFfn(GateRouter(_gate(config, features=hidden)), experts)
        rows = len(config.tasks) if config.routed_by == "tasks" else config.vocab_size
        return RoutedFfn(GateRouter(_gate(config, tasks=rows, layer=ffn.layer)), experts)


def _gate(
    config: GatedConfig, *, features: int | None = None, tasks: int = 1, layer: int = 0
) -> Gate:
    options = dict(config.gate_options or {})
    if config.gate == "hash":  # with one seed, all layers would choose the same experts for an id
        options["seed"] = options.get("seed", 0) + layer
    return gates.build(
        config.gate,
        config.num_experts,
        config.num_experts_per_tok,
        options,
        features=features,
        tasks=tasks,
    )


def check_gate(config: Any) -> None:
    """Raise `UsageError` for a gate that cannot be built. `config`: a `GatedConfig` or a preset."""
    if config.routed_by not in ROUTED_BY:
        raise UsageError(
            f"unknown routed_by {config.routed_by!r}: choose one of {', '.join(ROUTED_BY)}"
        )
    if config.routed_by == "prefix":
        _check_router(config.router)
    k = config.num_experts_per_tok if isinstance(config, GatedConfig) else config.top_k
    features = 1 if config.routed_by in ("hidden", "prefix") else None
    gates.build(config.gate, config.num_experts, k, config.gate_options, features=features)


def _check_router(sizes: Mapping[str, Any] | None) -> None:
    if set(sizes or ()) - {"mlp"} != {"hidden", "heads", "ffn"}:
        raise UsageError(
            f"router {sizes!r}: a model that routes by prefix needs the sizes of the router before "
            "its layers: hidden, heads and ffn (mlp is optional)"
        )


def _check(config: GatedConfig) -> None:
    check_gate(config)
    if config.routed_by == "tasks" and not config.tasks:
        raise UsageError("a model that routes by tasks needs the names of its tasks")
    if config.expert_ffn < 1:
        raise UsageError(f"expert_ffn ({config.expert_ffn}) must be at least 1")


AutoConfig.register(MODEL_TYPE, GatedConfig, exist_ok=True)
AutoModelForCausalLM.register(GatedConfig, GatedForCausalLM, exist_ok=True)
