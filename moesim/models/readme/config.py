"""The configuration of a refactored model: a dense model's own, and what has become of its FFNs."""

from __future__ import annotations

from moesim.models.routed import RoutedConfig

MODEL_TYPE = "moesim_readme"
ROUTINGS = ("decoupled", "layerwise")
LAYOUTS = ("masked", "fused", "unfused")


class ReadMeConfig(RoutedConfig):  # type: ignore[no-untyped-call]
    """`base` is the dense model's configuration. Every one of its FFNs has become `num_experts`
    experts, of which a token uses one.

    `layout`: `masked` (the dense weights and a mask for each expert: the form that is trained),
    `fused` (each expert has channels of its own, `expert_ffn` of them, copies of the permanent ones
    included) or `unfused` (the permanent channels, `shared_ffn` of them, stand apart and are always
    on). `scaled`: outputs are multiplied by the router's probability (equation 2 of the paper; its
    code does not). `router` holds the arguments of `PreGatingRouter`; a layer-wise router is one
    matrix a layer.
    """

    model_type = MODEL_TYPE
    shared_ffn: int = 0
    routing: str = "decoupled"
    layout: str = "masked"
    scaled: bool = False
