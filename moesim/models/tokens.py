"""Tokens: a domain's documents as one run of ids, and windows cut from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from moesim.errors import UsageError
from moesim.models.text import Document
from moesim.streams import stream as random_stream

Tokens = npt.NDArray[np.int64]


def token_stream(tokenizer: Any, documents: Iterable[Document]) -> Tokens:
    """All documents of a domain as one run of ids, each followed by the end token, if any."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    # Not verbose: a document longer than the model's context is no mistake, windows are cut later.
    encoded = tokenizer([d.text for d in documents], return_attention_mask=False, verbose=False)
    return np.concatenate([np.array([*ids, *end], dtype=np.int64) for ids in encoded["input_ids"]])


def token_streams(tokenizer: Any, domains: Mapping[str, Iterable[Document]]) -> dict[str, Tokens]:
    """`token_stream` of every domain."""
    return {domain: token_stream(tokenizer, docs) for domain, docs in domains.items()}


def spread_windows(stream: Tokens, count: int, length: int) -> torch.Tensor:
    """Ids `[count, length]`, evenly spread; they overlap, and repeat themselves, in little text."""
    stream = np.resize(stream, max(len(stream), length))
    starts = np.linspace(0, len(stream) - length, num=count).astype(int)
    return _cut(stream, starts, length)


def draw_windows(
    streams: Mapping[str, Tokens], count: int, length: int, seed: int, purpose: str
) -> dict[str, torch.Tensor]:
    """Ids `[count, length]` of every domain: windows of `length` consecutive ids, none overlapping.

    They are drawn evenly from all windows that fill the domain's run of ids from its start; each
    `purpose` (and domain) draws from its own random stream. Raises `UsageError` naming the first
    domain with too little text.
    """
    for domain, stream in streams.items():
        if len(stream) < count * length:
            raise UsageError(
                f"domain {domain!r} has {len(stream):,} tokens; {count} windows of {length} need "
                f"{count * length:,}; give more text, or ask for fewer or shorter windows"
            )
    found = {}
    for domain, stream in streams.items():
        draw = random_stream(seed, f"{purpose} windows of {domain}")
        chosen = draw.choice(len(stream) // length, size=count, replace=False)
        found[domain] = _cut(stream, chosen * length, length)
    return found


def shuffle_domains(windows: Mapping[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """The same windows dealt out again at random, as many to each domain as before: a control.

    Every window `[W, T]` must be of one length.
    """
    pooled = torch.cat(list(windows.values()))
    order = random_stream(seed, "shuffled domains").permutation(len(pooled))
    dealt = torch.split(pooled[torch.from_numpy(order)], [len(w) for w in windows.values()])
    return dict(zip(windows, dealt, strict=True))


def _cut(stream: Tokens, starts: npt.NDArray[np.int64], length: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([stream[start : start + length] for start in starts]))
