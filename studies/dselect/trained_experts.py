"""Experts that are learnt together with static gates, and how they compare with the true ones.

The problem is that of `recovery.py`: tasks that mix k of n *teacher* experts. Here a mixture learns
both parts: n experts of the teachers' architecture from a random start, and the gates.

Learnt experts have no names. If all of them and the gates' columns are permuted, nothing changes.
So each learnt expert is matched with one teacher: the assignment with the greatest sum of
correlations of outputs on held-out inputs. A match is *certain* if its correlation is at least 0.9
and no other is greater in its row or column. An expert that no task uses learns nothing, so its
match is arbitrary; it counts in no support. Figures that need no match are given beside: the number
of experts a task uses, and in how many experts two tasks agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import recovery
import torch
from recovery import HIDDEN, INPUTS, OUTPUTS, TRAINING, Cell, Problem, Run, Setting, descend
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from moesim.streams import stream
from moesim.training.gates import DSelectK, Gate
from moesim.training.gates.base import Gating, Scores, no_loss

BATCH: Final = 64
SNAPSHOTS: Final = 5  # along a run
CERTAIN: Final = 0.9  # least correlation of a certain match
BOUNDS: Final = ("true_supports", "random_supports")


class FixedSupport(Gate):
    """A static gate that learns the weights of given experts, `support [tasks, n]` of bool."""

    support: Tensor

    def __init__(self, support: Tensor) -> None:
        tasks, num_experts = support.shape
        super().__init__(num_experts, int(support.sum(dim=1).max()), tasks=tasks)
        self.scores = Scores(num_experts, None, tasks)
        self.register_buffer("support", support)

    def _mix(self, features_BF: Tensor | None) -> Gating:
        weights_TN = self._weights(features_BF)
        return Gating(weights_TN, no_loss(weights_TN))

    def _harden(self, features_BF: Tensor | None) -> tuple[Tensor, Tensor]:
        weights_TN = self._weights(features_BF)
        return weights_TN, weights_TN

    def _weights(self, features_BF: Tensor | None) -> Tensor:
        scores_TN: Tensor = self.scores(features_BF)
        return scores_TN.masked_fill(~self.support, -torch.inf).softmax(dim=-1)


class Experts(nn.Module):
    """n networks of one hidden layer, all run at once: `[B, I]` to `[n, B, O]`."""

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.inner = _normal(num_experts, INPUTS, HIDDEN, gain=2)
        self.inner_bias = nn.Parameter(torch.zeros(num_experts, 1, HIDDEN))
        self.outer = _normal(num_experts, HIDDEN, OUTPUTS, gain=1)
        self.outer_bias = nn.Parameter(torch.zeros(num_experts, 1, OUTPUTS))

    def forward(self, inputs_BI: Tensor) -> Tensor:
        inputs_NBI = inputs_BI.expand(len(self.inner), -1, -1)
        states_NBH = torch.baddbmm(self.inner_bias, inputs_NBI, self.inner).relu()
        return torch.baddbmm(self.outer_bias, states_NBH, self.outer)

    @torch.no_grad()
    def separate(self) -> list[nn.Sequential]:
        """Return a network `[B, I]` to `[B, O]` for each expert, with copies of the weights."""
        networks = []
        for number in range(len(self.inner)):
            first, second = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
            first.weight.copy_(self.inner[number].T)
            first.bias.copy_(self.inner_bias[number, 0])
            second.weight.copy_(self.outer[number].T)
            second.bias.copy_(self.outer_bias[number, 0])
            networks.append(nn.Sequential(first, nn.ReLU(), second))
        return networks


def _normal(num_experts: int, width: int, height: int, *, gain: float) -> nn.Parameter:
    return nn.Parameter(torch.randn(num_experts, width, height) * math.sqrt(gain / width))


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished training: its record, and the network."""

    run: Run
    gate: Gate
    experts: Experts


def make_gate(name: str, cell: Cell, problem: Problem, setting: Setting, seed: int) -> Gate:
    """Return a static gate for all tasks; bounds have the true supports or random ones."""
    if name == "true_supports":
        return FixedSupport(problem.truth != 0)
    if name == "random_supports":
        return FixedSupport(random_supports(cell, seed))
    options = {key: value for key, value in setting.items() if key not in ("gate_factor", "steps")}
    return recovery.make_gate(name, cell, options, setting["steps"])


def random_supports(cell: Cell, seed: int) -> Tensor:
    """Draw k of n experts for each task, `[tasks, n]` of bool, independent of the truth."""
    draw = stream(seed, "random supports")
    support = np.zeros((cell.tasks, cell.n), dtype=bool)
    for row in support:
        row[draw.choice(cell.n, cell.k, replace=False)] = True
    return torch.from_numpy(support)


