"""The pre-gating router of Read-ME: one causal transformer block that reads token ids alone.

It knows neither the backbone's hidden states nor its layers, so a token's expert, the same in all
layers, is known as soon as the token is. Source: section 3 and table 1 of the paper (arXiv
2410.19123) and its code, which disagree on the MLP: `silu` (the code: two matrices with biases;
17,965,063 parameters at the paper's size) or `swiglu` (the paper: three). As in the code, scores
of attention are not scaled, and matrices have biases.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from moesim.errors import UsageError

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of queries, keys and values `[B, heads, T, width]` of new tokens: what they attend to, of that
shape. Scores are not scaled."""

MLPS = ("silu", "swiglu")
SIZES = {"hidden": 512, "heads": 4, "ffn": 512, "mlp": "silu"}  # the paper's, the code's MLP
_ROPE_BASE = 10_000.0


class RouterCache:
    """Keys and values `[B, heads, S, width]` of the tokens routed so far, and which are padding."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.seen: Tensor | None = None  # [B, S]

    @property
    def length(self) -> int:
        return 0 if self.keys is None else int(self.keys.shape[2])

    def extend(self, keys: Tensor, values: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Append; answers all there are."""
        if self.keys is not None and self.values is not None and self.seen is not None:
            keys = torch.cat([self.keys, keys], dim=2)
            values = torch.cat([self.values, values], dim=2)
            seen = torch.cat([self.seen, seen], dim=1)
        self.keys, self.values, self.seen = keys, values, seen
        return keys, values, seen


class PreGatingRouter(nn.Module):
    """Token ids `[B, T]` to logits `[B, T, N]`; position t depends on tokens up to t alone."""

    def __init__(
        self,
        vocabulary: int,
        num_experts: int,
        *,
        hidden: int = 512,
        heads: int = 4,
        ffn: int = 512,
        mlp: str = "silu",
    ) -> None:
        super().__init__()
        if mlp not in MLPS:
            raise UsageError(f"unknown router MLP {mlp!r}: choose one of {', '.join(MLPS)}")
        if heads < 1 or hidden % (2 * heads):
            raise UsageError(
                f"the router's width ({hidden}) must be a multiple of twice its heads ({heads})"
            )
        self.num_experts = num_experts
        self.heads = heads
        self.embed = nn.Embedding(vocabulary, hidden)
        self.attention_norm = nn.RMSNorm(hidden, eps=1e-6)
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.output = nn.Linear(hidden, hidden)
        self.mlp_norm = nn.RMSNorm(hidden, eps=1e-6)
        self.gate = nn.Linear(hidden, ffn) if mlp == "swiglu" else None
        self.up = nn.Linear(hidden, ffn)
        self.down = nn.Linear(ffn, hidden)
        self.final_norm = nn.RMSNorm(hidden, eps=1e-6)
        self.head = nn.Linear(hidden, num_experts)

    def initialise(self, embedding_VH: Tensor | None = None) -> None:
        """As the released code: matrices Kaiming-uniform, embeddings the first columns of the
        backbone's (None, or where it is narrower: normal). Uses torch's generator."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.embed.weight, std=0.02)
        if embedding_VH is not None:
            width = min(self.embed.embedding_dim, embedding_VH.shape[1])
            with torch.no_grad():
                self.embed.weight[:, :width] = embedding_VH[:, :width]

    def forward(
        self,
        token_ids: Tensor,
        *,
        seen: Tensor | None = None,
        cache: RouterCache | None = None,
    ) -> Tensor:
        """`seen [B, T]`: False where a place is padding (None: nowhere); it takes no position.
        With a `cache`, these are the tokens that follow those in it."""
        if seen is None:
            seen = torch.ones_like(token_ids, dtype=torch.bool)
        cache = cache or RouterCache()
        past = 0 if cache.seen is None else cache.seen.sum(dim=1, keepdim=True)
        positions = (past + seen.cumsum(dim=1) - 1).clamp(min=0)
        return self.run(token_ids, positions, partial(_look_back, seen=seen, cache=cache))

    def run(self, token_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """The same for tokens at `positions [B, T]`, with attention of the caller's own."""
        x = self.embed(token_ids)
        x = x + self._attention(self.attention_norm(x), positions, attend)
        inner = self.mlp_norm(x)
        gated = (
            functional.silu(self.up(inner))
            if self.gate is None
            else functional.silu(self.gate(inner)) * self.up(inner)
        )
        x = x + self.down(gated)
        logits: Tensor = self.head(self.final_norm(x))
        return logits

    def _attention(self, x: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        batch, tokens, hidden = x.shape
        width = hidden // self.heads

        def heads(projected: Tensor) -> Tensor:
            return projected.view(batch, tokens, self.heads, width).transpose(1, 2)

        query = _rotate(heads(self.query(x)), positions)
        keys = _rotate(heads(self.key(x)), positions)
        out = attend(query, keys, heads(self.value(x)))
        attended: Tensor = self.output(out.transpose(1, 2).reshape(batch, tokens, hidden))
        return attended


def _look_back(
    query: Tensor, keys: Tensor, values: Tensor, *, seen: Tensor, cache: RouterCache
) -> Tensor:
    """Every sequence of a batch looks at what is in the cache, and at its own tokens so far."""
    before, tokens = cache.length, query.shape[2]
    keys, values, all_seen = cache.extend(keys, values, seen)
    rows = torch.arange(before, before + tokens, device=query.device)[:, None]
    columns = torch.arange(before + tokens, device=query.device)[None, :]
    # A padded place sees itself, so that no row of scores is empty; nobody reads what it says.
    mask = ((columns <= rows) & all_seen[:, None, :]) | (columns == rows)
    return functional.scaled_dot_product_attention(
        query, keys, values, attn_mask=mask[:, None], scale=1.0
    )


def _rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary embedding (Su et al., 2021) of `x [B, heads, T, width]` at `positions [B, T]`."""
    half = x.shape[-1] // 2
    power = torch.arange(half, device=x.device, dtype=torch.float32) / half
    angles = positions[:, None, :, None].float() * _ROPE_BASE**-power
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
