"""The values of a `config.json`, checked as they are read.

Each size is read under all the names that families of models give it. The keys that were read are
remembered, because a key that nothing reads may say that the model has a part of which the reader
knows nothing (`Values.check_keys`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from moesim.errors import UsageError, shown
from moesim.model.layers import Mla

__all__ = ["MOST_LAYERS", "MOST_SIZE", "Values"]

# A file may state any number, and lists as long as the layers must fit into memory.
MOST_LAYERS: Final = 10_000
MOST_SIZE: Final = 10_000_000


def _is_count(value: Any) -> bool:
    # JSON's `true` is an `int` in Python, and no count.
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and all(map(fits, value))


_KINDS: Final[dict[str, tuple[str, Callable[[Any], bool]]]] = {
    "model_type": ("text", _is_text),
    "_name_or_path": ("text", _is_text),
    "layer_types": ("a list of texts", _is_list_of(_is_text)),
    "mlp_layer_types": ("a list of texts", _is_list_of(_is_text)),
    "mlp_only_layers": ("a list of layer numbers", _is_list_of(_is_count)),
    "use_sliding_window": ("true or false", lambda value: isinstance(value, bool)),
    "tie_word_embeddings": ("true or false", lambda value: isinstance(value, bool)),
    "text_config": ("a JSON object", lambda value: isinstance(value, Mapping)),
    "quantization_config": ("a JSON object", lambda value: isinstance(value, Mapping)),
    "moe_layers": ("a list of layer numbers", _is_list_of(_is_count)),
    "layers_block_type": ("a list of texts", _is_list_of(_is_text)),
    "hybrid_override_pattern": ("text", _is_text),
    "no_rope_layers": ("a list of 0 and 1", _is_list_of(_is_count)),
    "attn_type_list": ("a list of 0 and 1", _is_list_of(_is_count)),
    "hybrid_layer_pattern": ("a list of 0 and 1", _is_list_of(_is_count)),
    "full_attn_idxs": ("a list of layer numbers", _is_list_of(_is_count)),
    "indexer_types": ("a list of texts", _is_list_of(_is_text)),
    "per_layer_config": ("a JSON object", lambda value: isinstance(value, Mapping)),
}
"""The rule of each value that is not a size; sizes are checked when they are read."""


_DENSE: Final = frozenset(
    (
        *("mlp_layer_types", "moe_layers", "first_k_dense_replace", "num_dense_layers"),
        *("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval", "moe_layer_freq"),
        *("expert_layer_period", "expert_layer_offset", "decoder_sparse_step", "mlp_only_layers"),
        "interleave_moe_layer_step",
    )
)
"""The keys that say which layers have routed experts."""

_PATTERNS: Final = ("sliding_window_pattern", "global_attn_every_n_layers")
"""Keys from which `layer_types` follows."""

_NO_SIZES: Final = re.compile(
    r".*(_token_id|_token_ids|_token_index|dropout|_eps|_epsilon|_coef|_std|_factor|_theta"
    r"|_multiplier|_scaling|_scale|_alpha|_beta|_weight|_limits?|_clip|_dtype|_bias|_norm|_loss)"
    r"|(.*_)?(rope|rotary|pdrop|router_z|aux_loss|initializer|mtp|nextn|vision|audio)(_.*)?"
    r"|(max|model_max|n)_(position_embeddings|seq_len|length|positions|window_layers)"
    r"|original_max_position_embeddings|max_seq_len|max_sequence_length|seq_length"
    # How a model is loaded, trained, sharded or asked.
    r"|text_config|quantization_config|architectures|auto_map|id2label|label2id|dtype|torch_dtype"
    r"|transformers_version|use_cache|pretraining_tp|ep_size|tp_size|chunk_size_feed_forward"
    r"|return_dict|output_.*|is_(en|de)coder.*|base_model_.*|task_specific_params|problem_type"
    r"|finetuning_task|num_labels|num_logits_to_keep|generation_config|seed|pruned_heads|tie_.*|gradient_.*|use_bfloat16"
    r"|keep_vocab|tokenizer_.*|prefix|(begin_)?suppress_tokens|num_beams.*|top_k|top_p"
    r"|use_(mamba_kernels|mambapy|associative_scan|cache|flash.*|recompute|kernels|return_dict)"
    r"|attn_implementation|_.*|mlp_bias|attention_bias|(mamba_)?chunk_size|block_size|calc_logits.*"
    r"|initial_context_length|org_vocab_size|.*_id|moe_capacity|moe_use_aux_free|use_rmsnorm"
    r"|use_pos_enc|for_llm_compressor|im_.*|mask_init_id|num_media_embeds|skip_.*|qk_norm_type"
    r"|qk_head_dim|moe_shared_expert_overlap"
    # How tokens choose experts, and how their results are weighed.
    r"|n_groups?|topk_group|topk_method|num_expert_group|norm_topk_prob|norm_expert_weight|seq_aux"
    r"|scoring_func|moe_renormalize|router_.*|moe_router_.*|use_(expert|routing|moe).*bias"
    r"|enable_moe_fp32_combine|moe_normalize.*|moe_jitter.*|moe_loss.*|use_grouped_topk"
    # Vectors, which are left out; and what no layer changes its matrices for.
    r"|use_(qk|rms)_?norm|(use_)?qk_layer(norm|_norm)|use_attention_sinks?|attention_sinks?"
    r"|attn_temperature_tuning|floor_scale|attn_scale|final_logit_soft.*|logit.*|swiglu.*"
    r"|time_step_.*|hidden_act.*|query_pre_attn_scalar|image_size|bos|eos|residual_.*|layernorm_.*"
    r"|rescale_.*|(mamba|conv|lin|attn|attention|mlp|use)_.*bias|fuse_.*|.*_in_fp32"
)
"""Keys of published configurations that change no matrix, no KV entry and no state."""


def _may_be_size(value: Any) -> bool:
    if isinstance(value, int):
        return value >= 1  # `true` too
    return isinstance(value, list | tuple | Mapping) and len(value) > 0


def _entry(values: list[Any], layer: int, key: str) -> Any:
    """Return the entry of a layer. Raise UsageError where the list is too short."""
    if layer >= len(values):
        raise UsageError(
            f"the model configuration has {key} of {len(values)} layers, and more layers than that"
        )
    return values[layer]


class Values:
    """The values of a `config.json`, whose key names differ from family to family.

    Each method raises `UsageError` for a value that is missing or wrong.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.read: set[str] = set()
        """The keys that were asked for."""
        for key, (rule, fits) in _KINDS.items():
            value = values.get(key)
            if value is not None and not fits(value):
                raise UsageError(f"the model configuration has {key} = {shown(value)}, not {rule}")

    def get(self, key: str) -> Any:
        """Return a value as it is; None where there is none."""
        self.read.add(key)
        return self.values.get(key)

    @property
    def model_type(self) -> str:
        """The family of the model, as its configuration names it."""
        return str(self.values.get("model_type", "unknown"))

    def check_keys(self) -> None:
        """Raise UsageError if a key that nothing has read may say something of the sizes.

        Numbers of at least 1, lists, objects and `true` may. Texts, fractions, zeros and `false`
        do not, and neither do the keys in `_NO_SIZES`.
        """
        for key, value in self.values.items():
            if key not in self.read and _may_be_size(value) and not _NO_SIZES.fullmatch(key):
                raise UsageError(
                    f"the model configuration (model_type {shown(self.model_type)}) has "
                    f"{str(key)[:60]} = {shown(value)}, a key that is not understood "
                    "and may change the sizes"
                )

    def optional(self, *keys: str, most: int = MOST_SIZE) -> int | None:
        """Return the first of `keys` that holds a positive integer; None where there is none."""
        self.read.update(keys)  # a size may be stated under several names
        for key in keys:
            value = self.get(key)
            if value is None:
                continue
            if not _is_count(value):
                raise UsageError(
                    f"the model configuration has {key} = {shown(value)}, no valid size"
                )
            if value > most:
                raise UsageError(
                    f"the model configuration has {key} = {shown(value)}, which is too large; "
                    f"at most {most:,} are read"
                )
            if value:  # 0 says that the model has no such part
                return int(value)
        return None

    def size(self, *keys: str, most: int = MOST_SIZE) -> int:
        """Return the first of `keys` that holds a positive integer. Raise UsageError without."""
        value = self.optional(*keys, most=most)
        if value is None:
            raise UsageError(
                f"the model configuration (model_type {shown(self.model_type)}) lacks "
                f"{' or '.join(keys)}; only decoders with routed experts are supported; "
                "name a shipped model instead (see `moesim list models`)"
            )
        return value

    def name(self) -> str:
        return str(self.values.get("_name_or_path") or self.values.get("model_type") or "unknown")

    def dense_layers(self, num_layers: int) -> tuple[int, ...]:
        """Return the layers without routed experts, as any of the families names them."""
        self.read.update(_DENSE)
        if kinds := self.kinds("mlp_layer_types", num_layers):
            return tuple(i for i, kind in enumerate(kinds) if kind in ("dense", "mlp"))
        return tuple(layer for layer in range(num_layers) if not self._is_routed(layer))

    def _is_routed(self, layer: int) -> bool:
        # DeepSeek and Jamba count layers from 0, Qwen, Ernie and Llama from 1, hence `layer + 1`.
        listed = self.values.get("moe_layers")
        if listed is not None:
            return layer in listed
        first = self.optional("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")
        last = self.optional("moe_layer_end_index")
        period = self.optional("expert_layer_period") or 1
        steps = (
            self.optional("decoder_sparse_step") or 1,
            self.optional("interleave_moe_layer_step") or 1,
            self.optional("moe_layer_interval") or 1,
        )
        every = self.values.get("moe_layer_freq")
        if isinstance(every, list):
            every = _entry(every, layer, "moe_layer_freq")
            routed = bool(every)
        else:
            routed = layer % (self.optional("moe_layer_freq") or 1) == 0
        return (
            routed
            and (first or 0) <= layer <= (layer if last is None else last)
            and layer % period == (self.optional("expert_layer_offset") or 0) % period
            and all((layer + 1) % step == 0 for step in steps)
            and layer not in (self.values.get("mlp_only_layers") or ())
        )

    def kinds(self, key: str, num_layers: int) -> list[str]:
        """Return the kind of each layer; empty where the configuration does not list them."""
        kinds: list[str] = self.get(key) or []
        if kinds and len(kinds) < num_layers:
            raise UsageError(
                f"the model configuration has {key} of {len(kinds)} layers, and "
                f"num_hidden_layers = {num_layers}"
            )
        return kinds[:num_layers]

    def windowed_layers(self, num_layers: int) -> tuple[tuple[int, ...], int | None]:
        """Return the layers whose attention is limited to a window or chunk, and its tokens."""
        window, chunk = self.optional("sliding_window"), self.optional("attention_chunk_size")
        if self.get("use_sliding_window") is False:
            window = None
        kinds = self.kinds("layer_types", num_layers)
        if kinds:
            self.read.update(_PATTERNS)  # the list says the same
        if window is None and chunk is None:
            return (), None
        if not kinds:  # the window holds for all layers
            kinds = ["sliding_attention" if window else "chunked_attention"] * num_layers
        for word, width in (("sliding", window), ("chunked", chunk)):
            windowed = tuple(i for i, kind in enumerate(kinds) if word in kind)
            if windowed and width is not None:
                return windowed, width
        return (), None

    def shared_ffn(self) -> int:
        """Return the total width of a layer's shared experts; 0 where it has none.

        Qwen states the width; DeepSeek states the number of experts, each as wide as a routed one.
        """
        width = self.optional("shared_expert_intermediate_size", "shared_intermediate_size")
        number = self.optional(
            "n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_shared_expert"
        )
        if width is not None:
            return width
        return (number or 0) * (self.optional("moe_intermediate_size") or 0)

    def mla(self) -> Mla | None:
        """Return the sizes of latent attention; None for a model without it."""
        rank = self.optional("kv_lora_rank")
        if rank is None:
            return None
        return Mla(
            kv_rank=rank,
            rope_dim=self.size("qk_rope_head_dim"),
            nope_dim=self.size("qk_nope_head_dim"),
            value_dim=self.size("v_head_dim"),
            q_rank=self.optional("q_lora_rank"),
        )

    def weight_bits(self) -> float:
        """Return the bits of a stored weight; older configurations name the type `torch_dtype`."""
        dtype = str(self.values.get("dtype") or self.values.get("torch_dtype") or "bfloat16")
        return 32 if "float32" in dtype else 16

    def expert_bits(self) -> float:
        """Return the bits of a stored expert weight; other weights keep `weight_bits`."""
        quantization = self.values.get("quantization_config")
        if not isinstance(quantization, dict):
            return self.weight_bits()
        method = quantization.get("quant_method")
        bits = quantization.get("bits")
        if method == "mxfp4":
            return 4.25  # a block of 32 weights of 4 bits shares a scale of 8 bits
        if method == "fp8":
            return 8
        if isinstance(bits, int | float) and not isinstance(bits, bool) and 0 < bits <= 32:
            return bits
        # Unknown formats are costed as unquantised: experts may then be too large, never too small.
        return self.weight_bits()
