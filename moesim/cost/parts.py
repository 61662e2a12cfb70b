"""The parts of an operation that run as kernels of their own, with what each reads and computes.

An ideal engine runs an operation as one piece of work, whose traffic and arithmetic overlap. Other
engines run kernel by kernel: reading the KV cache does not hide behind the projections.
"""

from __future__ import annotations

from typing import NamedTuple

from moesim.cost.loads import Loads
from moesim.engines.profile_schema import KV
from moesim.hardware.ops import BatchShape
from moesim.model.shapes import ModelShape, stored_bytes

__all__ = ["Part", "Parts", "expert_family", "families_of", "family_of"]


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
    return "8-bit" if bits >= 8 else "k-quant"


def expert_family(shape: ModelShape) -> str:
    """Return the family of the stored experts: that of their format, or of their bits."""
    return shape.expert_family or family_of(shape.expert_bits)


def families_of(shape: ModelShape, *, layers: bool = True) -> set[str]:
    """Return the families of the stored experts, and with `layers` of all other weights."""
    families = {expert_family(shape)}
    if layers:
        families.add(shape.weight_family or family_of(shape.weight_bits))
    if layers and shape.head_bits is not None:
        families.add(family_of(shape.head_bits))
    return families


class Parts:
    """The parts of one model's operations."""

    def __init__(self, shape: ModelShape) -> None:
        self.shape = shape
        self._loads = Loads(shape)
        self._kinds = shape.all_kinds()
        self._weights = shape.weight_family or family_of(shape.weight_bits)
        self._experts = expert_family(shape)
        self._head = self._weights if shape.head_bits is None else family_of(shape.head_bits)
        self._shared = bool(shape.shared_ffn)

    def layer(self, layer: int, batch: BatchShape) -> list[Part]:
        """Return the parts of a model layer without its routed experts."""
        kind, rows = self._kinds[layer], batch.tokens
        flops, nbytes = self._loads.attention(layer, batch)
        mixer = "linear" if kind.state_bytes else "latent" if kind.mla else "attention"
        parts = [self._product(mixer, kind.params, rows)]
        if flops or nbytes:
            parts.append(Part("", KV, rows, flops, nbytes, rows))
        else:
            parts[0] = parts[0]._replace(kernels="norm")
        if kind.routed:
            parts.append(Part("router", "float", rows, 0, 0, rows))
            if self._shared:
                parts.append(Part("shared", "float", rows, 0, 0, rows))
        elif self.shape.dense_ffn or not self.shape.kinds:
            parts.append(Part("dense", "float", rows, 0, 0, rows))
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
        return [Part("tail", self._head, rows, load.flops, load.nbytes, rows)]

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
