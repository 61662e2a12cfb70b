"""DSelect-k's fast form is its definition: values, exact zeros, gradients, and what it stores."""

from __future__ import annotations

import pytest
import torch
from study_scripts import script
from torch import Tensor

from moesim.training.gates import DSelectK, Selection, TopK, factored
from moesim.training.gates.base import heaviest, kept_of, scaled
from moesim.training.gates.binary_codes import (
    codes,
    entropy,
    num_bits,
    reachability,
    selectors,
    smooth_step,
)
from moesim.training.gates.factored import Penalties, weights_and_penalty

torch.set_num_threads(1)

saved_bytes = script("benchmarks", "gates").saved_bytes

SIZES = ((1, 1), (2, 1), (2, 2), (3, 2), (5, 3), (6, 2), (8, 2), (12, 4), (16, 4), (33, 3), (64, 8))
EPSILON = 1e-6


def parameters(n: int, k: int, rows: int, gamma: float, spread: float) -> tuple[Tensor, Tensor]:
    """Return alpha and z; knots, bits far outside the band and zeros are among them."""
    draw = torch.Generator().manual_seed(n * k)
    alpha = torch.randn(rows, k, generator=draw, dtype=torch.float64)
    z = (torch.rand(rows, k, num_bits(n), generator=draw, dtype=torch.float64) - 0.5) * spread
    places = z.flatten()
    places[: len(places) // 4 : 2] = gamma / 2
    places[1 : len(places) // 4 : 2] = -gamma / 2
    return alpha.requires_grad_(), z.requires_grad_()


def by_definition(
    alpha: Tensor, z: Tensor, gamma: float, n: int, penalties: Penalties
) -> tuple[Tensor, Tensor]:
    r = selectors(smooth_step(z, gamma), n)
    penalty = penalties.entropy * entropy(r)
    if n != 2 ** num_bits(n):
        penalty = penalty + reachability(r, penalties.epsilon)
    return (alpha.softmax(-1)[..., None] * r).sum(dim=-2), penalty


@pytest.mark.parametrize("block", [16, 2**17])  # a selector at a time, and all at once
@pytest.mark.parametrize("spread", [0.02, 1.0, 1.6])
@pytest.mark.parametrize(("n", "k"), SIZES)
def test_values_zeros_and_gradients_are_those_of_the_definition(
    n: int, k: int, spread: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factored, "_BLOCK", block)
    gamma, penalties = 0.7, Penalties(0.3, EPSILON)
    answers = []
    for fast in (True, False):
        alpha, z = parameters(n, k, 9, gamma, spread * gamma)
        if fast:
            q, penalty = weights_and_penalty(alpha.softmax(-1), z, gamma, n, penalties)
        else:
            q, penalty = by_definition(alpha, z, gamma, n, penalties)
        slope = torch.linspace(-1, 2, q.numel(), dtype=torch.float64).view_as(q)
        ((q * slope).sum() + (penalty * torch.arange(9)).sum()).backward()
        slopes = [torch.zeros_like(p) if p.grad is None else p.grad for p in (alpha, z)]
        answers.append([q.detach(), penalty.detach(), *slopes])
    assert torch.equal(answers[0][0] == 0, answers[1][0] == 0)
    assert bool((answers[0][3][answers[1][3] == 0] == 0).all())
    for ours, expected in zip(*answers, strict=True):
        # The definition itself rounds to the scale of its largest slopes, such as 1 / mass².
        scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12 * scale)


@pytest.mark.parametrize("n", [2, 6, 8, 12])
def test_gradients_agree_with_differences_knots_included(n: int) -> None:
    alpha, z = parameters(n, 2, 3, 1.0, 0.9)

    def run(alpha: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return weights_and_penalty(alpha.softmax(-1), z, 1.0, n, Penalties(0.5, 0.05))

    assert torch.autograd.gradcheck(run, (alpha, z), eps=1e-7)


@pytest.mark.parametrize("n", [4, 13])
def test_a_bit_that_rounds_to_binary_inside_the_band_keeps_its_slope(n: int) -> None:
    """In float32 the bit of 0.49999 is exactly 1, but z is inside the band of gamma 1."""
    inside = [0.49999, -0.49999, 0.2, -0.1][: num_bits(n)]
    penalties = Penalties(1.0, EPSILON)
    slopes: list[Tensor] = []
    z = torch.tensor([[inside]], requires_grad=True)
    for function in (by_definition, weights_and_penalty):
        _, penalty = function(torch.ones(1, 1), z, 1.0, n, penalties)
        slopes += torch.autograd.grad(penalty.sum(), z)
    assert smooth_step(z)[0, 0, 0] == 1
    assert slopes[0][0, 0, 0].abs() > 1e-5
    torch.testing.assert_close(slopes[1], slopes[0], rtol=0.01, atol=1e-7)  # bits are rounded


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_types_agree_to_their_precision(dtype: torch.dtype) -> None:
    alpha, z = (p.detach() for p in parameters(12, 3, 5, 1.0, 1.0))
    exact = weights_and_penalty(alpha.softmax(-1), z, 1.0, 12, Penalties(0.3, EPSILON))
    rounded = weights_and_penalty(
        alpha.softmax(-1).to(dtype), z.to(dtype), 1.0, 12, Penalties(0.3, EPSILON)
    )
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    for ours, expected in zip(rounded, exact, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), expected, rtol=tolerance, atol=tolerance)


def test_a_batch_of_no_rows_has_no_weights() -> None:
    gate = DSelectK(6, 2, features=3, entropy=0.1).train()
    weights, loss = gate(torch.zeros(0, 3))
    (weights.sum() + loss).backward()
    assert weights.shape == (0, 6)
    assert loss.item() == 0
    assert gate.select(torch.zeros(0, 3)).ids.shape == (0, 2)


# Where all bits are binary


def binary(n: int, k: int, *, reachable: bool = True) -> tuple[Tensor, Tensor]:
    """Return shares and binary z; numbers repeat within a row, in the first row all of them."""
    draw = torch.Generator().manual_seed(n + k)
    ids = torch.randint(n if reachable else 2 ** num_bits(n), (50, k), generator=draw)
    ids[0] = ids[0, 0]
    shares = torch.randn(50, k, generator=draw).softmax(-1)
    return shares, (codes(2 ** num_bits(n))[ids] * 2 - 1).float()


@pytest.mark.parametrize("reachable", [True, False])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 2), (6, 4), (8, 3), (12, 8), (64, 8)])
def test_numbers_read_from_binary_bits_give_what_products_give(
    n: int, k: int, reachable: bool
) -> None:
    shares, z = binary(n, k, reachable=reachable)
    with torch.no_grad():
        ours, _ = weights_and_penalty(shares, z, 1.0, n)
    products, _ = weights_and_penalty(shares.requires_grad_(), z, 1.0, n)
    assert torch.equal(ours == 0, products == 0)
    # Shares of one number may be added in another order.
    torch.testing.assert_close(ours, products.detach(), rtol=3e-7, atol=0)


