"""Kinds of models and settings that a recorder could misread: each is read right, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="recording needs the torch extra")

import transformers as hf  # noqa: E402
from expert_calls import generated  # noqa: E402
from moe_families import PROMPTS, tiny_family  # noqa: E402
from torch import nn  # noqa: E402

import moesim  # noqa: E402
from moesim.errors import TraceError, UsageError  # noqa: E402
from moesim.model.hf_config import shape_from_config  # noqa: E402
from moesim.record import Adapter, Prompt, Recorder, load_model, record  # noqa: E402
from moesim.record.routers import find_moe_layers  # noqa: E402

ASKED = [Prompt(tokens=tokens) for tokens in PROMPTS]


def ids_of(trace: Any) -> Any:
    return np.asarray(trace.expert_ids[:]).astype(int)


# --- classes beyond the experts ---


def test_a_token_that_skips_leaves_its_place_unused(tmp_path: Path) -> None:
    """ZAYA's gate writes expert 0 and weight 0 for its skip class."""
    model = tiny_family("zaya")
    chosen = []
    for module in model.modules():
        if type(module).__name__ == "ZayaRouter":
            module.balancing_biases[-1] = 0.05  # so that many tokens skip
            module.register_forward_hook(
                lambda m, _, out: chosen.append(
                    (out[0].softmax(-1) + m.balancing_biases).argmax(-1).tolist()
                )
            )
    trace = record(model, None, ASKED[:1], tmp_path / "t", max_new_tokens=4)
    passes = [chosen[start : start + 4] for start in range(0, len(chosen), 4)]
    truth = np.concatenate([np.array(one).T for one in passes])
    ids = ids_of(trace)[:, :, 0]
    skipped = truth == 7
    assert 0.1 < skipped.mean() < 0.9
    assert (ids[skipped] == trace.meta.unused).all()
    np.testing.assert_array_equal(ids[~skipped], truth[~skipped])
    assert trace.gate_weights is not None
    assert (np.asarray(trace.gate_weights[:])[:, :, 0][skipped] == 0).all()


def test_identity_experts_leave_places_unused_and_are_no_experts(tmp_path: Path) -> None:
    model = tiny_family("longcat_flash")
    layers = find_moe_layers(model)
    assert {layer.num_experts for layer in layers} == {8}
    # Its stack of gates has rows for the 4 identity experts too, which an expert does not have.
    assert layers[0].expert_bytes == 3 * 32 * 16 * 4
    trace = record(model, None, ASKED, tmp_path / "t", max_new_tokens=3)
    unused = ids_of(trace) == trace.meta.unused
    assert 0.05 < unused.mean() < 0.95
    assert ids_of(trace)[~unused].max() < 8


def test_experts_for_images_that_never_run_are_left_out(tmp_path: Path) -> None:
    model = tiny_family("ernie4_5_vl_moe")
    assert len(find_moe_layers(model)) == 6
    trace = record(model, None, ASKED, tmp_path / "t", max_new_tokens=3)
    assert (trace.num_layers, trace.meta.layer_map) == (3, (1, 2, 3))
    left_out = trace.meta.provenance["layers_left_out"]
    assert [name.rpartition(".")[2] for name in left_out] == ["vision_moe"] * 3


def test_a_bank_that_runs_only_later_is_an_error() -> None:
    model = tiny_family("ernie4_5_vl_moe")
    with Recorder(model) as recorder:
        generated(model, PROMPTS)
        block = model.model.language_model.layers[1].mlp
        block.text_moe, block.vision_moe = block.vision_moe, block.text_moe
        with pytest.raises(TraceError, match="did not run in the first forward pass"):
            generated(model, PROMPTS)
    assert recorder.idle


def test_experts_of_attention_are_no_layers() -> None:
    layers = find_moe_layers(tiny_family("jetmoe"))
    assert [layer.model_layer for layer in layers] == [0, 1, 2, 3]
    assert {layer.name.rpartition(".")[2] for layer in layers} == {"mlp"}
    block: Any = layers[0].block
    each = block.input_linear.weight[0].numel() + block.output_linear.weight[0].numel()
    assert layers[0].expert_bytes == each * 4


# --- predictions ---


def test_a_gate_that_gets_the_bias_of_its_block_predicts_with_it() -> None:
    """LFM2's gate would choose without a bias if it were called with a hidden state alone."""
    model = tiny_family("lfm2_moe")
    for layer in find_moe_layers(model):
        layer.block.expert_bias.copy_(torch.linspace(-3, 3, 8))  # decides every choice
    with Recorder(model, prediction_depth=1) as recorder:
        generated(model, PROMPTS)
        recording = recorder.take()
    assert recording.predictions is not None
    assert set(recording.predictions[:, :, 0, 0].flatten().tolist()) == {5, 6, 7}


