"""DSelect-k's weights and penalties, without a table of all experts for each selector.

A selector is a product over bits, so it is the outer product of two short tables: `u` of the
leading half of the bits and `v` of the trailing half. With n = 256 experts both have 16 entries.
The weights of a row are then one small matrix product, summed over selectors:

    q[i, j] = sum over l of share_l · u[l, i] · v[l, j],   expert number = i · len(v) + j

Backward computes the tables again. So nothing of size k · n is stored, only bits and shares. The
entropy does need each of the k · n products. It is computed by blocks that fit the cache, together
with its slope, and only the slope of the bits is stored.

Letters in shapes: B rows, k selectors, m bits, U and V entries of the two tables. Tables are
`[U, B, k]`, so that each step runs over long contiguous rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from moesim.training.gates.base import Selection, scaled
from moesim.training.gates.binary_codes import ENTROPY_FLOOR, num_bits, smooth_slope, smooth_step

_BLOCK = 2**18  # products at a time: few calls of torch, on buffers that stay near the core


@dataclass(frozen=True, slots=True)
class Penalties:
    """What is added to the loss: a weight of the entropy, and reachability's epsilon."""

    entropy: float
    epsilon: float


class Tables(NamedTuple):
    """Both halves of all selectors, without leading codes that no expert has."""

    u: Tensor  # (U, B, k)
    v: Tensor  # (V, B, k)


def weights_and_penalty(
    shares_Bk: Tensor, z_Bkm: Tensor, gamma: float, n: int, penalties: Penalties | None = None
) -> tuple[Tensor, Tensor]:
    """Return q `[B, n]` and each row's penalty `[B]`, summed over selectors.

    The penalty is 0 without `penalties`. Reachability counts only if n is no power of two.
    """
    if penalties is None and not torch.is_grad_enabled():
        ids_Bk = binary_ids(z_Bkm, gamma)
        if ids_Bk is None:
            q_BN = _mixed(shares_Bk, _tables(_bits(z_Bkm, gamma), n), n)
        else:
            q_BN = _scattered(shares_Bk, ids_Bk, n)
        return q_BN, q_BN.new_zeros(len(q_BN))
    apply: Any = _Gate.apply  # which torch does not type
    pair: tuple[Tensor, Tensor] = apply(shares_Bk, z_Bkm, gamma, n, penalties)
    return pair


def binary_ids(z_Bkm: Tensor, gamma: float) -> Tensor | None:
    """Return the numbers `[B, k]` that the bits spell, or None if some bit is not 0 or 1."""
    bits_Bkm = smooth_step(z_Bkm, gamma)
    if not bool(((bits_Bkm == 0) | (bits_Bkm == 1)).all()):
        return None
    places_m = torch.arange(z_Bkm.shape[-1] - 1, -1, -1, device=z_Bkm.device)
    return (bits_Bkm.long() << places_m).sum(dim=-1)


def selection_of_ids(shares_Bk: Tensor, ids_Bk: Tensor, n: int) -> Selection:
    """Return the selection of selectors that are each one number; equal numbers are merged."""
    probabilities_BN = scaled(_scattered(shares_Bk, ids_Bk, n))
    weights_Bk = probabilities_BN.gather(1, ids_Bk.clamp(max=n - 1))
    # The first selector of a number carries the weight of all.
    repeated_Bk = (ids_Bk[:, :, None] == ids_Bk[:, None, :]).tril(-1).any(dim=-1)
    weights_Bk = weights_Bk.masked_fill(repeated_Bk | (ids_Bk >= n), 0)
    weights_Bk, order_Bk = weights_Bk.sort(dim=-1, descending=True, stable=True)
    ids_Bk = torch.where(weights_Bk > 0, ids_Bk.gather(1, order_Bk), -1)
    return Selection(probabilities_BN, weights_Bk, ids_Bk)


