"""The bits of a model's parts in a format: mean bits of experts, layers, embeddings and LM head.

They follow from the block of each matrix and its number of weights. A format gives the blocks by
rules; the header of a GGUF file gives them as they are. Where the size of a file is known, the bits
of the experts are scaled until the file has that size.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple

from moesim.errors import UsageError
from moesim.model.formats import Format, block_named, block_names, fallback, format_named
from moesim.model.gguf_file import Header
from moesim.model.layers import LayerKind
from moesim.model.shapes import ModelShape

__all__ = ["Basis", "Bits", "basis_of", "bits_for", "bits_of_file", "with_bits_of"]

Basis = Literal["documented", "assumed", "file size", "file header"]
MXFP4_BITS: Final = 4.25
_LAYER: Final = re.compile(r"^blk\.(\d+)\.")
_EXPERTS: Final = re.compile(r"^blk\.\d+\.ffn_(?:gate|up|down|gate_up)(?:_exps|\.\d+)\.weight$")


@dataclass(frozen=True, slots=True)
class Bits:
    """Mean bits of a stored weight of each part, and the family of the block that most bytes have.

    `weights` are those of all layers but routed experts, norms and routers included. `by_layer` has
    the bits of the experts of each MoE layer. `basis` says where they are from.
    """

    format: str
    experts: float
    by_layer: tuple[tuple[int, float], ...]
    weights: float
    embedding: float
    head: float
    expert_family: str
    weight_family: str
    basis: Basis

    @property
    def exact(self) -> bool:
        """Whether the bits follow from published rules or from the file itself."""
        return self.basis in ("documented", "file header")


class _Matrix(NamedTuple):
    """Weights of one role in one layer: their number, and the columns of one matrix."""

    role: str
    layer: int
    params: int
    columns: int


class _Sum:
    """Weights and bits of one part, by family."""

    def __init__(self) -> None:
        self.params = 0
        self.bits: dict[str, float] = defaultdict(float)

    def add(self, params: int, bits: float, family: str) -> None:
        """Add `params` weights that take `bits` in all."""
        self.params += params
        self.bits[family] += bits

    @property
    def total(self) -> float:
        return sum(self.bits.values())

    @property
    def mean(self) -> float:
        return self.total / self.params if self.params else 0.0

    @property
    def family(self) -> str:
        return max(self.bits, key=lambda family: self.bits[family], default="")


class _Parts:
    """The parts of a model while their matrices are added."""

    def __init__(self) -> None:
        self.experts, self.weights, self.embedding, self.head = (_Sum() for _ in range(4))
        self.layers: dict[int, _Sum] = defaultdict(_Sum)

    def add(self, role: str, layer: int, params: int, bits: float, family: str) -> None:
        """Add the weights of a role in a layer; `bits` are those of all of them."""
        ends = {"token_embd": self.embedding, "output": self.head}
        if role.endswith("_exps"):
            self.layers[layer].add(params, bits, family)
            ends[role] = self.experts
        ends.get(role, self.weights).add(params, bits, family)

    def bits(self, name: str, basis: Basis) -> Bits:
        # Tied embeddings and head are one matrix.
        head = self.head if self.head.params else self.embedding
        embedding = self.embedding if self.embedding.params else self.head
        return Bits(
            name,
            self.experts.mean,
            tuple((layer, total.mean) for layer, total in sorted(self.layers.items())),
            self.weights.mean,
            embedding.mean,
            head.mean,
            self.experts.family,
            self.weights.family,
            basis,
        )


def basis_of(text: str) -> Basis:
    """Return where the bits of a format come from; `text` is its name, or the path of a file."""
    if text.endswith(".gguf"):
        return "file header"
    named = format_named(text)
    if named.file_bytes is not None:
        return "file size"
    return "documented" if named.format is not None and named.format.documented else "assumed"


def bits_for(form: Format, shape: ModelShape, file_bytes: int | None = None) -> Bits:
    """Return the bits of a model's parts in a format.

    Experts that were published in MXFP4 stay so, because quantisers keep them. With `file_bytes`,
    the bits of the experts are scaled so that all weights take that size.

    Raise UsageError if a file of that size cannot hold the model in this format.
    """
    keeps = shape.expert_bits == MXFP4_BITS
    parts = _Parts()
    model = (shape.num_layers, shape.num_experts, shape.num_heads / max(1, shape.num_kv_heads))
    for matrix in _matrices(shape):
        name = fallback(form.block_of(matrix.role, matrix.layer, model), matrix.columns)
        block = block_named("MXFP4" if keeps and matrix.role.endswith("_exps") else name)
        bits = matrix.params * block.bits
        parts.add(matrix.role, matrix.layer, matrix.params, bits, block.family)
    found = parts.bits(form.name, "documented" if form.documented else "assumed")
    return found if file_bytes is None else _scaled(found, parts, file_bytes)


def bits_of_file(header: Header, shape: ModelShape, name: str) -> Bits:
    """Return the bits of a model's parts as a GGUF file stores them.

    Layers that predict further tokens are left out. Raise UsageError if the file has experts of
    another model.
    """
    parts = _Parts()
    predicting = header.value("nextn_predict_layers")
    first = shape.num_layers
    left_out = range(first, first + predicting) if isinstance(predicting, int) else ()
    for tensor in header.tensors:
        match = _LAYER.match(tensor.name)
        layer = int(match[1]) if match else 0
        if layer not in left_out:
            role = (
                "ffn_exps" if _EXPERTS.match(tensor.name) else tensor.name.removesuffix(".weight")
            )
            parts.add(role, layer, tensor.params, 8 * tensor.nbytes, _family(tensor.type))
    expected = len(shape.moe_layers) * shape.num_experts * shape.expert_params
    if parts.experts.params != expected or not set(parts.layers) <= set(shape.moe_layers):
        raise UsageError(
            f"the routed experts of {name} have {parts.experts.params} weights, and those of "
            f"{shape.name} have {expected}: it is a file of another model"
        )
    return parts.bits(name, "file header")


def _family(block: str) -> str:
    """Return the family of a block; "" for one that is not known, like that of integers."""
    return block_named(block).family if block in block_names() else ""


def with_bits_of(shape: ModelShape, bits: Bits, *, by_layer: bool = False) -> ModelShape:
    """Return the shape stored with these bits; `by_layer`: experts of each layer have their own."""
    own = {layer: each for layer, each in bits.by_layer if each != bits.experts}
    return replace(
        shape,
        expert_bits=bits.experts,
        layer_bits=tuple(sorted(own.items())) if by_layer else (),
        single_expert_bits=(),
        weight_bits=bits.weights,
        embedding_bits=bits.embedding,
        head_bits=bits.head,
        expert_family=bits.expert_family,
        weight_family=bits.weight_family,
    )


def _scaled(bits: Bits, parts: _Parts, file_bytes: int) -> Bits:
    others = parts.weights.total + parts.embedding.total + parts.head.total
    factor = (8 * file_bytes - others) / parts.experts.total
    if not 0.5 <= factor <= 2:
        plain = (others + parts.experts.total) / 8
        raise UsageError(
            f"the model takes {plain / 1e9:.1f} GB as {bits.format}, so a file of "
            f"{file_bytes / 1e9:.1f} GB is of another model or format"
        )
    by_layer = tuple((layer, each * factor) for layer, each in bits.by_layer)
    return replace(bits, experts=bits.experts * factor, by_layer=by_layer, basis="file size")


def _matrices(shape: ModelShape) -> Iterator[_Matrix]:
    """Yield the weights of each role of each layer, and the embeddings and the LM head."""
    hidden = shape.hidden
    for layer, kind in enumerate(shape.all_kinds()):
        yield from _layer(shape, layer, kind)
        if kind.routed:
            width = shape.expert_width or hidden
            experts = _ffn(layer, "_exps", width, shape.expert_ffn, shape.expert_matrices)
            yield from (each._replace(params=each.params * shape.num_experts) for each in experts)
    # Tied embeddings are stored once, as the head is.
    if not shape.tied_embeddings:
        yield _Matrix("token_embd", 0, hidden * shape.vocabulary, hidden)
    yield _Matrix("token_embd", 0, shape.lookup_params, hidden)
    yield _Matrix("output", 0, hidden * shape.vocabulary, hidden)


def _layer(shape: ModelShape, layer: int, kind: LayerKind) -> Iterator[_Matrix]:
    """Yield the weights of a layer without its routed experts: all of its `params`.

    Attention that has fewer weights than its usual matrices has less of each. Weights beyond those
    of known roles, like those of a recurrence, are of one more role.
    """
    hidden = shape.hidden
    yield _Matrix("norm", layer, shape.norm_params, 1)
    rest = kind.params - shape.norm_params
    ffn: list[_Matrix] = []
    if kind.routed and shape.router is None:
        ffn.append(_Matrix("router", layer, hidden * shape.num_experts, hidden))
    if kind.routed:
        ffn += _ffn(layer, "_shexp", hidden, shape.shared_ffn, shape.expert_matrices)
    else:
        dense = list(_ffn(layer, "", hidden, shape.dense_ffn))
        # Where layers differ, one may have no FFN.
        ffn += dense if sum(each.params for each in dense) <= rest else ()
    yield from ffn
    rest = max(0, rest - sum(each.params for each in ffn))
    mixing = [_Matrix(role, layer, *sizes) for role, *sizes in _attention(shape, kind)]
    wanted = sum(each.params for each in mixing)
    if wanted > rest:
        mixing = [each._replace(params=each.params * rest // wanted) for each in mixing]
    yield from mixing
    yield _Matrix("mixer", layer, rest - sum(each.params for each in mixing), hidden)


def _ffn(layer: int, kind: str, hidden: int, width: int, matrices: int = 3) -> Iterable[_Matrix]:
    """Return the projections of one FFN: up and down, and a gate if there are three.

    None where its width is 0.
    """
    if not width:
        return ()
    gate = _Matrix(f"ffn_gate{kind}", layer, hidden * width, hidden)
    up = gate._replace(role=f"ffn_up{kind}")
    down = gate._replace(role=f"ffn_down{kind}", columns=width)
    return (gate, up, down) if matrices == 3 else (up, down)


def _attention(shape: ModelShape, kind: LayerKind) -> Iterator[tuple[str, int, int]]:
    """Yield role, weights and columns of the matrices of one layer's attention.

    Latent attention has the matrices of llama.cpp's files: the up-projection of keys is transposed
    and split from that of values.
    """
    hidden, heads, mla = shape.hidden, kind.heads, kind.mla
    if mla is None:
        keys = kind.kv_numbers * kind.key_dim // max(1, kind.key_dim + kind.value_dim)
        yield "attn_q", hidden * heads * kind.key_dim, hidden
        yield "attn_k", hidden * keys, hidden
        yield "attn_v", hidden * (kind.kv_numbers - keys), hidden
        yield "attn_output", hidden * heads * kind.value_dim, heads * kind.value_dim
        return
    width = heads * (mla.nope_dim + mla.rope_dim)
    if mla.q_rank is None:
        yield "attn_q", hidden * width, hidden
    else:
        yield "attn_q_a", hidden * mla.q_rank, hidden
        yield "attn_q_b", mla.q_rank * width, mla.q_rank
    yield "attn_kv_a_mqa", hidden * (mla.kv_rank + mla.rope_dim), hidden
    yield "attn_k_b", mla.kv_rank * heads * mla.nope_dim, mla.nope_dim
    yield "attn_v_b", mla.kv_rank * heads * mla.value_dim, mla.kv_rank
    yield "attn_output", hidden * heads * mla.value_dim, heads * mla.value_dim
