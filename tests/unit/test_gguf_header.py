"""The header of a GGUF file gives the sizes of its model; the tensors are never read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from moesim.cost.loads import Loads
from moesim.errors import UsageError
from moesim.hardware.ops import BatchShape
from moesim.model.format_bits import bits_of_file
from moesim.model.gguf_file import Header, Tensor, read_header
from moesim.model.gguf_header import shape_from_header
from moesim.model.hf_config import load_shape, shape_from_config
from moesim.model.shapes import ModelShape
from moesim.scenario import load_scenario

gguf = pytest.importorskip("gguf")

HIDDEN, FFN, EXPERTS, LAYERS, HEADS, KV_HEADS, HEAD, VOCABULARY = 64, 32, 4, 3, 4, 2, 16, 96
CONFIG = {
    "model_type": "qwen3_moe",
    "num_hidden_layers": LAYERS,
    "hidden_size": HIDDEN,
    "moe_intermediate_size": FFN,
    "num_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD,
    "vocab_size": VOCABULARY,
}
BLOCK = {
    "attn_q": (HEADS * HEAD, HIDDEN),
    "attn_k": (KV_HEADS * HEAD, HIDDEN),
    "attn_v": (KV_HEADS * HEAD, HIDDEN),
    "attn_output": (HIDDEN, HEADS * HEAD),
    "attn_norm": (HIDDEN,),
    "attn_q_norm": (HEAD,),
    "ffn_norm": (HIDDEN,),
    "ffn_gate_inp": (EXPERTS, HIDDEN),
    "ffn_gate_exps": (EXPERTS, FFN, HIDDEN),
    "ffn_up_exps": (EXPERTS, FFN, HIDDEN),
    "ffn_down_exps": (EXPERTS, HIDDEN, FFN),
}
DENSE = {"ffn_gate": (FFN, HIDDEN), "ffn_up": (FFN, HIDDEN), "ffn_down": (HIDDEN, FFN)}


def write(
    path: Path,
    arch: str = "qwen3moe",
    block: dict[str, tuple[int, ...]] = BLOCK,
    quantised: tuple[str, ...] = (),
    **metadata: Any,
) -> Path:
    """Write a small model with the writer of the library; weights are zeros."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(2)
    for key, value in metadata.items():
        writer.add_uint32(f"{arch}.{key.replace('__', '.')}", value)
    writer.add_token_list([f"t{i}" for i in range(VOCABULARY)])
    names: dict[str, tuple[int, ...]] = {
        "token_embd": (VOCABULARY, HIDDEN),
        "output": (VOCABULARY, HIDDEN),
        "output_norm": (HIDDEN,),
    }
    for layer in range(LAYERS):
        names.update({f"blk.{layer}.{key}": sizes for key, sizes in block.items()})
    for name, sizes in names.items():
        weights = np.zeros(sizes, np.float16)
        if name.rpartition(".")[2] in quantised:
            packed = gguf.quants.quantize(
                weights.astype(np.float32), gguf.GGMLQuantizationType.Q8_0
            )
            writer.add_tensor(f"{name}.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(f"{name}.weight", weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def facts(shape: ModelShape) -> tuple[Any, ...]:
    """Return all from which durations, copies and memory follow."""
    loads = Loads(shape)
    batches = (BatchShape(1, 100, 100, 1), BatchShape(50, 50, 1275, 1, 2))
    return (
        *(shape.total_params, shape.expert_bytes, shape.fixed_bytes, shape.moe_layers),
        *(shape.num_experts, shape.top_k, shape.kv_bytes_per_token),
        *(shape.state_bytes_per_sequence, shape.vocabulary, shape.tied_embeddings),
        *(loads.layer(layer, batch) for layer in range(shape.num_layers) for batch in batches),
    )


def test_a_header_gives_the_shape_of_the_config(tmp_path: Path) -> None:
    shape = load_shape(write(tmp_path / "tiny.gguf"))
    assert facts(shape) == facts(shape_from_config(CONFIG))
    assert (shape.name, shape.expert_bits, shape.weight_bits) == ("tiny", 16, 16)


def test_bits_are_those_of_the_stored_tensors(tmp_path: Path) -> None:
    quantised = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
    shape = load_shape(write(tmp_path / "q8.gguf", quantised=quantised))
    assert (shape.expert_bits, shape.weight_bits) == (8.5, 16)
    assert shape.expert_bytes == 3 * HIDDEN * FFN * 34 // 32


def test_a_scenario_takes_a_gguf_file_as_its_shape(tmp_path: Path) -> None:
    write(tmp_path / "tiny.gguf")
    (tmp_path / "trace").mkdir()
    text = yaml.safe_dump(
        {"trace": "trace", "hardware": "t4", "model": {"shape": "tiny.gguf", "kv_bits": 8}}
    )
    (tmp_path / "x.yaml").write_text(text)
    shape = load_scenario(tmp_path / "x.yaml").load_shape(None)
    assert shape.kv_bytes_per_token == LAYERS * 2 * KV_HEADS * HEAD


def test_a_dense_model_is_refused(tmp_path: Path) -> None:
    block = {key: sizes for key, sizes in BLOCK.items() if not key.endswith("_exps")}
    path = write(tmp_path / "dense.gguf", "llama", {**block, **DENSE})
    with pytest.raises(UsageError, match=r"dense\.gguf: .*no tensor of routed experts"):
        load_shape(path)


def test_a_tensor_that_is_not_understood_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "new.gguf", block={**BLOCK, "indexer_attn_k": (8, HIDDEN)})
    with pytest.raises(UsageError, match=r"blk\.0\.indexer_attn_k\.weight.*not understood"):
        load_shape(path)