class _Gate(torch.autograd.Function):
    """q and penalty of (shares, z). Stores shares, z and the penalty's slope of z."""

    @staticmethod
    def forward(
        ctx: Any,
        shares_Bk: Tensor,
        z_Bkm: Tensor,
        gamma: float,
        n: int,
        penalties: Penalties | None,
    ) -> tuple[Tensor, Tensor]:
        penalty_B, slope_Bkm = z_Bkm.new_zeros(len(z_Bkm)), None
        if penalties is None:
            tables = _tables(_bits(z_Bkm, gamma), n)
        else:
            bits_mBk, graph, tables = _tables_with_graph(z_Bkm, gamma, n)
            penalty_B, slopes = _penalty(tables, n, penalties)
            slope_Bkm = _slope_of_z(bits_mBk, graph, slopes, z_Bkm, gamma)
        ctx.save_for_backward(shares_Bk, z_Bkm, slope_Bkm)
        ctx.gamma, ctx.n = gamma, n
        return _mixed(shares_Bk, tables, n), penalty_B

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_BN: Tensor, slope_B: Tensor) -> tuple[Tensor | None, ...]:
        shares_Bk, z_Bkm, penalty_slope_Bkm = ctx.saved_tensors
        bits_mBk, graph, (u, v) = _tables_with_graph(z_Bkm, ctx.gamma, ctx.n)
        slope_BUV = _padded(slope_BN, len(u), len(v))
        # Rows of k, not columns: a matrix product with few columns is slow.
        of_u = torch.bmm(v.permute(1, 2, 0), slope_BUV.mT).permute(2, 0, 1).contiguous()
        of_v = torch.bmm((u * shares_Bk).permute(1, 2, 0), slope_BUV).permute(2, 0, 1)
        slopes = Tables(of_u * shares_Bk, of_v.contiguous())
        slope_Bkm = _slope_of_z(bits_mBk, graph, slopes, z_Bkm, ctx.gamma)
        if penalty_slope_Bkm is not None:
            slope_Bkm = slope_Bkm.addcmul_(penalty_slope_Bkm, slope_B[:, None, None])
        return (of_u * u).sum(dim=0), slope_Bkm, None, None, None


def _bits(z_Bkm: Tensor, gamma: float) -> Tensor:
    return smooth_step(z_Bkm.permute(2, 0, 1).contiguous(), gamma)


