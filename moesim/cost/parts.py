"""The parts of an operation that run as kernels of their own, with what each reads and computes.

An ideal engine runs an operation as one piece of work, whose traffic and arithmetic overlap. Other
engines run kernel by kernel: reading the KV cache does not hide behind the projections.
"""

from __future__ import annotations

from typing import NamedTuple

from moesim.cost.loads import Loads
from moesim.hardware.ops import BatchShape
from moesim.model.shapes import ModelShape, stored_bytes

__all__ = ["KV", "Part", "Parts", "family_of"]

KV = "kv"
"""The family of KV entries, beside those of stored weights."""


class Part(NamedTuple):
    """One kind of kernels of an operation.

    `rows` are those of the matrix product, of `step_rows` rows in the step. `flops` are its
    operations and `nbytes` what it reads. `kernels` names the number of kernels in an engine's
    profile; empty: they count elsewhere.
    """

    kernels: str
    family: str
    rows: int
    flops: int
    nbytes: int
    step_rows: int


def family_of(bits: float) -> str:
    """Return the family of formats that weights of this number of bits most probably have."""
    if bits >= 16:
        return "float"
    return "int8" if bits >= 8 else "k_quant"


class Parts:
    """The parts of one model's operations."""

    def __init__(self, shape: ModelShape) -> None:
        self.shape = shape
        self._loads = Loads(shape)
        self._weights = family_of(shape.weight_bits)
        self._experts = family_of(shape.expert_bits)
        shared = 3 * shape.hidden * shape.shared_ffn
        self._front = shape.front_params - shared
        self._shared = shared
        self._ffn = 3 * shape.hidden * shape.dense_ffn
        self._attention = shape.dense_params - self._ffn
        self._moe = frozenset(shape.moe_layers)

    def layer(self, layer: int, batch: BatchShape) -> list[Part]:
        """Return the parts of a model layer without its routed experts."""
        windowed = layer in self._loads.windowed
        flops, nbytes = self._loads.attention(batch, windowed=windowed)
        parts = [Part("", KV, batch.tokens, flops, nbytes, batch.tokens)]
        if layer not in self._moe:
            parts.append(self._product("attention", self._attention, batch.tokens))
            parts.append(self._product("dense", self._ffn, batch.tokens))
            return parts
        parts.append(self._product("attention", self._front, batch.tokens))
        parts.append(Part("router", "float", batch.tokens, 0, 0, batch.tokens))
        if self._shared:
            parts.append(self._product("shared", self._shared, batch.tokens))
        return parts

    def experts(self, tokens: tuple[int, ...], nbytes: tuple[int, ...] | None) -> list[Part]:
        """Return a part for each routed expert of a call; expert i computes `tokens[i]` rows."""
        parts = []
        step_rows = -(-sum(tokens) // self.shape.top_k)
        for number, rows in enumerate(tokens):
            load = self._loads.expert(rows, None if nbytes is None else nbytes[number])
            parts.append(Part("", self._experts, rows, load.flops, load.nbytes, step_rows))
        return parts

    def tail(self, batch: BatchShape) -> list[Part]:
        """Return the parts of a step's end, without a decoupled router."""
        load = self._loads.tail(batch)
        rows = max(1, batch.sampled)
        return [Part("tail", self._weights, rows, load.flops, load.nbytes, rows)]

    def router(self, batch: BatchShape) -> list[Part]:
        """Return the parts of a decoupled router over all rows of a step; empty without one."""
        load = self._loads.router(batch)
        if load is None:
            return []
        rows = batch.tokens
        return [Part("attention", self._weights, rows, load.flops, load.nbytes, rows)]

    def _product(self, kernels: str, params: int, rows: int) -> Part:
        nbytes = stored_bytes(params, self.shape.weight_bits)
        return Part(kernels, self._weights, rows, 2 * rows * params, nbytes, rows)
