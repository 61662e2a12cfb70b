"""The replacement of a decoder layer's FFN: a router beside experts that are smaller FFNs.

Experts have the form that transformers gives them. So code that records or offloads experts of
transformers also records and offloads these.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class ChannelExperts(nn.Module):
    """N experts of `width` channels; channels beyond an expert's own are zero."""

    # transformers' experts carry these flags, and `moesim.executor` reads them.
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

    def initialise(self, std: float) -> None:
        """Draw normal weights, for a model that is trained from scratch."""
        for weight in (self.gate_up_proj, self.down_proj):
            nn.init.normal_(weight, std=std)

    def forward(self, hidden_TH: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """Return `[T, H]`: each row's experts summed by weight; id -1 is no expert's."""
        out = torch.zeros_like(hidden_TH)
        # In order of experts, so that the sum of floats is the same in every run.
        for expert in sorted(set(ids_TK.flatten().tolist()) - {-1}):
            rows, places = (ids_TK == expert).nonzero(as_tuple=True)
            inner = self._apply_gate(functional.linear(hidden_TH[rows], self.gate_up_proj[expert]))
            states = functional.linear(inner, self.down_proj[expert])
            out.index_add_(0, rows, states * weights_TK[rows, places, None])
        return out

    def _apply_gate(self, both: Tensor) -> Tensor:
        gate, up = both.chunk(2, dim=-1)
        inner: Tensor = self.act_fn(gate) * up
        return inner


class PermanentExpert(nn.Module):
    """The channels that all experts share, as a narrower gated FFN that always runs."""

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
    """Router, experts and perhaps a permanent expert, in place of one layer's FFN."""

    def __init__(
        self, router: nn.Module, experts: nn.Module, permanent: PermanentExpert | None = None
    ) -> None:
        super().__init__()
        self.router = router
        self.experts = experts
        self.shared_experts = permanent

    def forward(self, hidden: Tensor) -> Tensor:
        hidden_TH = hidden.reshape(-1, hidden.shape[-1])
        _, weights_TK, ids_TK = self.router(hidden_TH)
        out: Tensor = self.experts(hidden_TH, ids_TK, weights_TK)
        # The permanent channels are a part of the token's one expert, so they get its weight.
        if self.shared_experts is not None:
            out = out + self.shared_experts(hidden_TH) * weights_TK
        return out.view_as(hidden)
