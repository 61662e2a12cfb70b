"""The configuration of a refactored model: the dense model's, and the form of its experts."""

from __future__ import annotations

from moesim.training.routed import RoutedConfig

MODEL_TYPE = "moesim_readme"
ROUTINGS = ("decoupled", "layerwise")
LAYOUTS = ("masked", "fused", "unfused")


class ReadMeConfig(RoutedConfig):  # type: ignore[no-untyped-call]
    """`base` is the dense model's configuration. Each of its FFNs became `num_experts` experts, of
    which a token uses one.

    `layout` is one of three. `masked`: the dense weights and a mask for each expert, for training.
    `fused`: each expert has its own `expert_ffn` channels, copies of the permanent ones included.
    `unfused`: the `shared_ffn` permanent channels are separate and always run.
    `scaled`: outputs are multiplied by the router's probability (equation 2 of the paper, but not
    in its code). `router` holds the arguments of `PreGatingRouter`; a layer-wise router is one
    matrix a layer.
    """

    model_type = MODEL_TYPE
    shared_ffn: int = 0
    routing: str = "decoupled"
    layout: str = "masked"
    scaled: bool = False
