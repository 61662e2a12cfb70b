"""Tokens: a domain's documents as one sequence of ids, and windows cut from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from moesim.errors import UsageError
from moesim.streams import stream as random_stream
from moesim.training.text import Document

Tokens = npt.NDArray[np.int64]


def token_stream(tokenizer: Any, documents: Iterable[Document]) -> Tokens:
    """Return all documents of a domain as one sequence of ids; the end token follows each."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    # The tokenizer would warn of documents longer than the context; windows are cut from them.
    encoded = tokenizer([d.text for d in documents], return_attention_mask=False, verbose=False)
    return np.concatenate([np.array([*ids, *end], dtype=np.int64) for ids in encoded["input_ids"]])


def token_streams(tokenizer: Any, domains: Mapping[str, Iterable[Document]]) -> dict[str, Tokens]:
    """Return the `token_stream` of every domain."""
    return {domain: token_stream(tokenizer, docs) for domain, docs in domains.items()}


def spread_windows(stream: Tokens, count: int, length: int) -> torch.Tensor:
    """Return ids `[count, length]`, evenly spread; windows overlap if there is little text."""
    stream = np.resize(stream, max(len(stream), length))  # repeats a text shorter than a window
    starts = np.linspace(0, len(stream) - length, num=count).astype(int)
    return _cut(stream, starts, length)


def draw_windows(
    streams: Mapping[str, Tokens], count: int, length: int, seed: int, purpose: str
) -> dict[str, torch.Tensor]:
    """Return ids `[count, length]` of every domain: windows of consecutive ids, none overlapping.

    The domain's ids are divided into windows from the start, and `count` of these are drawn evenly.
    Each `purpose` and domain has its own random stream. Raise `UsageError` for the first domain
    with too little text.
    """
    for domain, stream in streams.items():
        if len(stream) < count * length:
            raise UsageError(
                f"domain {domain!r} has {len(stream):,} tokens; {count} windows of {length} need "
                f"{count * length:,}; give more text, or ask for fewer or shorter windows"
            )
    windows = {}
    for domain, stream in streams.items():
        draw = random_stream(seed, f"{purpose} windows of {domain}")
        # From a grid of windows, so that no two overlap.
        chosen = draw.choice(len(stream) // length, size=count, replace=False)
        windows[domain] = _cut(stream, chosen * length, length)
    return windows


@dataclass(frozen=True, slots=True, eq=False)
class WindowStream:
    """Ids `windows [W, T]` in an endless order: each pass has all windows once, newly shuffled.

    `domains [W]` numbers the domain of each. A pass has its own random stream, so any place in the
    order can be computed alone, and a resumed run needs no state.
    """

    windows: torch.Tensor
    domains: torch.Tensor
    seed: int

    @classmethod
    def of(cls, streams: Mapping[str, Tokens], length: int, seed: int) -> Self:
        """Cut every domain's ids into windows from the start; the rest of a domain is left out."""
        cut = [
            torch.from_numpy(ids[: len(ids) // length * length].reshape(-1, length))
            for ids in streams.values()
        ]
        counts = torch.tensor([len(windows) for windows in cut])
        return cls(torch.cat(cut), torch.arange(len(cut)).repeat_interleave(counts), seed)

    def take(self, start: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return windows `[count, T]` from place `start` of the order on, and their domains."""
        number, at = np.divmod(np.arange(start, start + count), len(self.windows))
        rows = np.concatenate([self._order(each)[at[number == each]] for each in np.unique(number)])
        chosen = torch.from_numpy(rows)
        return self.windows[chosen], self.domains[chosen]

    def _order(self, number: int) -> npt.NDArray[np.int64]:
        draw = random_stream(self.seed, "order of windows", int(number))
        return draw.permutation(len(self.windows))


def shuffle_domains(windows: Mapping[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """Return the same windows dealt out again at random: a control experiment.

    Each domain gets as many windows as before. All windows `[W, T]` must have one length.
    """
    pooled = torch.cat(list(windows.values()))
    order = random_stream(seed, "shuffled domains").permutation(len(pooled))
    dealt = torch.split(pooled[torch.from_numpy(order)], [len(w) for w in windows.values()])
    return dict(zip(windows, dealt, strict=True))


def _cut(stream: Tokens, starts: npt.NDArray[np.int64], length: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([stream[start : start + length] for start in starts]))
