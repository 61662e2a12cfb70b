"""DSelect-k: a gate that selects at most k experts and is smooth in its parameters.

Hazimeh et al., "DSelect-k: Differentiable Selection in the Mixture of Experts with Applications to
Multi-Task Learning", NeurIPS 2021 (arXiv 2106.03760). Experts are numbered in binary. Each of k
*selectors* has m = ceil(log2 n) bits; a *smooth-step* takes each bit's parameter to [0, 1], with
exact zeros and ones outside a band of width gamma, and a selector's weight on an expert is the
product of its bits' agreement with the expert's code. A softmax mixes the selectors:

    q(alpha, Z) = sum over l of softmax(alpha)_l · r(S(z_l))

Once every bit is 0 or 1, each selector is one-hot and q has at most k non-zeros; before, it may
have n. From ±gamma/2 on, a bit has gradient exactly 0, so its own loss cannot move it again.

If n is not a power of two, a selector can put mass on codes that no expert has. The *reachability*
penalty of a selector is 1 / (mass on experts + epsilon). It grows with the lost mass, and is
constant once all mass is on experts.
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
from moesim.training.gates.base import (
    Gate,
    Gating,
    Selection,
    check_k,
    heaviest,
    kept_of,
    no_loss,
    scaled,
)
from moesim.training.gates.binary_codes import check_gamma, codes, num_bits, selectors
from moesim.training.gates.factored import (
    Penalties,
    binary_ids,
    selection_of_ids,
    weights_and_penalty,
)

Schedule = Callable[[int], float]
Vector = TypeVar("Vector", Tensor, npt.NDArray[np.float64])

OVER_ROWS = ("sum", "mean")
INITS = ("scaled", "released")


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
        epsilon: float = 1e-6,
        init: str = "scaled",
    ) -> None:
        super().__init__(num_experts, k, features=features, tasks=tasks)
        check_gamma(gamma)
        for name, value, known in (("over_rows", over_rows, OVER_ROWS), ("init", init, INITS)):
            if value not in known:
                raise UsageError(f"{name} {value!r} is none of {', '.join(known)}")
        self.num_bits = num_bits(num_experts)
        self.gamma = gamma
        self.entropy = entropy
        self.over_rows = over_rows
        self.epsilon = epsilon
        self.init = init
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
        """Give every selector about 1/n on each expert; only noise distinguishes selectors.

        Parameters are uniform within ±bound. The released bounds are gamma/100 for z and 0.05 for
        alpha, of weights and biases alike. A static gate's z then deviates by gamma/173, and a bit
        is binary from gamma/2 on. A per-example z is a sum over F features x and a bias, so its
        deviation is gamma/173 · sqrt(F · mean(x²) + 1). With `released` bounds and mean(x²) = 1 a
        third of the bits are binary at the start at F = 8,192, and never learn.

        `scaled` divides both bounds by sqrt(F + 1). If mean(x²) = 1, z and alpha deviate as a
        static gate's do, at any width. Else they deviate sqrt(mean(x²)) times as much: at 10 no bit
        is binary, at 30 one in 260, at 50 one in 12. A few large features count by the same mean.
        So normalise wider inputs first, as a layer norm does.

        The start says nothing of the steps. A step of Adam at rate r moves a z by up to r · sum|x|,
        which grows with F. A wide gate needs a smaller rate.
        """
        shrink = 1.0
        if self.features is not None and self.init == "scaled":
            shrink = math.sqrt(self.features + 1)
        for part, bound in ((self.z_logits, self.gamma / 100), (self.w_logits, 0.05)):
            for parameter in part.parameters() if isinstance(part, nn.Module) else (part,):
                nn.init.uniform_(parameter, -bound / shrink, bound / shrink)

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
        shares_Bk, z_Bkm = self._parameters_of(features_BF)
        penalties = self._penalties() if self.training else None
        weights_BN, penalty_B = weights_and_penalty(
            shares_Bk, z_Bkm, self.gamma, self.num_experts, penalties
        )
        if self.hardened:
            weights_BN = kept_of(weights_BN, self.k)
        if penalties is None:
            return Gating(weights_BN, no_loss(weights_BN))
        return Gating(weights_BN, penalty_B.sum() if self.over_rows == "sum" else penalty_B.mean())

    def _harden(self, features_BF: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._cut(*self._parameters_of(features_BF))

    def _select(self, features_BF: Tensor | None) -> Selection:
        shares_Bk, z_Bkm = self._parameters_of(features_BF)
        ids_Bk = binary_ids(z_Bkm, self.gamma)
        if ids_Bk is not None:
            return selection_of_ids(shares_Bk, ids_Bk, self.num_experts)
        return heaviest(*self._cut(shares_Bk, z_Bkm), self.k)

    def _cut(self, shares_Bk: Tensor, z_Bkm: Tensor) -> tuple[Tensor, Tensor]:
        q_BN, _ = weights_and_penalty(shares_Bk, z_Bkm, self.gamma, self.num_experts)
        return scaled(q_BN), kept_of(q_BN, self.k)

    def _parameters_of(self, features_BF: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return softmax(alpha) `[B, k]` and z `[B, k, m]` of each row."""
        if isinstance(self.z_logits, nn.Parameter):
            assert isinstance(self.w_logits, nn.Parameter)
            return self.w_logits.softmax(dim=0).T, self.z_logits.transpose(0, 1)
        assert isinstance(self.w_logits, nn.Module)
        z_BK = self.z_logits(features_BF)
        shares_Bk = self.w_logits(features_BF).softmax(dim=-1)
        return shares_Bk, z_BK.view(len(z_BK), self.k, self.num_bits)

    def _penalties(self) -> Penalties | None:
        """Return the weights of this training pass, and count it; None if no penalty has a slope.

        If n is a power of two, every code has an expert, and reachability would be constant.
        """
        weight = self.entropy(int(self.passes)) if callable(self.entropy) else self.entropy
        self.passes += 1
        if not weight and self.num_experts == 2**self.num_bits:
            return None
        return Penalties(weight, self.epsilon)


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
    return _like(alpha, alpha_k.softmax(dim=-1) @ selectors(z_km, n))


def _linear(features: int, width: int) -> nn.Linear:
    with warnings.catch_warnings():  # one expert needs no bits, so its layer has width 0
        warnings.filterwarnings("ignore", "Initializing zero-element tensors")
        return nn.Linear(features, width)


def _like(like: Vector, tensor: Tensor) -> Vector:
    """Return a tensor as it is, or as an array if `like` is an array."""
    vector: Any = tensor if isinstance(like, Tensor) else tensor.numpy()
    return vector  # type: ignore[no-any-return]
