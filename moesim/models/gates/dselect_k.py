"""DSelect-k: a gate that selects at most k experts and is smooth in its parameters.

Hazimeh et al., "DSelect-k: Differentiable Selection in the Mixture of Experts with Applications to
Multi-Task Learning", NeurIPS 2021 (arXiv 2106.03760). Experts are numbered in binary. Each of k
*selectors* has m = ceil(log2 n) bits; a *smooth-step* takes each bit's parameter to [0, 1], with
exact zeros and ones outside a band of width gamma, and a selector's weight on an expert is the
product of its bits' agreement with the expert's code. A softmax mixes the selectors:

    q(alpha, Z) = sum over l of softmax(alpha)_l · r(S(z_l))

Once every bit is 0 or 1, each selector is one-hot and q has at most k non-zeros; before, it may
have n. A bit that is exactly 0 or 1 has gradient exactly 0, so the data loss cannot move it again.

If n is not a power of two, a selector can put mass on codes that no expert has. The *reachability*
penalty of a selector is 1 / (mass on experts). It grows with the lost mass, and is constant once
all mass is on experts.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from moesim.errors import UsageError
from moesim.models.gates.base import Gate, Gating, check_k, kept_of, no_loss, scaled

Schedule = Callable[[int], float]
Vector = TypeVar("Vector", Tensor, npt.NDArray[np.float64])

OVER_ROWS = ("sum", "mean")
_ENTROPY_FLOOR = 1e-6  # inside the logarithm, as in the released code


@dataclass(frozen=True, slots=True)
class Ramp:
    """A schedule that rises evenly from 0 to `top` within `calls` forward passes, then stays."""

    top: float
    calls: int

    def __call__(self, call: int) -> float:
        return self.top * min(1.0, call / self.calls)


class DSelectK(Gate):
    """The gate. Static: `z_logits (k, tasks, m)`, `w_logits (k, tasks)`. Per-example: linear.

    `entropy` weighs the selectors' entropy: a number, or a schedule over training passes.
    `over_rows` says whether entropy and reachability penalty (of weight 1) are summed over rows, as
    in the released code, or averaged. Both are summed over selectors. `epsilon` is added to the
    mass in the penalty, which is infinite if no expert is reachable. Raises `UsageError` for a
    gamma that is not positive.
    """

    passes: Tensor
    hardened: Tensor

    def __init__(
        self,
        num_experts: int,
        k: int,
        *,
        features: int | None = None,
        tasks: int = 1,
        gamma: float = 1.0,
        entropy: float | Schedule = 1e-6,
        over_rows: str = "sum",
        epsilon: float = 0.0,
    ) -> None:
        super().__init__(num_experts, k, features=features, tasks=tasks)
        _check_gamma(gamma)
        if over_rows not in OVER_ROWS:
            raise UsageError(f"over_rows {over_rows!r} is none of {', '.join(OVER_ROWS)}")
        self.num_bits = num_bits(num_experts)
        self.gamma = gamma
        self.entropy = entropy
        self.over_rows = over_rows
        self.epsilon = epsilon
        self.z_logits: nn.Parameter | nn.Module
        self.w_logits: nn.Parameter | nn.Module
        if features is None:
            self.z_logits = nn.Parameter(torch.empty(k, tasks, self.num_bits))
            self.w_logits = nn.Parameter(torch.empty(k, tasks))
        else:
            self.z_logits = _linear(features, k * self.num_bits)
            self.w_logits = _linear(features, k)
        # Buffers are in the checkpoint, so a resumed run continues the schedule.
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        self.register_buffer("hardened", torch.zeros((), dtype=torch.bool))
        self.initialise()

    def initialise(self) -> None:
        """Give every selector about 1/n on each expert; only noise distinguishes selectors."""
        for part, bound in ((self.z_logits, self.gamma / 100), (self.w_logits, 0.05)):
            for parameter in part.parameters() if isinstance(part, nn.Module) else (part,):
                nn.init.uniform_(parameter, -bound, bound)

    def harden(self) -> None:
        """Make `forward` return what `select` does from now on: the k largest weights, rescaled.

        If at most k are left, as when every bit is binary, no weight changes.
        """
        self.hardened.fill_(True)

    @torch.no_grad()
    def binary_share(self, inputs: Tensor | None = None) -> float:
        """Return the share of bits that are exactly 0 or 1: 1 once the gate has converged."""
        self._check(inputs)
        _, z_Bkm = self._parameters_of(None if self.static else inputs)
        return float((z_Bkm.abs() >= self.gamma / 2).double().mean()) if self.num_bits else 1.0

    def _mix(self, features_BF: Tensor | None) -> Gating:
        alpha_Bk, z_Bkm = self._parameters_of(features_BF)
        r_BkN = selectors(smooth_step(z_Bkm, self.gamma), self.num_experts)
        weights_BN = _mixed(alpha_Bk, r_BkN)
        if self.hardened:
            weights_BN = kept_of(weights_BN, self.k)
        return Gating(weights_BN, self._penalty(r_BkN) if self.training else no_loss(weights_BN))

    def _harden(self, features_BF: Tensor | None) -> tuple[Tensor, Tensor]:
        alpha_Bk, z_Bkm = self._parameters_of(features_BF)
        q_BN = _mixed(alpha_Bk, selectors(smooth_step(z_Bkm, self.gamma), self.num_experts))
        return scaled(q_BN), kept_of(q_BN, self.k)

    def _parameters_of(self, features_BF: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return alpha `[B, k]` and z `[B, k, m]` of each row."""
        if isinstance(self.z_logits, nn.Parameter):
            assert isinstance(self.w_logits, nn.Parameter)
            return self.w_logits.T, self.z_logits.transpose(0, 1)
        assert isinstance(self.w_logits, nn.Module)
        z_BK = self.z_logits(features_BF)
        return self.w_logits(features_BF), z_BK.view(len(z_BK), self.k, self.num_bits)

    def _penalty(self, r_BkN: Tensor) -> Tensor:
        entropy_B = -(r_BkN * (r_BkN + _ENTROPY_FLOOR).log()).sum(dim=(1, 2))
        weight = self.entropy(int(self.passes)) if callable(self.entropy) else self.entropy
        penalty_B = weight * entropy_B
        # With a power of two every code has an expert, and the penalty would be constant.
        if self.num_experts != 2**self.num_bits:
            penalty_B = penalty_B + reachability(r_BkN, self.epsilon)
        self.passes += 1
        return penalty_B.sum() if self.over_rows == "sum" else penalty_B.mean()


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
    _check_gamma(gamma)
    x = (t / gamma + 0.5).clamp(0, 1)
    return x * x * (3 - 2 * x)


