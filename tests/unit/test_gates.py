"""Gates keep one contract, agree with naive versions of themselves, and can route a model."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from moesim.errors import UsageError
from moesim.record.recorder import Recorder
from moesim.training.gates import (
    GATES,
    DSelectK,
    Gate,
    GateRouter,
    GumbelSoftmax,
    Hash,
    NoisyTopK,
    Softmax,
    Switch,
    TopK,
    build,
)
from moesim.training.gates.balance import expected_load, shares_product, squared_variation
from moesim.training.gates.mixing import activity, mix
from moesim.training.multitask.fitting import options_of

torch.set_num_threads(1)

N, F, ROWS = 6, 5, 40
LEARNT = sorted(GATES.keys() - {"hash"})


def made(name: str, *, static: bool, n: int = N, k: int | None = None, seed: int = 0) -> Gate:
    torch.manual_seed(seed)
    k = (1 if name == "switch" else 2) if k is None else k
    options: dict[str, Any] = {"tasks": ROWS} if static else {"features": F}
    return GATES[name](n, k, **options)


def inputs(*, static: bool, seed: int = 3) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    if static:
        return torch.randint(ROWS, (17,), generator=draw)
    return torch.randn(ROWS, F, generator=draw)


KINDS = [(name, static) for name in LEARNT for static in (True, False)] + [("hash", True)]
every_gate = pytest.mark.parametrize(("name", "static"), KINDS)


# The contract


@every_gate
def test_weights_lie_in_the_simplex_and_selections_are_their_heaviest(
    name: str, static: bool
) -> None:
    gate = made(name, static=static).eval()
    x = inputs(static=static)
    weights, loss = gate(x)
    assert weights.shape == (len(x), N)
    assert loss.shape == ()
    assert loss.item() == 0
    assert weights.min().item() >= 0
    assert weights.sum(dim=1).max().item() <= 1 + 1e-6
    chosen = gate.select(x)
    assert chosen.weights.shape == chosen.ids.shape == (len(x), gate.k)
    torch.testing.assert_close(chosen.probabilities.sum(dim=1), torch.ones(len(x)))
    assert torch.equal(chosen.ids == -1, chosen.weights == 0)
    assert bool((chosen.weights.diff(dim=1) <= 0).all())
    for ids in chosen.ids.tolist():
        used = [i for i in ids if i >= 0]
        assert used
        assert len(used) == len(set(used))
    if name in ("top_k", "noisy_top_k", "switch", "gumbel", "hash"):
        dense = torch.zeros_like(weights).scatter_add(1, chosen.ids.clamp(min=0), chosen.weights)
        torch.testing.assert_close(dense, weights)


@every_gate
def test_a_selection_is_the_same_in_training_and_in_evaluation(name: str, static: bool) -> None:
    gate = made(name, static=static)
    x = inputs(static=static)
    state = torch.random.get_rng_state()
    training, evaluation = gate.train().select(x), gate.eval().select(x)
    assert all(map(torch.equal, training, evaluation))
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("name", LEARNT)
@pytest.mark.parametrize("static", [True, False])
def test_weights_and_losses_reach_the_parameters(name: str, static: bool) -> None:
    gate = made(name, static=static).train()
    weights, loss = gate(inputs(static=static))
    (weights.square().sum() + loss).backward()
    moved = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in gate.parameters()]
    assert all(moved)


@every_gate
def test_a_static_gate_answers_each_id_with_its_own_row(name: str, static: bool) -> None:
    gate = made(name, static=static).eval()
    if not static:
        assert not gate.static
        with pytest.raises(UsageError, match=r"reads inputs of shape \(rows, 5\), not None"):
            gate()
        with pytest.raises(UsageError, match=r"not \(3, 4\)"):
            gate.select(torch.zeros(3, 4))
        return
    assert gate.static
    ids = inputs(static=True)
    assert torch.equal(gate(ids).weights, gate().weights[ids])
    assert torch.equal(gate.select(ids).ids, gate.select().ids[ids])
    with pytest.raises(UsageError, match="integer ids"):
        gate(torch.zeros(3))
    with pytest.raises(UsageError, match=f"ids from -1 to {ROWS}: .* knows 0 to {ROWS - 1}"):
        gate(torch.tensor([-1, ROWS]))


@pytest.mark.parametrize("name", LEARNT)
def test_a_static_gates_loss_does_not_depend_on_the_batch(name: str) -> None:
    gate = made(name, static=True).train()
    losses = []
    for ids in (None, torch.tensor([0]), torch.zeros(100, dtype=torch.int64)):
        torch.manual_seed(5)
        if isinstance(gate, DSelectK):
            gate.passes.zero_()
        losses.append(gate(ids).loss.item())
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize("name", sorted(GATES))
def test_impossible_sizes_are_refused_with_the_rule(name: str) -> None:
    for n, k, reason in (
        (4, 5, "k .5. must be at least 1 and at most"),
        (4, 0, "k .0."),
        (0, 1, "0"),
    ):
        with pytest.raises(UsageError, match=reason):
            GATES[name](n, k, tasks=3)
    with pytest.raises(UsageError, match=r"tasks .0. must be at least 1"):
        GATES[name](4, 1, tasks=0)
    if name != "hash":
        with pytest.raises(UsageError, match=r"features .0. must be at least 1"):
            GATES[name](4, 1, features=0)
        with pytest.raises(UsageError, match="no parameters for each of 2 tasks"):
            GATES[name](4, 1, features=3, tasks=2)


@pytest.mark.parametrize("name", sorted(GATES.keys() - {"switch"}))
@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_one_expert_and_all_experts_can_be_selected(name: str, n: int) -> None:
    gate = made(name, static=True, n=n, k=n).train()
    weights, loss = gate()
    if name != "dselect_k" or n != 5:  # whose selectors have mass on codes without expert
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(ROWS))
    assert torch.isfinite(loss)
    assert gate.select().ids.shape == (ROWS, n)


# Each gate against a naive version of itself


def test_softmax_keeps_all_and_when_cut_rescales_the_largest() -> None:
    gate = made("softmax", static=False, k=N)
    x = inputs(static=False)
    scores = gate.get_submodule("scores")(x).detach().double().numpy()
    p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(gate(x).weights.detach(), p, rtol=1e-5)
    np.testing.assert_allclose(gate.select(x).weights, -np.sort(-p, axis=1), rtol=1e-5)
    gate.k = 2
    top = -np.sort(-p, axis=1)[:, :2]
    np.testing.assert_allclose(
        gate.select(x).weights, top / top.sum(axis=1, keepdims=True), rtol=1e-5
    )


@pytest.mark.parametrize("name", ["top_k", "noisy_top_k"])
def test_top_k_is_a_softmax_over_the_kept_scores(name: str) -> None:
    gate = made(name, static=False, k=3).eval()
    x = inputs(static=False)
    weights = gate(x).weights.detach().numpy()
    for row, scores in enumerate(gate.get_submodule("scores")(x).detach().double().numpy()):
        kept = sorted(range(N), key=lambda i: -scores[i])[:3]
        expected = np.zeros(N)
        expected[kept] = np.exp(scores[kept]) / np.exp(scores[kept]).sum()
        np.testing.assert_allclose(weights[row], expected, rtol=1e-5)


def test_alone_a_kept_score_has_weight_one_and_learns_nothing_where_switch_does() -> None:
    x = inputs(static=False)
    slopes = {}
    for gate in (TopK(N, 1, features=F), Switch(N, features=F, balance=0.0)):
        gate.train()(x).weights.square().sum().backward()
        slopes[type(gate)] = gate.scores.linear.weight.grad.abs().sum().item()
    assert slopes[TopK] == 0
    assert slopes[Switch] > 0


def test_noise_has_the_learnt_deviation_and_only_in_training() -> None:
    gate = NoisyTopK(N, 1, tasks=1)
    with torch.no_grad():
        gate.scores.table.copy_(torch.tensor([[0.0, 0, 0, 0, 0, 1]]))
        gate.noise.table.fill_(50.0)  # softplus: a deviation of 50
    assert gate.eval()().weights.argmax().item() == 5
    picks = torch.stack([gate.train()().weights[0] for _ in range(600)]).mean(dim=0)
    assert picks.min().item() > 0.08
    with torch.no_grad():
        gate.noise.table.fill_(-50.0)
    assert all(gate()[0].argmax().item() == 5 for _ in range(50))


def test_noisy_top_ks_loss_is_the_variation_of_importance_and_load() -> None:
    torch.manual_seed(0)
    gate = NoisyTopK(N, 2, features=F, importance=0.3, load=0.7)
    with torch.no_grad():
        gate.noise.linear.weight.normal_()
    x = inputs(static=False)
    torch.manual_seed(9)
    weights, loss = gate.train()(x)
    torch.manual_seed(9)
    clean = gate.scores(x)
    scale = nn.functional.softplus(gate.noise(x))
    noisy = clean + scale * torch.randn_like(clean)
    load = naive_load(clean, noisy, scale, 2)
    importance = weights.detach().sum(dim=0).double().numpy()
    expected = 0.3 * importance.var() / importance.mean() ** 2 + 0.7 * load.var() / load.mean() ** 2
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def naive_load(clean: Tensor, noisy: Tensor, scale: Tensor, k: int) -> Any:
    """Return each expert's load: its chance to beat the k-th other score, summed over rows."""
    normal = torch.distributions.Normal(0.0, 1.0)
    rows, n = clean.shape
    load = np.zeros(n)
    for row, expert in itertools.product(range(rows), range(n)):
        others = sorted((noisy[row, i].item() for i in range(n) if i != expert), reverse=True)
        ahead = (clean[row, expert] - others[k - 1]) / scale[row, expert]
        load[expert] += normal.cdf(ahead.detach()).item()
    return load