@pytest.mark.parametrize("reachable", [True, False])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 2), (6, 4), (8, 3), (12, 8), (64, 8)])
def test_a_selection_by_numbers_is_the_one_by_weights(n: int, k: int, reachable: bool) -> None:
    shares, z = binary(n, k, reachable=reachable)
    ids = factored.binary_ids(z, 1.0)
    assert ids is not None
    ours = factored.selection_of_ids(shares, ids, n)
    q, _ = weights_and_penalty(shares.clone().requires_grad_(), z, 1.0, n)
    general = Selection(*(part.detach() for part in heaviest(scaled(q), kept_of(q, k), k)))
    assert torch.equal(ours.probabilities == 0, general.probabilities == 0)
    for part, expected in (
        (ours.probabilities, general.probabilities),
        (ours.weights, general.weights),
        (ours.dense(), general.dense()),
    ):
        torch.testing.assert_close(part, expected, rtol=3e-7, atol=0)
    assert torch.equal(ours.ids >= 0, ours.weights > 0)
    if k > 1:
        assert int((ours.ids[0] >= 0).sum()) <= 1  # all selectors of this row are one number


def test_one_bit_that_is_not_binary_is_not_read_as_a_number() -> None:
    _, z = binary(8, 3)
    z[-1, -1, -1] = 0.49
    assert factored.binary_ids(z, 1.0) is None
    z[-1, -1, -1] = torch.nan
    assert factored.binary_ids(z, 1.0) is None


def test_a_gate_of_binary_bits_selects_without_products(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = DSelectK(8, 3, tasks=50).eval()
    _, z = binary(8, 3)
    with torch.no_grad():
        gate.z_logits.copy_(z.transpose(0, 1))
        before = gate.select(), gate(torch.arange(50)).weights
        monkeypatch.setattr(factored, "_mixed", lambda *_: pytest.fail("products were computed"))
        assert all(map(torch.equal, gate.select(), before[0]))
        assert torch.equal(gate(torch.arange(50)).weights, before[1])


# Memory


@pytest.mark.parametrize(("n", "k"), [(64, 4), (64, 8), (100, 8), (128, 8), (256, 4), (256, 8)])
def test_what_is_stored_for_backward_is_at_most_twice_what_top_k_stores(n: int, k: int) -> None:
    inputs = torch.randn(512, 32)
    ours = saved_bytes(DSelectK(n, k, features=32), inputs)
    assert ours > 0
    assert ours <= 2 * saved_bytes(TopK(n, k, features=32), inputs)
