"""Identities of prompts' token blocks, as nodes of a tree of prefixes.

Two blocks are the same only if all blocks before them are the same, too: their keys and values
depend on the whole prefix. So a block is a node of a tree, and its parent is the block before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Sharing", "nodes", "sharing"]


def nodes(blocks: Iterable[Sequence[int]]) -> list[tuple[int, ...]]:
    """Return for each request the tree nodes of its blocks, numbered as they appear."""
    known: dict[tuple[int, int], int] = {}
    result = []
    for ids in blocks:
        parent, path = -1, []
        for number in ids:
            parent = known.setdefault((parent, number), len(known))
            path.append(parent)
        result.append(tuple(path))
    return result


@dataclass(frozen=True, slots=True)
class Sharing:
    """What an unlimited prefix cache would find, if each prompt were cached before the next.

    Only full blocks are shared, and the last token of a prompt is always computed. `requests` are
    those with a cached block, `tokens` the cached tokens.
    """

    blocks: int
    distinct_blocks: int
    requests: int
    tokens: int


def sharing(paths: Sequence[Sequence[int]], prompts: Sequence[int], block_tokens: int) -> Sharing:
    """Return what requests with these tree nodes and prompt lengths share, in their order."""
    seen: set[int] = set()
    blocks = requests = tokens = 0
    for path, prompt in zip(paths, prompts, strict=True):
        full = path[: prompt // block_tokens]
        most = (prompt - 1) // block_tokens
        hits = next((place for place, node in enumerate(full) if node not in seen), len(full))
        tokens += min(hits, most) * block_tokens
        requests += min(hits, most) > 0
        blocks += len(full)
        seen.update(full)
    return Sharing(blocks, len(seen), requests, tokens)
