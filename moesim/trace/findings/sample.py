"""The rows that are measured: all rows of a trace, or whole requests of it, chosen at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from moesim.streams import stream

if TYPE_CHECKING:
    from moesim.trace.trace import Trace

__all__ = ["MOST_ROWS", "Sample", "sampled"]

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

MOST_ROWS: Final = 20_000
"""Rows that are measured unless more are asked for."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows of some requests of a trace, in their order.

    `ids` (rows, layers, k); `request`, the number of each row's request within the sample;
    `lengths` and `prompts`, rows and prompt rows of each request; `domain`, the number of each
    request's domain in `domains`; `numbers` of the requests in the trace; `whole`: nothing is left
    out.
    """

    ids: npt.NDArray[np.integer]
    request: Ints
    lengths: Ints
    prompts: Ints
    domain: Ints
    domains: tuple[str, ...]
    experts: int
    unused: int
    numbers: Ints
    whole: bool

    @property
    def rows(self) -> int:
        """Return the number of rows."""
        return len(self.ids)

    @property
    def layers(self) -> int:
        """Return the number of layers."""
        return int(self.ids.shape[1])

    @property
    def top_k(self) -> int:
        """Return the places of a token at a layer."""
        return int(self.ids.shape[2])

    @property
    def firsts(self) -> Ints:
        """Return the first row of each request."""
        return np.asarray(np.cumsum(self.lengths) - self.lengths)

    @property
    def follows(self) -> Bools:
        """Return for each row whether a row of its own request is before it."""
        follows = np.ones(self.rows, bool)
        follows[self.firsts[self.lengths > 0]] = False
        return follows

    @property
    def row_domain(self) -> Ints:
        """Return the number of each row's domain."""
        return np.asarray(self.domain[self.request])

    def as_trace(self) -> Trace:
        """Return the ids alone as a trace, to replay them."""
        from moesim.trace.trace import Trace

        return Trace.from_arrays(
            expert_ids=self.ids, seq_len=self.lengths, num_experts=self.experts
        )

    def uses(self, layer: int) -> Bools:
        """Return which experts each row uses at a layer, (rows, experts)."""
        return one_hot(self.ids[:, layer], self.experts, self.unused)


def one_hot(ids_Tk: npt.NDArray[np.integer], experts: int, unused: int) -> Bools:
    """Return which experts each row of ids uses, (rows, experts)."""
    used_TE = np.zeros((len(ids_Tk), experts + 1), bool)
    ids = np.where(ids_Tk == unused, experts, ids_Tk).astype(np.int64)
    np.put_along_axis(used_TE, ids, True, axis=1)
    return used_TE[:, :experts]


def sampled(trace: Trace, most_rows: int = MOST_ROWS, seed: int = 0) -> Sample:
    """Return all rows of a trace, or those of random requests that have about `most_rows` rows.

    A request that is longer than `most_rows` is cut.
    """
    columns = trace.requests
    rows_R = columns["num_rows"].astype(np.int64)
    whole = bool(rows_R.sum() <= most_rows)
    if whole:
        chosen = np.arange(len(rows_R))
    else:
        order = stream(seed, "trace info sample").permutation(len(rows_R))
        reached = np.cumsum(np.minimum(rows_R[order], most_rows))
        chosen = np.sort(order[: max(1, int((reached <= most_rows).sum()))])
        rows_R = np.minimum(rows_R, most_rows)
    first_R = columns["first_row"].astype(np.int64)
    parts = [trace.expert_ids[int(first_R[r]) : int(first_R[r] + rows_R[r])] for r in chosen]
    recorded = trace.meta.prompt_rows == "recorded"
    prompt_R = columns["prompt_tokens"].astype(np.int64) if recorded else np.zeros_like(rows_R)
    names = columns["domain"].astype(str)[chosen]
    domains, domain_R = np.unique(names, return_inverse=True)
    lengths = rows_R[chosen]
    return Sample(
        np.concatenate(parts),
        np.repeat(np.arange(len(chosen)), lengths),
        lengths,
        np.minimum(prompt_R[chosen], lengths),
        domain_R.astype(np.int64),
        tuple(domains.tolist()),
        trace.num_experts,
        trace.meta.unused,
        np.asarray(chosen, np.int64),
        whole,
    )
