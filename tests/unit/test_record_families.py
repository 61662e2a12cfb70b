"""The trace of every family with routed experts holds what its experts were called with.

The models are tiny and random (`moe_families.py`). The oracle hooks the experts by itself
(`expert_calls.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="recording needs the torch extra")

from expert_calls import ExpertCalls, generated  # noqa: E402
from family_table import row  # noqa: E402
from moe_families import (  # noqa: E402
    FAMILIES,
    PROMPTS,
    REFUSED,
    families_known,
    folder_of,
    tiny_family,
)
from paths import ROOT  # noqa: E402

import moesim  # noqa: E402
from moesim.errors import UsageError  # noqa: E402
from moesim.model.hf_config import shape_from_config  # noqa: E402
from moesim.record import Prompt, Recorder, record  # noqa: E402
from moesim.trace import validate_trace  # noqa: E402

IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")
SAMPLE = ("mixtral", "gpt_oss", "deepseek_v3", "nemotron_h", "zaya", "longcat_flash", "lfm2_moe")
"""Families whose experts have each kind of weights and interface, for what takes longer."""

SIZED = ("dbrx", "ernie4_5_moe", "gemma4_text", "hunyuan_v1_moe", "llama4_text", "nemotron_h")
"""Families with spellings of their own, and others in slow tests."""

ALONE = ("deepseek_v4", "qwen3_next", "granitemoehybrid", "lfm2_moe", "zaya", "hy_v4")
"""Families in which tokens meet outside of usual attention, so that padding might be felt."""

CALLED_ALIKE = {
    "gemma4_text": "its block is the whole decoder layer",
    "deepseek_v4": "its first layers choose by the ids of tokens",
    "zaya": "its gate gets states of the gate before",
    "ernie4_5_vl_moe": "its text bank is inside of another block",
}
"""Families whose block does not choose by the hidden states alone."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    from transformers import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(before)


def compare(model: Any, **options: Any) -> Any:
    """Record `generate` over a ragged batch, and compare with the calls of the experts."""
    calls = ExpertCalls(model)
    with Recorder(model, **options) as recorder:
        generated(model, PROMPTS)
        recording = recorder.take()
    calls.close()
    ids, weights = calls.columns(len(PROMPTS))
    np.testing.assert_array_equal(recording.expert_ids, ids)
    np.testing.assert_array_equal(recording.gate_weights, weights)
    return recording


def test_no_family_of_transformers_is_left_out() -> None:
    tested = {folder_of(kind) for kind in (*FAMILIES, *REFUSED)}
    # Experts for poses in images, which generate no text.
    assert families_known() - tested == {"vitpose", "vitpose_backbone"} & families_known()
    assert len(tested) > 57


@pytest.mark.parametrize("kind", FAMILIES)
def test_ids_and_weights_are_those_that_the_experts_are_called_with(kind: str) -> None:
    model = tiny_family(kind)
    recording = compare(model)
    assert recording.expert_ids.max() < 8
    used = recording.expert_ids[recording.expert_ids >= 0]
    assert len(np.unique(used)) > 2  # a model that chooses, so that the comparison means something


@pytest.mark.parametrize("kind", FAMILIES)
def test_predictions_are_the_choices_of_the_next_block_itself(kind: str) -> None:
    model = tiny_family(kind)
    recorder = Recorder(model, prediction_depth=1)
    seen: dict[Any, list[Any]] = {}
    for layer in recorder.layers:
        layer.router.register_forward_pre_hook(
            lambda _, args, kwargs, layer=layer: seen.setdefault(layer, []).append(
                args[0] if args else next(iter(kwargs.values()))
            ),
            with_kwargs=True,
        )
    with recorder:
        generated(model, PROMPTS)
        recording = recorder.take()
    num_layers = recording.expert_ids.shape[2]
    assert (recording.predictions[:, :, -1] == -1).all()
    assert (recording.predictions[:, :, :-1] != -1).any()
    if kind in CALLED_ALIKE:
        return
    batch, width = len(PROMPTS), max(map(len, PROMPTS))
    for now, following in zip(recorder.layers, recorder.layers[1:], strict=False):
        hidden = seen[now][0].reshape(batch, -1, seen[now][0].shape[-1])[:, :width]
        calls = ExpertCalls(model)
        with torch.no_grad():
            following.block(hidden)
        calls.close()
        ids, _ = calls.columns(batch)
        place = recorder.layers.index(now)
        np.testing.assert_array_equal(
            recording.predictions[:, : hidden.shape[1], place, 0], ids[:, :, 0]
        )
    assert num_layers > 1


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_trace_of_the_family_is_valid_and_holds_distributions(kind: str, tmp_path: Path) -> None:
    prompts = [Prompt(tokens=tokens) for tokens in PROMPTS]
    trace = record(
        tiny_family(kind),
        None,
        prompts,
        tmp_path / "t",
        max_new_tokens=3,
        batch_size=2,
        prediction_depth=1,
        probabilities=True,
    )
    validate_trace(tmp_path / "t")
    assert trace.num_rows == sum(trace.requests["prompt_tokens"] + 2)
    assert trace.probabilities is not None
    sums = np.asarray(trace.probabilities[:], dtype=np.float32).sum(axis=-1)
    np.testing.assert_allclose(sums, 1, atol=5e-3)


