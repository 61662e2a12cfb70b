"""Load balance: losses that are smallest if the experts of a batch have equal work."""

from __future__ import annotations

import torch
from torch import Tensor

_TINY = 1e-10  # keeps the variation of all-zero loads finite


def squared_variation(loads_N: Tensor) -> Tensor:
    """Return variance over squared mean: 0 if all loads are equal, n - 1 if one expert has all.

    A load is importance (weights summed over rows) or a count: Shazeer et al., "Outrageously Large
    Neural Networks", ICLR 2017 (arXiv 1701.06538), section 4.
    """
    return loads_N.var(correction=0) / (loads_N.mean() ** 2 + _TINY)


def expected_load(clean_BN: Tensor, noisy_BN: Tensor, scale_BN: Tensor, k: int) -> Tensor:
    """Return `[n]`: the expected rows that choose each expert if its own noise is drawn again.

    This is a smooth substitute for counts (the same paper, appendix A): the probability that an
    expert's score beats the k-th largest of the others', with normal noise of deviation `scale_BN`.
    """
    num_experts = clean_BN.shape[1]
    if k == num_experts:
        return clean_BN.new_full((num_experts,), len(clean_BN))
    top = noisy_BN.topk(k + 1, dim=-1).values
    chosen = noisy_BN > top[:, k:]
    # The k-th largest of the others is one place lower for an expert that is itself among the k.
    rival_BN = torch.where(chosen, top[:, k:], top[:, k - 1 : k])
    load_N: Tensor = torch.special.ndtr((clean_BN - rival_BN) / scale_BN).sum(dim=0)
    return load_N


def shares_product(probabilities_BN: Tensor, chosen_BN: Tensor) -> Tensor:
    """Return n · sum over experts of (share of choices) · (mean probability): 1 at balance, ≤ n.

    Fedus et al., "Switch Transformers", JMLR 2022 (arXiv 2101.03961), eq. 4, for any number of
    choices a row. Only the probabilities are differentiable.
    """
    chosen_N = chosen_BN.to(probabilities_BN).sum(dim=0)
    share_N = chosen_N / chosen_N.sum()
    return probabilities_BN.shape[1] * (share_N * probabilities_BN.mean(dim=0)).sum()