def train(name: str, cell: Cell, setting: Setting, seed: int, steps: int) -> Trained:
    """Train experts and gates on one problem. Raise `MoesimError` if the loss is not finite.

    Rates stay constant in the first half and fall evenly to zero in the second.
    """
    problem = recovery.make_problem(cell, seed)
    torch.manual_seed(seed)
    gate = make_gate(name, cell, problem, {**setting, "steps": steps}, seed)
    torch.manual_seed(seed)  # gates draw different counts; experts must start alike
    experts = Experts(cell.n)
    rate = setting["lr"]
    optimizer = torch.optim.Adam(
        [
            {"params": list(experts.parameters()), "lr": rate},
            {"params": list(gate.parameters()), "lr": rate * setting["gate_factor"]},
        ],
        fused=True,  # few and small parameters, so most of a step is overhead
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, 2 * (1 - step / steps))
    )
    batches = torch.Generator().manual_seed(seed)
    every = max(1, steps // SNAPSHOTS)
    snapshots = [look(gate, experts, problem, 0)]
    for step in range(1, steps + 1):
        rows = torch.randint(TRAINING, (BATCH,), generator=batches)
        weights_TN, penalty = gate.train()()
        outputs_NBO = experts(problem.inputs[rows])
        error = torch.einsum("tn,nbo->bto", weights_TN, outputs_NBO) - problem.train_targets[rows]
        # A sum over tasks, not a mean: a task's gradient must not depend on how many others exist.
        loss = error.square().mean(dim=(0, 2)).sum() + penalty
        descend(optimizer, loss, f"{name} on {cell}, seed {seed}, {setting}", step)
        schedule.step()
        if step % every == 0 or step == steps:
            snapshots.append(look(gate, experts, problem, step))
    return Trained({"setting": setting, "snapshots": snapshots}, gate.eval(), experts)


@torch.no_grad()
def look(gate: Gate, experts: Experts, problem: Problem, step: int) -> dict[str, Any]:
    """Return losses and supports, as trained and hardened, and how well experts are matched."""
    weights_TN = gate.eval()().weights
    hard_TN = gate.select().dense()
    outputs_BNO = experts(problem.held_out_inputs).transpose(0, 1)
    match = match_experts(outputs_BNO, problem.held_out)
    learnt = Problem(
        *(problem.inputs, problem.held_out_inputs, problem.train, problem.train_targets),
        *(outputs_BNO, problem.held_out_targets, problem.truth[:, match.teachers]),
    )
    seen: dict[str, Any] = {
        "step": step,
        "correlation": float(match.correlations.mean()),
        "certain": float(match.certain.double().mean()),
        "binary": gate.binary_share() if isinstance(gate, DSelectK) else None,
        "lost": lost_experts(hard_TN),
    }
    k = gate.k
    for prefix, mixed_TN in (("", weights_TN), ("hard_", hard_TN)):
        used_T = (mixed_TN != 0).sum(dim=1)
        seen |= {
            f"{prefix}loss": recovery.relative_loss(mixed_TN, learnt),
            f"{prefix}exact": recovery.exact_support(mixed_TN, learnt.truth),
            f"{prefix}pairs": equal_overlaps(mixed_TN, problem.truth),
            f"{prefix}non_zeros": float(used_T.double().mean()),
            f"{prefix}at_most_k": float((used_T <= k).double().mean()),
        }
    return seen


def lost_experts(weights_TN: Tensor) -> float:
    """Return the share of experts that no task uses."""
    return float((weights_TN == 0).all(dim=0).double().mean())


def equal_overlaps(weights_TN: Tensor, truth_TN: Tensor) -> float:
    """Return the share of task pairs that share as many experts as in the truth; 1 if no pairs."""
    tasks = len(weights_TN)
    if tasks < 2:
        return 1.0
    rows, columns = torch.triu_indices(tasks, tasks, 1)
    ours_P, true_P = (
        ((each != 0).double() @ (each != 0).double().T)[rows, columns]
        for each in (weights_TN, truth_TN)
    )
    return float((ours_P == true_P).double().mean())


@dataclass(frozen=True, slots=True)
class Match:
    """The teacher of each learnt expert, `[n]`, their correlation, and whether it is certain."""

    teachers: Tensor
    correlations: Tensor
    certain: Tensor


def match_experts(learnt_BNO: Tensor, teachers_BNO: Tensor) -> Match:
    """Assign each learnt expert one teacher, so that the sum of correlations is greatest.

    An output that is constant has no correlation, and counts as 0.
    """
    ours_NE, theirs_NE = (_centred(each) for each in (learnt_BNO, teachers_BNO))
    correlation_NN = ours_NE @ theirs_NE.T
    rows, columns = linear_sum_assignment(-correlation_NN.numpy())
    teachers = torch.from_numpy(columns)
    matched_N = correlation_NN[torch.from_numpy(rows), teachers]
    best_N = (matched_N >= correlation_NN.amax(dim=1)) & (
        matched_N >= correlation_NN.amax(dim=0)[teachers]
    )
    return Match(teachers, matched_N, best_N & (matched_N >= CERTAIN))


def _centred(outputs_BNO: Tensor) -> Tensor:
    """Return each expert's outputs as one vector of mean 0 in each output and length 1."""
    centred_NE = (outputs_BNO - outputs_BNO.mean(dim=0)).transpose(0, 1).flatten(1).double()
    length_N1 = centred_NE.norm(dim=1, keepdim=True)
    return centred_NE / torch.where(length_N1 > 0, length_N1, 1)


def end_of(run: Run) -> dict[str, Any]:
    """Return a run's last snapshot."""
    snapshots: Sequence[dict[str, Any]] = run["snapshots"]
    return snapshots[-1]
