"""Headers of GGUF files: the types of tensors, and the bits of a model's parts from them."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.errors import MissingExtra, ScenarioError, UsageError
from moesim.model.format_bits import bits_of_file, with_bits_of
from moesim.model.gguf_file import read_header
from moesim.model.shapes import ModelShape, stored_bytes
from moesim.scenario import Scenario

gguf = pytest.importorskip("gguf", reason="gguf is in the gguf extra")

LAYERS, EXPERTS, HIDDEN, FFN, VOCABULARY = 3, 4, 256, 512, 256
SHAPE = ModelShape(
    "tiny", LAYERS, HIDDEN, FFN, EXPERTS, 2, 4, 2, 64, VOCABULARY, dense_layers=(0,), dense_ffn=FFN
)
NAMES = gguf.GGMLQuantizationType


def write(
    path: Path,
    *,
    down: tuple[str, str] = ("Q6_K", "Q4_K"),
    experts: int = EXPERTS,
    whole: bool = False,
) -> Path:
    """Write a file of SHAPE, whose layers 1 and 2 have down projections of these types.

    With `whole`, it has all that a shape needs.
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    if whole:
        writer.add_embedding_length(HIDDEN)
        writer.add_head_count(4)
        writer.add_expert_used_count(2)

    def add(name: str, kind: str, *shape: int) -> None:
        weights, nbytes = gguf.GGML_QUANT_SIZES[NAMES[kind]]
        data = np.zeros((*shape[:-1], shape[-1] // weights * nbytes), np.uint8)
        writer.add_tensor(name, data, raw_dtype=NAMES[kind])

    add("token_embd.weight", "Q4_K", VOCABULARY, HIDDEN)
    add("output.weight", "Q6_K", VOCABULARY, HIDDEN)
    for layer in range(LAYERS):
        add(f"blk.{layer}.attn_q.weight", "Q8_0", HIDDEN, HIDDEN)
        if whole:
            add(f"blk.{layer}.attn_k.weight", "Q8_0", HIDDEN // 2, HIDDEN)
            add(f"blk.{layer}.attn_v.weight", "Q8_0", HIDDEN // 2, HIDDEN)
        if layer:
            add(f"blk.{layer}.ffn_gate_exps.weight", "Q4_K", experts, FFN, HIDDEN)
            add(f"blk.{layer}.ffn_up_exps.weight", "Q4_K", experts, FFN, HIDDEN)
            add(f"blk.{layer}.ffn_down_exps.weight", down[layer - 1], experts, HIDDEN, FFN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def scenario(folder: Path, **model: Any) -> Scenario:
    data = {"trace": "t", "hardware": "t4", "model": model}
    found = Scenario.model_validate(data)
    found._base_dir = folder
    return found


def test_a_header_has_the_metadata_and_the_types_of_all_tensors(tmp_path: Path) -> None:
    header = read_header(write(tmp_path / "a.gguf"))
    assert header.metadata["llama.block_count"] == LAYERS
    assert header.metadata["general.architecture"] == "llama"
    types = {tensor.name: (tensor.params, tensor.type) for tensor in header.tensors}
    assert header.tensors[0].sizes == (HIDDEN, VOCABULARY)
    assert header.tensors[0].nbytes == HIDDEN * VOCABULARY * 144 // 256
    assert types["blk.1.ffn_down_exps.weight"] == (EXPERTS * HIDDEN * FFN, "Q6_K")
    assert types["output.weight"] == (VOCABULARY * HIDDEN, "Q6_K")


def test_the_bits_of_a_file_are_those_of_its_tensors(tmp_path: Path) -> None:
    bits = bits_of_file(read_header(write(tmp_path / "a.gguf")), SHAPE, "a.gguf")
    larger = (2 * 4.5 + 6.5625) / 3
    assert dict(bits.by_layer) == {1: larger, 2: 4.5}
    assert bits.experts == pytest.approx((larger + 4.5) / 2)
    assert (bits.embedding, bits.head, bits.weights) == (4.5, 6.5625, 8.5)
    assert (bits.expert_family, bits.weight_family, bits.exact) == ("k-quant", "8-bit", True)


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    header = read_header(write(tmp_path / "a.gguf", experts=2 * EXPERTS))
    with pytest.raises(UsageError, match="it is a file of another model"):
        bits_of_file(header, SHAPE, "a.gguf")


def test_a_file_in_parts_is_read_whole(tmp_path: Path) -> None:
    for part in (1, 2):
        write(tmp_path / f"m-0000{part}-of-00002.gguf")
    header = read_header(tmp_path / "m-00001-of-00002.gguf")
    assert len(header.tensors) == 2 * len(read_header(write(tmp_path / "a.gguf")).tensors)


def test_a_file_that_is_no_gguf_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"no weights here, only text of some length")
    with pytest.raises(UsageError, match=r"bad\.gguf: is no GGUF file that can be read"):
        read_header(tmp_path / "bad.gguf")


def test_one_file_is_parsed_once_as_shape_and_as_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.gguf", whole=True)
    parsed = []

    class Counted(gguf.GGUFReader):  # type: ignore[misc,name-defined,unused-ignore]
        def __init__(self, path: Path) -> None:
            parsed.append(path)
            super().__init__(path)

    monkeypatch.setattr(gguf, "GGUFReader", Counted)
    own = scenario(tmp_path, shape="a.gguf").load_shape(None)
    both = scenario(tmp_path, shape="a.gguf", format="a.gguf", format_by_layer=True)
    assert both.load_shape(None) == own
    assert parsed == [path]
    # The file says the same of a model whose sizes come from elsewhere.
    bits = bits_of_file(read_header(path), SHAPE, "a.gguf")
    for field in ("expert_bits", "layer_bits", "weight_bits", "embedding_bits", "head_bits"):
        assert getattr(own, field) == getattr(with_bits_of(SHAPE, bits, by_layer=True), field)
    assert (own.expert_family, own.weight_family) == ("k-quant", "8-bit")
    # A file that has changed is read again.
    write(path, whole=True, down=("Q4_K", "Q4_K"))
    os.utime(path, ns=(1, 1))
    assert scenario(tmp_path, shape="a.gguf").load_shape(None).expert_bits == 4.5
    assert len(parsed) == 2


def test_a_missing_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moesim.model.gguf_file.find_spec", lambda name: None)
    assert importlib.util.find_spec("gguf") is not None
    with pytest.raises(MissingExtra, match=r"'\.\[gguf\]'"):
        read_header(tmp_path / "a.gguf")


def test_a_scenario_reads_the_bits_of_a_file_and_says_where_it_is_wrong(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf")
    config = {
        "model_type": "deepseek_v3", "num_hidden_layers": LAYERS, "hidden_size": HIDDEN,
        "moe_intermediate_size": FFN, "intermediate_size": FFN, "n_routed_experts": EXPERTS,
        "num_experts_per_tok": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 64, "vocab_size": VOCABULARY, "first_k_dense_replace": 1,
    }  # fmt: skip
    shape = scenario(tmp_path, format="a.gguf", format_by_layer=True).load_shape(config)
    first, *_, last = shape.sizes()  # experts of layers 1 and 2
    assert first > last == stored_bytes(shape.expert_params, 4.5)
    assert (shape.head_bits, shape.weight_bits) == (6.5625, 8.5)
    with pytest.raises(ScenarioError, match=r"model\.format: .*file of another model"):
        scenario(tmp_path, format="a.gguf").load_shape({**config, "n_routed_experts": 8})
