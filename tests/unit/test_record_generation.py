"""`record`: prompts in, trace out, rows counted right."""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from router_models import END, FAMILIES, PAD, VOCABULARY, batch, tiny
from typer.testing import CliRunner

from moesim.cli import app
from moesim.errors import OutputError, TraceError, UsageError
from moesim.record import Prompt, Recorder, load_model, record
from moesim.record.dry_run import plan_recording
from moesim.trace import load_trace, validate_trace
from moesim.training.tokenizer import train_tokenizer


def prompts(num: int = 5, seed: int = 3) -> list[Prompt]:
    draw = random.Random(seed)
    return [
        Prompt(
            tokens=tuple(draw.choices(range(2, VOCABULARY), k=draw.randint(1, 12))),
            domain=("law", "code")[number % 2],
        )
        for number in range(num)
    ]


def speaking(folder: Path) -> Path:
    """Save a tiny model with a tokenizer; return its folder."""
    tokenizer = train_tokenizer(["The quick brown fox jumps over the lazy dog. " * 20], 280)
    torch.manual_seed(0)
    config = hf.MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    hf.MixtralForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_gives_a_valid_trace(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    trace = record(
        model,
        None,
        prompts(),
        tmp_path / "trace",
        max_new_tokens=5,
        batch_size=2,
        prediction_depth=1,
        probabilities=True,
    )
    validate_trace(tmp_path / "trace")
    requests = trace.requests
    assert trace.num_rows == (requests["prompt_tokens"] + requests["output_tokens"] - 1).sum()
    assert list(requests["domain"]) == ["law", "code", "law", "code", "law"]
    expected = [1] * 5 if family == "switch" else [len(p.tokens or ()) for p in prompts()]
    assert list(requests["prompt_tokens"]) == expected
    assert trace.meta.prediction_depth == 1
    assert trace.predictions is not None
    assert trace.probabilities is not None


def test_a_batch_gives_each_request_what_it_gets_alone(tmp_path: Path) -> None:
    """Left padding is routed too, and must leave no row."""
    model = tiny("qwen3_moe")
    together = record(model, None, prompts(), tmp_path / "a", batch_size=5, prediction_depth=1)
    alone = record(model, None, prompts(), tmp_path / "b", batch_size=1, prediction_depth=1)
    for name in ("prompt_tokens", "output_tokens", "first_row"):
        np.testing.assert_array_equal(together.requests[name], alone.requests[name])
    np.testing.assert_array_equal(together.expert_ids[:], alone.expert_ids[:])
    assert together.predictions is not None
    assert alone.predictions is not None
    np.testing.assert_array_equal(together.predictions[:], alone.predictions[:])


def test_rows_are_those_of_generate_itself(tmp_path: Path) -> None:
    model = tiny("mixtral")
    trace = record(model, None, prompts(1), tmp_path / "t", max_new_tokens=7)
    tokens = torch.tensor([prompts(1)[0].tokens])
    with Recorder(model) as recorder:
        finished = model.generate(
            input_ids=tokens, max_new_tokens=7, do_sample=False, pad_token_id=PAD
        )
        expected = recorder.take()
    assert int(trace.requests["output_tokens"][0]) == finished.shape[1] - tokens.shape[1]
    np.testing.assert_array_equal(trace.expert_ids[:], expected.expert_ids[0])


def test_a_request_that_ends_early_leaves_no_rows_after_its_end(tmp_path: Path) -> None:
    model = tiny("mixtral")
    ids, mask, lengths = batch()
    model.generation_config.eos_token_id = None
    model.config.eos_token_id = None
    free = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=9, do_sample=False)
    end = int(free[1, 9 + 2])  # the third token that the second request generates
    outputs = [row.index(end) + 1 if end in row else 9 for row in free[:, 9:].tolist()]
    assert outputs[1] <= 3 < max(outputs)
    model.generation_config.eos_token_id = [60_000, end]
    asked = [
        Prompt(tokens=tuple(ids[row, -length:].tolist())) for row, length in enumerate(lengths)
    ]
    trace = record(model, None, asked, tmp_path / "t", max_new_tokens=9, batch_size=3)
    assert list(trace.requests["output_tokens"]) == outputs
    assert trace.num_rows == sum(lengths) + sum(outputs) - 3