@pytest.mark.parametrize(
    "kind", [k if k in ALONE else pytest.param(k, marks=pytest.mark.slow) for k in FAMILIES]
)
def test_a_padded_batch_gives_each_request_what_it_gets_alone(kind: str, tmp_path: Path) -> None:
    prompts = [Prompt(tokens=tokens) for tokens in PROMPTS]
    model = tiny_family(kind)
    together = record(model, None, prompts, tmp_path / "a", max_new_tokens=4, batch_size=3)
    alone = record(model, None, prompts, tmp_path / "b", max_new_tokens=4, batch_size=1)
    np.testing.assert_array_equal(together.expert_ids[:], alone.expert_ids[:])


@pytest.mark.parametrize(
    "kind", [k if k in SIZED else pytest.param(k, marks=pytest.mark.slow) for k in FAMILIES]
)
def test_a_trace_is_run_with_its_own_sizes_or_a_shape_is_asked_for(
    kind: str, tmp_path: Path
) -> None:
    prompts = [Prompt(tokens=tokens) for tokens in PROMPTS]
    trace = record(tiny_family(kind), None, prompts, tmp_path / "t", max_new_tokens=3)
    meta = trace.meta
    scenario = {"trace": str(trace.path), "hardware": "rtx-4090", "bounds": False}
    scenario |= {"cache": {"policy": "lru", "slots": "4/layer"}}
    try:
        shape = shape_from_config(meta.model_config or {})
    except UsageError:
        assert kind not in SIZED
        with pytest.raises(UsageError, match="model"):
            moesim.run(scenario)
        return
    assert (shape.num_experts, shape.top_k) == (meta.num_experts, meta.top_k)
    assert shape.moe_layers == meta.layer_map
    biases = (2 * 48 + 32) * 4 if kind == "gpt_oss" else 0  # which no shape has
    assert shape.expert_bytes + biases == meta.expert_bytes
    assert moesim.run(scenario).summary["misses"] > 0


@pytest.mark.parametrize("kind", REFUSED)
def test_families_that_cannot_be_recorded_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    model = tiny_family(kind)
    with pytest.raises(UsageError, match=REFUSED[kind]):
        record(model, None, [Prompt(tokens=(3, 4))], tmp_path / "t")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "kind", [k if k in SAMPLE else pytest.param(k, marks=pytest.mark.slow) for k in FAMILIES]
)
def test_every_implementation_of_the_experts_is_recorded_alike(
    kind: str, implementation: str
) -> None:
    model = tiny_family(kind)
    try:
        model.set_experts_implementation(implementation)
    except (ValueError, NotImplementedError) as error:
        pytest.skip(f"{kind} has no {implementation}: {error}")
    compare(model)


@pytest.mark.parametrize(
    "kind", [k if k in SAMPLE else pytest.param(k, marks=pytest.mark.slow) for k in FAMILIES]
)
def test_a_model_in_bfloat16_is_recorded_alike(kind: str) -> None:
    model = tiny_family(kind).to(torch.bfloat16)
    if kind == "inkling2_text":  # its gates stay in float32, whatever the type of the model
        for layer in model.model.layers:
            layer.mlp.gate.float()
    compare(model, prediction_depth=1, probabilities=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*FAMILIES, *REFUSED])
def test_the_table_of_the_document_says_what_the_family_does(kind: str) -> None:
    page = (ROOT / "docs/record.md").read_text(encoding="utf-8")
    assert page.count(f"| `{kind}` |") == 1
    assert row(kind) in page
