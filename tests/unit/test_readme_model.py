"""Read-ME's model: forms of the same experts, a router that knows tokens alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refactored_models import ROUTER, dense_model, readme_model, some_masks, some_tokens
from torch.nn import functional

from moesim.errors import UsageError
from moesim.executor.models import load_model
from moesim.model.hf_config import shape_from_config
from moesim.record import record
from moesim.record.header import model_config
from moesim.record.prompts import Prompt
from moesim.training.readme.masked_experts import decide
from moesim.training.readme.model import materialise, refactor
from moesim.training.readme.router import PreGatingRouter, RouterCache

KINDS = [
    {"routing": routing, "scaled": scaled}
    for routing in ("decoupled", "layerwise")
    for scaled in (False, True)
]


def logits_of(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(tokens).logits
    return found


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen3"])
def test_three_forms_give_equal_outputs(family: str, options: dict[str, Any]) -> None:
    masked, tokens = readme_model(family, **options), some_tokens()
    expected = logits_of(masked, tokens)
    for layout in ("fused", "unfused"):
        torch.testing.assert_close(
            logits_of(materialise(masked, layout), tokens), expected, rtol=0, atol=1e-10
        )


def test_the_masked_form_is_the_dense_one_with_channels_left_out() -> None:
    dense, model, tokens = dense_model(), readme_model(), some_tokens(1)
    chosen = model.route(tokens).argmax(-1)[0]
    masks = some_masks()
    assert len(set(chosen.tolist())) > 1
    for layer, each in enumerate(dense.model.layers):

        def leave_out(_: Any, args: Any, layer: int = layer) -> Any:
            return (args[0] * masks[chosen, layer].to(args[0].dtype),)

        each.mlp.down_proj.register_forward_pre_hook(leave_out)
    torch.testing.assert_close(logits_of(model, tokens), logits_of(dense, tokens))


def test_masks_that_hold_everything_give_the_dense_model() -> None:
    dense, tokens = dense_model(), some_tokens()
    model = refactor(dense, torch.ones(2, 3, 24, dtype=torch.bool), router=ROUTER)
    torch.testing.assert_close(logits_of(model, tokens), logits_of(dense, tokens))


def test_a_scaled_output_is_the_unscaled_times_the_probability() -> None:
    logits = torch.tensor([[0.0, 2.0], [1.0, -1.0]])
    _, weights, ids = decide(logits, scaled=True)
    assert ids.tolist() == [[1], [0]]
    torch.testing.assert_close(weights[:, 0], logits.softmax(-1).amax(-1))
    assert decide(logits, scaled=False)[1].tolist() == [[1.0], [1.0]]


def test_sizes_of_forms() -> None:
    masked, masks = readme_model(), some_masks()
    permanent = masks.all(dim=0)
    fused, unfused = materialise(masked), materialise(masked, "unfused")
    assert fused.config.expert_ffn == int(masks.sum(-1).max())
    assert unfused.config.shared_ffn == int(permanent.sum(-1).max())
    assert unfused.config.expert_ffn == int((masks & ~permanent).sum(-1).max())
    alike = refactor(dense_model(), masks[:1].expand(2, -1, -1), router=ROUTER)
    assert materialise(alike).config.expert_ffn == int(masks[0].sum(-1).max())
    with pytest.raises(UsageError, match="expert 0 has no channel of its own in layer 0"):
        materialise(alike, "unfused")
    with pytest.raises(UsageError, match="cannot make 'fused' experts of a fused model"):
        materialise(fused)
    with pytest.raises(UsageError, match="has biases in its FFNs"):
        refactor(dense_model(mlp_bias=True), masks)
    with pytest.raises(UsageError, match=r"\(4, 2, 24\) do not fit 3 layers of 24 channels"):
        refactor(dense_model(), some_masks(layers=2))


def test_the_unmasked_form_is_the_dense_model_with_the_weights_as_they_are() -> None:
    model, dense, tokens = readme_model(), dense_model(), some_tokens()
    masked = logits_of(model, tokens)
    with model.unmasked() as backbone:
        assert torch.equal(logits_of(backbone, tokens), logits_of(dense, tokens))
    assert torch.equal(logits_of(model, tokens), masked)
    for each in (model.blocks[1].experts.ffn, dense.model.layers[1].mlp):
        each.up_proj.weight.data.mul_(1.5)
    with model.unmasked() as backbone:
        assert torch.equal(logits_of(backbone, tokens), logits_of(dense, tokens))
    with pytest.raises(IndexError), model.unmasked() as backbone:
        backbone(tokens + 1000)
    assert len(model.blocks) == 3


def test_the_router_turns_by_the_base_of_its_backbone(tmp_path: Path) -> None:
    model = refactor(dense_model(rope_theta=50_000.0), some_masks(), router=ROUTER)
    assert model.config.router["rope_base"] == 50_000.0
    materialise(model).save_pretrained(tmp_path / "model")
    assert load_model(tmp_path / "model").router.rope_base == 50_000.0
    assert model.router is not None
    tokens = some_tokens(1)
    before = model.route(tokens)
    model.router.rope_base = 10_000.0  # that of a model saved without one
    assert not torch.allclose(model.route(tokens), before)


def test_the_router_starts_as_the_released_class_does() -> None:
    """Kaiming-uniform matrices, torch's own biases, the backbone's first columns."""
    embedding = torch.randn(61, 80, generator=torch.Generator().manual_seed(0))
    router = PreGatingRouter(61, 50, hidden=64, heads=2, ffn=96)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        router.initialise(embedding)
    assert torch.equal(router.embed.weight, embedding[:, :64])
    linear = [m for m in router.modules() if isinstance(m, torch.nn.Linear)]
    assert len(linear) == 7
    for matrix in linear:
        for tensor, bound in (
            (matrix.weight.detach(), (6 / matrix.in_features) ** 0.5),
            (matrix.bias.detach(), matrix.in_features**-0.5),
        ):
            assert 0.85 * bound < float(tensor.abs().max()) <= bound
            assert float(tensor.std()) == pytest.approx(bound / 3**0.5, rel=0.25)


@pytest.mark.parametrize(("mlp", "expected"), [("silu", 17_965_063), ("swiglu", 18_227_719)])
def test_parameters_at_the_papers_size(mlp: str, expected: int) -> None:
    with torch.device("meta"):
        router = PreGatingRouter(32_000, 7, mlp=mlp)
    assert sum(p.numel() for p in router.parameters()) == expected


@pytest.fixture(params=["silu", "swiglu"])
def router(request: pytest.FixtureRequest) -> PreGatingRouter:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        made = PreGatingRouter(61, 4, mlp=request.param, **ROUTER).double()
        made.initialise()
        torch.nn.init.normal_(made.embed.weight)
    return made.eval()


def test_a_router_of_unnamed_size_is_the_papers() -> None:
    model = refactor(dense_model(), some_masks())
    sizes = {"hidden": 512, "heads": 4, "ffn": 512, "mlp": "silu"}
    assert model.config.router == sizes | {"rope_base": 10_000.0}
    assert shape_from_config(model_config(model)).router is not None


def test_the_router_looks_at_no_later_token(router: PreGatingRouter) -> None:
    tokens = some_tokens(1, 12)
    before = router(tokens)
    changed = tokens.clone()
    changed[0, 7] = (changed[0, 7] + 1) % 61
    after = router(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert bool((before[:, 7:] != after[:, 7:]).any(-1).all())


@pytest.mark.parametrize("cuts", [[1] * 12, [5, 1, 6], [12]])
def test_a_cache_changes_nothing(router: PreGatingRouter, cuts: list[int]) -> None:
    tokens, cache = some_tokens(2, 12), RouterCache()
    parts = [router(part, cache=cache) for part in tokens.split(cuts, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), router(tokens), rtol=0, atol=1e-12)
    assert cache.length == 12


def test_padding_on_the_left_changes_nothing(router: PreGatingRouter) -> None:
    tokens = some_tokens(1, 8)
    padded = functional.pad(tokens, (3, 0), value=5)
    seen = torch.ones_like(padded, dtype=torch.bool)
    seen[:, :3] = False
    cache = RouterCache()
    parts = [
        router(padded[:, :7], seen=seen[:, :7], cache=cache),
        router(padded[:, 7:], seen=seen[:, 7:], cache=cache),
    ]
    torch.testing.assert_close(torch.cat(parts, 1)[:, 3:], router(tokens), rtol=0, atol=1e-12)


def test_attention_is_not_scaled(router: PreGatingRouter) -> None:
    """The whole router again, token by token, as the released code computes it."""
    router.rope_base = 500.0
    tokens, heads = some_tokens(1, 5), ROUTER["heads"]
    x = router.embed(tokens)[0]
    normed = router.attention_norm(x)
    width = x.shape[1] // heads

    def rotated(vector: torch.Tensor, position: int) -> torch.Tensor:
        out = vector.clone()
        half = width // 2
        for i in range(half):
            angle = torch.tensor(position * 500.0 ** (-i / half), dtype=torch.float64)
            a, b = vector[i], vector[half + i]
            out[i] = a * angle.cos() - b * angle.sin()
            out[half + i] = b * angle.cos() + a * angle.sin()
        return out

    rows = []
    for t in range(5):
        parts = []
        for head in range(heads):
            own = slice(head * width, (head + 1) * width)
            query = rotated(router.query(normed[t])[own], t)
            keys = [rotated(router.key(normed[s])[own], s) for s in range(t + 1)]
            scores = torch.stack([query @ key for key in keys]).softmax(0)
            values = torch.stack([router.value(normed[s])[own] for s in range(t + 1)])
            parts.append(scores @ values)
        y = x[t] + router.output(torch.cat(parts))
        inner = router.mlp_norm(y)
        up = router.up(inner)
        gate = up if router.gate is None else router.gate(inner)
        y = y + router.down(functional.silu(gate) * (1 if router.gate is None else up))
        rows.append(router.head(router.final_norm(y)))
    # Angles are computed in single precision.
    torch.testing.assert_close(router(tokens)[0], torch.stack(rows), rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", KINDS)
def test_generation_with_caches_is_generation_without(options: dict[str, Any]) -> None:
    model: Any = materialise(readme_model(**options))
    tokens = some_tokens(1, 6)
    length: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
    length |= {"pad_token_id": 0, "eos_token_id": None}
    text = model.generate(tokens, **length)
    assert torch.equal(logits_of(model, text)[:, 5:-1].argmax(-1), text[:, 6:])
    padded = functional.pad(tokens, (4, 0), value=3)
    mask = functional.pad(torch.ones_like(tokens), (4, 0))
    assert torch.equal(model.generate(padded, attention_mask=mask, **length)[:, 4:], text)


@pytest.mark.parametrize("layout", ["masked", "fused", "unfused"])
@pytest.mark.parametrize("options", KINDS[::2])
def test_a_saved_model_is_the_same(tmp_path: Path, layout: str, options: dict[str, Any]) -> None:
    model = readme_model(**options)
    if layout != "masked":
        model = materialise(model, layout)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, dtype="float64")
    assert loaded.config.routing == options["routing"]
    torch.testing.assert_close(logits_of(loaded, some_tokens()), logits_of(model, some_tokens()))


def test_a_path_chosen_beforehand_is_taken() -> None:
    model, tokens = materialise(readme_model()), some_tokens()
    chosen = model.route(tokens).argmax(-1)
    with torch.no_grad():
        same = model(tokens, path_ids=chosen).logits
        other = model(tokens, path_ids=(chosen + 1) % 4).logits
    assert torch.equal(same, logits_of(model, tokens))
    assert not torch.allclose(other, same)


def test_a_scaled_path_chosen_beforehand_is_taken_with_its_weights() -> None:
    model, tokens = materialise(readme_model(scaled=True), "unfused"), some_tokens()
    weights, chosen = model.route(tokens).softmax(-1).max(-1)
    with torch.no_grad():
        same = model(tokens, path_ids=chosen, path_weights=weights).logits
    torch.testing.assert_close(same, logits_of(model, tokens), rtol=0, atol=1e-12)
    with pytest.raises(UsageError, match="by the router's probabilities: they are needed"):
        model(tokens, path_ids=chosen)


def test_a_trace_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    dense_model().save_pretrained(tmp_path / "dense")
    dense = load_model(tmp_path / "dense", dtype="float64")
    model = materialise(refactor(dense, some_masks(), router=ROUTER))
    model.save_pretrained(tmp_path / "moe")
    assert str(tmp_path) not in (tmp_path / "moe/config.json").read_text()
    moe = load_model(tmp_path / "moe", dtype="float64")
    moe.config.base._name_or_path = str(tmp_path / "dense")
    trace = record(moe, None, [Prompt("", tokens=(1, 2, 3))], tmp_path / "trace")
    assert trace.path is not None
    assert str(tmp_path) not in (trace.path / "trace.json").read_text()


@pytest.mark.parametrize("routing", ["decoupled", "layerwise"])
def test_what_is_recorded_is_what_was_routed(tmp_path: Path, routing: str) -> None:
    model: Any = materialise(readme_model(routing=routing))
    prompts = [Prompt("", tokens=(1, 2, 3), max_new_tokens=4), Prompt("", tokens=(9, 8, 7, 6, 5))]
    trace = record(model, None, prompts, tmp_path / "trace", max_new_tokens=6)
    assert trace.meta.router == routing
    assert (trace.num_layers, trace.num_experts, trace.top_k) == (3, 4, 1)
    ids_TL = np.asarray(trace.expert_ids)[:, :, 0]
    same_everywhere = bool((ids_TL == ids_TL[:, :1]).all())
    assert same_everywhere == (routing == "decoupled")
    if routing == "decoupled":
        text = model.generate(
            torch.tensor([[1, 2, 3]]),
            max_new_tokens=4,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
        assert ids_TL[:6, 0].tolist() == model.route(text).argmax(-1)[0, :-1].tolist()


def test_a_cache_made_without_being_asked_for_has_the_router_too() -> None:
    """`use_cache` is the configuration's to decide where a call does not."""
    model, tokens = readme_model(), some_tokens(2, 9)
    with torch.inference_mode():
        first = model(tokens[:, :5])
        rest = model(tokens[:, 5:], past_key_values=first.past_key_values)
        whole = model(tokens, use_cache=False)
    assert whole.past_key_values is None
    torch.testing.assert_close(rest.logits, whole.logits[:, 5:])


