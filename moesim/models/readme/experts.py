"""What becomes of a gated FFN: experts that are subsets of its channels, and one for each token.

`MaskedExperts` keeps the dense weights and hides channels: the form that is trained, in which
experts share what they have in common. `ChannelExperts` has each expert's rows and columns as
matrices of their own, in the form in which transformers keeps experts, so that whatever records
or offloads those does these. Both give the same outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class PathRouter(nn.Module):
    """Stands where a layer's router would: says what the model's one router has decided."""

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.num_experts = num_experts
        self._decision: tuple[Tensor, Tensor, Tensor] | None = None

    def take(self, decision: tuple[Tensor, Tensor, Tensor]) -> None:
        """What `forward` answers until the next forward pass."""
        self._decision = decision

    def forward(self, hidden_TH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits `[T, N]`, weights `[T, 1]`, ids `[T, 1]` of this forward pass, in every layer."""
        assert self._decision is not None, "the model says it before its layers run"
        return self._decision


class LayerRouter(nn.Module):
    """The comparator: a router of the usual kind, one matrix on the hidden state, top-1."""

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
    """Logits, weights `[T, 1]` and ids `[T, 1]` of the one expert that each row takes; a weight is
    its probability if `scaled`, else one."""
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


class ChannelExperts(nn.Module):
    """N experts of `width` channels; channels beyond an expert's own are zero."""

    # What `moesim.machine.real` asks of experts in transformers' common form.
    has_gate, has_bias, is_transposed, has_post_expert_norm = True, False, False, False

    def __init__(self, num_experts: int, hidden: int, width: int, act_fn: nn.Module) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.gate_up_proj = nn.Parameter(torch.zeros(num_experts, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.zeros(num_experts, hidden, width))
        self.act_fn = act_fn

    def fill(self, expert: int, ffn: Any, channels: Tensor) -> None:
        """Copy `channels` (indices) of a gated FFN into one expert."""
        width, own = self.down_proj.shape[2], len(channels)
        with torch.no_grad():
            self.gate_up_proj[expert].zero_()
            self.down_proj[expert].zero_()
            self.gate_up_proj[expert, :own] = ffn.gate_proj.weight[channels]
            self.gate_up_proj[expert, width : width + own] = ffn.up_proj.weight[channels]
            self.down_proj[expert, :, :own] = ffn.down_proj.weight[:, channels]

    def forward(self, hidden_TH: Tensor, ids_T1: Tensor, weights_T1: Tensor) -> Tensor:
        out = torch.zeros_like(hidden_TH)
        for expert in sorted(set(ids_T1[:, 0].tolist())):
            rows = (ids_T1[:, 0] == expert).nonzero()[:, 0]
            inner = self._apply_gate(functional.linear(hidden_TH[rows], self.gate_up_proj[expert]))
            states = functional.linear(inner, self.down_proj[expert]) * weights_T1[rows]
            out.index_copy_(0, rows, states)
        return out

    def _apply_gate(self, both: Tensor) -> Tensor:
        gate, up = both.chunk(2, dim=-1)
        inner: Tensor = self.act_fn(gate) * up
        return inner


class PermanentExpert(nn.Module):
    """The channels that every expert has, apart from them: a narrower gated FFN, always on."""

    def __init__(self, hidden: int, width: int, act_fn: nn.Module) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)
        self.act_fn = act_fn

    def fill(self, ffn: Any, channels: Tensor) -> None:
        """Copy `channels` (indices) of a gated FFN; the rest stays zero."""
        own = len(channels)
        with torch.no_grad():
            for linear in (self.gate_proj, self.up_proj, self.down_proj):
                linear.weight.zero_()
            self.gate_proj.weight[:own] = ffn.gate_proj.weight[channels]
            self.up_proj.weight[:own] = ffn.up_proj.weight[channels]
            self.down_proj.weight[:, :own] = ffn.down_proj.weight[:, channels]

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.act_fn(self.gate_proj(hidden)) * self.up_proj(hidden))
        return out


class RoutedFfn(nn.Module):
    """One layer's FFN after refactoring: router, experts, and the permanent one if it is apart."""

    def __init__(
        self, router: nn.Module, experts: nn.Module, permanent: PermanentExpert | None = None
    ) -> None:
        super().__init__()
        self.router = router
        self.experts = experts
        self.shared_experts = permanent

    def forward(self, hidden: Tensor) -> Tensor:
        hidden_TH = hidden.reshape(-1, hidden.shape[-1])
        _, weights_T1, ids_T1 = self.router(hidden_TH)
        out: Tensor = self.experts(hidden_TH, ids_T1, weights_T1)
        if self.shared_experts is not None:
            out = out + self.shared_experts(hidden_TH) * weights_T1
        return out.view_as(hidden)
