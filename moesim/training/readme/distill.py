"""Routing distillation: the expert that a token should take, computed from a dense model.

A token's *target* compares the channels it activates most in the dense model with each expert's
mask. Targets depend on no router. They are computed for each batch as it is used.

`paper` (equation 4): the dense model is the one before any tuning, frozen. The overlap of expert j
counts the channels that mask j has in common with the token's highest |inner activations|. As many
of these are taken as the masks' share. The paper does not say how layers combine; here their counts
add up if one router serves all layers. The loss is KL(softmax of the router || softmax of the
overlaps). A softmax of counts is almost one-hot.

`code` (as released): the dense model is the tuned model's own backbone. It runs without masks, so
its targets follow the tuning of experts. Signed inner activations are compared with five order
statistics. A channel scores 0 to 5 thirds of 1/n, where n is the number of the first expert's own
channels. An expert's score is the sum over its own channels, less the mean, times ten. The mean is
over all values. It is the same for all experts of a token, so it changes neither the softmax nor
the argmax. The loss has three parts of cross entropy with the best expert (label smoothing 0.5) and
one part of cross entropy with the softmax of scores. If one router serves all layers, it has a
target for each layer; the released code adds these losses up, here they are averaged.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from moesim.errors import UsageError
from moesim.training.readme.ffn import Variant, find_ffns, frozen, watched
from moesim.training.readme.masks import Masks, num_channels
from moesim.training.readme.model import ReadMeForCausalLM

Teacher = Callable[[Tensor], Tensor]
"""Takes ids `[W, T]` and returns what routers should learn for them, as `targets` does."""


def teacher(model: ReadMeForCausalLM, dense: Any, masks: Masks, variant: Variant) -> Teacher:
    """Return the teacher of a masked `model`'s routers.

    `paper` asks the frozen `dense` model. `code` asks the backbone of `model` at the time of the
    call. Layers have targets of their own, except that `paper` adds them up for one router.
    """
    layerwise = variant == "code" or model.config.routing == "layerwise"

    def teach(windows: Tensor) -> Tensor:
        with nullcontext(dense) if variant == "paper" else model.unmasked() as backbone:
            return targets(backbone, windows, masks, variant, layerwise=layerwise)

    return teach


def targets(
    model: Any,
    windows: Tensor,
    masks: Masks,
    variant: Variant = "paper",
    *,
    layerwise: bool = False,
) -> Tensor:
    """Return target logits `[W, T, N]` of ids `[W, T]`, float32; `[W, T, L, N]` if `layerwise`.

    One window runs at a time, and activations are dropped after each layer, to save memory.
    Raise `UsageError` if masks do not fit the model. Also raise it if `variant` is `code` and
    expert 0 has no own channels, because the code divides by their number.
    """
    ffns = find_ffns(model)
    num_experts, num_layers, width = masks.chosen.shape
    if (len(ffns), ffns[0].width) != (num_layers, width):
        raise UsageError(
            f"masks of {num_layers} layers of {width} channels do not fit "
            f"{type(model).__name__}, which has {len(ffns)} of {ffns[0].width}"
        )
    if variant == "code" and (bare := [at for e, at in masks.empty_own if e == 0]):
        raise UsageError(f"expert 0 has no channel of its own in layer {bare[0]} to scale by")
    resemble = _overlap if variant == "paper" else _soft_overlap
    compared = masks.chosen if variant == "paper" else masks.own
    compared_LDN = compared.permute(1, 2, 0).float().to(model.device)
    shape = (*windows.shape, *([num_layers] if layerwise else []), num_experts)
    logits = torch.zeros(shape)
    done = 0

    def see(layer: int, inner: Tensor) -> None:
        # Counts are exact in float32 alone, so not in the caller's lower precision.
        with torch.autocast(model.device.type, enabled=False):
            inner_TD = inner.flatten(0, -2).float()
            layer_TN = resemble(inner_TD, compared_LDN[layer], masks, layer).cpu()
        (logits[done, :, layer] if layerwise else logits[done]).add_(layer_TN)

    with frozen(model) as decoder, watched(ffns, see):
        for ids_T in windows:
            decoder(input_ids=ids_T[None].to(model.device), use_cache=False)
            done += 1
    return logits if variant == "paper" else 10 * (logits - logits.mean())


def _overlap(inner_TD: Tensor, mask_DN: Tensor, masks: Masks, layer: int) -> Tensor:
    """Return `[T, N]`: how many of a token's strongest channels each mask has."""
    strongest = num_channels(inner_TD.shape[1], masks.share)
    top = inner_TD.abs().topk(strongest, sorted=False).indices
    return torch.zeros_like(inner_TD).scatter_(1, top, 1.0) @ mask_DN


def _soft_overlap(inner_TD: Tensor, own_DN: Tensor, masks: Masks, layer: int) -> Tensor:
    """Return scores as released: a channel counts once for each order statistic it exceeds."""
    n = int(masks.own[0, layer].sum())
    ranks = [n - 1, 4 * n // 5, 3 * n // 5, 2 * n // 5, n // 5]
    # By numpy, because torch sorts rows of this length many times slower.
    rising_TD = torch.from_numpy(np.sort(inner_TD.numpy(force=True), axis=1)).to(inner_TD.device)
    importance_TD = torch.zeros_like(inner_TD)
    for rank in ranks:
        importance_TD += inner_TD > rising_TD[:, -1 - rank, None]  # exceeded by `rank` channels
    return importance_TD / (3 * n) @ own_DN


def loss(logits: Tensor, target: Tensor, variant: Variant = "paper") -> Tensor:
    """Return the distillation loss of router `logits` `[..., N]` against `target` logits, in nats.

    It is the mean over all leading dimensions: tokens, and layers if targets have them. `logits`
    without layers are those of one router for all layers.
    """
    logits = _for_each_layer(logits, target)
    log_router = logits.float().log_softmax(dim=-1)
    log_target = target.float().log_softmax(dim=-1)
    if variant == "paper":
        return (log_router.exp() * (log_router - log_target)).sum(dim=-1).mean()
    hard = cross_entropy(
        log_router.flatten(0, -2), target.argmax(dim=-1).flatten(), label_smoothing=0.5
    )
    soft = -(log_target.exp() * log_router).sum(dim=-1).mean()
    return 0.75 * hard + 0.25 * soft


def agreement(logits: Tensor, target: Tensor) -> float:
    """Return the share of tokens (and layers, as in `loss`) whose best expert is the target's."""
    logits = _for_each_layer(logits, target)
    return float((logits.argmax(dim=-1) == target.argmax(dim=-1)).double().mean())


def _for_each_layer(logits: Tensor, target: Tensor) -> Tensor:
    """Repeat one router's logits `[..., N]` for all layers `[..., L, N]`, if `target` has them."""
    return logits.unsqueeze(-2).expand_as(target) if target.ndim > logits.ndim else logits
