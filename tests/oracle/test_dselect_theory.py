"""What DSelect-k's paper and its code claim of the gate, each as a test of its own."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from moesim.errors import UsageError
from moesim.training.gates.binary_codes import (
    codes,
    num_bits,
    reachability,
    selectors,
    smooth_step,
)
from moesim.training.gates.dselect_k import DSelectK, Ramp, construct, gate

torch.set_num_threads(1)

Array = npt.NDArray[Any]
SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 31, 32)
POWERS = (1, 2, 4, 8, 16, 32)


def uniform(*shape: int, seed: int = 0, low: float = 0.0, high: float = 1.0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=draw, dtype=torch.float64) * (high - low) + low


def enumerated(alpha: Array, bits: Array, n: int) -> Array:
    """q by its definition: every expert, every selector, every digit of the expert's number."""
    m = bits.shape[1]
    mixture = np.exp(alpha - alpha.max())
    mixture /= mixture.sum()
    q = np.zeros(n)
    for expert in range(n):
        digits = [int(d) for d in format(expert, f"0{m}b")] if m else []
        for share, row in zip(mixture, bits, strict=True):
            agreement = [s if d else 1 - s for d, s in zip(digits, row, strict=True)]
            q[expert] += share * math.prod(agreement)
    return q


# The smooth-step


@pytest.mark.parametrize("gamma", [0.01, 0.1, 1.0, 5.0, 10.0])
def test_smooth_step_is_the_published_cubic_between_exact_zero_and_one(gamma: float) -> None:
    t = torch.linspace(-2 * gamma, 2 * gamma, 4001, dtype=torch.float64)
    cubic = -2 * t**3 / gamma**3 + 3 * t / (2 * gamma) + 0.5
    step = smooth_step(t, gamma)
    inside = t.abs() < gamma / 2
    torch.testing.assert_close(step[inside], cubic[inside], rtol=0, atol=1e-13)
    assert bool((step[t <= -gamma / 2] == 0).all())
    assert bool((step[t >= gamma / 2] == 1).all())
    assert float(smooth_step(torch.zeros(()), gamma)) == 0.5


