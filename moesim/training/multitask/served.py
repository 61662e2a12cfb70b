"""A trained mixture in inference: one task at a time, and few experts a row.

A request is one task and some examples of it. The examples are its rows, and it decodes nothing.
The network is the mixture's own, arranged as a router beside `*Experts`. The standard recorder
reads this form as one mixture-of-experts layer. With static gates all rows of a task have the same
experts, known before any request arrives. Per-example gates choose row by row.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from moesim.errors import UsageError
from moesim.training.gates import Gate, GateRouter
from moesim.training.gates.mixing import mix
from moesim.training.multitask.fitting import options_of
from moesim.training.multitask.mixture import Mixture


@dataclass(frozen=True, slots=True)
class ServedConfig:
    """The model's entry in a trace's header, in Hugging Face's spellings where they exist.

    It has no sizes of a decoder, because there is none. A scenario that costs such a trace must
    name the sizes to assume.
    """

    name: str
    routing: str  # static or layerwise, as in a trace's header
    num_experts: int
    num_experts_per_tok: int
    gate: str
    gate_options: dict[str, str]
    tasks: tuple[str, ...]
    model_type: str = "moesim_mixture"

    @property
    def _name_or_path(self) -> str:
        return self.name

    def to_json_string(self, use_diff: bool = True) -> str:
        """Return all fields; `use_diff` changes nothing, as there are no defaults to leave out."""
        return json.dumps(asdict(self))


class TaskRouter(nn.Module):
    """The gates of all tasks; `serve` sets the current task before the layer runs."""

    def __init__(self, gates: Sequence[Gate]) -> None:
        super().__init__()
        self.num_experts = gates[0].num_experts
        self.routers = nn.ModuleList(GateRouter(gate) for gate in gates)
        self._rows = [(number, row) for number, g in enumerate(gates) for row in range(g.tasks)]
        self._task = 0

    def serve(self, task: int) -> None:
        """Set the task of the next forward passes: its number in the order of the towers."""
        self._task = task

    def forward(self, features_RF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return probabilities `[R, n]`, weights and ids `[R, k]`, as `GateRouter` does."""
        number, row = self._rows[self._task]
        router = self.routers[number]
        assert isinstance(router, GateRouter)
        router.take(torch.full((len(features_RF),), row, device=features_RF.device))
        answer: tuple[Tensor, Tensor, Tensor] = router(features_RF)
        return answer


class MixtureExperts(nn.Module):
    """Experts that run only on the rows that selected them; id -1, of weight 0, runs none."""

    def __init__(self, experts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.num_experts = len(experts)
        self.experts = nn.ModuleList(experts)

    def forward(self, features_R: Tensor, ids_RK: Tensor, weights_RK: Tensor) -> Tensor:
        """Return `[R, H]` of `[R, ...]`. Raise `UsageError` if no row has an expert."""
        # Places with id -1 have weight 0, so adding them to expert 0 changes nothing.
        empty_RN = weights_RK.new_zeros(len(weights_RK), self.num_experts)
        weights_RN = empty_RN.scatter_add(1, ids_RK.clamp(min=0), weights_RK)
        return mix(weights_RN, list(self.experts), features_R)


class ServedMixture(nn.Module):
    """A `Mixture` that answers requests; it shares the mixture's weights.

    Outputs are those of the hardened mixture. The mixture's parts are put in evaluation mode.
    Raises `UsageError` if gates differ in kind, in k, or in their input, as a trace has one router.
    """

    def __init__(self, mixture: Mixture, name: str = "mixture") -> None:
        super().__init__()
        gates = [gate for gate in mixture.gates if isinstance(gate, Gate)]
        kinds = {(type(gate).__name__, gate.k, gate.static) for gate in gates}
        if len(kinds) > 1:
            said = [f"{n}, k {k}, {'static' if s else 'per-example'}" for n, k, s in sorted(kinds)]
            raise UsageError(
                "a trace has one router, so all tasks need gates of one kind and one k; this "
                f"mixture has {'; '.join(said)}"
            )
        self.tasks = tuple(mixture.towers)
        self.trunk = mixture.trunk
        self.router = TaskRouter(gates)
        self.experts = MixtureExperts(list(mixture.experts))
        self.towers = mixture.towers
        self.config = ServedConfig(
            name=name,
            routing="static" if gates[0].static else "layerwise",
            num_experts=gates[0].num_experts,
            num_experts_per_tok=gates[0].k,
            gate=type(gates[0]).__name__,
            gate_options=options_of(gates[0]),
            tasks=self.tasks,
        )
        self.eval()

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of the experts' weights."""
        return next(self.experts.parameters()).dtype

    def number_of(self, task: str) -> int:
        """Return a task's place among the towers. Raise `UsageError` for an unknown task."""
        if task not in self.tasks:
            raise UsageError(f"there is no task {task!r}; the mixture has {', '.join(self.tasks)}")
        return self.tasks.index(task)

    def forward(self, inputs_BC: Tensor, task: str) -> Tensor:
        """Return `[B, C, O]` of `[B, C, ...]`: B requests of one task with C examples each."""
        self.router.serve(self.number_of(task))
        features_R = self.trunk(inputs_BC.flatten(0, 1))
        _, weights_RK, ids_RK = self.router(features_R.flatten(1))
        states_RH = self.experts(features_R, ids_RK, weights_RK)
        outputs_RO: Tensor = self.towers[task](states_RH)
        return outputs_RO.view(*inputs_BC.shape[:2], *outputs_RO.shape[1:])
