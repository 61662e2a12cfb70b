"""The pre-gating router of Read-ME: one causal transformer block that reads token ids alone.

It reads no hidden states of the backbone. So a token's expert, the same in all layers, is known as
soon as the token is. Source: section 3 and table 1 of the paper (arXiv 2410.19123) and its code.
These disagree on the MLP: `silu` (the code: two matrices with biases; 17,965,063 parameters at the
paper's size) or `swiglu` (the paper: three matrices). The paper is silent on what follows; it is as
in the code. Attention scores are not scaled. Matrices have biases. The base of RoPE is that of the
backbone.

Weights are drawn as the code's classes draw them. The released scripts build these classes inside
`from_pretrained`. The versions of transformers of that time skip a class's own draws there. They
then draw new weights as N(0, 0.02), with zero biases. This follows from reading both; it was not
run. Which of the two starts made the published model is not known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from moesim.errors import UsageError
from moesim.training.readme.masked_experts import decide

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Takes queries, keys and values `[B, heads, T, width]` of new tokens and returns the attention's
output, of the same shape. Scores are not scaled."""

MLPS = ("silu", "swiglu")
SIZES = {"hidden": 512, "heads": 4, "ffn": 512, "mlp": "silu"}  # the paper's, the code's MLP


class RouterCache:
    """Keys and values `[B, heads, S, width]` of the tokens routed so far; `seen` marks padding."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.seen: Tensor | None = None  # [B, S]; False for padding

    @property
    def length(self) -> int:
        return 0 if self.keys is None else int(self.keys.shape[2])

    def extend(self, keys: Tensor, values: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Append keys, values and marks of new tokens; return those of all tokens."""
        if self.keys is not None and self.values is not None and self.seen is not None:
            keys = torch.cat([self.keys, keys], dim=2)
            values = torch.cat([self.values, values], dim=2)
            seen = torch.cat([self.seen, seen], dim=1)
        self.keys, self.values, self.seen = keys, values, seen
        return keys, values, seen


class PreGatingRouter(nn.Module):
    """Token ids `[B, T]` → logits `[B, T, N]`; position t depends only on tokens up to t."""

    def __init__(
        self,
        vocabulary: int,
        num_experts: int,
        *,
        hidden: int = 512,
        heads: int = 4,
        ffn: int = 512,
        mlp: str = "silu",
        rope_base: float = 10_000.0,
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
        self.rope_base = rope_base
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
        """Draw weights as the released code's class does, with torch's generator.

        Matrices are Kaiming-uniform. Biases keep torch's default: uniform within one over the root
        of a matrix's inputs. Embeddings are the first columns of the backbone's `embedding_VH`;
        columns that it does not have are normal.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_uniform_(module.weight)
                bound = 1 / math.sqrt(module.in_features)
                nn.init.uniform_(module.bias, -bound, bound)
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
        """Return logits of tokens that follow those in `cache`.

        `seen [B, T]` is False for padding (None: no padding). Padding takes no position.
        """
        if seen is None:
            seen = torch.ones_like(token_ids, dtype=torch.bool)
        cache = cache or RouterCache()
        # Positions count real tokens only, so that padding on the left does not move a prompt.
        past = 0 if cache.seen is None else cache.seen.sum(dim=1, keepdim=True)
        positions = (past + seen.cumsum(dim=1) - 1).clamp(min=0)
        return self.run(token_ids, positions, partial(_look_back, seen=seen, cache=cache))

    def choose(self, logits_TN: Tensor, *, scaled: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, weights `[T, 1]` and ids `[T, 1]` of the one expert of each row."""
        return decide(logits_TN, scaled=scaled)

    def run(self, token_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Return logits of tokens at `positions [B, T]`, with the caller's attention."""
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

        query = _rotate(heads(self.query(x)), positions, self.rope_base)
        keys = _rotate(heads(self.key(x)), positions, self.rope_base)
        out = attend(query, keys, heads(self.value(x)))
        attended: Tensor = self.output(out.transpose(1, 2).reshape(batch, tokens, hidden))
        return attended


def _look_back(
    query: Tensor, keys: Tensor, values: Tensor, *, seen: Tensor, cache: RouterCache
) -> Tensor:
    """Attend from every sequence to its cached tokens and its own tokens so far."""
    before, tokens = cache.length, query.shape[2]
    keys, values, all_seen = cache.extend(keys, values, seen)
    rows = torch.arange(before, before + tokens, device=query.device)[:, None]
    columns = torch.arange(before + tokens, device=query.device)[None, :]
    # A padded place sees itself: a row of scores without any entry would give NaN. Its output is
    # never used.
    mask = ((columns <= rows) & all_seen[:, None, :]) | (columns == rows)
    return functional.scaled_dot_product_attention(
        query, keys, values, attn_mask=mask[:, None], scale=1.0
    )


def _rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """Rotate `x [B, heads, T, width]` by its `positions [B, T]` (RoPE: Su et al., 2021)."""
    half = x.shape[-1] // 2
    power = torch.arange(half, device=x.device, dtype=torch.float32) / half
    angles = positions[:, None, :, None].float() * base**-power
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
