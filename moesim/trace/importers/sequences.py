"""Requests found again in the passes of a batched server, from the positions of their tokens.

SGLang's dumps have no request ids. A request starts at position 0, and its next token is at the
position after its last. Batches keep the order of their requests. Where two readings remain, the
dump is refused, because a wrong one would join halves of two requests. On demand, the first reading
is taken and counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from moesim.errors import SourceError

__all__ = ["Pass", "Sequence", "joined"]


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass: the position of each token, and the tokens of each extended prompt.

    `lengths` is None where every token decodes a request of its own.
    """

    where: str
    positions: list[int]
    lengths: list[int] | None


@dataclass(slots=True, eq=False)
class Sequence:
    """A request: its rows among all rows of the dump, in order."""

    rows: list[int] = field(default_factory=list)
    prompt_tokens: int = 0

    @property
    def next_position(self) -> int:
        """Return the position of the token that would follow."""
        return len(self.rows)

    @property
    def decodes(self) -> bool:
        """Return whether the request has decoded a token yet."""
        return len(self.rows) > self.prompt_tokens


def joined(path: Path, passes: list[Pass], *, guess: bool = False) -> tuple[list[Sequence], int]:
    """Return the requests of the passes in the order of their first tokens, and passes guessed.

    `guess`: where two requests stand at one position and one ends, let the first in the batch
    continue.

    Raises:
        SourceError: a token follows no request, or more than one without `guess`.
    """
    guesses = 0
    found: list[Sequence] = []
    running: list[Sequence] = []
    row = 0
    for one in passes:
        if not one.positions:  # an idle rank of a server with several
            continue
        if one.lengths is None:
            running, certain = _decode(path, one, running, row, guess)
            guesses += not certain
        else:
            _extend(path, one, found, running, row)
        row += len(one.positions)
    return found, guesses


def _extend(
    path: Path, one: Pass, found: list[Sequence], running: list[Sequence], row: int
) -> None:
    """Add the tokens of a pass that computes prompts, whole or in chunks."""
    assert one.lengths is not None
    first = 0
    for length in one.lengths:
        positions = one.positions[first : first + length]
        start = positions[0]
        if positions != list(range(start, start + length)):
            raise SourceError(path, one.where, f"positions after {start} do not rise one by one")
        sequence = _extended(path, one, start, found, running)
        rows = range(row + first, row + first + length)
        sequence.prompt_tokens += length
        sequence.rows += rows
        first += length


def _extended(
    path: Path, one: Pass, start: int, found: list[Sequence], running: list[Sequence]
) -> Sequence:
    if start == 0:
        sequence = Sequence()
        found.append(sequence)
        running.append(sequence)
        return sequence
    # A request that has decoded is not extended again: this is a later turn, from a cached prefix.
    fits = [other for other in running if other.next_position == start and not other.decodes]
    if len(fits) != 1:
        reason = "no request stands there" if not fits else f"{len(fits)} requests stand there"
        raise SourceError(
            path,
            one.where,
            f"a prompt continues at position {start}, and {reason}: a cached prefix has no routing "
            "in the dump; record with --disable-radix-cache",
        )
    running.remove(fits[0])
    running.append(fits[0])
    return fits[0]


def _decode(
    path: Path, one: Pass, running: list[Sequence], row: int, guess: bool
) -> tuple[list[Sequence], bool]:
    """Add one token to each request that continues.

    Return these requests in the order of the batch, and whether no other reading is possible.
    """
    early = _matched(one.positions, running)
    late = _matched(one.positions[::-1], running[::-1])
    if early is None or late is None:
        raise SourceError(
            path, one.where, "decodes a token at a position where no request of the batch stands"
        )
    late = [len(running) - 1 - place for place in late[::-1]]
    if early != late and not guess:
        place = next(n for n, (a, b) in enumerate(zip(early, late, strict=True)) if a != b)
        raise SourceError(
            path,
            one.where,
            f"two requests stand at position {one.positions[place]} and one of them ends: the dump "
            "does not say which; --guess-requests lets the first continue, and routed_experts of "
            "each answer would tell",
        )
    chosen = [running[place] for place in early]
    for offset, sequence in enumerate(chosen):
        sequence.rows.append(row + offset)
    return chosen, early == late


def _matched(positions: list[int], running: list[Sequence]) -> list[int] | None:
    """Return for each position the first request that stands there, in order; None without one."""
    places = []
    place = 0
    for position in positions:
        while place < len(running) and running[place].next_position != position:
            place += 1
        if place == len(running):
            return None
        places.append(place)
        place += 1
    return places