@pytest.mark.parametrize("gamma", [0.1, 1.0, 10.0])
def test_the_derivative_is_that_of_the_cubic_and_zero_from_the_knots_on(gamma: float) -> None:
    t = torch.linspace(-gamma, gamma, 401, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(smooth_step(t, gamma).sum(), t)
    inside = t.detach().abs() < gamma / 2
    expected = -6 * t.detach() ** 2 / gamma**3 + 3 / (2 * gamma)
    torch.testing.assert_close(slope[inside], expected[inside], rtol=0, atol=1e-12 / gamma)
    assert bool((slope[~inside] == 0).all())
    assert int((~inside).sum()) > 100  # the knots among them


@pytest.mark.parametrize("gamma", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("side", [-1, 1])
def test_value_and_slope_are_continuous_at_the_knots_and_curvature_is_not(
    gamma: float, side: int
) -> None:
    knot = side * gamma / 2
    step = gamma * 1e-7

    def at(t: float) -> tuple[float, float, float]:
        x = torch.tensor(t, dtype=torch.float64, requires_grad=True)
        y = smooth_step(x, gamma)
        (slope,) = torch.autograd.grad(y, x, create_graph=True)
        (bend,) = torch.autograd.grad(slope, x)
        return y.item(), slope.item() * gamma, bend.item() * gamma**2

    within, outside = at(knot - side * step), at(knot + side * step)
    assert within[0] == pytest.approx(outside[0], abs=1e-12)
    assert within[1] == pytest.approx(outside[1], abs=1e-5)
    assert outside[2] == 0
    assert within[2] == pytest.approx(-6 * side, rel=1e-4)  # C¹, and not C²
    t = torch.tensor([knot, knot * 0.9, knot * 1.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: smooth_step(t, gamma), t, eps=gamma * 1e-7)


def test_rounding_never_takes_the_smooth_step_out_of_zero_to_one() -> None:
    edge = torch.tensor(0.5, dtype=torch.float32)
    near = torch.cat([edge * (1 - torch.arange(2000) * 2.0**-24), uniform(100_000).float() - 0.5])
    for t in (near, -near):
        step = smooth_step(t, 1.0)
        assert 0 <= float(step.min()) <= float(step.max()) <= 1


@pytest.mark.parametrize("gamma", [0.0, -1.0, math.nan, math.inf])
def test_a_gamma_that_is_not_positive_is_refused(gamma: float) -> None:
    for refuse in (
        lambda: smooth_step(torch.zeros(3), gamma),
        lambda: DSelectK(8, 2, gamma=gamma),
    ):
        with pytest.raises(UsageError, match="must be positive and finite"):
            refuse()


# Codes and selectors


def test_codes_are_binary_numbers_with_the_most_significant_digit_first() -> None:
    assert codes(5).tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1], [1, 0, 0]]
    for n in SIZES:
        m = num_bits(n)
        assert m == math.ceil(math.log2(n))
        assert codes(n).shape == (n, m)
        assert [sum(b << (m - 1 - j) for j, b in enumerate(row)) for row in codes(n).tolist()] == [
            *range(n)
        ]


@pytest.mark.parametrize("n", SIZES)
def test_the_gate_is_what_enumerating_every_expert_and_digit_gives(n: int) -> None:
    for seed, k in enumerate(range(1, min(n, 4) + 1)):
        alpha = uniform(k, seed=seed, low=-3, high=3).numpy()
        bits = uniform(k, num_bits(n), seed=seed + 10).numpy()
        np.testing.assert_allclose(gate(alpha, bits, n), enumerated(alpha, bits, n), atol=1e-14)


@pytest.mark.parametrize("n", POWERS)
def test_a_selector_sums_to_one_for_powers_of_two(n: int) -> None:
    r = selectors(uniform(500, 3, num_bits(n)), n)
    assert float(r.min()) >= 0
    torch.testing.assert_close(r.sum(dim=-1), torch.ones(500, 3, dtype=torch.float64))


def test_a_selector_of_other_sizes_can_lose_mass() -> None:
    mass = selectors(uniform(500, 1, 3), 6).sum(dim=-1)
    assert float(mass.min()) < 0.3
    assert float(mass.max()) <= 1


def test_one_bit_is_one_hot_and_each_further_bit_picks_a_half() -> None:
    """The induction behind one-hot selectors: its base, its step, and what follows."""
    for z in (0.0, 1.0):  # base, t = 1: (1 - z, z)
        base = selectors(torch.tensor([[z]], dtype=torch.float64), 2)
        assert base.tolist() == [[1 - z, z]]
    for t in range(1, 5):
        rest = uniform(200, 1, t, seed=t)
        lead = uniform(200, 1, 1, seed=t + 100)
        r_t = selectors(rest, 2**t)
        whole = selectors(torch.cat([lead, rest], dim=-1), 2 ** (t + 1))
        halves = torch.cat([(1 - lead) * r_t, lead * r_t], dim=-1)
        torch.testing.assert_close(whole, halves, rtol=0, atol=1e-15)
    for t in range(1, 6):
        for number, digits in enumerate(itertools.product([0.0, 1.0], repeat=t)):
            r = selectors(torch.tensor([digits], dtype=torch.float64), 2**t)[0]
            assert r.nonzero().flatten().tolist() == [number]
            assert float(r[number]) == 1


# The two problems are one


@pytest.mark.parametrize("n", SIZES)
def test_every_sparse_point_of_the_simplex_has_parameters(n: int) -> None:
    """Construction and gate are inverse, s = k and s < k, over 3,600 random points."""
    rng = np.random.default_rng(n)
    for _ in range(300):
        k = int(rng.integers(1, n + 1))
        s = int(rng.integers(1, k + 1))
        w = np.zeros(n)
        w[rng.choice(n, s, replace=False)] = rng.dirichlet(np.full(s, rng.choice([0.1, 1.0, 10.0])))
        alpha, z = construct(w, k)
        assert alpha.shape == (k,)
        assert z.shape == (k, num_bits(n))
        assert alpha.dtype == z.dtype == np.float64
        assert np.isin(z, (0.0, 1.0)).all()
        assert np.isfinite(alpha).all()
        q = gate(alpha, z, n)
        assert np.abs(q - w).max() <= 1e-12
        assert np.array_equal(q != 0, w != 0)


def test_fewer_non_zeros_repeat_the_last_code_and_split_its_weight() -> None:
    alpha, z = construct(np.array([0.0, 0.25, 0.0, 0.75]), 4)
    assert z.tolist() == [[0, 1], [1, 1], [1, 1], [1, 1]]
    np.testing.assert_allclose(np.exp(alpha), [0.25, 0.25, 0.25, 0.25])


@pytest.mark.parametrize("n", POWERS)
def test_binary_bits_give_a_point_of_the_simplex_with_at_most_k_non_zeros(n: int) -> None:
    rng = np.random.default_rng(n)
    for _ in range(300):
        k = int(rng.integers(1, n + 1))
        z = rng.integers(0, 2, (k, num_bits(n))).astype(float)
        q = gate(rng.normal(size=k) * 3, z, n)
        assert np.count_nonzero(q) <= k
        assert q.min() >= 0
        assert q.sum() == pytest.approx(1, abs=1e-12)


def test_tensors_are_answered_with_tensors_and_arrays_with_arrays() -> None:
    alpha, z = construct(torch.tensor([0.5, 0.0, 0.5]), 2)
    assert isinstance(alpha, Tensor)
    assert alpha.dtype == z.dtype == torch.float64
    assert isinstance(gate(alpha, z, 3), Tensor)
    assert isinstance(gate(alpha.numpy(), z.numpy(), 3), np.ndarray)


@pytest.mark.parametrize(
    ("w", "k", "reason"),
    [
        ([0.5, 0.5, 0.0], 1, "2 non-zeros, more than the k"),
        ([0.5, 0.5], 3, "at most the number of experts"),
        ([1.0], 0, "at least 1"),
        ([0.7, 0.7], 2, "simplex"),
        ([1.5, -0.5], 2, "simplex"),
        ([math.nan, 1.0], 2, "simplex"),
        ([], 1, "shape"),
    ],
)
def test_construct_refuses_what_is_no_sparse_point_of_the_simplex(
    w: list[float], k: int, reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        construct(np.array(w), k)


@pytest.mark.parametrize(
    ("k", "m", "n", "value", "reason"),
    [
        (2, 2, 8, 0.5, "z of shape"),
        (2, 3, 8, 1.5, r"must lie in \[0, 1\]"),
        (3, 1, 2, 0.5, "at most the number"),
        (1, 0, 0, 0.5, "at least 1"),
    ],
)
def test_gate_refuses_what_is_no_bits(k: int, m: int, n: int, value: float, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        gate(np.zeros(k), np.full((k, m), value), n)


# Reachability


@pytest.mark.parametrize("n", [3, 5, 6, 12])
def test_the_penalty_is_k_and_without_gradient_where_all_mass_is_reachable(n: int) -> None:
    z = (codes(n).double() * 2 - 1)[:3].unsqueeze(0).requires_grad_()  # three binary selectors
    penalty = reachability(selectors(smooth_step(z, 1.0), n))
    assert penalty.tolist() == [3.0]
    (slope,) = torch.autograd.grad(penalty.sum(), z)
    assert bool((slope == 0).all())


def test_the_penalty_is_inactive_too_where_only_what_cannot_leave_is_undecided() -> None:
    """With six experts, codes 0.. are all there: a first bit of 0 leaves the others free."""
    z = torch.tensor([[[-1.0, 0.1, -0.2]]], dtype=torch.float64, requires_grad=True)
    penalty = reachability(selectors(smooth_step(z, 1.0), 6))
    assert penalty.item() == pytest.approx(1, abs=1e-15)
    (slope,) = torch.autograd.grad(penalty.sum(), z)
    assert float(slope.abs().max()) < 1e-15


def test_the_penalty_grows_with_the_mass_on_codes_without_expert() -> None:
    on_seven = torch.linspace(0, 0.9, 10, dtype=torch.float64)
    bits = torch.stack([torch.ones(10), torch.ones(10), on_seven], dim=-1)[:, None]
    assert torch.all(reachability(selectors(bits.double(), 7)).diff() > 0)
    assert reachability(selectors(torch.ones(1, 1, 3), 7)).item() == math.inf
    assert reachability(selectors(torch.ones(1, 1, 3), 7), epsilon=1e-6).item() < math.inf


@pytest.mark.parametrize("features", [None, 3])
def test_one_selector_beyond_all_experts_neither_ends_a_run_nor_moves(features: int | None) -> None:
    """All mass of selector 0 of row 0 is on code 7 of six experts, and no bit has a slope."""
    torch.manual_seed(0)
    inputs = None if features is None else torch.eye(3)
    rows: dict[str, Any] = {"tasks": 3} if features is None else {"features": 3}
    losses = {}
    for epsilon in (1e-6, 0.0):
        dselect: Any = DSelectK(6, 2, epsilon=epsilon, **rows).train()
        with torch.no_grad():
            if features is None:
                dselect.z_logits[0, 0] = 1
            else:
                dselect.z_logits.weight[:3, 0] = 1
                dselect.z_logits.bias[:3] = 0
        weights, loss = dselect(inputs)
        losses[epsilon] = loss.item()
        (weights[:, 0].sum() + loss).backward()
        slope = dselect.z_logits.grad[0, 0] if features is None else dselect.z_logits.weight.grad
        if epsilon:
            assert all(bool(torch.isfinite(p.grad).all()) for p in dselect.parameters())
            assert bool((slope[:3, 0] == 0).all() if features else (slope == 0).all())
            others = dselect.z_logits.grad[0, 1] if features is None else slope[:3, 1]
            assert bool((others != 0).any())
            if features:  # the bias is shared with rows that do move, so the row can return
                assert bool((dselect.z_logits.bias.grad[:3] != 0).any())
    assert losses[1e-6] == pytest.approx(1e6, rel=1e-3)
    assert losses[0.0] == math.inf


def test_the_gates_penalty_is_constant_once_all_mass_is_reachable() -> None:
    dselect: Any = DSelectK(6, 2, tasks=1, entropy=0.0).double().train()
    with torch.no_grad():
        dselect.z_logits[:] = torch.tensor([-1.0, 0.1, -0.2])  # the first four codes
    loss = dselect().loss
    loss.backward()
    assert loss.item() == pytest.approx(2 / (1 + 1e-6), abs=1e-14)
    assert bool((dselect.z_logits.grad == 0).all())


@pytest.mark.parametrize(("n", "has_penalty"), [(8, False), (6, True)])
def test_only_sizes_that_are_no_power_of_two_have_the_penalty(n: int, has_penalty: bool) -> None:
    dselect = DSelectK(n, 2, tasks=3, entropy=0.0).train()
    assert (dselect().loss.item() >= 3 * 2) == has_penalty
    assert dselect.eval()().loss.item() == 0


# The gate as it is trained


@pytest.mark.parametrize("features", [None, 5])
@pytest.mark.parametrize(("n", "k"), [(2, 1), (8, 2), (16, 4), (64, 4)])
def test_the_gate_starts_near_uniform(n: int, k: int, features: int | None) -> None:
    torch.manual_seed(0)
    dselect = DSelectK(n, k, features=features)
    inputs = None if features is None else torch.rand(7, features)
    weights = dselect(inputs).weights.detach()
    # Every |z| is at most this many gamma/100, and S moves by at most 3/2 of z/gamma around 1/2.
    reach = 1 if features is None else features + 1
    largest_factor = (1 + 2 * 1.5 * reach / 100) ** num_bits(n)
    assert weights.max().item() * n < largest_factor
    assert weights.min().item() * n > 2 - largest_factor


@pytest.mark.parametrize("gamma", [0.1, 1.0, 10.0])
def test_initial_parameters_lie_in_their_bands(gamma: float) -> None:
    torch.manual_seed(0)
    for features, init, shrink in ((None, "scaled", 1), (16, "released", 1), (15, "scaled", 4)):
        dselect = DSelectK(64, 16, features=features, gamma=gamma, init=init)
        z = [p for name, p in dselect.named_parameters() if name.startswith("z_")]
        w = [p for name, p in dselect.named_parameters() if name.startswith("w_")]
        assert 0.5 < max(p.abs().max().item() for p in z) * shrink / (gamma / 100) <= 1
        assert 0.5 < max(p.abs().max().item() for p in w) * shrink / 0.05 <= 1
    with pytest.raises(UsageError, match="init 'wide' is none of scaled, released"):
        DSelectK(8, 2, features=4, init="wide")


GAMMAS = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0)  # of all studies


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("width", [512, 8192])
def test_no_bit_starts_binary_however_wide_the_input(width: int, gamma: float) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(64, width)
    shares = {
        init: DSelectK(16, 2, features=width, gamma=gamma, init=init).binary_share(inputs)
        for init in ("scaled", "released")
    }
    assert shares["scaled"] == 0
    assert (shares["released"] > 0.2) == (width == 8192)


@pytest.mark.parametrize("width", [16, 8192])
def test_a_wide_gate_starts_as_spread_as_a_static_one(width: int) -> None:
    torch.manual_seed(0)
    wide: Any = DSelectK(256, 8, features=width, gamma=0.5)
    inputs = torch.randn(256, width)
    # Uniform in ±bound: the deviation is bound / sqrt(3).
    assert wide.z_logits(inputs).std().item() == pytest.approx(0.005 / 3**0.5, rel=0.1)
    assert wide.w_logits(inputs).std().item() == pytest.approx(0.05 / 3**0.5, rel=0.25)


@pytest.mark.parametrize("init", ["scaled", "released"])
def test_a_static_gate_starts_as_released(init: str) -> None:
    torch.manual_seed(3)
    dselect: Any = DSelectK(16, 2, tasks=3, gamma=0.7, init=init)
    torch.manual_seed(3)
    assert torch.equal(dselect.z_logits, torch.empty(2, 3, 4).uniform_(-0.7 / 100, 0.7 / 100))
    assert torch.equal(dselect.w_logits, torch.empty(2, 3).uniform_(-0.05, 0.05))


def test_parameters_have_the_published_shapes() -> None:
    static = DSelectK(16, 3)
    assert static.z_logits.shape == (3, 1, 4)
    assert static.w_logits.shape == (3, 1)
    per_example = DSelectK(16, 3, features=10)
    shapes = {name: tuple(p.shape) for name, p in per_example.named_parameters()}
    assert shapes == {
        "z_logits.weight": (12, 10),
        "z_logits.bias": (12,),
        "w_logits.weight": (3, 10),
        "w_logits.bias": (3,),
    }


@pytest.mark.parametrize("n", [6, 8])
def test_the_module_is_the_enumerated_gate_of_its_smooth_steps(n: int) -> None:
    torch.manual_seed(1)
    static: Any = DSelectK(n, 2, tasks=3, gamma=2.0).double()
    with torch.no_grad():
        static.z_logits.uniform_(-1.2, 1.2)
    linear = DSelectK(n, 2, features=4, gamma=2.0).double()
    inputs = uniform(5, 4)
    bits = smooth_step(static.z_logits, 2.0).detach().numpy()
    for task in range(3):
        expected = enumerated(static.w_logits[:, task].detach().numpy(), bits[:, task], n)
        np.testing.assert_allclose(static().weights[task].detach(), expected, atol=1e-14)
    z = smooth_step(linear.z_logits(inputs), 2.0).view(5, 2, -1).detach().numpy()
    for row in range(5):
        expected = enumerated(linear.w_logits(inputs)[row].detach().numpy(), z[row], n)
        np.testing.assert_allclose(linear(inputs).weights[row].detach(), expected, atol=1e-14)


@pytest.mark.parametrize("n", [6, 8])
def test_gradients_agree_with_differences_in_double_precision_knots_included(n: int) -> None:
    gamma = 1.0
    z = uniform(2, 3, 3, low=-0.7, high=0.7)
    z[0, 0, 0], z[1, 1, 1], z[0, 1, 0] = gamma / 2, -gamma / 2, 0.9
    z.requires_grad_()

    def q(z: Tensor, alpha: Tensor) -> Tensor:
        r = selectors(smooth_step(z, gamma), n)
        return (alpha.softmax(-1).unsqueeze(-1) * r).sum(-2)

    alpha = uniform(2, 3).requires_grad_()
    assert torch.autograd.gradcheck(q, (z, alpha), eps=1e-7)


def test_a_saturated_bit_gets_no_gradient_and_stays() -> None:
    torch.manual_seed(0)
    dselect = DSelectK(8, 2, gamma=1.0)
    with torch.no_grad():
        dselect.z_logits[0] = torch.tensor([0.5, -0.5, 3.0])  # at the knots, and beyond
        dselect.z_logits[1] = torch.tensor([0.1, -0.5, 0.2])
    weights, loss = dselect.train()(None)
    ((weights * torch.arange(8)).sum() ** 2 + loss).backward()
    slope = dselect.z_logits.grad
    assert slope[0].tolist() == [[0, 0, 0]]
    assert slope[1, 0, 1] == 0
    assert bool((slope[1, 0, [0, 2]] != 0).all())
    assert dselect.binary_share() == pytest.approx(4 / 6)


# Entropy


def test_entropy_is_summed_or_averaged_over_rows_and_summed_over_selectors() -> None:
    n, k, rows = 8, 2, 5
    uniform_entropy = -math.log(1 / n + 1e-6)
    for over_rows, factor in (("sum", rows), ("mean", 1)):
        static = DSelectK(n, k, tasks=rows, entropy=0.3, over_rows=over_rows).double()
        with torch.no_grad():
            static.z_logits.zero_()
        expected = 0.3 * k * uniform_entropy * factor
        assert static.train()().loss.item() == pytest.approx(expected, rel=1e-12)
        assert static.eval()().loss.item() == 0
    with pytest.raises(UsageError, match="over_rows 'max' is none of sum, mean"):
        DSelectK(n, k, over_rows="max")


def test_the_schedule_counts_training_passes_and_survives_a_resume() -> None:
    dselect = DSelectK(4, 1, entropy=Ramp(1.0, 4)).train()
    with torch.no_grad():
        dselect.z_logits.zero_()
    losses = [dselect().loss.item() for _ in range(3)]
    dselect.eval()()
    resumed = DSelectK(4, 1, entropy=Ramp(1.0, 4)).train()
    resumed.load_state_dict(dselect.state_dict())
    losses += [resumed().loss.item() for _ in range(3)]
    full = losses[-1]
    assert full == pytest.approx(math.log(4), rel=1e-4)
    assert [loss / full for loss in losses] == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1])