def test_a_prompt_s_own_limit_cuts_its_rows(tmp_path: Path) -> None:
    model = tiny("mixtral")
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    limits = (1, 6, 3)
    asked = [Prompt(tokens=(5, 6), max_new_tokens=limit) for limit in limits] + [
        Prompt(tokens=(5, 6))
    ]
    trace = record(model, None, asked, tmp_path / "t", max_new_tokens=4, batch_size=4)
    assert list(trace.requests["output_tokens"]) == [1, 6, 3, 4]
    assert list(trace.requests["num_rows"]) == [2, 7, 4, 5]
    first, second = trace.expert_ids[:2], trace.expert_ids[2:4]
    np.testing.assert_array_equal(first, second)


def test_long_prompts_are_cut(tmp_path: Path) -> None:
    trace = record(
        tiny("mixtral"), None, prompts(), tmp_path / "t", max_new_tokens=2, max_prompt_tokens=4
    )
    assert max(trace.requests["prompt_tokens"]) == 4


def test_sampling_is_seeded_and_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    model = tiny("mixtral")
    state = torch.random.get_rng_state()

    def ids(name: str, seed: int) -> Any:
        trace = record(model, None, prompts(), tmp_path / name, temperature=1.5, seed=seed)
        return trace.expert_ids[:].tolist()

    first = ids("a", 1)
    torch.rand(3)
    assert ids("b", 1) == first
    assert ids("c", 2) != first
    torch.random.set_rng_state(state)
    record(model, None, prompts(), tmp_path / "d", temperature=1.5)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_model_settings_that_would_change_the_rows_are_overruled(tmp_path: Path) -> None:
    plain = record(tiny("mixtral"), None, prompts(), tmp_path / "a")
    model = tiny("mixtral").train()
    model.generation_config.num_beams = 3
    model.generation_config.repetition_penalty = 2.0
    again = record(model, None, prompts(), tmp_path / "b")
    np.testing.assert_array_equal(plain.expert_ids[:], again.expert_ids[:])
    assert model.training


