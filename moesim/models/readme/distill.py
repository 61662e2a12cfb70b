"""Routing distillation: which expert a token should take, as the frozen dense model shows it.

A token's *target* compares the channels it activates most in the dense model with each expert's
mask. Targets depend on no router, so they are computed once.

`paper` (equation 4): the overlap of expert j is the number of channels that mask j has in common
with the token's own highest |inner activations|, as many as the share of the masks. The paper does
not say how layers combine; here their counts add up, where one router serves all layers. The loss
is KL(softmax of the router || softmax of the overlaps). A softmax of counts is all but one-hot.

`code` (as released): signed inner activations are compared with five order statistics, so that a
channel scores 0 to 5 thirds of 1/n, where n is the first expert's number of own channels; an
expert's score is the sum over its own channels, less the mean, times ten. The mean is over
everything, and being the same for all experts of a token it changes neither the softmax nor the
argmax. The loss is three parts of cross entropy with the best expert (label smoothing 0.5) and one
part of cross entropy with the softmax of scores; where one router serves all layers, it answers to
the target of each (the code adds these losses up, here they are averaged).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from moesim.errors import UsageError
from moesim.models.readme.ffn import Variant, find_ffns, frozen, watched
from moesim.models.readme.masks import Masks, num_channels


def targets(
    model: Any,
    windows: Tensor,
    masks: Masks,
    variant: Variant = "paper",
    *,
    layerwise: bool = False,
    on_window: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Target logits `[W, T, N]` of ids `[W, T]`, float32; `[W, T, L, N]` where `layerwise`.

    One window runs at a time, and no activation outlives its layer; `on_window(done, of)` reports.
    Raises `UsageError` where masks do not fit the model, or where `code` finds an expert 0 without
    channels of its own, by whose number it divides.
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
    found = torch.zeros(shape)
    done = 0

    def see(layer: int, inner: Tensor) -> None:
        one_TN = resemble(inner.flatten(0, -2).float(), compared_LDN[layer], masks, layer).cpu()
        (found[done, :, layer] if layerwise else found[done]).add_(one_TN)

    with frozen(model) as decoder, watched(ffns, see):
        for ids_T in windows:
            decoder(input_ids=ids_T[None].to(model.device), use_cache=False)
            done += 1
            if on_window is not None:
                on_window(done, len(windows))
    return found if variant == "paper" else 10 * (found - found.mean())


def _overlap(inner_TD: Tensor, mask_DN: Tensor, masks: Masks, layer: int) -> Tensor:
    """Channels in common with a token's strongest, `[T, N]`."""
    strongest = num_channels(inner_TD.shape[1], masks.share)
    top = inner_TD.abs().topk(strongest, sorted=False).indices
    return torch.zeros_like(inner_TD).scatter_(1, top, 1.0) @ mask_DN


def _soft_overlap(inner_TD: Tensor, own_DN: Tensor, masks: Masks, layer: int) -> Tensor:
    """As released: a channel counts once for each of five order statistics that it exceeds."""
    n = int(masks.own[0, layer].sum())
    ranks = [n - 1, 4 * n // 5, 3 * n // 5, 2 * n // 5, n // 5]
    ordered_TD = inner_TD.sort(dim=1, descending=True).values
    importance_TD = torch.zeros_like(inner_TD)
    for rank in ranks:
        importance_TD += inner_TD > ordered_TD[:, rank, None]  # exceeded by `rank` channels
    return importance_TD / (3 * n) @ own_DN


def loss(logits: Tensor, target: Tensor, variant: Variant = "paper") -> Tensor:
    """The distillation loss of router `logits` `[..., N]` against `target` logits, in nats.

    Mean over all leading dimensions: tokens, and layers where targets have them; `logits` without
    them are of one router for all.
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
    """The share of tokens (and layers, as in `loss`) whose best expert is the target's best."""
    logits = _for_each_layer(logits, target)
    return float((logits.argmax(dim=-1) == target.argmax(dim=-1)).double().mean())


def _for_each_layer(logits: Tensor, target: Tensor) -> Tensor:
    """One router's logits `[..., N]` as those of all layers `[..., L, N]`, if that is asked."""
    return logits.unsqueeze(-2).expand_as(target) if target.ndim > logits.ndim else logits
