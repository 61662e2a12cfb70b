"""A decoupled router beside the executor, with its own attention over packed sequences.

It reads tokens, not hidden states. So it runs when tokens appear: over a prompt when it arrives,
and over the sampled tokens in a step's tail.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from moesim.errors import UsageError
from moesim.executor.attention import KvStore
from moesim.executor.batch import Span, positions_of
from moesim.executor.state_copies import staged

__all__ = ["PackedRouter", "TokenRouter"]


@runtime_checkable
class TokenRouter(Protocol):
    """A model's one router, which reads token ids before all layers."""

    def run(
        self,
        token_ids_BT: Tensor,
        positions_BT: Tensor,
        attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    ) -> Tensor:
        """Return logits `[B, T, N]`; `attend` takes queries, keys and values of the tokens."""

    def choose(self, logits_TN: Tensor, *, scaled: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, weights `[T, 1]` and ids `[T, 1]` of the one expert of each row."""


class PackedRouter:
    """Runs the model's `router`; keeps keys and values of each sequence's routed tokens."""

    def __init__(self, router: TokenRouter, *, scaled: bool) -> None:
        self._router = router
        self._scaled = scaled
        self._kv = KvStore()

    @classmethod
    def of(cls, model: nn.Module) -> Self | None:
        """Return the router of a decoupled model; None if each layer has its own router.

        Raise `UsageError` for gates that read something other than the hidden state.
        """
        router, config = getattr(model, "router", None), getattr(model, "config", None)
        if (routed_by := getattr(config, "routed_by", "hidden")) != "hidden":
            raise UsageError(
                f"{type(model).__name__} routes by {routed_by}; the real machine runs gates that "
                "read a layer's hidden state, and Read-ME's router"
            )
        if not isinstance(router, TokenRouter):
            return None
        return cls(router, scaled=bool(getattr(config, "scaled", False)))

    def route(self, token_ids_T: Tensor, spans: Sequence[Span]) -> Tensor:
        """Return `[T, 2]`, float64: the expert of each token of `spans`, and its weight."""
        # One more row than the layers need: the last token is routed, but no layer computes it.
        self._kv.begin([span._replace(capacity=span.capacity + 1) for span in spans])
        positions = staged(torch.from_numpy(positions_of(spans)), token_ids_T.device)
        logits_1TN = self._router.run(token_ids_T[None], positions[None], self._attend)
        _, weights_T1, ids_T1 = self._router.choose(logits_1TN[0], scaled=self._scaled)
        # One tensor, so that ids and weights reach the host in one copy.
        return torch.cat([ids_T1.double(), weights_T1.double()], dim=1)

    def release(self, sequence: int) -> None:
        """Forget a sequence."""
        self._kv.release(sequence)

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        out_THw = self._kv.attend(0, query[0], keys[0], values[0], 1.0, None, None)
        return out_THw.transpose(0, 1)[None]
