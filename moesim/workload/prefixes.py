"""Identities of prompts' token blocks, as nodes of a tree of prefixes.

Two blocks are the same only if all blocks before them are the same, too: their keys and values
depend on the whole prefix. So a block is a node of a tree, and its parent is the block before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from moesim.errors import ScenarioError

if TYPE_CHECKING:
    from moesim.scenario import Scenario
    from moesim.trace import Trace
    from moesim.workload.arrivals import Arrivals

__all__ = ["Prefixes", "Sharing", "nodes", "prefixes_of", "sharing"]


class Prefixes(NamedTuple):
    """The tree nodes of each request's full blocks, of which each has `block_tokens` tokens."""

    paths: Sequence[tuple[int, ...]]
    block_tokens: int


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


def prefixes_of(
    scenario: Scenario,
    trace: Trace,
    arrivals: Arrivals,
    chosen: npt.NDArray[np.int64],
    prompts: npt.NDArray[np.int64],
) -> Prefixes | None:
    """Return the prefixes of requests that replay `chosen`; None without a prefix cache.

    Raise `ScenarioError` if the workload has no identities, or some that no prefix cache can use.
    """
    if not scenario.memory.prefix_cache:
        return None
    workload = scenario.workload
    if workload.cached_prefix or workload.prefill == "skip":
        key = "cached_prefix" if workload.cached_prefix else "prefill"
        raise ScenarioError.at(
            scenario,
            f"workload.{key}",
            "says which tokens are cached, and so does memory.prefix_cache; leave one of them out",
        )
    blocks, size = arrivals.blocks, arrivals.block_tokens
    if arrivals.prompt_tokens is None and trace.prefix_blocks is not None:
        if workload.lengths is not None:
            raise ScenarioError.at(
                scenario,
                "workload.lengths",
                "the trace identifies the blocks of its own prompts, so memory.prefix_cache needs "
                "lengths: recorded",
            )
        blocks = [trace.prefix_blocks[request] for request in chosen.tolist()]
        size = trace.meta.prefix_block_tokens
    if blocks is None or size is None:
        raise ScenarioError.at(
            scenario,
            "memory.prefix_cache",
            "the workload identifies no blocks of tokens; use a file with block ids, like "
            "Mooncake's, or a trace with prefix blocks",
        )
    if size % scenario.memory.kv_block_tokens:
        raise ScenarioError.at(
            scenario,
            "memory.kv_block_tokens",
            f"is {scenario.memory.kv_block_tokens}, and the workload identifies blocks of {size} "
            "tokens, which must be whole KV blocks; write a divisor",
        )
    full = [ids[: prompt // size] for ids, prompt in zip(blocks, prompts.tolist(), strict=True)]
    return Prefixes(nodes(full), size)
