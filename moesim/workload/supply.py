"""Trace rows for requests of any length: a request's own rows, and what follows where they end.

A request can be longer than its recorded sequence. By default it is *tiled*: it continues with the
rows of other requests of the same domain. Reports give the share of tiled rows.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from moesim.trace import Trace

__all__ = ["Supply"]

_SHARED_ROWS = 4_000_000  # half of the most rows that are held again, for requests to share

Ints = npt.NDArray[np.int64]


class Supply:
    """Finds trace rows for requests of any length."""

    def __init__(
        self,
        trace: Trace,
        pool: Ints,
        prefill: str,
        rng: np.random.Generator,
        beyond: np.random.Generator | None = None,
        *,
        longest: int = 0,
    ) -> None:
        """Supply rows of the requests `pool`, at most `longest` to each.

        `rng` draws prompt rows, if `prefill` is `resample`. With `beyond`, rows that a sequence
        lacks are drawn from those of its domain and not tiled.
        """
        self._trace = trace
        self._rng = rng
        self._beyond = beyond
        self._longest = longest
        self._resample = prefill == "resample"
        self._skip = prefill == "skip"
        self._absent = trace.meta.prompt_rows == "absent"
        self._rings: dict[tuple[str, bool], _Ring] = {}
        self._by_domain: dict[str, list[int]] = {}
        for request in pool.tolist():
            self._by_domain.setdefault(str(trace.requests["domain"][request]), []).append(request)

    def rows(self, source: int, prompt: int, output: int) -> tuple[Ints, int]:
        """Return the rows of a request that replays `source`, and how many of them are tiled.

        A request computes one row less than it has tokens: its last token is never an input.
        """
        if self._skip:
            return self._tile(source, output - 1, decode_only=not self._absent)
        if self._resample:
            decoded, tiled = self._tile(source, output - 1, decode_only=not self._absent)
            domain_rows = self._decode_rows(source)
            return np.concatenate((self._rng.choice(domain_rows, prompt), decoded)), tiled
        return self._tile(source, prompt + output - 1, decode_only=False)

    def _own(self, request: int, decode_only: bool) -> Ints:
        """Return the recorded rows of a request, without those of its prompt if `decode_only`."""
        rows = self._trace.slice(request)
        skipped = int(self._trace.requests["prompt_tokens"][request]) if decode_only else 0
        return np.arange(rows.start + skipped, rows.stop)

    def _tile(self, source: int, count: int, *, decode_only: bool) -> tuple[Ints, int]:
        """Return `count` rows and how many are tiled.

        The request's own rows come first, then those of the next requests of its domain.
        """
        own = self._own(source, decode_only)
        if len(own) >= count:
            return own[:count], 0
        ring = self._ring(source, decode_only)
        if not len(ring.rows):
            # No request of the domain has decoded rows, so this one's prompt rows replace them.
            return np.resize(self._own(source, decode_only=False), count), count
        if self._beyond is not None:
            drawn = self._beyond.choice(ring.rows, count - len(own))
            return np.concatenate((own, drawn)), len(drawn)
        return ring.take(ring.starts[source], count), count - len(own)

    def _decode_rows(self, source: int) -> Ints:
        """Return all decoded rows of the domain of `source`, or its own rows if there are none."""
        rows = self._ring(source, not self._absent).rows
        return rows if len(rows) else self._own(source, decode_only=False)

    def _ring(self, source: int, decode_only: bool) -> _Ring:
        """Return the rows of the domain of `source`."""
        domain = str(self._trace.requests["domain"][source])
        ring = self._rings.get((domain, decode_only))
        if ring is None:
            requests = self._by_domain[domain]
            pieces = [self._own(request, decode_only) for request in requests]
            ring = _Ring.of(dict(zip(requests, pieces, strict=True)), self._longest)
            self._rings[domain, decode_only] = ring
        return ring


class _Ring(NamedTuple):
    """The rows of all requests of a domain, one after another, and where each request begins.

    `rows` are read-only. `round` repeats them until the longest request fits behind any place, so
    that requests share its memory. It is empty for a long ring.
    """

    rows: Ints
    round: Ints
    starts: dict[int, int]

    @classmethod
    def of(cls, pieces: dict[int, Ints], longest: int) -> _Ring:
        """Return the ring of the rows of each request, for requests of at most `longest` rows."""
        rows = np.concatenate(list(pieces.values()))
        rows.flags.writeable = False
        length = len(rows) + longest
        shared = np.resize(rows, length) if 0 < length <= 2 * _SHARED_ROWS else rows[:0]
        shared.flags.writeable = False
        starts = accumulate(map(len, pieces.values()), initial=0)
        return cls(rows, shared, dict(zip(pieces, starts, strict=False)))

    def take(self, first: int, count: int) -> Ints:
        """Return `count` rows from place `first` on, round and round."""
        if first + count <= len(self.round):
            return self.round[first : first + count]
        return np.take(self.rows, np.arange(first, first + count), mode="wrap")
