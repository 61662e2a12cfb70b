"""A gate as the router of a language model's layer, in the form that the recorder reads."""

from __future__ import annotations

from torch import Tensor, nn

from moesim.errors import UsageError
from moesim.training.gates.base import Gate
from moesim.training.gates.mixing import places


class GateRouter(nn.Module):
    """The router beside a layer's `*Experts`, which run the ids that are not -1.

    A static gate does not read the hidden state. The model passes the ids of the tokens (or of
    their tasks) with `take` before its layers run.
    """

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate = gate
        self.num_experts = gate.num_experts
        self.loss: Tensor | None = None  # of the last forward pass in training mode
        self._ids_T: Tensor | None = None

    def take(self, ids_T: Tensor) -> None:
        """Set the ids of the next forward passes' tokens, for a static gate."""
        self._ids_T = ids_T

    def forward(self, hidden_TH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return probabilities `[T, n]`, weights and ids `[T, k]`.

        In training weights and ids are `[T, n]`: a gate that is not yet sparse has up to n.
        """
        inputs = self._ids_T if self.gate.static else hidden_TH
        if inputs is None or len(inputs) != len(hidden_TH):
            raise UsageError(
                f"{type(self.gate).__name__} is static and needs the ids of {len(hidden_TH)} "
                f"tokens, not {0 if inputs is None else len(inputs)}: call take() before the "
                "layers run"
            )
        if not self.training:
            return self.gate.select(inputs)
        weights_TN, self.loss = self.gate(inputs)
        return (weights_TN, *places(weights_TN))
