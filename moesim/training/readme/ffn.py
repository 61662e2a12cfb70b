"""Gated FFNs: the parts of a dense model that are cut into experts.

A gated FFN of width D computes `down(act(gate(x)) * up(x))`. Each of its D *channels* is a row of
`gate` and `up` and a column of `down`, so any subset of channels is a smaller FFN. The *inner
activations* are the input of `down`, one number a channel.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from moesim.errors import UsageError

Variant = Literal["paper", "code"]  # where Read-ME's text and its released code disagree

_LINEAR = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True, eq=False)
class GatedFfn:
    """The gated FFN of decoder layer `layer`; `module` holds `gate_proj`, `up_proj`, `down_proj`.

    `name` is its dotted path in the model, `width` its number of channels D.
    """

    layer: int
    name: str
    module: Any
    width: int


def find_ffns(model: Any) -> tuple[GatedFfn, ...]:
    """Return the gated FFNs of a dense decoder of transformers, one a layer, in order.

    Raise `UsageError` that names the model's class if a layer has no gated FFN or several, if
    `gate` and `up` are one matrix, if widths differ, or if there are biases or experts already.
    """
    kind = type(model).__name__
    modules = dict(model.named_modules())
    if any(type(module).__name__.endswith("Experts") for module in modules.values()):
        raise UsageError(f"{kind} is a mixture of experts already; a dense model is needed")
    ffns = tuple(
        GatedFfn(_layer(name), name, module, module.down_proj.in_features)
        for name, module in modules.items()
        if _is_gated(module)
    )
    num_layers = model.config.get_text_config().num_hidden_layers
    lacking = sorted(set(range(num_layers)) - {ffn.layer for ffn in ffns})
    if lacking:
        raise UsageError(_why_lacking(kind, modules, lacking, num_layers))
    if len(ffns) > num_layers:
        raise UsageError(
            f"{kind} has {len(ffns)} gated FFNs in {num_layers} layers; exactly one a layer can "
            "be cut into experts"
        )
    if len(widths := {ffn.width for ffn in ffns}) > 1:
        raise UsageError(f"{kind} has FFNs of {sorted(widths)} channels; one width is needed")
    if any(getattr(ffn.module, part).bias is not None for ffn in ffns for part in _LINEAR):
        raise UsageError(f"{kind} has biases in its FFNs, which are not supported")
    return ffns


def _is_gated(module: nn.Module) -> bool:
    linear = all(isinstance(getattr(module, part, None), nn.Linear) for part in _LINEAR)
    return linear and hasattr(module, "act_fn")


def _layer(name: str) -> int:
    number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
    return int(number[1]) if number else 0


def _why_lacking(
    kind: str, modules: dict[str, nn.Module], lacking: Sequence[int], num_layers: int
) -> str:
    needed = "each layer needs gate_proj, up_proj and down_proj (Linear) and act_fn"
    fused = next((m for m in modules.values() if hasattr(m, "gate_up_proj")), None)
    if fused is not None:
        return (
            f"{kind} holds gate and up in one matrix ({type(fused).__name__}.gate_up_proj), which "
            f"is not supported: {needed}"
        )
    if len(lacking) == num_layers:
        return f"{kind} has no gated FFN: {needed}"
    return f"{kind} has no gated FFN in layer {lacking[0]} of {num_layers}: {needed}"


@contextmanager
def watched(
    ffns: Sequence[GatedFfn], see: Callable[[int, Tensor], None], variant: Variant = "code"
) -> Iterator[None]:
    """Call `see(i, values)` whenever FFN number i runs, with values `[..., D]`.

    Values are the inner activations (`code`), or the output of `gate_proj` before its activation
    function (`paper`).
    """

    def hook(i: int) -> Any:
        if variant == "code":
            # The input of `down_proj` is the inner activations, which no module returns.
            return ffns[i].module.down_proj.register_forward_pre_hook(
                lambda _, inputs: see(i, inputs[0])
            )
        return ffns[i].module.gate_proj.register_forward_hook(lambda _, __, out: see(i, out))

    hooks = [hook(i) for i in range(len(ffns))]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


@contextmanager
def frozen(model: Any) -> Iterator[Any]:
    """Yield the model's decoder, without its head, in evaluation mode and without gradients."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield model.base_model
    finally:
        model.train(training)