def _tables(bits_mBk: Tensor, n: int) -> Tables:
    half = len(bits_mBk) // 2
    v = _products(bits_mBk[half:])
    return Tables(_products(bits_mBk[:half])[: -(-n // len(v))], v)


def _tables_with_graph(z_Bkm: Tensor, gamma: float, n: int) -> tuple[Tensor, Tables, Tables]:
    """Return the bits, tables that autograd can differentiate by them, and plain tables."""
    bits_mBk = _bits(z_Bkm.detach(), gamma).requires_grad_()
    with torch.enable_grad():
        graph = _tables(bits_mBk, n)
    return bits_mBk, graph, Tables(*(table.detach() for table in graph))


def _products(bits_mBk: Tensor) -> Tensor:
    """Return `[2^m, B, k]`: each code's product of agreement, as `selectors` defines it."""
    r = bits_mBk.new_ones(1, *bits_mBk.shape[1:])
    for pair in torch.stack([1 - bits_mBk, bits_mBk], dim=1).unbind(dim=0):
        r = pair if len(r) == 1 else (r[:, None] * pair).flatten(0, 1)
    return r


def _slope_of_z(
    bits_mBk: Tensor, graph: Tables, slopes: Tables, z_Bkm: Tensor, gamma: float
) -> Tensor:
    """Return the slope of z: the slopes of both tables, taken back to the bits and through them."""
    # A table of no bits, as one of two experts has, depends on nothing.
    pairs = [pair for pair in zip(graph, slopes, strict=True) if pair[0].requires_grad]
    if not pairs:
        return torch.zeros_like(z_Bkm)
    outputs, grads = zip(*pairs, strict=True)
    (slope_mBk,) = torch.autograd.grad(outputs, bits_mBk, grads)
    return slope_mBk.permute(1, 2, 0) * smooth_slope(z_Bkm, gamma)


def _mixed(shares_Bk: Tensor, tables: Tables, n: int) -> Tensor:
    u_BUk = (tables.u * shares_Bk).permute(1, 0, 2)
    return torch.bmm(u_BUk, tables.v.permute(1, 2, 0)).flatten(1)[:, :n]


def _scattered(shares_Bk: Tensor, ids_Bk: Tensor, n: int) -> Tensor:
    """Return `[B, n]`: the share of each number; shares of numbers beyond n are lost."""
    reachable_Bk = shares_Bk.masked_fill(ids_Bk >= n, 0)
    empty_BN = shares_Bk.new_zeros(len(shares_Bk), n)
    return empty_BN.scatter_add(1, ids_Bk.clamp(max=n - 1), reachable_Bk)


def _padded(values_BN: Tensor, rows: int, columns: int) -> Tensor:
    """Return `[B, rows, columns]`, with 0 for numbers that no expert has."""
    missing = rows * columns - values_BN.shape[1]
    padded = torch.nn.functional.pad(values_BN, (0, missing)).contiguous()
    return padded.view(len(values_BN), rows, columns)


def _penalty(tables: Tables, n: int, penalties: Penalties) -> tuple[Tensor, Tables]:
    """Return the penalty `[B]` of the tables, and its slopes."""
    mass_Bk, slopes_of_mass = _mass(tables, n)
    penalty_Bk, factor_Bk = torch.zeros_like(mass_Bk), torch.zeros_like(mass_Bk)
    # If n is a power of two, every code has an expert, and the penalty would be constant.
    if n != 2 ** num_bits(n):
        penalty_Bk = 1 / (mass_Bk + penalties.epsilon)
        factor_Bk = -penalty_Bk.square()
    slopes = Tables(*(slope * factor_Bk for slope in slopes_of_mass))
    if penalties.entropy:
        entropy_Bk, slopes_of_entropy = _entropy(tables, n, (mass_Bk, slopes_of_mass))
        penalty_Bk = penalty_Bk + penalties.entropy * entropy_Bk
        for slope, further in zip(slopes, slopes_of_entropy, strict=True):
            slope.add_(further, alpha=penalties.entropy)
    return penalty_Bk.sum(dim=-1), slopes


def _mass(tables: Tables, n: int) -> tuple[Tensor, Tables]:
    """Return each selector's mass on experts `[B, k]`, and its slopes."""
    u, v = tables
    whole, rest = divmod(n, len(v))  # leading codes with all trailing codes, and with some
    # A table sums to one, so whole rows have the mass of their leading code, free of rounding.
    mass_Bk = u[:whole].sum(dim=0)
    of_u, of_v = torch.zeros_like(u), torch.zeros_like(v)
    of_u[:whole] = 1
    if rest:
        of_u[whole] = v[:rest].sum(dim=0)
        of_v[:rest] = u[whole]
        mass_Bk = mass_Bk + u[whole] * of_u[whole]
    return mass_Bk, Tables(of_u, of_v)


def _entropy(tables: Tables, n: int, mass: tuple[Tensor, Tables]) -> tuple[Tensor, Tables]:
    """Return each selector's entropy `[B, k]`, with the floor in its logarithm, and its slopes.

    With s = r + floor, the slope of r·log s is log s + r/s = (h + r) / r, where h = r·log s -
    floor·r/s. So both tables' slopes are sums of h, divided by their entries, plus those of the
    mass. At an entry of 0, h over the entry has a limit: (log floor - 1) times the mass that the
    entry multiplies. It counts, because a bit just inside the band can round to 0 or 1.
    """
    u, v = (table.flatten(1) for table in tables)
    size, columns = len(u) * len(v), u.shape[1]
    of_u, of_v = torch.empty_like(u), torch.empty_like(v)
    ratios = torch.empty_like(u[0])
    step = max(1, min(columns, _BLOCK // size))
    buffers = u.new_empty(3, size * step)
    for start in range(0, columns, step):
        part = slice(start, start + step)
        a, b = u[:, None, part], v[None, :, part]
        r, h, ratio = buffers[:, : size * a.shape[2]].view(3, len(u), len(v), -1)
        torch.mul(a, b, out=r)
        r.flatten(0, 1)[n:] = 0  # codes without an expert
        torch.add(r, ENTROPY_FLOOR, out=h)
        torch.div(r, h, out=ratio)
        _log_in_place(h).mul_(r).sub_(ratio, alpha=ENTROPY_FLOOR)
        torch.sum(ratio, dim=(0, 1), out=ratios[part])
        torch.sum(h, dim=1, out=of_u[:, part])
        torch.sum(h, dim=0, out=of_v[:, part])
    entropy_Bk = -(of_u.sum(dim=0) + ENTROPY_FLOOR * ratios).view_as(mass[0])
    # `_mass` leaves whole rows out of v's slope, because v sums to one.
    partners = (mass[1].u, mass[1].v + tables.u[: n // len(v)].sum(dim=0))
    at_zero = math.log(ENTROPY_FLOOR) - 1
    slopes = (
        -(torch.where(table == 0, at_zero * partner, of.view_as(table) / table) + more)
        for of, table, partner, more in zip((of_u, of_v), tables, partners, mass[1], strict=True)
    )
    return entropy_Bk, Tables(*slopes)


def _log_in_place(values: Tensor) -> Tensor:
    # On CPUs numpy's logarithm takes a third of the time of torch's.
    if values.device.type != "cpu" or values.dtype not in (torch.float32, torch.float64):
        return values.log_()
    array = values.numpy()
    np.log(array, out=array)
    return values