def test_rows_that_do_not_add_up_are_an_error(tmp_path: Path) -> None:
    model = tiny("mixtral")
    generate = model.generate

    def twice(**inputs: Any) -> Any:
        model(input_ids=inputs["input_ids"])
        return generate(**inputs)

    model.generate = twice
    with pytest.raises(TraceError, match=r"requests 0 to 1: 2 sequences of \d+ tokens need 2 x"):
        record(model, None, prompts(2), tmp_path / "t", max_new_tokens=3)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_recording_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, _: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    model = tiny("mixtral")
    with pytest.raises(KeyboardInterrupt):
        record(model, None, prompts(), tmp_path / "t", batch_size=2, progress=stop)
    assert list(tmp_path.iterdir()) == []
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_progress_counts_requests(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    record(
        tiny("mixtral"),
        None,
        prompts(),
        tmp_path / "t",
        batch_size=2,
        progress=lambda done, of: seen.append((done, of)),
    )
    assert seen == [(0, 5), (2, 5), (4, 5), (5, 5)]


def test_an_existing_trace_is_kept_unless_forced(tmp_path: Path) -> None:
    model = tiny("mixtral")
    record(model, None, prompts(1), tmp_path / "t")
    with pytest.raises(OutputError, match="already exists"):
        record(model, None, prompts(2), tmp_path / "t")
    record(model, None, prompts(2), tmp_path / "t", force=True)
    assert len(load_trace(tmp_path / "t").requests["domain"]) == 2


def test_the_header_describes_the_model_and_not_the_machine(tmp_path: Path) -> None:
    model = tiny("deepseek_v2")
    trace = record(model, None, prompts(), tmp_path / "t", prediction_depth=1, provenance={"x": 1})
    meta = trace.meta
    assert (meta.num_layers, meta.num_experts, meta.top_k) == (2, 8, 3)
    assert meta.layer_map == (1, 2)
    assert meta.model == "DeepseekV2ForCausalLM"
    assert meta.num_shared_experts == 2
    assert meta.expert_bytes == 3 * 32 * 16 * 4
    assert not meta.normalised
    assert not meta.synthetic
    assert meta.model_config is not None
    assert meta.model_config["kv_lora_rank"] == 16
    assert meta.provenance["x"] == 1
    assert meta.provenance["prompts"]["requests"] == 5
    assert meta.provenance["versions"]["torch"] == torch.__version__
    assert meta.config_hash == record(model, None, prompts(1), tmp_path / "u").meta.config_hash


@pytest.mark.parametrize(
    ("family", "normalised", "shared"),
    [
        ("mixtral", True, 0),
        ("qwen2_moe", False, 1),
        ("gpt_oss", True, 0),
        ("deepseek_v3", False, 1),
    ],
)
def test_the_header_tells_normalised_weights_and_shared_experts(
    family: str, normalised: bool, shared: int, tmp_path: Path
) -> None:
    meta = record(tiny(family), None, prompts(2), tmp_path / "t", max_new_tokens=2).meta
    assert meta.normalised is normalised
    assert meta.num_shared_experts == shared


def test_a_local_folder_records_like_the_object(tmp_path: Path) -> None:
    folder = speaking(tmp_path / "tiny-speaker")
    (tmp_path / "p.jsonl").write_text('{"prompt": "The quick", "domain": "fox"}\n"lazy dog"\n')
    from_folder = record(str(folder), None, tmp_path / "p.jsonl", tmp_path / "a", max_new_tokens=4)
    model, tokenizer = load_model(folder, dtype="float32")
    from_object = record(
        model, tokenizer, ["The quick", "lazy dog"], tmp_path / "b", max_new_tokens=4
    )
    np.testing.assert_array_equal(from_folder.expert_ids[:], from_object.expert_ids[:])
    assert from_folder.meta.model == "tiny-speaker"
    assert list(from_folder.requests["domain"]) == ["fox", ""]
    for name in ("a", "b"):
        text = (tmp_path / name / "trace.json").read_text()
        assert str(tmp_path) not in text
        assert json.loads(text)["provenance"]["generation"]["temperature"] == 0.0


def test_what_cannot_be_recorded_is_refused(tmp_path: Path) -> None:
    model, out = tiny("mixtral"), tmp_path / "t"
    with pytest.raises(UsageError, match="prompt 0: a text needs a tokenizer"):
        record(model, None, ["hello"], out)
    with pytest.raises(UsageError, match="no prompts were given"):
        record(model, None, [], out)
    with pytest.raises(UsageError, match="prompt 1: the tokenizer makes no tokens"):
        record(model, None, [Prompt(tokens=(3,)), Prompt(tokens=())], out)
    with pytest.raises(UsageError, match=r"max_new_tokens \(0\) must be at least 1"):
        record(model, None, prompts(), out, max_new_tokens=0)
    with pytest.raises(UsageError, match=r"batch_size \(0\) must be at least 1"):
        record(model, None, prompts(), out, batch_size=0)
    with pytest.raises(UsageError, match=r"temperature \(-1\) must be at least 0"):
        record(model, None, prompts(), out, temperature=-1)
    with pytest.raises(UsageError, match=r"top_p \(0\) must be above 0"):
        record(model, None, prompts(), out, top_p=0)
    with pytest.raises(UsageError, match="max_prompt_tokens"):
        record(model, None, prompts(), out, max_prompt_tokens=0)
    assert not out.exists()


def test_a_model_that_cannot_be_loaded_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no config\.json in this folder"):
        load_model(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        load_model(tmp_path / "absent")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match="cannot load this model"):
        load_model(tmp_path)
    with pytest.raises(UsageError, match="unknown dtype 'int4'"):
        load_model(tmp_path, dtype="int4")
    with pytest.raises(UsageError, match="unknown device 'gpu'"):
        load_model(tmp_path, device="gpu")
    assert END != PAD


def test_a_model_that_cannot_generate_is_refused_by_its_class(tmp_path: Path) -> None:
    headless = tiny("mixtral").model
    with pytest.raises(UsageError, match=r"^MixtralModel cannot generate: give a model with"):
        record(headless, None, prompts(), tmp_path / "t")
    homeless = tiny("switch")
    homeless.config.decoder_start_token_id = None
    homeless.generation_config.decoder_start_token_id = None
    with pytest.raises(UsageError, match=r"^SwitchTransformers\w+ cannot generate .*decoder_start"):
        record(homeless, None, prompts(), tmp_path / "t")
    with pytest.raises(UsageError, match=r"^MixtralForCausalLM cannot generate from these prompts"):
        record(tiny("mixtral"), None, [Prompt(tokens=(10**6,))], tmp_path / "t")
    assert not list(tmp_path.iterdir())


def test_experts_that_are_called_with_masks_are_refused_by_their_class(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"layers": 2, "attention_heads": 2, "ffn_dim": 16, "sparse_step": 1}
    both: dict[str, Any] = {
        f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in sizes.items()
    }
    config = hf.NllbMoeConfig(vocab_size=50, d_model=16, num_experts=4, **both)
    model = hf.NllbMoeForConditionalGeneration(config).eval()
    with pytest.raises(UsageError, match=r"NllbMoeExperts at model.decoder\S* cannot be recorded"):
        record(model, None, [Prompt(tokens=(3, 4, 5))], tmp_path / "t", max_new_tokens=3)


TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if messages[0]['role'] == 'tool' %}{{ raise_exception('no tool first') }}{% endif %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def test_messages_are_recorded_through_the_chat_template(tmp_path: Path) -> None:
    model, tokenizer = load_model(speaking(tmp_path / "m"), dtype="float32")
    chat = Prompt(messages=({"role": "user", "content": "The quick fox"},))
    refused = pytest.raises(UsageError, match="prompt 0: messages need a tokenizer with a chat")
    with refused:
        record(model, tokenizer, [chat], tmp_path / "none")
    tokenizer.chat_template = TEMPLATE
    spoken = record(model, tokenizer, [chat], tmp_path / "a", max_new_tokens=3)
    written = record(
        model, tokenizer, ["user: The quick fox\nassistant: "], tmp_path / "b", max_new_tokens=3
    )
    np.testing.assert_array_equal(spoken.expert_ids[:], written.expert_ids[:])
    wrong = Prompt(messages=({"role": "tool", "content": "x"},))
    with pytest.raises(UsageError, match=r"prompt 0: the chat template refuses .*no tool first"):
        record(model, tokenizer, [wrong], tmp_path / "c")


def test_a_dry_run_says_what_would_be_recorded(tmp_path: Path) -> None:
    folder = speaking(tmp_path / "m")
    for file in folder.glob("*.safetensors"):
        file.unlink()  # no weights are read
    (tmp_path / "p.jsonl").write_text('{"prompt": "The quick"}\n"lazy dog"\n')
    options = ["--model", str(folder), "--prompts", str(tmp_path / "p.jsonl")]
    words = ["record", *options, "--out", str(tmp_path / "t"), "--dry-run", "--depth", "1"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0
    said = done.stdout
    assert "MixtralForCausalLM: 2 layers, 2 of 4 experts" in said
    assert "ids and weights from the calls of MixtralExperts" in said
    assert "predictions: possible" in said
    assert "sizes for a run: in the trace" in said
    assert "2 requests, at most" in said
    assert not (tmp_path / "t").exists()


def test_the_rows_and_bytes_of_a_dry_run_are_those_of_the_trace(tmp_path: Path) -> None:
    model = tiny("mixtral")
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    plan = plan_recording(
        model, None, prompts(), max_new_tokens=4, prediction_depth=1, probabilities=True
    )
    trace = record(
        model,
        None,
        prompts(),
        tmp_path / "t",
        max_new_tokens=4,
        prediction_depth=1,
        probabilities=True,
    )
    assert plan.most_rows == trace.num_rows
    arrays = (trace.expert_ids, trace.gate_weights, trace.predictions, trace.probabilities)
    assert plan.most_bytes == sum(array[:].nbytes for array in arrays if array is not None)


def test_a_run_that_will_need_a_shape_is_announced_before_anything_is_recorded(
    tmp_path: Path,
) -> None:
    folder = speaking(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "odd_latent_size": 8}))
    (tmp_path / "p.txt").write_text("lazy dog\n")
    options = ["--model", str(folder), "--prompts", str(tmp_path / "p.txt")]
    words = ["record", *options, "--out", str(tmp_path / "t"), "--max-new-tokens", "2"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert "note: a run of this trace needs `model`" in done.stderr


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_tokens(tmp_path: Path) -> None:
    """What is kept is a batch, a shard and the ids of tokens; not what was recorded."""

    def peak(requests: int) -> int:
        asked = [Prompt(tokens=tuple(range(2, 59)) * 2) for _ in range(requests)]
        tracemalloc.start()
        record(tiny("mixtral"), None, asked, tmp_path / str(requests), max_new_tokens=2)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    few, many = peak(700), peak(2100)  # 80,500 and 241,500 rows, with shards of 65,536
    assert many < 1.15 * few