@pytest.mark.parametrize("k", [1, 2, 5])
def test_expected_load_excludes_an_experts_own_score(k: int) -> None:
    torch.manual_seed(k)
    clean, noise, scale = torch.randn(20, N), torch.randn(20, N), torch.rand(20, N) + 0.1
    noisy = clean + noise * scale
    expected = naive_load(clean, noisy, scale, k)
    np.testing.assert_allclose(expected_load(clean, noisy, scale, k), expected, rtol=1e-4)
    assert expected_load(clean, noisy, scale, N).tolist() == [20.0] * N


def test_expected_load_is_what_redrawn_noise_gives() -> None:
    torch.manual_seed(0)
    clean, scale = torch.randn(1, N).double(), torch.rand(1, N).double() + 0.2
    noisy = clean + scale * torch.randn(1, N)
    expert = 3
    redrawn = noisy.repeat(20_000, 1)
    redrawn[:, expert] = clean[0, expert] + scale[0, expert] * torch.randn(20_000)
    chosen = (redrawn.topk(2).indices == expert).any(dim=1).double().mean().item()
    assert expected_load(clean, noisy, scale, 2)[expert].item() == pytest.approx(chosen, abs=0.02)


def test_switch_sends_each_row_to_its_likeliest_expert_scaled_by_its_probability() -> None:
    gate = Switch(N, features=F, balance=0.5).train()
    x = inputs(static=False)
    weights, loss = gate(x)
    p = gate.scores(x).softmax(dim=1).detach()
    best = p.max(dim=1)
    assert torch.equal(gate.select(x).ids[:, 0], best.indices)
    torch.testing.assert_close(weights.sum(dim=1), best.values)
    assert int((weights != 0).sum()) == ROWS
    share = [best.indices.tolist().count(i) / ROWS for i in range(N)]
    expected = N * sum(f * p[:, i].mean().item() for i, f in enumerate(share))
    assert loss.item() == pytest.approx(0.5 * expected, rel=1e-5)
    with pytest.raises(UsageError, match="must be 1: Switch routes to one expert"):
        Switch(N, 2)


