"""Layers of several kinds cost what their weights, pairs and states say, on the GPU and the CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from workloads import plan_of, run_on, tiny_scenario, tiny_trace

from moesim.cost.loads import Loads
from moesim.cost.roofline import CostModel
from moesim.errors import BudgetError
from moesim.hardware.hardware import load_hardware
from moesim.hardware.ops import BatchShape
from moesim.model.hf_config import shape_from_config
from moesim.model.layers import LayerKind
from moesim.model.layouts import with_layers
from moesim.model.shapes import ModelShape, named_shape
from moesim.scenario import Scenario
from moesim.serving.budget import OnGpu, plan_budget
from moesim.simulate import prepare, summarise

FULL = LayerKind(300, heads=2, key_dim=4, value_dim=6, kv_numbers=10)
WINDOWED = replace(FULL, window=3)
LINEAR = LayerKind(500, state_bytes=64, state_flops=96)
FFN_ONLY = LayerKind(700, routed=False)
BASE = ModelShape(
    name="mixed",
    num_layers=4,
    hidden=8,
    expert_ffn=10,
    num_experts=4,
    top_k=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    vocabulary=100,
)
SHAPE = with_layers(BASE, [FULL, WINDOWED, LINEAR, FFN_ONLY])
BATCH = BatchShape(tokens=5, kv_tokens=40, pairs=200, sampled=2, sequences=2)


def test_each_kind_has_its_own_load() -> None:
    loads = Loads(SHAPE)
    # 200 pairs × 2 heads × (4 + 6) × 2 operations; 40 + 5 entries of 10 numbers of 2 bytes.
    assert loads.layer(0, BATCH) == (2 * 5 * 300 + 8000, 600 + 45 * 20)
    # At most 5 × 3 pairs, and as many entries.
    assert loads.layer(1, BATCH) == (2 * 5 * 300 + 600, 600 + 20 * 20)
    # The states of two sequences are read and written; no KV entry is.
    assert loads.layer(2, BATCH) == (2 * 5 * 500 + 5 * 96, 1000 + 2 * 2 * 64)
    longer = BATCH._replace(kv_tokens=4000, pairs=20_000)
    assert loads.layer(2, longer) == loads.layer(2, BATCH)
    assert loads.layer(3, longer) == loads.layer(3, BATCH) == (2 * 5 * 700, 1400)


def test_an_index_scores_all_positions_and_attention_reads_the_chosen_ones() -> None:
    kind = replace(WINDOWED, index_flops=32, index_numbers=8)
    shape = with_layers(BASE, [kind] * 4)
    flops, nbytes = Loads(SHAPE).layer(1, BATCH)
    assert Loads(shape).layer(0, BATCH) == (flops + 200 * 32, nbytes + 45 * 16)
    assert shape.kv_bytes_per_token == 4 * (20 + 16)
    assert OnGpu.of(shape, ["cpu", "gpu", "gpu", "gpu", "gpu"]).kv_bytes_per_token == 3 * 36


def test_a_step_prices_each_layer_by_its_kind() -> None:
    cost = CostModel(load_hardware("t4"), with_layers(BASE, [LINEAR, FULL, LINEAR, FFN_ONLY]))
    each = [
        cost.front_ns(0, BATCH), cost.front_ns(1, BATCH), cost.front_ns(2, BATCH),
        cost.dense_ns(3, BATCH),
    ]  # fmt: skip
    assert cost.layers_ns(BATCH) == each
    long = BATCH._replace(kv_tokens=10**9, pairs=10**12)
    grown = [now > before for now, before in zip(cost.layers_ns(long), each, strict=True)]
    assert grown == [False, True, False, False]


def test_sizes_of_a_mixed_shape_are_sums_over_its_layers() -> None:
    assert SHAPE.moe_layers == (0, 1, 2)
    assert SHAPE.dense_layers == (3,)
    assert (SHAPE.windowed_layers, SHAPE.window) == ((1,), 3)
    assert SHAPE.kv_bytes_per_token == 2 * 20
    assert SHAPE.state_bytes_per_sequence == 64
    assert SHAPE.fixed_params == 300 + 300 + 500 + 700 + 2 * 100 * 8 + 8
    assert SHAPE.layers_bytes([2, 4]) == 2 * (500 + 1608)
    assert SHAPE.total_params == SHAPE.fixed_params + 3 * 4 * 3 * 8 * 10


def test_experts_may_have_two_matrices_in_a_narrower_space() -> None:
    shape = replace(SHAPE, expert_matrices=2, expert_width=4)
    assert shape.expert_params == 2 * 4 * 10
    assert Loads(shape).expert(3) == (2 * 3 * 80, 160)


@pytest.mark.parametrize("name", ["mixtral-8x7b", "deepseek-v3", "gpt-oss-20b"])
def test_a_shape_of_usual_layers_costs_the_same_when_its_kinds_are_listed(name: str) -> None:
    shape = named_shape(name)
    listed = with_layers(shape, shape.all_kinds())
    assert listed.kinds
    assert listed.total_params == shape.total_params
    assert listed.kv_bytes_per_token == shape.kv_bytes_per_token
    for layer in range(shape.num_layers):
        for batch in (BATCH, BatchShape(512, 9000, 10**6, 3, 4)):
            assert Loads(listed).layer(layer, batch) == Loads(shape).layer(layer, batch)


def budget(vram: int, shape: ModelShape = SHAPE, sequences: int = 8, **changes: Any) -> Any:
    given = {"memory": {"activations": 1000}, "batching": {"max_sequences": sequences}, **changes}
    scenario = Scenario.model_validate(tiny_scenario(**given))
    return plan_budget(scenario, shape, vram, (32, 32, 32))


def test_states_of_all_sequences_that_may_run_take_memory() -> None:
    plain, roomy = (
        budget(
            10**6, replace(SHAPE, kinds=(FULL, WINDOWED, replace(LINEAR, state_bytes=0), FFN_ONLY))
        ),
        budget(10**6),
    )
    assert (plain.recurrent_bytes, roomy.recurrent_bytes) == (0, 3 * 64)
    assert roomy.used_bytes + roomy.free_bytes == 10**6
    assert budget(10**6, sequences=2).recurrent_bytes == 2 * 64
    with pytest.raises(BudgetError, match="recurrent states"):
        budget(roomy.fixed_bytes + 1000 + roomy.staging_bytes + 64)


def test_layers_on_the_cpu_keep_their_states_there() -> None:
    gpu = OnGpu.of(SHAPE, ["gpu", "gpu", "cpu", "gpu", "gpu"])
    assert gpu == (OnGpu(SHAPE.fixed_bytes - 1000, 40, 0))
    assert OnGpu.of(SHAPE) == OnGpu(SHAPE.fixed_bytes, 40, 64)


HYBRID = {
    "model_type": "qwen3_next",
    "hidden_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "moe_intermediate_size": 256,
    "shared_expert_intermediate_size": 256,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "vocab_size": 1000,
}


def test_a_trace_of_a_hybrid_model_runs_with_its_own_sizes() -> None:
    trace = tiny_trace().with_meta(model_config=HYBRID)
    shape = shape_from_config(HYBRID)
    outcome = run_on(plan_of(tiny_scenario(cache={"policy": "lru", "slots": "2/layer"}), trace))
    summary = summarise(outcome)
    assert shape.state_bytes_per_sequence > 0
    assert summary["recurrent_bytes"] % shape.state_bytes_per_sequence == 0
    parts = ("fixed", "activations", "staging", "slots", "kv", "recurrent", "free")
    assert sum(summary[f"{part}_bytes"] for part in parts) == summary["vram_bytes"]
    usual = prepare(Scenario.model_validate(tiny_scenario()), tiny_trace())
    assert usual.budget.recurrent_bytes == 0
