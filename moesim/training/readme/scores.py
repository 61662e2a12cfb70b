"""Channel scores: how much each domain of text uses each channel of a dense model's FFNs.

The paper's equation 3 scores a channel by its mean |W1 x| in an FFN with one first matrix. A gated
FFN has two; `paper` takes the gate's. The released code scores by the inner activations instead,
|act(gate x) * up x|: `code`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from moesim.training.readme.ffn import Variant, find_ffns, frozen, watched


def channel_scores(
    model: Any,
    windows: Mapping[str, Tensor],
    variant: Variant = "code",
    *,
    on_window: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Return the mean absolute value of each channel over a domain's tokens: `[N, L, D]`, float64.

    `windows` holds ids `[W, T]` for each of N domains; `on_window(done, of)` reports. One window
    runs at a time, so that scores do not depend on a batch. Raise `UsageError` as `find_ffns` does.
    """
    ffns = find_ffns(model)
    sums_NLD = torch.zeros(len(windows), len(ffns), ffns[0].width, dtype=torch.float64)
    total, done = sum(len(ids_WT) for ids_WT in windows.values()), 0
    with frozen(model) as decoder:
        for n, ids_WT in enumerate(windows.values()):

            def add(layer: int, values: Tensor, n: int = n) -> None:
                # float64, because a sum over many tokens in float32 loses small values.
                sums_NLD[n, layer] += values.double().abs().flatten(0, -2).sum(dim=0).cpu()

            with watched(ffns, add, variant):
                for ids_T in ids_WT:
                    decoder(input_ids=ids_T[None].to(model.device), use_cache=False)
                    done += 1
                    if on_window is not None:
                        on_window(done, total)
            sums_NLD[n] /= ids_WT.numel()
    return sums_NLD