def test_layers_of_the_next_token_prediction_are_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "mtp.gguf", nextn_predict_layers=1)
    shape = load_shape(path)
    assert shape.moe_layers == (0, 1)
    # The model of a configuration has as many layers.
    two = shape_from_config({**CONFIG, "num_hidden_layers": 2})
    assert bits_of_file(read_header(path), two, "mtp.gguf").by_layer == ((0, 16.0), (1, 16.0))
    with pytest.raises(UsageError, match="file of another model"):
        bits_of_file(read_header(write(tmp_path / "three.gguf")), two, "three.gguf")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\xff" * 64])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"bad\.gguf: is no GGUF file"):
        load_shape(path)
    with pytest.raises(UsageError, match="cannot be read"):
        load_shape(tmp_path / "none.gguf")


def test_a_file_whose_tensors_hold_nonsense_is_read_all_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf")
    before = facts(load_shape(path))
    data = bytearray(path.read_bytes())
    data[-4096:] = b"\xff" * 4096
    path.write_bytes(data)
    assert facts(load_shape(path)) == before


def hybrid(
    arch: str, metadata: dict[str, Any], blocks: list[dict[str, tuple[int, ...]]]
) -> ModelShape:
    """Return the shape of a header that is given as data; sizes as in memory, longest run first."""
    values = {"general.architecture": arch, f"{arch}.block_count": len(blocks)}
    values |= {f"{arch}.{key}": value for key, value in metadata.items()}
    embedding = Tensor("token_embd.weight", (HIDDEN, VOCABULARY), 2 * HIDDEN * VOCABULARY, "F16")
    tensors = [embedding]
    for layer, block in enumerate(blocks):
        for key, sizes in block.items():
            nbytes = 2 * int(np.prod(sizes))
            name = f"blk.{layer}.{key}.weight"
            tensors.append(Tensor(name, tuple(reversed(sizes)), nbytes, "F16"))
    return shape_from_header(Header(values, tuple(tensors)), "hybrid")


def test_recurrent_layers_give_the_state_of_the_config() -> None:
    """A gated delta net of 4 value heads and 2 key heads of 16, and gated attention."""
    config = {
        **CONFIG,
        "model_type": "qwen3_next",
        "num_hidden_layers": 2,
        "full_attention_interval": 2,
        "shared_expert_intermediate_size": FFN,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_conv_kernel_dim": 4,
        "tie_word_embeddings": True,
    }
    shared = {f"{key}_shexp": sizes for key, sizes in DENSE.items()}
    shared["ffn_gate_inp_shexp"] = (1, HIDDEN)
    ffn = {key: sizes for key, sizes in BLOCK.items() if key.startswith("ffn")}
    linear = {
        "attn_qkv": (128, HIDDEN),
        "attn_gate": (64, HIDDEN),
        "ssm_ba": (8, HIDDEN),
        "ssm_conv1d": (128, 4),
        "ssm_out": (HIDDEN, 64),
        "ssm_a": (4,),
    }
    full = {key: sizes for key, sizes in BLOCK.items() if key.startswith("attn")}
    full["attn_q"] = (2 * HEADS * HEAD, HIDDEN)
    metadata = {
        "embedding_length": HIDDEN,
        "expert_used_count": 2,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.key_length": HEAD,
        "attention.value_length": HEAD,
        "ssm.inner_size": 64,
        "ssm.state_size": 16,
    }
    blocks = [{**linear, **ffn, **shared}, {**full, **ffn, **shared}]
    assert facts(hybrid("qwen3next", metadata, blocks)) == facts(shape_from_config(config))


def test_latent_attention_is_told_by_its_tensors() -> None:
    config = {
        **CONFIG,
        "model_type": "deepseek_v3",
        "num_hidden_layers": 2,
        "first_k_dense_replace": 1,
        "intermediate_size": FFN,
        "kv_lora_rank": 32,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 12,
        "q_lora_rank": 24,
        "tie_word_embeddings": True,
    }
    attention = {
        "attn_q_a": (24, HIDDEN),
        "attn_q_b": (HEADS * 24, 24),
        "attn_kv_a_mqa": (40, HIDDEN),
        "attn_k_b": (HEADS, 32, 16),
        "attn_v_b": (HEADS, 12, 32),
        "attn_output": (HIDDEN, HEADS * 12),
    }
    metadata = {
        "embedding_length": HIDDEN,
        "expert_used_count": 2,
        "attention.head_count": HEADS,
        "attention.head_count_kv": 1,
        "attention.key_length": 40,
        "attention.value_length": 32,
        "attention.key_length_mla": 24,
        "attention.value_length_mla": 12,
        "attention.kv_lora_rank": 32,
        "attention.q_lora_rank": 24,
        "rope.dimension_count": 8,
    }
    experts = {key: sizes for key, sizes in BLOCK.items() if key.startswith("ffn")}
    blocks = [{**attention, **DENSE}, {**attention, **experts}]
    assert facts(hybrid("deepseek2", metadata, blocks)) == facts(shape_from_config(config))
