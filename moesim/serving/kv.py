"""KV blocks: memory for keys and values, allocated in blocks of a fixed number of tokens.

The scheme is that of PagedAttention (vLLM, Kwon et al. 2023, arXiv 2309.06180). Only the numbers of
blocks matter here, so blocks have no addresses.
"""

from __future__ import annotations

from moesim.errors import InvariantError
from moesim.serving.request import Request


class BlockPool:
    """`total` blocks of `block_tokens` tokens; free + held = total at all times."""

    def __init__(self, total: int, block_tokens: int) -> None:
        self.total = total
        self.block_tokens = block_tokens
        self.free = total
        self.peak = 0
        self.reused_tokens = 0  # rows that requests found cached; none without a prefix cache

    def blocks_for(self, tokens: int) -> int:
        """Return the number of blocks that hold `tokens` entries."""
        return -(-tokens // self.block_tokens)

    def missing(self, request: Request, tokens: int) -> int:
        """Return the number of blocks to add before `tokens` more rows of the request fit."""
        return max(0, self.blocks_for(request.position + tokens) - request.blocks)

    def grow(self, request: Request, tokens: int) -> bool:
        """Take the blocks that `tokens` more rows need.

        Return False, and take none, if too few are free.
        """
        need = self.missing(request, tokens)
        if need > self.free:
            return False
        self.free -= need
        request.blocks += need
        self.peak = max(self.peak, self.total - self.free)
        return True

    def find_prefix(self, request: Request) -> None:
        """Let a waiting request begin behind what is cached of its prompt: nothing here."""

    def publish(self, request: Request) -> None:
        """Cache what is computed of a running request's prompt: nothing here."""

    def release(self, request: Request) -> None:
        """Return all blocks of a request to the pool."""
        self.free += request.blocks
        request.blocks = 0
        if self.free > self.total:
            raise InvariantError(3, f"{self.free} KV blocks are free, more than all {self.total}")