def selectors(bits_km: Tensor, num_experts: int) -> Tensor:
    """Return `[..., k, n]` of bits `[..., k, m]` in [0, 1]: products of agreement with each code.

    Rows sum to one if n is a power of two; codes that no expert has are left out.
    """
    r = bits_km.new_ones((*bits_km.shape[:-1], 1))
    for bit in bits_km.unbind(dim=-1):
        # Each digit doubles the codes: those that continue with 0 and those that continue with 1.
        r = torch.stack([r * (1 - bit[..., None]), r * bit[..., None]], dim=-1).flatten(-2)
    return r[..., :num_experts]


def reachability(r_kN: Tensor, epsilon: float = 0.0) -> Tensor:
    """Return `[...]` of `[..., k, n]`: 1 / (mass on experts), summed over selectors; at least k."""
    return (1 / (r_kN.sum(dim=-1) + epsilon)).sum(dim=-1)


def construct(w: Vector, k: int) -> tuple[Vector, Vector]:
    """Return the parameters of the weights `w (n,)`: alpha `(k,)`, binary z `(k, m)`, float64.

    This shows that the binary form loses nothing: every point of the simplex with at most k
    non-zeros has parameters. With fewer than k, the last code is repeated and its weight split, so
    that alpha stays finite. Tensors for a tensor, arrays for an array. Raise `UsageError` if `w` is
    not such a point.
    """
    w_N = torch.as_tensor(w, dtype=torch.float64).detach()
    if w_N.ndim != 1 or not len(w_N):
        raise UsageError(f"w must have shape (n,) with n at least 1, not {tuple(w_N.shape)}")
    check_k(len(w_N), k)
    if not bool((w_N >= 0).all()) or abs(float(w_N.sum()) - 1) > 1e-6:
        raise UsageError(
            f"w must lie in the simplex: its least entry is {float(w_N.min())} (at least 0), its "
            f"sum {float(w_N.sum())} (1)"
        )
    support = w_N.nonzero()[:, 0]
    if len(support) > k:
        raise UsageError(f"w has {len(support)} non-zeros, more than the k ({k}) that q can have")
    repeats = k - len(support)
    ids_k = torch.cat([support, support[-1:].expand(repeats)])
    shares_k = w_N[ids_k]
    shares_k[len(support) - 1 :] /= repeats + 1
    return _like(w, shares_k.log()), _like(w, codes(len(w_N))[ids_k].double())


def gate(alpha: Vector, z: Vector, n: int) -> Vector:
    """Return q `(n,)` of alpha `(k,)` and bits z `(k, m)` that are already in [0, 1], float64.

    Tensors for tensors, arrays for arrays. Raise `UsageError` for other shapes or bits.
    """
    alpha_k = torch.as_tensor(alpha, dtype=torch.float64)
    z_km = torch.as_tensor(z, dtype=torch.float64)
    if n < 1:
        raise UsageError(f"n ({n}) must be at least 1")
    if alpha_k.ndim != 1 or z_km.shape != (len(alpha_k), num_bits(n)):
        raise UsageError(
            f"{n} experts need alpha of shape (k,) and z of shape (k, {num_bits(n)}), not "
            f"{tuple(alpha_k.shape)} and {tuple(z_km.shape)}"
        )
    check_k(n, len(alpha_k))
    if not bool(((z_km >= 0) & (z_km <= 1)).all()):
        raise UsageError("z must lie in [0, 1]: apply the smooth-step first")
    return _like(alpha, _mixed(alpha_k, selectors(z_km, n)))


def _linear(features: int, width: int) -> nn.Linear:
    with warnings.catch_warnings():  # one expert needs no bits, so its layer has width 0
        warnings.filterwarnings("ignore", "Initializing zero-element tensors")
        return nn.Linear(features, width)


def _mixed(alpha_k: Tensor, r_kN: Tensor) -> Tensor:
    return (alpha_k.softmax(dim=-1).unsqueeze(-1) * r_kN).sum(dim=-2)


def _like(like: Vector, tensor: Tensor) -> Vector:
    """Return a tensor as it is, or as an array if `like` is an array."""
    vector: Any = tensor if isinstance(like, Tensor) else tensor.numpy()
    return vector  # type: ignore[no-any-return]


def _check_gamma(gamma: float) -> None:
    if not (gamma > 0 and math.isfinite(gamma)):
        raise UsageError(
            f"gamma ({gamma}) must be positive and finite: it is the width of the band in which a "
            "bit is neither 0 nor 1"
        )
