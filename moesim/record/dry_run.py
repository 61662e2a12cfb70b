"""What a recording would do, from a model's configuration and the prompts, without its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moesim.errors import UsageError
from moesim.record.header import loaded_config, stated_top_k
from moesim.record.prompts import Prompt
from moesim.record.routers import MoeLayer, find_moe_layers
from moesim.record.tokens import tokens_of
from moesim.record.wrappers import check_generates

__all__ = ["Plan", "plan_recording"]


@dataclass(frozen=True, slots=True)
class Plan:
    """A recording that was not made."""

    model: str
    layers: Sequence[MoeLayer]
    top_k: int | None  # None if the configuration does not state it
    read_from: str  # the class whose calls or outputs are read
    predictions: str | None  # why none can be recorded, or None
    no_shape: str | None  # why a run of the trace needs `model`, or None
    requests: int
    most_rows: int
    """Rows if every request generates its limit."""
    most_bytes: int | None
    """Bytes of the trace's arrays with these rows; None if the number of places is not known."""

    def lines(self) -> list[str]:
        """Return the plan in words."""
        layer = self.layers[0]
        places = "?" if self.top_k is None else str(self.top_k)
        how = "the output" if layer.adapter is not None and layer.adapter.at_gate else "the calls"
        size = "" if self.most_bytes is None else f", {_size(self.most_bytes)}"
        return [
            f"{self.model}: {len(self.layers)} layers, {places} of {layer.num_experts} experts",
            f"ids and weights from {how} of {self.read_from}",
            "predictions: " + (self.predictions or "possible"),
            "sizes for a run: "
            + ("in the trace" if self.no_shape is None else f"missing, because {self.no_shape}"),
            f"{self.requests} requests, at most {self.most_rows:,} rows{size}",
        ]


def plan_recording(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    max_prompt_tokens: int | None = None,
    prediction_depth: int = 0,
    probabilities: bool = False,
) -> Plan:
    """Return what recording `model` (which may have no weights) on `prompts` would give.

    Raise `UsageError` for what `record` would refuse and the configuration shows.
    """
    from moesim.model.hf_config import shape_from_config

    check_generates(model)
    layers = find_moe_layers(model)
    if prediction_depth:
        for layer in layers:
            layer.check_gated()
    rows = 0
    for number, prompt in enumerate(prompts):
        tokens = tokens_of(prompt, tokenizer)[:max_prompt_tokens]
        if not tokens:
            raise UsageError(f"prompt {number}: no tokens")
        rows += len(tokens) + (prompt.max_new_tokens or max_new_tokens) - 1
    top_k = stated_top_k(model)
    return Plan(
        type(model).__name__,
        layers,
        top_k,
        layers[0].watched,
        _refusal(layers[0].check_gated),
        _refusal(lambda: shape_from_config(loaded_config(model, layers))),
        len(prompts),
        rows,
        None
        if top_k is None
        else rows * len(layers) * _row_bytes(layers[0], top_k, prediction_depth, probabilities),
    )


def _row_bytes(layer: MoeLayer, top_k: int, depth: int, probabilities: bool) -> int:
    """Return the bytes of one token in one layer: ids, weights, predictions and scores."""
    per_id = 1 if layer.num_experts < 256 else 2
    full = 2 * layer.num_experts if probabilities else 0
    return top_k * (per_id * (1 + depth) + 2) + full


def _refusal(act: Any) -> str | None:
    try:
        act()
    except UsageError as error:
        return str(error)
    return None


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"
