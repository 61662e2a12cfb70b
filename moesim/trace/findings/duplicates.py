"""Prompts that are nearly the same, seen by their routing alone.

A row's experts at all layers are a fingerprint of its token and of the text before it. Two prompts
that agree at most positions are nearly one prompt. A run on both measures a cache that has seen
the question before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from moesim.trace.findings.sample import Sample

__all__ = ["Duplicates", "duplicates"]

_MOST_REQUESTS: Final = 1000
_MOST_POSITIONS: Final = 128
_LEAST_ROWS: Final = 4
_ALIKE: Final = 0.8
_AMBIGUOUS: Final = 0.3


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Near-duplicate prompts among `requests` whose prompts have at least four rows.

    `members` are requests with at least one near-duplicate: 80 % of the shorter prompt's positions
    have the same experts at all layers. `pairs` are such pairs. `example` names one pair by the
    numbers of its requests. `shared_prefix` is the number of leading rows that the
    median pair of requests has in common. `telling` is False where routing cannot tell tokens
    apart: unlike prompts then agree too often.
    """

    requests: int
    members: int
    pairs: int
    example: tuple[int, int] | None
    shared_prefix: float
    telling: bool


def duplicates(sample: Sample) -> Duplicates | None:
    """Return the near-duplicate prompts; None with fewer than two prompts of four rows."""
    requests = np.flatnonzero(sample.prompts >= _LEAST_ROWS)[:_MOST_REQUESTS]
    if len(requests) < 2:
        return None
    code_RP = _codes(sample, requests)
    length_R = (code_RP >= 0).sum(axis=1)
    shorter_RR = np.minimum(length_R[:, None], length_R[None, :])
    same_RR = np.zeros(shorter_RR.shape, np.int64)
    prefix_RR = np.zeros(shorter_RR.shape, np.int64)
    unbroken_RR = np.ones(shorter_RR.shape, bool)
    for code_R in code_RP.T:
        equal_RR = (code_R[:, None] == code_R[None, :]) & (code_R >= 0)[:, None]
        same_RR += equal_RR
        unbroken_RR &= equal_RR
        prefix_RR += unbroken_RR
    upper = np.triu_indices(len(requests), 1)
    share = same_RR[upper] / shorter_RR[upper]
    # Past a common prefix, unlike texts agree as often as routing fails to tell tokens apart.
    past = (same_RR - prefix_RR)[upper] / np.maximum((shorter_RR - prefix_RR)[upper], 1)
    differs = share < 1
    telling = not differs.any() or float(np.median(past[differs])) < _AMBIGUOUS
    alike = share >= _ALIKE
    pairs = int(alike.sum())
    members = np.unique(np.concatenate([upper[0][alike], upper[1][alike]]))
    example = None
    if pairs:
        first = int(alike.argmax())
        numbers = sample.numbers[requests]
        example = (int(numbers[upper[0][first]]), int(numbers[upper[1][first]]))
    return Duplicates(
        len(requests), len(members), pairs, example, float(np.median(prefix_RR[upper])), telling
    )


def _codes(sample: Sample, requests: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return a number for each prompt row's experts, (requests, positions); -1 past its end."""
    lengths = np.minimum(sample.prompts[requests], _MOST_POSITIONS)
    rows = [
        np.arange(first, first + length)
        for first, length in zip(sample.firsts[requests], lengths, strict=True)
    ]
    flat = np.sort(sample.ids[np.concatenate(rows)], axis=2)
    flat = np.ascontiguousarray(flat.reshape(len(flat), math.prod(flat.shape[1:])))
    _, code = np.unique(flat, axis=0, return_inverse=True)
    code_RP = np.full((len(requests), int(lengths.max())), -1, np.int64)
    place = np.concatenate([np.arange(length) for length in lengths])
    code_RP[np.repeat(np.arange(len(requests)), lengths), place] = code.ravel()
    return code_RP