def test_entropy_drives_selectors_to_single_experts() -> None:
    torch.manual_seed(0)
    dselect = DSelectK(8, 2, tasks=4, entropy=1.0).train()
    before = dselect.binary_share()
    optimizer = torch.optim.SGD(dselect.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        dselect().loss.backward()
        optimizer.step()
    assert before == 0
    assert int((dselect().weights > 1e-2).sum(dim=1).max()) <= 2


# Hardening


@pytest.mark.parametrize("features", [None, 5])
@pytest.mark.parametrize("n", [1, 5, 8, 12])
def test_hardened_weights_have_at_most_k_non_zeros_and_all_the_mass(
    n: int, features: int | None
) -> None:
    torch.manual_seed(n)
    k = min(n, 3)
    dselect = DSelectK(n, k, features=features, tasks=20 if features is None else 1)
    inputs = None if features is None else torch.randn(20, features) * 100
    soft = dselect.eval()(inputs).weights
    selection = dselect.select(inputs)
    dselect.harden()
    hard = dselect(inputs).weights
    assert int((hard != 0).sum(dim=1).max()) <= k
    torch.testing.assert_close(hard.sum(dim=1), torch.ones(20))
    dense = torch.zeros_like(hard).scatter_add(1, selection.ids.clamp(min=0), selection.weights)
    torch.testing.assert_close(dense, hard)
    if n > k:
        assert int((soft != 0).sum(dim=1).max()) > k


@pytest.mark.parametrize("n", [6, 8])
def test_where_all_bits_are_binary_hardening_changes_nothing(n: int) -> None:
    torch.manual_seed(n)
    dselect = DSelectK(n, 3, tasks=n)
    with torch.no_grad():
        dselect.z_logits.copy_((codes(n) * 2 - 1).float().expand(3, n, -1))
    assert dselect.binary_share() == 1
    soft = dselect().weights
    dselect.harden()
    torch.testing.assert_close(soft, dselect().weights, rtol=1e-6, atol=0)


def test_hardening_keeps_the_k_largest_weights() -> None:
    torch.manual_seed(0)
    dselect = DSelectK(16, 3, tasks=50)
    with torch.no_grad():
        dselect.z_logits.uniform_(-1, 1)
    soft = dselect().weights.detach().numpy()
    probabilities, weights, ids = dselect.select()
    np.testing.assert_allclose(probabilities, soft / soft.sum(axis=1, keepdims=True), rtol=1e-5)
    for task, row in enumerate(soft):
        best = sorted(range(16), key=lambda expert: -row[expert])[:3]
        kept = [expert for expert in best if row[expert] > 0]
        assert [i for i in ids[task].tolist() if i >= 0] == kept
        expected = row[kept] / row[kept].sum()
        np.testing.assert_allclose(weights[task, : len(kept)], expected, rtol=1e-5)


def test_an_undecided_bit_that_leaves_no_more_than_k_experts_is_not_rounded() -> None:
    dselect = DSelectK(8, 2)
    with torch.no_grad():
        dselect.z_logits.copy_(torch.tensor([0.9, -0.9, 0.1]).expand(2, 1, 3))
    soft = dselect().weights
    assert soft[0].nonzero().flatten().tolist() == [4, 5]
    dselect.harden()
    torch.testing.assert_close(dselect().weights, soft)


def test_where_no_mass_is_reachable_no_expert_is_selected() -> None:
    dselect = DSelectK(6, 1).eval()
    with torch.no_grad():
        dselect.z_logits.copy_(torch.ones(1, 1, 3))  # 111 is the code of no expert
    probabilities, weights, ids = dselect.select()
    assert (weights.tolist(), ids.tolist()) == ([[0.0]], [[-1]])
    assert probabilities.tolist() == dselect().weights.tolist() == [[0.0] * 6]


def test_one_expert_has_no_bits_and_all_the_weight() -> None:
    dselect = DSelectK(1, 1, tasks=3).train()
    weights, loss = dselect()
    assert weights.tolist() == [[1.0]] * 3
    assert abs(loss.item()) < 1e-5
    assert dselect.binary_share() == 1
    assert construct(np.ones(1), 1)[1].shape == (1, 0)
    per_example = DSelectK(1, 1, features=4)
    assert per_example(torch.rand(2, 4)).weights.tolist() == [[1.0], [1.0]]
