"""A trained mixture as inference runs it: one task at a time, and of each row few experts.

A request is one task and some examples of it; the examples are its rows, and it decodes nothing.
The network is the mixture's own, put together as a router beside `*Experts`, which is the form that
the standard recorder reads: one mixture-of-experts layer. Of static gates all rows of a task have
the same experts, known before any request is there; per-example gates choose row by row.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from moesim.errors import UsageError
from moesim.models.gates import Gate, GateRouter
from moesim.models.gates.mixing import mix
from moesim.models.multitask.fitting import options_of
from moesim.models.multitask.mixture import Mixture


@dataclass(frozen=True, slots=True)
class ServedConfig:
    """What a trace's header says of the model; the spellings are Hugging Face's where it has one.

    No sizes of a decoder are in it, since there are none: whoever costs such a trace has to say
    whose sizes to assume.
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
        """All of it, whatever `use_diff`: there are no defaults to leave out."""
        return json.dumps(asdict(self))


class TaskRouter(nn.Module):
    """The gates of all tasks, one task at a time: `serve` says which, before the layer runs."""

    def __init__(self, gates: Sequence[Gate]) -> None:
        super().__init__()
        self.num_experts = gates[0].num_experts
        self.routers = nn.ModuleList(GateRouter(gate) for gate in gates)
        self._rows = [(number, row) for number, g in enumerate(gates) for row in range(g.tasks)]
        self._task = 0

    def serve(self, task: int) -> None:
        """The next forward passes are of this task, in the order of the mixture's towers."""
        self._task = task

    def forward(self, features_RF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities `[R, n]`, weights and ids `[R, k]`, as `GateRouter`."""
        number, row = self._rows[self._task]
        router = self.routers[number]
        assert isinstance(router, GateRouter)
        router.take(torch.full((len(features_RF),), row, device=features_RF.device))
        answer: tuple[Tensor, Tensor, Tensor] = router(features_RF)
        return answer


class MixtureExperts(nn.Module):
    """Runs an expert on the rows that selected it, and nowhere else; -1, of weight 0, runs none."""

    def __init__(self, experts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.num_experts = len(experts)
        self.experts = nn.ModuleList(experts)

    def forward(self, features_R: Tensor, ids_RK: Tensor, weights_RK: Tensor) -> Tensor:
        """`[R, ...]` to `[R, H]`. Raises `UsageError` where no row has an expert."""
        empty_RN = weights_RK.new_zeros(len(weights_RK), self.num_experts)
        weights_RN = empty_RN.scatter_add(1, ids_RK.clamp(min=0), weights_RK)
        return mix(weights_RN, list(self.experts), features_R)


class ServedMixture(nn.Module):
    """A `Mixture` that answers requests; it shares the mixture's weights.

    Outputs are those of the mixture hardened. It is put in evaluation mode, and the mixture's parts
    with it. Raises `UsageError` where gates differ in kind, in k, or in what they read: a trace has
    one router.
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
        """Of the experts' weights."""
        return next(self.experts.parameters()).dtype

    def number_of(self, task: str) -> int:
        """A task's place among the towers. Raises `UsageError` for a task that there is not."""
        if task not in self.tasks:
            raise UsageError(f"there is no task {task!r}; the mixture has {', '.join(self.tasks)}")
        return self.tasks.index(task)

    def forward(self, inputs_BC: Tensor, task: str) -> Tensor:
        """B requests of one task, C examples each: `[B, C, ...]` to `[B, C, O]`."""
        self.router.serve(self.number_of(task))
        features_R = self.trunk(inputs_BC.flatten(0, 1))
        _, weights_RK, ids_RK = self.router(features_R.flatten(1))
        states_RH = self.experts(features_R, ids_RK, weights_RK)
        outputs_RO: Tensor = self.towers[task](states_RH)
        return outputs_RO.view(*inputs_BC.shape[:2], *outputs_RO.shape[1:])
