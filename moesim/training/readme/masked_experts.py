"""Read-ME's routers, which give a token one expert, and the masked experts of its training.

`MaskedExperts` keeps the dense weights and hides channels. This form is trained, because experts
share the channels that they have in common. Cut into `ChannelExperts` it gives the same outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class PathRouter(nn.Module):
    """A layer's stand-in router: it returns the decision of the model's one router."""

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.num_experts = num_experts
        self._decision: tuple[Tensor, Tensor, Tensor] | None = None

    def take(self, decision: tuple[Tensor, Tensor, Tensor]) -> None:
        """Set what `forward` returns until the next decision."""
        self._decision = decision

    def forward(self, hidden_TH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits `[T, N]`, weights `[T, 1]`, ids `[T, 1]`: the same in every layer."""
        assert self._decision is not None, "the model must call take() before its layers run"
        return self._decision


class LayerRouter(nn.Module):
    """The comparator, a usual router: one matrix on the hidden state, top-1."""

    def __init__(self, hidden: int, num_experts: int, *, scaled: bool) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.scaled = scaled
        self.linear = nn.Linear(hidden, num_experts, bias=False)
        self.logits: Tensor | None = None  # of the last forward pass, for the distillation loss

    def forward(self, hidden_TH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.logits = self.linear(hidden_TH)
        return decide(self.logits, scaled=self.scaled)


def decide(logits_TN: Tensor, *, scaled: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, weights `[T, 1]` and ids `[T, 1]` of the one expert that each row takes.

    A weight is the expert's probability if `scaled`, otherwise one.
    """
    ids = logits_TN.argmax(dim=-1, keepdim=True)
    if scaled:
        return logits_TN, logits_TN.softmax(dim=-1).gather(1, ids), ids
    return logits_TN, torch.ones_like(logits_TN[:, :1]), ids


class MaskedExperts(nn.Module):
    """A gated FFN `ffn` of D channels, of which expert n has those of `masks[n]` `[N, D]`."""

    masks: Tensor

    def __init__(self, ffn: nn.Module, masks_ND: Tensor) -> None:
        super().__init__()
        self.ffn: Any = ffn
        self.num_experts = len(masks_ND)
        self.register_buffer("masks", masks_ND.bool())

    def forward(self, hidden_TH: Tensor, ids_T1: Tensor, weights_T1: Tensor) -> Tensor:
        ffn = self.ffn
        inner = ffn.act_fn(ffn.gate_proj(hidden_TH)) * ffn.up_proj(hidden_TH)
        out: Tensor = ffn.down_proj(inner * self.masks[ids_T1[:, 0]].to(inner.dtype))
        return out * weights_T1
