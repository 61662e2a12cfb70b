"""The shape of the model in a GGUF file, as llama.cpp reads it, from the file's header.

The header lists the name, sizes and type of every tensor. So weights are counted and not derived,
and every part has the bits in which the file stores it. Tensors themselves are never read. What
sizes do not say comes from the metadata: heads, windows, and the sizes of recurrent states.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from moesim.errors import UsageError, shown
from moesim.model.format_bits import bits_of_file, with_bits_of
from moesim.model.gguf_file import Header, Tensor, read_header
from moesim.model.layers import LayerKind, Mla
from moesim.model.layouts import with_layers
from moesim.model.shapes import ModelShape

__all__ = ["gguf_shape", "shape_from_header"]

_MOST_LAYERS: Final = 10_000
_BLOCK: Final = re.compile(r"blk\.(\d+)\.(.+)")
_EXPERTS: Final = ("ffn_gate_exps", "ffn_up_exps", "ffn_gate_up_exps", "ffn_down_exps")
_KNOWN: Final = re.compile(
    r"ffn_(gate|up|down|gate_up)(_exps|_shexp)?|ffn_gate_inp(_shexp)?|ffn_latent_(up|down)"
    r"|attn_(q|k|v|qkv|output|gate|q_a|q_b|kv_a_mqa|kv_b|k_b|v_b)"
    r"|ssm_(in|x|dt|out|conv1d|a|d|ba|beta|alpha|beta_alpha)|shortconv\.(conv|in_proj|out_proj)"
)
"""The matrices of a block whose part in the computation is known."""
_ENDS: Final = ("token_embd", "output")
_DELTA_NETS: Final = ("qwen3next", "qwen35moe")
_ONE_NORM: Final = ("nemotron_h", "nemotron_h_moe")
_ALTERNATING: Final = ("gpt-oss",)
"""Architectures whose even layers have the window, which no metadata says."""


def gguf_shape(path: str | Path, name: str | None = None) -> ModelShape:
    """Return the shape of the model in a GGUF file, with the bits that each part has there.

    Raises:
        MissingExtra: the gguf package is not installed.
        UsageError: the file cannot be read, or its model has no routed experts or a part that is
            not understood.
    """
    header = read_header(path)
    try:
        return shape_from_header(header, name or Path(path).stem)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def shape_from_header(header: Header, name: str) -> ModelShape:
    """Return the shape that a header describes. Raise UsageError where it describes none."""
    read = _Metadata(header)
    num_layers = read.size("block_count") - (read.optional("nextn_predict_layers") or 0)
    if not 0 < num_layers <= _MOST_LAYERS:
        raise UsageError(f"the header has {read.arch}.block_count = {num_layers}, no valid number")
    blocks: list[dict[str, Tensor]] = [{} for _ in range(num_layers)]
    ends: dict[str, Tensor] = {}
    for tensor in header.tensors:
        _sort(tensor, blocks, ends)
    if "token_embd" not in ends:
        raise UsageError("the header has no tensor token_embd.weight")
    experts = [block for block in blocks if "ffn_down_exps" in block]
    if not experts:
        raise UsageError(
            f"the header (architecture {shown(read.arch)}) has no tensor of routed experts; only "
            "decoders with routed experts are supported"
        )
    shape = _shape(read, blocks, ends, experts, name)
    return with_bits_of(shape, bits_of_file(header, shape, name), by_layer=True)


def _sort(tensor: Tensor, blocks: list[dict[str, Tensor]], ends: dict[str, Tensor]) -> None:
    """File a tensor under its block, without its suffix. Leave vectors and later blocks out."""
    base, _, suffix = tensor.name.rpartition(".")
    if not tensor.is_matrix or (suffix == "bias" and base):
        return
    base = base if suffix == "weight" else tensor.name
    match = _BLOCK.fullmatch(base)
    if match is None and base not in _ENDS and not base.startswith("rope_"):
        raise UsageError(f"the header has the tensor {tensor.name[:80]}, which is not understood")
    if match is None:
        ends[base] = tensor
    elif int(match[1]) < len(blocks):
        if not _KNOWN.fullmatch(match[2]):
            raise UsageError(
                f"the header has the tensor {tensor.name[:80]}, which is not understood"
            )
        blocks[int(match[1])][match[2]] = tensor


def _shape(
    read: _Metadata,
    blocks: list[dict[str, Tensor]],
    ends: dict[str, Tensor],
    experts: list[dict[str, Tensor]],
    name: str,
) -> ModelShape:
    sizes = {tuple(block[key].sizes for key in _EXPERTS if key in block) for block in experts}
    if len(sizes) != 1:
        raise UsageError("the header has experts of different sizes, which are not understood")
    ffn, width, count = _three(experts[0]["ffn_down_exps"])
    hidden = read.size("embedding_length")
    each = sum(experts[0][key].params for key in _EXPERTS if key in experts[0]) // count
    heads = read.most("attention.head_count")
    layers = [_layer(read, block, number, hidden) for number, block in enumerate(blocks)]
    shape = ModelShape(
        name=name,
        num_layers=len(blocks),
        hidden=hidden,
        expert_ffn=ffn,
        num_experts=count,
        top_k=read.size("expert_used_count"),
        num_heads=heads,
        num_kv_heads=read.most("attention.head_count_kv", heads),
        head_dim=read.optional("attention.key_length") or max(1, hidden // heads),
        vocabulary=ends["token_embd"].sizes[1],
        shared_ffn=max((_width(block, "ffn_down_shexp") for block in blocks), default=0),
        dense_ffn=max((_width(block, "ffn_down") for block in blocks), default=0),
        tied_embeddings="output" not in ends,
        source="GGUF header",
        expert_matrices=each // (ffn * width),
        expert_width=width if width != hidden else None,
    )
    if shape.expert_params != each or shape.top_k > count:
        raise UsageError("the header has experts whose sizes do not agree")
    return with_layers(shape, layers)


def _layer(read: _Metadata, block: Mapping[str, Tensor], number: int, hidden: int) -> LayerKind:
    """Return the kind of a block: its weights are counted, its mixer is told by its tensors."""
    left_out = {*_EXPERTS, *(("attn_kv_b",) if "attn_k_b" in block else ())}
    params = sum(tensor.params for key, tensor in block.items() if key not in left_out)
    params += (1 if read.arch in _ONE_NORM else 2) * hidden
    mixer = _mixer(read, block, number, hidden)
    return replace(mixer, params=params, routed="ffn_down_exps" in block)


def _mixer(read: _Metadata, block: Mapping[str, Tensor], number: int, hidden: int) -> LayerKind:
    """Return the mixer of a block without its weights; without tensors for one, none."""
    if "ssm_conv1d" in block or "shortconv.conv" in block:
        return _recurrent(read, block)
    heads = read.of_layer("attention.head_count", number)
    if "attn_kv_a_mqa" in block:
        rank = read.size("attention.kv_lora_rank")
        rope = read.size("rope.dimension_count")
        key = read.optional("attention.key_length_mla") or read.size("attention.key_length")
        value = read.optional("attention.value_length_mla") or read.size("attention.value_length")
        query = read.optional("attention.q_lora_rank")
        mla = Mla(rank, rope, key - rope, value, query)
        return LayerKind(
            0, heads=heads, key_dim=key, value_dim=key, kv_numbers=rank + rope, mla=mla
        )
    windowed = _is_windowed(read, number)
    suffix = "_swa" if windowed and read.optional("attention.key_length_swa") else ""
    key = read.optional(f"attention.key_length{suffix}") or max(1, hidden // max(heads, 1))
    value = read.optional(f"attention.value_length{suffix}") or key
    if "attn_qkv" in block:
        kv_numbers = block["attn_qkv"].sizes[1] - heads * key
    elif "attn_k" in block:
        # Without a projection of values, the keys serve as values.
        kv_numbers = block["attn_k"].sizes[1] + block.get("attn_v", block["attn_k"]).sizes[1]
    else:
        return LayerKind(0)
    window = read.optional("attention.sliding_window") if windowed else None
    return LayerKind(
        0, heads=heads, key_dim=key, value_dim=value, kv_numbers=kv_numbers, window=window
    )


def _recurrent(read: _Metadata, block: Mapping[str, Tensor]) -> LayerKind:
    """Return the state of Mamba, a gated delta net or a short convolution."""
    conv = block.get("ssm_conv1d") or block["shortconv.conv"]
    kernel, channels = min(conv.sizes), max(conv.sizes)
    inputs = 2 * channels * (kernel - 1)  # 16 bits each, as `moesim.model.mixers` assumes
    if "shortconv.conv" in block:
        return LayerKind(0, state_bytes=inputs)
    state = read.size("ssm.inner_size") * read.size("ssm.state_size")
    operations = 6 if read.arch in _DELTA_NETS else 4
    return LayerKind(0, state_bytes=4 * state + inputs, state_flops=operations * state)


def _is_windowed(read: _Metadata, number: int) -> bool:
    """Return whether a layer has the window; without a pattern no layer has it."""
    pattern = read.get("attention.sliding_window_pattern")
    if isinstance(pattern, Sequence) and number < len(pattern):
        return bool(pattern[number])
    return read.arch in _ALTERNATING and number % 2 == 0


def _width(block: Mapping[str, Tensor], key: str) -> int:
    return block[key].sizes[0] if key in block else 0


def _three(tensor: Tensor) -> tuple[int, int, int]:
    if len(tensor.sizes) != 3:
        raise UsageError(f"the header has {tensor.name} of {len(tensor.sizes)} dimensions, not 3")
    return tensor.sizes[0], tensor.sizes[1], tensor.sizes[2]


class _Metadata:
    """The metadata of a header; keys are those after the name of the architecture."""

    def __init__(self, header: Header) -> None:
        self.get = header.value
        self.arch = str(header.metadata.get("general.architecture", "unknown"))

    def optional(self, key: str) -> int | None:
        """Return a positive integer; None where there is none or 0."""
        value = self.get(key)
        if value is None or value == 0:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise UsageError(f"the header has {self.arch}.{key} = {shown(value)}, no valid size")
        return value

    def size(self, key: str) -> int:
        """Return a positive integer. Raise UsageError where there is none."""
        value = self.optional(key)
        if value is None:
            raise UsageError(f"the header lacks {self.arch}.{key}")
        return value

    def most(self, key: str, default: int | None = None) -> int:
        """Return a size, or the largest of those of all layers."""
        value = self.get(key)
        if isinstance(value, Sequence) and not isinstance(value, str) and value:
            return max(1, *map(int, value))
        return default if value is None and default is not None else self.size(key)

    def of_layer(self, key: str, layer: int) -> int:
        """Return a size that may be stated once or for each layer."""
        value = self.get(key)
        if isinstance(value, Sequence) and not isinstance(value, str):
            return int(value[layer]) if layer < len(value) else 0
        return self.size(key)