def test_a_cache_that_the_router_does_not_know_is_refused() -> None:
    """Cut, or filled without the router: routing by half of the tokens would be silently wrong."""
    model, tokens = readme_model(), some_tokens(2, 9)
    with torch.inference_mode():
        cut = model(tokens[:, :5]).past_key_values
        cut.crop(-2)
        with pytest.raises(UsageError, match="holds 3 tokens, but the router has seen 5"):
            model(tokens[:, 3:], past_key_values=cut)
        given = model(tokens[:, :5], path_ids=torch.zeros(2, 5, dtype=torch.long)).past_key_values
        with pytest.raises(UsageError, match="holds 5 tokens, but the router has seen 0"):
            model(tokens[:, 5:], past_key_values=given)


def test_beams_need_no_cache() -> None:
    tokens = some_tokens(2, 5)
    options: dict[str, Any] = {"num_beams": 2, "max_new_tokens": 4, "do_sample": False}
    with pytest.raises(UsageError, match="pass use_cache=False"):
        readme_model().generate(tokens, **options)
    assert readme_model().generate(tokens, **options, use_cache=False).shape == (2, 9)
    assert readme_model(routing="layerwise").generate(tokens, **options).shape == (2, 9)


@pytest.mark.parametrize("layout", ["fused", "unfused"])
@pytest.mark.parametrize("mlp", ["silu", "swiglu"])
def test_costed_sizes_are_those_of_the_model(mlp: str, layout: str) -> None:
    """The simulator reads a configuration; nothing is as exact as counting."""
    model = materialise(readme_model(router={**ROUTER, "mlp": mlp}), layout)
    shape = shape_from_config(model.config.to_dict())
    assert model.router is not None
    assert shape.router_params == sum(p.numel() for p in model.router.parameters())
    assert shape.total_params == sum(p.numel() for p in model.parameters())
