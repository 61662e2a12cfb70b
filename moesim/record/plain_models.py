"""Models of one's own: a torch module from ids of tokens to logits, without `generate`.

Such a model has no cache, so each new token takes a pass over the whole text. These passes are not
recorded. The last one, over the finished text, is: it decides as the passes before it did.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

from moesim.errors import UsageError

__all__ = ["PlainModel"]


class _Config:
    """What a configuration of transformers would say; a plain module states nothing."""

    is_encoder_decoder: Final = False
    model_type: Final = ""
    eos_token_id: Final = None
    pad_token_id: Final = 0

    def __init__(self, name: str) -> None:
        self._name_or_path = name

    def to_json_string(self, use_diff: bool = True) -> str:
        return "{}"


class PlainModel(nn.Module):
    """Makes a module `inner(ids [B, C]) -> logits [B, C, vocabulary]` one that can be recorded.

    Raises `UsageError` for a module without parameters.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        if next(inner.parameters(), None) is None:
            raise UsageError(f"{type(inner).__name__} has no parameters, so it is no model")
        self.inner = inner
        self.config = _Config(type(inner).__name__)
        self.generation_config: Any = None
        self.train(inner.training)

    @property
    def device(self) -> torch.device:
        """Return the device of the parameters."""
        return next(self.inner.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of the parameters."""
        return next(self.inner.parameters()).dtype

    def forward(self, input_ids: Tensor) -> Any:
        return self.inner(input_ids)

    def generate(self, input_ids: Tensor, generation_config: Any, **_: Any) -> Tensor:
        """Return the texts `[1, C + n]`, chosen greedily.

        Raise `UsageError` for a batch, for sampling, or if the module returns no logits.
        """
        if len(input_ids) > 1 or generation_config.do_sample:
            raise UsageError(
                f"{type(self.inner).__name__} has no generate(), so it is recorded greedily, one "
                "request at a time: use batch_size=1 and temperature 0"
            )
        text = input_ids
        for _step in range(generation_config.max_new_tokens):
            logits = self._logits(text)
            text = torch.cat([text, logits[:, -1:].argmax(dim=-1)], dim=1)
        self(text[:, :-1])
        return text

    def _logits(self, text: Tensor) -> Tensor:
        returned = self.inner(text)
        logits = getattr(returned, "logits", returned)
        if isinstance(logits, tuple):
            logits = logits[0]
        if not isinstance(logits, Tensor) or logits.shape[:2] != text.shape:
            raise UsageError(
                f"{type(self.inner).__name__} must return logits (batch, columns, vocabulary) for "
                f"ids {tuple(text.shape)}"
            )
        return logits