def test_top_ks_balance_is_switchs_for_k_choices() -> None:
    x = inputs(static=False)
    gate = TopK(N, 3, features=F, balance=0.5).train()
    p = gate.scores(x).softmax(dim=1).detach()
    choices = gate.select(x).ids.flatten().tolist()
    expected = N * sum(choices.count(i) / len(choices) * p[:, i].mean().item() for i in range(N))
    assert gate(x).loss.item() == pytest.approx(0.5 * expected, rel=1e-5)
    assert TopK(N, 3, features=F).train()(x).loss.item() == 0


def test_both_balance_losses_are_least_at_balance() -> None:
    assert squared_variation(torch.full((N,), 3.0)).item() == 0
    one = torch.zeros(N).index_fill(0, torch.tensor([2]), 7.0)
    assert squared_variation(one).item() == pytest.approx(N - 1)
    balanced = torch.eye(N).repeat(5, 1)
    assert shares_product(balanced, balanced > 0).item() == pytest.approx(1)
    assert shares_product(one.expand(9, N) / 7, one.expand(9, N) > 0).item() == pytest.approx(N)
    torch.manual_seed(0)
    for _ in range(300):  # whatever the shares, chosen as often as they are likely
        chosen = nn.functional.one_hot(torch.randint(N, (30,)) % torch.randint(1, N + 1, ()), N)
        assert shares_product(chosen.double(), chosen).item() >= 1 - 1e-12
        assert squared_variation(torch.rand(N)).item() >= 0