def test_a_gate_that_gets_states_of_the_gate_before_predicts_one_layer_ahead_only() -> None:
    model = tiny_family("zaya")
    with Recorder(model, prediction_depth=1):
        generated(model, PROMPTS)
    refused = pytest.raises(UsageError, match=r"ZayaRouter at .* prediction depth of 1 or 0")
    with refused, Recorder(model, prediction_depth=2):
        generated(model, PROMPTS)


# --- scores ---


@pytest.mark.parametrize(
    ("kind", "changes", "scoring"),
    [
        ("lfm2_moe", {"num_experts_per_tok": 1}, "sigmoid"),
        ("lfm2_moe", {}, "sigmoid"),
        ("deepseek_v4", {}, "sqrtsoftplus"),
        ("inkling_text", {}, "sigmoid"),
        ("longcat_flash", {}, "softmax"),
        ("zaya", {}, "softmax"),
        ("qwen3_moe", {"num_experts_per_tok": 1}, "softmax"),
        ("dbrx", {}, "softmax"),
    ],
)
def test_scores_are_those_of_the_family(
    kind: str, changes: dict[str, int], scoring: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import moe_families

    monkeypatch.setitem(moe_families.TEXT, kind, {**moe_families.TEXT[kind], **changes})
    model = tiny_family(kind)
    functions = {
        "sigmoid": torch.sigmoid,
        "softmax": lambda x: x.softmax(-1),
        "sqrtsoftplus": lambda x: torch.nn.functional.softplus(x).sqrt(),
    }
    logits: dict[Any, list[Any]] = {}
    with Recorder(model, probabilities=True) as recorder:
        for layer in recorder.layers:
            layer.router.register_forward_hook(
                lambda _, __, out, layer=layer: logits.setdefault(layer, []).append(
                    out[0] if isinstance(out, tuple) else out
                )
            )
        with torch.no_grad():
            model(input_ids=torch.tensor([PROMPTS[0]]))
        recording = recorder.take()
    assert recorder.scoring == scoring
    assert recording.probabilities is not None
    for place, layer in enumerate(recorder.layers):
        # The recorder's own look at the gate comes after the pass's.
        full = logits[layer][0].float()[:, : layer.num_experts]
        want = functions[scoring](full)
        want = want / want.sum(-1, keepdim=True)
        np.testing.assert_allclose(
            recording.probabilities[0, :, place].astype(np.float32), want.numpy(), atol=2e-3
        )


class NoScores(nn.Module):
    """A gate whose weights are no function of what it returns first."""

    def forward(self, hidden: Any) -> Any:
        flat = hidden.reshape(-1, hidden.shape[-1])
        weights, ids = flat.abs().topk(2, dim=-1)
        return flat * 3, weights + 1, ids


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = NoScores()
        self.experts = ToyExperts()

    def forward(self, hidden: Any) -> Any:
        _, weights, ids = self.gate(hidden)
        return self.experts(hidden.reshape(-1, 4), ids, weights).reshape(hidden.shape)


class ToyExperts(nn.Module):
    num_experts = 4

    def forward(self, hidden: Any, ids: Any, weights: Any) -> Any:
        return hidden * weights.sum(dim=-1, keepdim=True)


def test_scores_that_nothing_tells_are_refused() -> None:
    model = nn.Sequential(Blocks(), Blocks()).eval()
    refused = pytest.raises(UsageError, match=r"NoScores at 0 does not return scores")
    with refused, Recorder(model, probabilities=True):
        model(torch.randn(2, 6, 4))


def test_a_mask_in_place_of_ids_is_refused() -> None:
    class Masking(NoScores):
        def forward(self, hidden: Any) -> Any:
            flat = hidden.reshape(-1, hidden.shape[-1])
            return flat, flat.softmax(-1), (flat > 0).long()

    model = nn.Sequential(Blocks()).eval()
    model[0].gate = Masking()
    refused = pytest.raises(UsageError, match=r"ToyExperts at 0 .* so it is a mask")
    with refused, Recorder(model):
        model(torch.randn(2, 6, 4))


# --- settings and wrappers ---


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_time", 1e-4),
        ("guidance_scale", 1.5),
        ("stop_strings", ["a"]),
        ("prompt_lookup_num_tokens", 3),
        ("max_length", 8),
        ("num_beams", 3),
        ("no_repeat_ngram_size", 1),
        ("min_p", 0.9),
        ("suppress_tokens", [5]),
        ("cache_implementation", "static"),
    ],
)
def test_generation_settings_of_the_model_are_overruled(
    key: str, value: Any, tmp_path: Path
) -> None:
    want = record(tiny_family("mixtral"), None, ASKED, tmp_path / "a", max_new_tokens=6)
    model = tiny_family("mixtral")
    setattr(model.generation_config, key, value)
    own = model.generation_config
    got = record(model, None, ASKED, tmp_path / "b", max_new_tokens=6)
    np.testing.assert_array_equal(got.expert_ids[:], want.expert_ids[:])
    assert model.generation_config is own
    assert getattr(own, key) == value


