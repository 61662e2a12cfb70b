"""A multi-task mixture of experts: every task mixes the same experts with its own weights.

    y_t = tower_t( sum over i of q_t,i · f_i(trunk(x)) )

Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts",
KDD 2018, with any of the gates. An expert runs only on rows in which some task needs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from moesim.errors import UsageError
from moesim.training.gates import Gate
from moesim.training.gates.mixing import Activity, activity, mix_shared


class Mixed(NamedTuple):
    """The result of a forward pass over B rows."""

    outputs: Mapping[str, Tensor]  # of each task, (B, O)
    loss: Tensor  # (), of the gates
    activity: Activity  # of the experts, over all tasks


class Mixture(nn.Module):
    """Experts `[B, ...] -> [B, H]`, gates, and a named tower `[B, H] -> [B, O]` for each task.

    `gates` give the tasks' weights in order. A static gate serves all tasks that it has; a
    per-example gate serves one task, and reads the trunk's flattened output. Raises `UsageError`
    if the gates' numbers of experts or tasks do not fit.
    """

    def __init__(
        self,
        experts: Sequence[nn.Module],
        gates: Sequence[Gate],
        towers: Mapping[str, nn.Module],
        *,
        trunk: nn.Module | None = None,
    ) -> None:
        super().__init__()
        rows = sum(gate.tasks for gate in gates)
        if rows != len(towers):
            raise UsageError(f"the gates have weights of {rows} tasks, not of {len(towers)}")
        for gate in gates:
            if gate.num_experts != len(experts):
                raise UsageError(
                    f"a gate of {gate.num_experts} experts cannot mix {len(experts)} of them"
                )
        self.experts = nn.ModuleList(experts)
        self.gates = nn.ModuleList(gates)
        self.towers = nn.ModuleDict(towers)
        self.trunk = nn.Identity() if trunk is None else trunk

    def forward(self, inputs: Tensor, *, hardened: bool = False) -> Mixed:
        """Run all tasks; `hardened` as in inference, with at most k experts a task."""
        features = self.trunk(inputs)
        weights_TBN, loss = self.weights(features, hardened=hardened)
        states_TBH = mix_shared(weights_TBN, list(self.experts), features)
        outputs = {
            name: tower(states_BH)
            for (name, tower), states_BH in zip(self.towers.items(), states_TBH, strict=True)
        }
        return Mixed(outputs, loss, activity(weights_TBN.detach().amax(dim=0)))

    def weights(self, features: Tensor, *, hardened: bool = False) -> tuple[Tensor, Tensor]:
        """Return weights `[T, B, n]` of the experts for each task, and the gates' loss."""
        parts, loss = [], features.new_zeros((), dtype=torch.float32)
        for gate in self.gates:
            assert isinstance(gate, Gate)
            inputs = None if gate.static else features.flatten(1)
            if hardened:
                weights = gate.select(inputs).dense()
            else:
                weights, own = gate(inputs)
                loss = loss + own
            # A static gate has one row for each of its tasks, a per-example gate one for each
            # example.
            each = weights[:, None] if gate.static else weights[None]
            parts.append(each.expand(-1, len(features), -1))
        return torch.cat(parts), loss


@torch.no_grad()
def flops_per_row(module: nn.Module, row: Tensor) -> int:
    """Return the FLOPs of matrix products and convolutions in one forward pass of a row.

    `row` has no batch dimension.
    """
    with FlopCounterMode(display=False) as counter:
        module(row[None])
    return int(counter.get_total_flops())
