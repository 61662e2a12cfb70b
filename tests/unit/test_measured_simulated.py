"""Rows priced by the simulator: batches, long prompts, memory, and what is declined."""

from __future__ import annotations

from typing import Any

import pytest
from measured_rows import reading

from moesim.measured.option_forms import _KV_FORMATS
from moesim.measured.predict import Declined, Prediction
from moesim.measured.simulated import Simulated, case_of

CARD: Any = {
    "gpu": "RTX 4090", "cpu": "i9-13900K", "ram": "DDR5-5600", "pcie": "4.0 x16",
    "model": "Qwen3-30B-A3B", "quant": "Q4_K_M", "engine": "llama.cpp CUDA", "setting": "-ngl 99",
}  # fmt: skip
PROMPT: Any = {"metric": "prefill_tok_s"}


def rate(**fields: Any) -> float:
    """Return the predicted tokens per second of a row on one card."""
    answer = Simulated().predict(reading(**{**CARD, **fields}))
    assert isinstance(answer, Prediction), answer
    return answer.value


def reason(**fields: Any) -> str:
    answer = Simulated().predict(reading(**{**CARD, **fields}))
    assert isinstance(answer, Declined), answer
    return answer.reason


@pytest.mark.parametrize("metric", ["decode_tok_s", "aggregate_decode_tok_s"])
def test_a_batch_is_faster_than_one_sequence_and_not_as_many_times(metric: str) -> None:
    one, *more = [rate(metric=metric, batch=batch) for batch in (1, 2, 8, 32)]
    for batch, together in zip((2, 8, 32), more, strict=True):
        assert one < together < 0.9 * batch * one


def test_sequences_of_a_batch_use_different_experts() -> None:
    # Eight sequences of eight experts each use 51 of 128 in the mean, not 8.
    seconds = [batch / rate(batch=batch, depth=0) for batch in (1, 8)]
    assert seconds[1] > 2 * seconds[0]


def test_prompts_of_a_batch_take_their_turns() -> None:
    alone = rate(**PROMPT, prompt=512)
    assert rate(**PROMPT, prompt=512, batch=4) == pytest.approx(alone, rel=0.01)


def test_a_long_prompt_is_timed_by_some_of_its_steps() -> None:
    whole, sampled = rate(**PROMPT, prompt=32 * 512), rate(**PROMPT, prompt=33 * 512)
    assert sampled == pytest.approx(whole, rel=0.03)
    assert sampled < whole  # attention reads more at each further step


def test_a_prompt_behind_a_depth_is_slower() -> None:
    assert rate(**PROMPT, prompt=512, depth=16384) < 0.8 * rate(**PROMPT, prompt=512)


def test_a_row_that_needs_more_than_the_gpus_memory_is_declined() -> None:
    assert reason(gpu="RTX 3060 12GB").startswith("spill: 18.6 GB are needed and the GPU has 12.9")
    assert reason(gpu="RTX 3060 12GB", setting="--n-cpu-moe 24 -c 131072").startswith("spill")
    assert rate(gpu="RTX 3060 12GB", setting="--n-cpu-moe 24 -c 4096") > 0
    assert reason(depth=10**6).startswith("spill")


def test_a_row_that_needs_a_little_more_is_predicted_with_a_note() -> None:
    given = reading(**{**CARD, "gpu": "RTX 3060 12GB", "setting": "--n-cpu-moe 13"})
    (note,) = [note for note in case_of(given).notes if "GB are needed" in note]
    assert note.endswith("as the row ran, it is taken to fit")
    roomy = reading(**{**CARD, "gpu": "RTX 3060 12GB", "setting": "--n-cpu-moe 40"})
    assert not [note for note in case_of(roomy).notes if "GB are needed" in note]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"engine": "vLLM"}, "no figures of the engine vllm are known"),
        ({"quant": "unstated"}, "no format of weights is called 'unstated'"),
        ({"setting": "-ngl 99 -nkvo"}, "KV entries in host memory"),
    ],
)
def test_what_is_not_known_or_not_simulated_is_named(fields: dict[str, str], message: str) -> None:
    assert message in reason(**fields)


def test_a_layer_with_divided_experts_counts_in_part() -> None:
    pattern = r'-ot "blk\.[0-9]\.ffn_(up|gate)_exps=CPU"'
    case = case_of(reading(**{**CARD, "setting": pattern}))
    assert case.scenario["placement"]["options"]["layers"] == 7  # two thirds of ten layers
    assert "layers whose experts are divided count in part" in case.notes


def test_the_kv_cache_has_the_bits_of_its_types() -> None:
    case = case_of(reading(**{**CARD, "setting": "-ngl 99 -ctk q8_0 -ctv q4_0"}))
    assert case.scenario["model"]["kv_bits"] == 6.5


@pytest.mark.parametrize("name", sorted(_KV_FORMATS))
def test_every_type_of_kv_cache_that_is_understood_can_be_priced(name: str) -> None:
    setting = f"-ngl 99 -ctk {name} -ctv {name}"
    bits = case_of(reading(**{**CARD, "setting": setting})).scenario["model"]["kv_bits"]
    assert 4 <= bits <= 32
    assert rate(setting=setting, depth=4096) > 0


def test_experts_of_the_cpu_run_there_where_there_is_no_gpu() -> None:
    on_cpu = {"gpu": "none", "setting": "cpu-only", "engine": "llama.cpp"}
    assert 0 < rate(**on_cpu, **PROMPT, prompt=512) < rate(**PROMPT, prompt=512) / 10