class Wrapper(nn.Module):
    """A wrapper as PEFT's: it holds a model, and its `generate` is the inner one's."""

    def __init__(self, inner: Any, prompt_learning: bool = False) -> None:
        super().__init__()
        self.inner = inner
        self.active_peft_config = type("Config", (), {"is_prompt_learning": prompt_learning})()

    def get_base_model(self) -> Any:
        return self.inner

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner.generate(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


def compiled_in_place(model: Any) -> Any:
    model.compile(backend="eager")
    return model


def compiled_by_layer(model: Any) -> Any:
    layers = model.model.layers
    for number, layer in enumerate(layers):
        layers[number] = torch.compile(layer, backend="eager")
    return model


@pytest.mark.parametrize(
    "wrap",
    [lambda m: torch.compile(m, backend="eager"), Wrapper, compiled_in_place, compiled_by_layer],
    ids=["compile", "wrapper", "in place", "by layer"],
)
def test_a_wrapped_model_is_recorded_like_the_one_inside(wrap: Any, tmp_path: Path) -> None:
    want = record(tiny_family("mixtral"), None, ASKED, tmp_path / "a", max_new_tokens=3)
    model = tiny_family("mixtral")
    wrapped = wrap(model)
    got = record(wrapped, None, ASKED, tmp_path / "b", max_new_tokens=3)
    np.testing.assert_array_equal(got.expert_ids[:], want.expert_ids[:])


def test_a_wrapper_that_adds_tokens_says_what_to_pass(tmp_path: Path) -> None:
    wrapped = Wrapper(tiny_family("mixtral"), prompt_learning=True)
    with pytest.raises(UsageError, match=r"learned tokens .* pass the model inside"):
        record(wrapped, None, ASKED, tmp_path / "t")


# --- folders and headers ---


@pytest.mark.parametrize("kind", ["mistral4", "qwen3_5_moe_text", "switch_transformers"])
def test_a_folder_is_loaded_with_the_class_that_generates(kind: str, tmp_path: Path) -> None:
    model = tiny_family(kind)
    model.save_pretrained(tmp_path)
    loaded, _ = load_model(tmp_path)
    assert type(loaded) is type(model)


def test_a_folder_without_the_name_of_its_class_is_loaded_as_images_to_text(
    tmp_path: Path,
) -> None:
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
    vision |= {"out_hidden_size": 32, "num_position_embeddings": 16}
    text = tiny_family("qwen3_vl_moe").config.text_config.to_dict()
    config: Any = hf.Qwen3VLMoeConfig(
        text_config=text, vision_config={**vision, "deepstack_visual_indexes": []}
    )
    hf.Qwen3VLMoeForConditionalGeneration(config).save_pretrained(tmp_path)
    stated = json.loads((tmp_path / "config.json").read_text())
    del stated["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(stated))
    loaded, _ = load_model(tmp_path)
    assert type(loaded) is hf.Qwen3VLMoeForConditionalGeneration


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_moves_experts_of_the_precision_that_was_loaded(dtype: str, tmp_path: Path) -> None:
    model = tiny_family("mixtral").to(getattr(torch, dtype))
    trace = record(model, None, ASKED, tmp_path / "t", max_new_tokens=3)
    each = 3 * 32 * 48 * getattr(torch, dtype).itemsize
    assert trace.meta.expert_bytes == each
    assert trace.meta.model_config is not None
    assert trace.meta.model_config["dtype"] == dtype
    scenario = {"trace": str(trace.path), "hardware": "rtx-4090", "bounds": False}
    result = moesim.run({**scenario, "cache": {"policy": "lru", "slots": "2/layer"}}).summary
    assert result["demand_bytes"] == each * result["misses"]


def test_experts_that_a_quantisation_left_alone_are_not_called_quantised(tmp_path: Path) -> None:
    model = tiny_family("mixtral")
    model.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    config = record(model, None, ASKED[:1], tmp_path / "t", max_new_tokens=2).meta.model_config
    assert config is not None
    assert shape_from_config(config).expert_bytes == 3 * 32 * 48 * 4
    assert "quantization_config" not in config


@pytest.mark.parametrize(
    ("kind", "shared"),
    [
        ("granitemoeshared", 1),  # beside the block
        ("granitemoe", 0),
        ("deepseek_v3", 1),
        ("gemma4_text", 0),
        ("inkling_text", 2),
        ("ernie4_5_vl_moe", 1),
    ],
)
def test_the_header_counts_the_shared_experts_of_the_model(
    kind: str, shared: int, tmp_path: Path
) -> None:
    trace = record(tiny_family(kind), None, ASKED[:1], tmp_path / "t", max_new_tokens=2)
    assert trace.meta.num_shared_experts == shared


# --- models of one's own ---


class Choice:
    """A routing decision as an object, which no interface of transformers has."""

    def __init__(self, ids: Any, weights: Any) -> None:
        self.ids, self.weights = ids, weights


class MyBank(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 8, 8) / 3)

    def forward(self, states: Any, choice: Choice) -> Any:
        each = torch.einsum("tkio,ti->tko", self.weight[choice.ids], states)
        return (each * choice.weights[..., None]).sum(1)


class MyBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scorer = nn.Linear(8, 6)
        self.bank = MyBank()
        self.seen: list[Any] = []

    def forward(self, states: Any) -> Any:
        flat = states.reshape(-1, 8)
        weights, ids = self.scorer(flat).softmax(-1).topk(2, dim=-1)
        self.seen.append(ids)
        return states + self.bank(flat, Choice(ids, weights)).reshape(states.shape)


class MyModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.layers = nn.ModuleList([MyBlock(), MyBlock()])
        self.head = nn.Linear(8, 20)

    def forward(self, ids: Any) -> Any:
        states = self.embed(ids)
        for layer in self.layers:
            states = layer(states)
        return self.head(states)


def test_a_model_of_ones_own_is_recorded_through_an_adapter(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MyModel().eval()
    adapter = Adapter("MyBank", lambda states, choice: (choice.ids, choice.weights), num_experts=6)
    asked = [Prompt(tokens=(3, 4, 5)), Prompt(tokens=(7,))]
    trace = record(model, None, asked, tmp_path / "t", max_new_tokens=4, adapter=adapter)
    assert trace.meta.model == "MyModel"
    assert (trace.num_layers, trace.num_experts, trace.top_k) == (2, 6, 2)
    assert list(trace.requests["num_rows"]) == [6, 4]
    assert trace.meta.expert_bytes == 8 * 8 * 4
    for layer, block in enumerate(model.layers):
        # Four tokens take four passes; one more, over the finished text, is recorded.
        want = torch.cat([block.seen[4], block.seen[9]])
        np.testing.assert_array_equal(ids_of(trace)[:, layer], want.numpy())


def test_an_adapter_that_reads_no_ids_says_so(tmp_path: Path) -> None:
    model = MyModel().eval()
    asked = [Prompt(tokens=(3, 4))]
    for read, says in (
        (lambda states, choice: choice, r"must return \(ids, weights\), not Choice"),
        (lambda states, choice: (choice.weights, choice.ids), "integers and floats are needed"),
        (lambda states, choice: (choice.ids, choice.weights[:, :1]), r"must be \(tokens, k\)"),
    ):
        adapter = Adapter("MyBank", read, num_experts=6)
        with pytest.raises(UsageError, match=says):
            record(model, None, asked, tmp_path / "t", adapter=adapter)
    with pytest.raises(UsageError, match="none of its modules is a Absent"):
        record(model, None, asked, tmp_path / "t", adapter=Adapter("Absent", lambda x: (x, x)))


class ChoosingBlock(nn.Module):
    """A block that chooses from what its gate scores, so that the gate returns no ids."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 4)
        self.experts = ToyExperts()

    def forward(self, hidden: Any) -> Any:
        flat = hidden.reshape(-1, 4)
        weights, ids = self.gate(flat).softmax(-1).topk(2, dim=-1)
        return self.experts(flat, ids, weights).reshape(hidden.shape)


def test_a_block_that_chooses_by_itself_predicts_as_a_whole() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(ChoosingBlock(), ChoosingBlock()).eval()
    hidden = torch.randn(2, 5, 4)
    with Recorder(model, prediction_depth=1) as recorder, torch.no_grad():
        want = model(hidden)
        recording = recorder.take()
    assert recording.predictions is not None
    second: Any = model[1]
    with torch.no_grad():
        predicted = second.gate(hidden).topk(2, dim=-1).indices.numpy()
        np.testing.assert_array_equal(recording.predictions[:, :, 0, 0], predicted)
        assert torch.equal(model(hidden), want)
    assert not second.experts._forward_pre_hooks
