"""A prefix cache: KV blocks of prompts that later requests with the same prefix reuse.

A *unit* is a part of a prompt with an identity, like the 512 tokens of a hash id in Mooncake's
traces, and takes a whole number of KV blocks. Units with the same identity have the same tokens
before them, too, so they have the same keys and values.

- A request that is admitted reuses the longest run of its first units that are cached. It computes
  the rest, and always its last prompt token, whose logits give the first output token.
- Requests share a unit: it counts its holders. A unit is cached from the step after the one that
  computes its last token. If it is cached by then, the request takes the cached copy and frees its
  own.
- A unit without holders stays cached, and its blocks count as free. When blocks are needed, the
  unit whose last holder left first is evicted; of one request, the last unit first. So no unit is
  evicted before those that continue it.

The scheme is that of SGLang's RadixAttention (Zheng et al. 2024, arXiv 2312.07104) and of automatic
prefix caching in vLLM, with units for blocks.
"""

from __future__ import annotations

from moesim.errors import InvariantError
from moesim.serving.kv import BlockPool
from moesim.serving.request import Request

__all__ = ["PrefixPool"]


class PrefixPool(BlockPool):
    """A pool of KV blocks whose units of prompts stay cached.

    At all times free + held = total. Cached units without holders are free.
    """

    def __init__(self, total: int, block_tokens: int, unit_tokens: int) -> None:
        super().__init__(total, block_tokens)
        self._unit_tokens = unit_tokens
        self._unit_blocks = unit_tokens // block_tokens
        self._holders: dict[int, int] = {}  # of each cached unit
        self._idle: dict[int, None] = {}  # units without holders, the next to be evicted first
        self.evicted_blocks = 0

    def find_prefix(self, request: Request) -> None:
        """Let a waiting request begin behind its first units that are cached now."""
        most = (request.prompt_tokens - 1) // self._unit_tokens
        hits = 0
        for unit in request.prefix[:most]:
            if unit not in self._holders:
                break
            hits += 1
        request.position = hits * self._unit_tokens

    def missing(self, request: Request, tokens: int) -> int:
        """Return the number of free blocks that `tokens` more rows of the request take.

        For a waiting request, these include its cached units without holders.
        """
        if request.blocks:
            return super().missing(request, tokens)
        shared = sum(self._holders.get(unit, 0) > 0 for unit in self._hits(request))
        return self.blocks_for(request.position + tokens) - shared * self._unit_blocks

    def grow(self, request: Request, tokens: int) -> bool:
        """Take the blocks that `tokens` more rows need, and hold the request's cached prefix.

        Return False, and take none, if too few are free, or if the prefix was evicted meanwhile.
        """
        hits = () if request.blocks else self._hits(request)
        need = self.missing(request, tokens)
        if need > self.free or any(unit not in self._holders for unit in hits):
            return False
        for unit in hits:
            self._hold(unit)
        if hits:
            request.units = len(hits)
            self.reused_tokens += request.position
            if not request.preemptions:
                request.reused_tokens = request.position
        self.free -= need
        request.blocks = max(request.blocks, self.blocks_for(request.position + tokens))
        self.peak = max(self.peak, self.total - self.free)
        self._evict()
        return True

    def publish(self, request: Request) -> None:
        """Cache the units of a running request whose tokens are computed."""
        full = min(request.position, request.prompt_tokens) // self._unit_tokens
        for unit in request.prefix[request.units : full]:
            if self._holders.get(unit, 0):  # another request holds a copy, so this one is free
                self.free += self._unit_blocks
            self._hold(unit)
            request.units += 1

    def release(self, request: Request) -> None:
        """Return the blocks of a request; its units stay cached."""
        self.publish(request)
        self.free += request.blocks - request.units * self._unit_blocks
        for unit in reversed(request.prefix[: request.units]):
            self._holders[unit] -= 1
            if not self._holders[unit]:
                self._idle[unit] = None
                self.free += self._unit_blocks
        request.blocks = request.units = 0
        if self.free > self.total:
            raise InvariantError(3, f"{self.free} KV blocks are free, more than all {self.total}")

    def _hits(self, request: Request) -> tuple[int, ...]:
        """Return the units behind which a waiting request begins."""
        return request.prefix[: request.position // self._unit_tokens]

    def _hold(self, unit: int) -> None:
        self._holders[unit] = self._holders.get(unit, 0) + 1
        self._idle.pop(unit, None)

    def _evict(self) -> None:
        """Evict units until the blocks that are taken exist."""
        while len(self._idle) * self._unit_blocks > self.free:
            unit = next(iter(self._idle))
            del self._idle[unit], self._holders[unit]
            self.evicted_blocks += self._unit_blocks