def test_descending_switchs_loss_evens_out_the_load() -> None:
    torch.manual_seed(0)
    gate = Switch(4, features=F, balance=1.0).train()
    with torch.no_grad():
        gate.scores.linear.bias[0] = 2.0  # all to one
    x = torch.randn(400, F)

    def largest_share() -> float:
        return gate.select(x).ids.flatten().bincount(minlength=4).max().item() / 400

    before = largest_share()
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        gate(x).loss.backward()
        optimizer.step()
    assert before > 0.8
    assert largest_share() < 0.4


@pytest.mark.parametrize(("n", "k", "tasks"), [(4, 1, 100), (6, 2, 60), (8, 3, 61), (5, 5, 12)])
def test_hash_is_balanced_over_ids_and_fixed_by_its_seed(n: int, k: int, tasks: int) -> None:
    gate = Hash(n, k, tasks=tasks)
    ids = gate.select().ids
    counts = ids.flatten().bincount(minlength=n)
    # The last block may be cut short; all others deal every expert k times.
    assert counts.max().item() - counts.min().item() <= (k if tasks % n else 0)
    assert torch.equal(ids, Hash(n, k, tasks=tasks).select().ids)
    if n > k:
        assert not torch.equal(ids, Hash(n, k, tasks=tasks, seed=1).select().ids)
    assert not list(gate.parameters())
    torch.testing.assert_close(gate().weights[gate().weights > 0], torch.full((tasks * k,), 1 / k))


def test_hash_deals_more_sets_of_experts_than_there_are_experts() -> None:
    sets = Hash(6, 2, tasks=600).select().ids.sort(dim=1).values
    assert len(sets.unique(dim=0)) == 15  # all of them


