"""Formats of weights: bits of blocks, mixes of a file, and names as people write them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moesim.cost.loads import Loads
from moesim.errors import UsageError
from moesim.hardware.ops import BatchShape
from moesim.model.format_bits import Bits, bits_for, with_bits_of
from moesim.model.formats import (
    Format,
    block_named,
    check_format_name,
    fallback,
    format_named,
    format_names,
)
from moesim.model.shapes import ModelShape, named_shape, shape_names, stored_bytes

MEASURED = Path(__file__).parents[2].parent / "shared/data/measured/throughput.json"

# Files of llama.cpp's quantiser: sizes in GB that their publishers state.
PUBLISHED = [
    # bartowski/Qwen_Qwen3-30B-A3B-GGUF (release b5200, with an importance matrix); Qwen for Q4_K_M
    *(("qwen3-30b-a3b", *pair) for pair in (
        ("BF16", 61.10), ("Q8_0", 32.48), ("Q6_K", 25.10), ("Q6_K_L", 25.26), ("Q5_K_M", 21.74),
        ("Q5_K_L", 21.94), ("Q5_K_S", 21.10), ("Q4_K_M", 18.56),
    )),
    # bartowski/Mixtral-8x22B-v0.1-GGUF (release b2636)
    *(("mixtral-8x22b", *pair) for pair in (
        ("Q5_K_M", 99.96), ("Q5_K_S", 96.97), ("Q4_K_M", 85.58), ("Q4_K_S", 80.47),
        ("IQ4_NL", 80.47), ("IQ4_XS", 76.35), ("Q3_K_L", 72.57), ("Q3_K_M", 67.78),
        ("IQ3_M", 64.49), ("IQ3_S", 61.49), ("Q3_K_S", 61.49), ("IQ3_XS", 58.22), ("Q2_K", 52.10),
    )),
    # bartowski/deepseek-ai_DeepSeek-V3-0324-GGUF (release b4944)
    *(("deepseek-v3", *pair) for pair in (
        ("Q8_0", 713.29), ("Q6_K", 550.80), ("Q5_K_M", 475.40), ("Q5_K_S", 461.81),
        ("Q4_1", 419.94), ("Q4_K_M", 404.43),
    )),
    ("deepseek-v2-lite", "Q8_0", 16.70),
    # bartowski/openai_gpt-oss-20b-GGUF; unsloth/gpt-oss-120b-GGUF in GiB
    ("gpt-oss-20b", "MXFP4", 12.1),
    ("gpt-oss-20b", "Q6_K", 12.04),
    ("gpt-oss-120b", "Q8_0", 59.03 * 2**30 / 1e9),
    ("gpt-oss-120b", "F16", 60.88 * 2**30 / 1e9),
]  # fmt: skip


def form(name: str) -> Format:
    found = format_named(name).format
    assert found is not None, name
    return found


def bits(model: str, name: str, file_bytes: int | None = None) -> Bits:
    return bits_for(form(name), named_shape(model), file_bytes)


def model_bytes(shape: ModelShape) -> int:
    experts = len(shape.moe_layers) * shape.num_experts * shape.expert_bytes
    return shape.fixed_bytes + experts


def test_blocks_have_the_sizes_of_the_gguf_library() -> None:
    gguf = pytest.importorskip("gguf", reason="gguf is in the gguf extra")
    checked = 0
    for kind, (weights, nbytes) in gguf.GGML_QUANT_SIZES.items():
        # Integers and doubles store no weights; Q1_0 is newer than the files in use.
        if (kind.name[0] == "I" and kind.name[1:].isdigit()) or kind.name in ("F64", "Q1_0"):
            continue
        block = block_named(kind.name)
        assert (block.bits, block.weights) == (8 * nbytes / weights, weights), kind.name
        checked += 1
    assert checked >= 28


@pytest.mark.parametrize(
    ("name", "per_weight"),
    [
        ("IQ2_KS", 2.1875), ("IQ3_KS", 3.1875), ("IQ4_KS", 4.25), ("IQ5_KS", 5.25),
        ("IQ1_KT", 1.75), ("IQ3_KT", 3.125), ("IQ6_K", 6.625), ("IQ2_K_R4", 2.375),
        ("IQ4_XS_R8", 4.25), ("IQ1_S_R4", 1.5), ("FP8", 8), ("AWQ-4bit", 4.15625),
        ("GPTQ-4bit-g32", 4.625), ("HQQ-4bit", 4.5), ("HQQ-2bit-g16", 4), ("NF4", 4.5),
        ("MLX-4bit", 4.5),
    ],
)  # fmt: skip
def test_other_blocks_have_the_bits_that_their_authors_state(name: str, per_weight: float) -> None:
    assert block_named(name).bits == per_weight


@pytest.mark.parametrize(("model", "name", "size_gb"), PUBLISHED)
def test_a_documented_mix_has_the_size_of_published_files(
    model: str, name: str, size_gb: float
) -> None:
    found = bits(model, name)
    assert found.basis == "documented"
    ours = model_bytes(with_bits_of(named_shape(model), found))
    # i-quants of 4 bits were made without an importance matrix, so their first layers are larger.
    tolerance = 0.012 if name.startswith("IQ4") else 0.0035
    assert ours / 1e9 == pytest.approx(size_gb, rel=tolerance)


def test_four_bit_mixes_store_values_and_down_projections_of_some_layers_in_six_bits() -> None:
    by_layer = dict(bits("qwen3-30b-a3b", "Q4_K_M").by_layer)
    larger = [layer for layer, each in by_layer.items() if each > 4.5]
    # The first and last 6 of 48 layers, and every third between them.
    assert larger == [*range(6), *range(8, 42, 3), *range(42, 48)]
    assert by_layer[0] == (2 * 4.5 + 6.5625) / 3
    assert by_layer[6] == 4.5


def test_the_first_files_of_mixtral_had_four_bits_in_all_down_projections() -> None:
    """TheBloke/Mixtral-8x7B-v0.1-GGUF of December 2023, before llama.cpp counted MoE layers."""
    older = replace(form("Q4_K_M"), rules=form("Q4_K_M").rules[:1])  # of keys and values
    assert older.rules[0].experts == 8
    shape = named_shape("mixtral-8x7b")
    sizes = [
        model_bytes(with_bits_of(shape, bits_for(each, shape))) / 1e9
        for each in (older, form("Q4_K_M"))
    ]
    assert sizes == pytest.approx([26.44, 28.45], rel=3e-4)


def test_models_of_eight_experts_have_keys_and_values_in_eight_bits() -> None:
    eight, sixteen = (
        form("Q4_K_M").block_of("attn_k", 9, (32, experts, 4.0)) for experts in (8, 16)
    )
    assert (eight, sixteen) == ("Q8_0", "Q4_K")


def test_shared_key_heads_decide_the_bits_of_values() -> None:
    mix = form("Q2_K")
    assert mix.block_of("attn_v", 0, (32, 64, 4.0)) == "Q4_K"
    assert mix.block_of("attn_v", 0, (32, 64, 2.0)) == "Q3_K"


def test_rows_that_are_no_whole_number_of_blocks_have_another_block() -> None:
    assert [fallback(*pair) for pair in (("Q4_K", 2048), ("Q4_K", 1408), ("Q6_K", 1408))] == [
        "Q4_K",
        "Q5_0",
        "Q8_0",
    ]
    assert fallback("IQ2_XXS", 2880) == "IQ4_NL"
    assert fallback("Q8_0", 30) == "F16"
    # Rows of DeepSeek-V2-Lite's down projection have 1408 weights.
    assert dict(bits("deepseek-v2-lite", "Q4_K_S").by_layer)[10] == (2 * 4.5 + 5.5) / 3


def test_experts_that_were_published_in_mxfp4_stay_so() -> None:
    found = bits("gpt-oss-20b", "F16")
    assert (found.experts, found.expert_family) == (4.25, "mxfp4")
    assert (found.embedding, found.head, found.weight_family) == (16, 16, "float")


def test_formats_of_groups_leave_embeddings_and_routers_in_sixteen_bits() -> None:
    awq, mlx = bits("mixtral-8x7b", "AWQ-4bit"), bits("mixtral-8x7b", "MLX-4bit")
    assert (awq.experts, awq.embedding, awq.head) == (4.15625, 16, 16)
    assert (mlx.experts, mlx.embedding, mlx.head) == (4.5, 4.5, 4.5)


def test_the_dominant_family_of_each_kernel_group_is_known() -> None:
    found = bits("mixtral-8x22b", "IQ4_XS")
    assert (found.expert_family, found.weight_family) == ("i-quant", "k-quant")


def test_a_known_file_size_scales_the_experts_and_nothing_else() -> None:
    plain = bits("qwen3-30b-a3b", "UD-Q4_K_XL")
    scaled = bits("qwen3-30b-a3b", "UD-Q4_K_XL", 17_700_000_000)
    assert (plain.basis, scaled.basis) == ("assumed", "file size")
    assert replace(scaled, experts=0, by_layer=(), basis="assumed") == replace(
        plain, experts=0, by_layer=()
    )
    shape = with_bits_of(named_shape("qwen3-30b-a3b"), scaled)
    assert model_bytes(shape) == pytest.approx(17_700_000_000, rel=1e-6)
    assert [layer for layer, _ in scaled.by_layer] == list(range(48))


def test_a_file_size_of_another_model_is_refused() -> None:
    with pytest.raises(UsageError, match=r"takes 18\.6 GB as Q4_K_M, so a file of 90\.0 GB"):
        bits("qwen3-30b-a3b", "Q4_K_M", 90 * 10**9)


def test_every_format_has_bits_for_every_kind_of_model() -> None:
    for name in format_names():
        for model in ("mixtral-8x7b", "deepseek-v3", "qwen3-30b-a3b", "gpt-oss-20b"):
            found = bits(model, name)
            parts = (found.experts, found.weights, found.embedding, found.head)
            assert all(1 < each <= 32 for each in parts), (name, model)


@pytest.mark.parametrize("name", shape_names())
def test_every_weight_of_every_model_counts(name: str) -> None:
    """Whatever its layers and experts are: a file of equal bits has the size of the model.

    The last norm and a decoupled router are left out.
    """
    shape = replace(named_shape(name), expert_bits=16)
    assert scaled_experts(shape) == pytest.approx(16, rel=1e-12)
    # With layers of several kinds, some have no room for the FFN that others have.
    if shape.kinds:
        assert scaled_experts(replace(shape, dense_ffn=10**6)) == pytest.approx(16, rel=1e-12)


def scaled_experts(shape: ModelShape) -> float:
    """Return the bits of experts in a file of 16 bits for each weight of a model."""
    counted = shape.total_params - shape.hidden - shape.router_params
    equal = Format("equal", "F16", embedding="F16", head="F16", small="F16")
    return bits_for(equal, shape, 2 * counted).experts


def test_experts_of_two_matrices_have_no_gate() -> None:
    shape = named_shape("nemotron-3-super-120b-a12b")
    assert shape.expert_matrices == 2
    up_and_down = dict(bits_for(form("Q4_K_M"), shape).by_layer)
    larger = max(up_and_down.values())
    # Rows of the up projection have the latent width, those of the down projection the FFN's.
    blocks = [fallback("Q4_K", shape.expert_width or 0), fallback("Q6_K", shape.expert_ffn)]
    assert larger == sum(block_named(block).bits for block in blocks) / 2


def test_tied_embeddings_are_stored_once_and_in_the_bits_of_the_head() -> None:
    tied = replace(named_shape("qwen3-30b-a3b"), tied_embeddings=True)
    found = bits_for(form("Q4_K_M"), tied)
    assert (found.embedding, found.head) == (6.5625, 6.5625)
    shape = with_bits_of(tied, found)
    assert shape.bits_of_embedding == 6.5625
    matrix = stored_bytes(shape.hidden * shape.vocabulary, 6.5625)
    assert shape.end_bytes == matrix + stored_bytes(shape.hidden, shape.weight_bits)


def test_embeddings_and_head_have_the_bits_of_other_weights_unless_they_have_their_own() -> None:
    shape = replace(named_shape("deepseek-v2-lite"), weight_bits=4.75)
    assert shape.bits_of_head == shape.bits_of_embedding == 4.75
    same = replace(shape, embedding_bits=4.75, head_bits=4.75)
    assert abs(same.fixed_bytes - shape.fixed_bytes) <= 3  # each part is rounded up
    ends = shape.num_layers
    every = same.layers_bytes(range(ends + 1))
    assert every == same.fixed_bytes
    assert every - same.layers_bytes(range(ends)) == same.end_bytes


def test_the_end_of_a_step_reads_the_head_in_its_own_bits() -> None:
    batch = BatchShape(tokens=2, sampled=2, pairs=4, kv_tokens=4)
    shape = replace(named_shape("mixtral-8x7b"), head_bits=8, embedding_bits=4)
    rows = 2 * stored_bytes(shape.hidden, 4)
    matrix = stored_bytes(shape.hidden * shape.vocabulary, 8)
    assert Loads(shape).tail(batch).nbytes == rows + matrix


def test_explicit_bits_replace_those_of_a_format() -> None:
    shape = with_bits_of(named_shape("mixtral-8x7b"), bits("mixtral-8x7b", "Q4_K_M"), by_layer=True)
    assert shape.layer_bits
    changed = shape.with_bits(expert_bits=3, weight_bits=16)
    assert changed == named_shape("mixtral-8x7b").with_bits(expert_bits=3, weight_bits=16)


@pytest.mark.parametrize(
    ("text", "name", "documented"),
    [
        ("q4_k_m", "Q4_K_M", True),
        ("Q4_K", "Q4_K_M", True),
        ("q4km", "Q4_K_M", True),
        ("Q4_KM", "Q4_K_M", True),
        ("q4k", "Q4_K_M", True),
        ("Q8-0", "Q8_0", True),
        ("iq2xxs", "IQ2_XXS", True),
        ("Q4_K - Medium", "Q4_K_M", True),
        ("i1-IQ2_XXS", "IQ2_XXS", True),
        ("UD-Q4_K_XL", "UD-Q4_K_XL", False),
        ("Q6_K.gguf", "Q6_K", True),
        ("mix-IQ3_K", "mix-IQ3_K", False),
        ("awq 4bit", "AWQ-4bit", True),
        ("hqq_2bit", "HQQ-2bit", True),
        ("bnb-nf4", "NF4", True),
        ("fp16", "F16", True),
    ],
)
def test_names_are_read_as_people_write_them(text: str, name: str, documented: bool) -> None:
    found = form(text)
    assert (found.name, found.documented) == (name, documented)


@pytest.mark.parametrize("name", format_names())
def test_a_name_without_hyphens_is_the_same_format(name: str) -> None:
    assert form(name.replace("_", "").replace("-", "").lower()) == form(name)


def test_a_size_behind_the_name_is_read() -> None:
    found = format_named("IQ4_XS (15.4 GiB)")
    assert found.format == form("IQ4_XS")
    assert found.file_bytes == pytest.approx(15.4 * 2**30, abs=1)


def test_an_unknown_name_is_returned_and_its_message_suggests_one() -> None:
    found = format_named("Q4_KX")
    assert (found.format, found.rest) == (None, "Q4_KX")
    assert "did you mean 'Q4_K" in (check_format_name("Q4_KX") or "")
    assert check_format_name("Q4_K_M") is None
    assert all(check_format_name(name) is None for name in format_names())


@pytest.mark.skipif(not MEASURED.exists(), reason="the measured rows are not beside the project")
def test_all_formats_of_measured_rows_are_read() -> None:
    rows: list[dict[str, Any]] = json.loads(MEASURED.read_text(encoding="utf-8"))
    unknown = {row["quant"] for row in rows if format_named(row["quant"]).format is None}
    assert unknown <= {"unstated"}
