"""Experts' numbers in binary, and a selector: a product of bits that weighs every number.

Definitions of DSelect-k's paper, in their plainest form. `factored.py` computes the same faster.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moesim.errors import UsageError

ENTROPY_FLOOR = 1e-6  # inside the logarithm, as in the released code


def num_bits(num_experts: int) -> int:
    """Return the number of binary digits that distinguish n experts: 0 for one expert."""
    return (num_experts - 1).bit_length()


def codes(num_experts: int) -> Tensor:
    """Return `[n, m]` of int64: row i is i in binary, the most significant digit first."""
    places = torch.arange(num_bits(num_experts) - 1, -1, -1)
    return (torch.arange(num_experts)[:, None] >> places) & 1


def smooth_step(t: Tensor, gamma: float = 1.0) -> Tensor:
    """Return 0 up to -gamma/2, 1 from gamma/2 on, and between them a cubic that joins both (C¹).

    Source: Hazimeh et al., "The Tree Ensemble Layer", ICML 2020 (arXiv 2002.07772). The cubic
    -2t³/γ³ + 3t/(2γ) + 1/2 is x²(3 - 2x) in x = t/γ + 1/2, a form that rounding keeps in [0, 1].
    """
    check_gamma(gamma)
    x = (t / gamma + 0.5).clamp(0, 1)
    return x * x * (3 - 2 * x)


def smooth_slope(t: Tensor, gamma: float = 1.0) -> Tensor:
    """Return the derivative of `smooth_step`: exactly 0 from the knots on."""
    x = (t / gamma + 0.5).clamp(0, 1)
    return x * (1 - x) * (6 / gamma)


def selectors(bits_km: Tensor, num_experts: int) -> Tensor:
    """Return `[..., k, n]` of bits `[..., k, m]` in [0, 1]: products of agreement with each code.

    Rows sum to one if n is a power of two; codes that no expert has are left out.
    """
    r = bits_km.new_ones((*bits_km.shape[:-1], 1))
    for bit in bits_km.unbind(dim=-1):
        # Each digit doubles the codes: those that continue with 0 and those that continue with 1.
        r = torch.stack([r * (1 - bit[..., None]), r * bit[..., None]], dim=-1).flatten(-2)
    return r[..., :num_experts]


def entropy(r_kN: Tensor) -> Tensor:
    """Return `[...]` of `[..., k, n]`: the selectors' entropies (nats), summed over selectors."""
    return -(r_kN * (r_kN + ENTROPY_FLOOR).log()).sum(dim=(-2, -1))


def reachability(r_kN: Tensor, epsilon: float = 0.0) -> Tensor:
    """Return `[...]` of `[..., k, n]`: 1 / (mass on experts + epsilon), summed over selectors."""
    return (1 / (r_kN.sum(dim=-1) + epsilon)).sum(dim=-1)


def check_gamma(gamma: float) -> None:
    """Raise `UsageError` unless gamma is positive and finite."""
    if not (gamma > 0 and math.isfinite(gamma)):
        raise UsageError(
            f"gamma ({gamma}) must be positive and finite: it is the width of the band in which a "
            "bit is neither 0 nor 1"
        )