def test_gumbel_samples_experts_as_often_as_softmax_says() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    gate = GumbelSoftmax(4, 1, tasks=1, temperature=0.5, straight_through=True).train()
    with torch.no_grad():
        gate.scores.table.copy_(logits)
        picks = torch.stack([gate()[0][0] for _ in range(4000)])
    assert set(picks.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(picks.mean(dim=0), logits.softmax(1)[0], atol=0.03, rtol=0)
    assert gate.select().ids.tolist() == [[2]]


def test_straight_through_keeps_k_forward_and_learns_from_all_backward() -> None:
    x = inputs(static=False)
    weight = torch.arange(N).float()

    def run(straight_through: bool) -> tuple[Tensor, Any]:
        torch.manual_seed(0)
        gate = GumbelSoftmax(N, 2, features=F, straight_through=straight_through).train()
        weights = gate(x).weights
        (weights * weight).sum().backward()
        return weights.detach(), gate.scores.linear.weight.grad

    soft, slope = run(False)
    hard, same = run(True)
    torch.testing.assert_close(slope, same)
    assert bool((soft > 0).all())
    assert bool(((hard > 0).sum(dim=1) == 2).all())
    assert torch.equal(hard.topk(2).indices, soft.topk(2).indices)
    torch.testing.assert_close(hard.sum(dim=1), torch.ones(ROWS))


def test_a_low_temperature_nears_one_expert() -> None:
    gate = made("gumbel", static=False).train()
    assert isinstance(gate, GumbelSoftmax)
    gate.temperature = 0.01
    assert gate(inputs(static=False)).weights.amax(dim=1).median().item() > 0.99
    with pytest.raises(UsageError, match=r"temperature .0. must be positive"):
        GumbelSoftmax(4, 1, temperature=0)


# Conditional computation


class Expert(nn.Linear):
    """Linear, and counts the rows it was given."""

    rows = 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        return super().forward(x)


def experts(n: int = N) -> list[Expert]:
    torch.manual_seed(7)
    return [Expert(F, 3) for _ in range(n)]


def hardened(k: int = 2) -> DSelectK:
    torch.manual_seed(1)
    gate = DSelectK(8, k, features=F, gamma=0.02, entropy=0.0, init="released")
    with torch.no_grad():
        gate.z_logits.weight.mul_(100)  # nearly all bits of nearly all rows are binary
    return gate


GATED: list[Any] = [hardened(), TopK(8, 2, features=F), Switch(8, features=F)]


@pytest.mark.parametrize("gate", GATED, ids=lambda gate: type(gate).__name__)
def test_skipping_experts_without_weight_changes_neither_output_nor_gradient(gate: Gate) -> None:
    x = inputs(static=False)
    assert 0 < activity(gate(x).weights).share < 0.6
    answers = []
    for skip in (True, False):
        mixture = experts(8)
        gate.zero_grad()
        weights = gate.train()(x).weights
        if skip:
            out = mix(weights, mixture, x)
        else:
            out = torch.einsum("bn,nbo->bo", weights, torch.stack([f(x) for f in mixture]))
        out.square().sum().backward()
        parameters = [*gate.parameters(), *(p for f in mixture for p in f.parameters())]
        slopes = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
        answers.append([out.detach(), *slopes])
    for skipped, dense in zip(*answers, strict=True):
        torch.testing.assert_close(skipped, dense, rtol=1e-4, atol=1e-5)


def test_the_share_of_active_experts_is_the_share_of_flops_that_torch_counts() -> None:
    gate = hardened()
    x = inputs(static=False)

    def flops(weights: Tensor) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            mix(weights, experts(8), x)
        return counter.get_total_flops()

    dense = flops(torch.ones(ROWS, 8))
    before = activity(gate(x).weights)
    assert flops(gate(x).weights) == pytest.approx(before.share * dense)
    assert before.flops(dense / (ROWS * 8)) == pytest.approx(flops(gate(x).weights))
    gate.harden()
    after = activity(gate(x).weights)
    assert flops(gate(x).weights) == pytest.approx(after.share * dense)
    assert after.share <= 2 / 8 <= before.share


def test_a_gate_starts_dense_and_saves_only_once_its_bits_are_binary() -> None:
    torch.manual_seed(0)
    gate = DSelectK(16, 2, tasks=4)
    assert activity(gate().weights).share == 1
    gate.harden()
    assert activity(gate().weights).share <= 2 / 16


def test_activity_counts_pairs_and_distinct_experts() -> None:
    weights = torch.tensor([[0.5, 0.5, 0, 0], [1.0, 0, 0, 0]])
    seen = activity(weights)
    assert (seen.rows, seen.num_experts, seen.pairs, seen.experts) == (2, 4, 3, 2)
    assert seen.share == 3 / 8
    mixture = experts(4)
    mix(weights, mixture, torch.randn(2, F))
    assert [f.rows for f in mixture] == [2, 1, 0, 0]
    with pytest.raises(UsageError, match="none of the 4 experts"):
        mix(torch.zeros(2, 4), mixture, torch.randn(2, F))


# A gate as a language model's router


class TinyExperts(nn.Module):
    """Runs (hidden, ids, weights) of any number of places; -1 runs nothing."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.num_experts = n
        self.matrices = nn.Parameter(torch.randn(n, F, F) / 4)

    def forward(self, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        out = torch.zeros_like(hidden)
        for token, place in (ids >= 0).nonzero().tolist():
            step = hidden[token] @ self.matrices[ids[token, place]] * weights[token, place]
            out = out.index_add(0, torch.tensor([token]), step[None])
        return out


class Block(nn.Module):
    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.router = GateRouter(gate)
        self.experts = TinyExperts(gate.num_experts)

    def forward(self, hidden: Tensor) -> Tensor:
        flat = hidden.reshape(-1, F)
        _, weights, ids = self.router(flat)
        return hidden + self.experts(flat, ids, weights).view_as(hidden)


class Model(nn.Module):
    def __init__(self, gates: list[Gate]) -> None:
        super().__init__()
        self.embed = nn.Embedding(ROWS, F)
        self.layers = nn.ModuleList(Block(gate) for gate in gates)

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = self.embed(input_ids)
        for block in self.layers:
            block.router.take(input_ids.flatten())
        for block in self.layers:
            hidden = block(hidden)
        return hidden


@every_gate
def test_the_recorder_records_what_a_gate_selects(name: str, static: bool) -> None:
    model: Any = Model([made(name, static=static, seed=seed) for seed in range(3)]).eval()
    ids = torch.randint(ROWS, (2, 7), generator=torch.Generator().manual_seed(0))
    hidden: list[Tensor] = []
    for block in model.layers:
        block.router.register_forward_pre_hook(lambda _, args: hidden.append(args[0]))
    with torch.no_grad(), Recorder(model, prediction_depth=1, probabilities=True) as recorder:
        model(input_ids=ids)
        recording = recorder.take()
    for index, block in enumerate(model.layers):
        chosen = block.router.gate.select(ids.flatten() if static else hidden[index])
        shape = (2, 7, -1)
        assert np.array_equal(recording.expert_ids[:, :, index], chosen.ids.view(shape))
        assert np.array_equal(recording.gate_weights[:, :, index], chosen.weights.view(shape))
        np.testing.assert_allclose(
            recording.probabilities[:, :, index], chosen.probabilities.view(shape), atol=1e-3
        )
    if static:  # known ahead of every hidden state: predictions of the next layer are exact
        assert np.array_equal(recording.predictions[:, :, :2, 0], recording.expert_ids[:, :, 1:])


@every_gate
def test_in_training_a_router_runs_every_expert_that_has_weight(name: str, static: bool) -> None:
    block = Block(made(name, static=static)).train()
    tokens = torch.randint(ROWS, (11,))
    block.router.take(tokens)
    hidden = torch.randn(11, F)
    torch.manual_seed(3)
    out = block(hidden)
    torch.manual_seed(3)
    dense, _ = block.router.gate(tokens if static else hidden)
    expected = hidden + torch.einsum("tn,th,nho->to", dense, hidden, block.experts.matrices)
    torch.testing.assert_close(out, expected)
    assert block.router.loss is not None
    assert torch.isfinite(block.router.loss)


def test_a_static_gate_that_was_told_no_ids_says_so() -> None:
    router = GateRouter(made("hash", static=True))
    with pytest.raises(UsageError, match="needs the ids of 4 tokens, not 0"):
        router(torch.zeros(4, F))
    router.take(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(UsageError, match="needs the ids of 4 tokens, not 3"):
        router(torch.zeros(4, F))


@pytest.mark.parametrize("name", LEARNT)
def test_a_gate_that_is_saved_and_loaded_selects_the_same(name: str) -> None:
    gate, other = (made(name, static=True, seed=seed) for seed in (0, 1))
    if isinstance(gate, DSelectK):
        gate.harden()
    other.load_state_dict(gate.state_dict())
    assert torch.equal(gate.eval()().weights, other.eval()().weights)


def test_how_a_gate_starts_is_an_option_and_part_of_what_a_run_must_share() -> None:
    gate = build("dselect_k", 8, 2, {"init": "released"}, features=4)
    assert options_of(gate)["init"] == "'released'"
    assert options_of(build("dselect_k", 8, 2, features=4))["init"] == "'scaled'"
    with pytest.raises(UsageError, match="init 1 must be of type str"):
        build("dselect_k", 8, 2, {"init": 1}, features=4)


def test_the_registry_names_every_gate() -> None:
    assert set(GATES.values()) == {DSelectK, TopK, NoisyTopK, Softmax, Switch, GumbelSoftmax, Hash}
