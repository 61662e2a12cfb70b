"""A setting: how an engine was told to run, as read from one line of text by `grammar`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Literal

from moesim.measured.places import MOST_LAYERS, Layers, Rule, tensors_on_cpu

__all__ = ["ALL_LAYERS", "Declining", "Placed", "Placement", "Setting", "placed"]

ALL_LAYERS: Final = MOST_LAYERS
"""`gpu_layers` of a setting that puts every layer on the GPU."""

Placement = Literal["", "experts", "layers", "cpu", "gpu"]
Declining = Literal[
    "", "fewer-experts", "speculative", "expert-cache", "several-gpus", "concurrent"
]


@dataclass(frozen=True, slots=True)
class Setting:
    """What a setting says; None, "" or False where it says nothing.

    `placement` is "experts" (experts of some layers on the CPU), "layers" (whole layers), "cpu"
    (all) or "gpu" (nothing on the CPU). `rules` act in order. `gpu_layers` layers from the end are
    on the GPU. `model_layers` is the number of layers that the text names ("of 48").
    `declining` is the kind of row that the setting describes where that kind is not counted.
    `unknown` has the fragments that were not understood, and `reason` says why a row with this
    setting cannot be predicted.
    """

    placement: Placement = ""
    rules: tuple[Rule, ...] = ()
    gpu_layers: int | None = None
    model_layers: int | None = None
    unified: bool = False
    ubatch: int | None = None
    batch: int | None = None
    kv_keys: str = ""
    kv_values: str = ""
    kv_on_cpu: bool = False
    threads: int | None = None
    context: int | None = None
    sequences: int | None = None
    flash_attention: bool | None = None
    op_offload: bool | None = None
    repack: bool = False
    fused_moe: bool | None = None
    mla: int | None = None
    numa: str = ""
    sockets: int | None = None
    gpus: int | None = None
    vram_bytes: int | None = None
    declining: Declining = ""
    notes: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a model's weights are: `on_cpu` has the tensors of each layer in the CPU's memory.

    Tensors have their short names (see `places`). Where `output_on_cpu`, the output head is there
    too. The embedding table always is, except on machines with unified memory.
    """

    on_cpu: tuple[frozenset[str], ...]
    output_on_cpu: bool


def placed(
    setting: Setting, num_layers: int, moe_layers: Collection[int], *, output_first: bool = False
) -> Placed:
    """Return where a setting puts a model's weights.

    llama.cpp counts the output head as one more layer at the end. Where `output_first`, it is the
    first that `gpu_layers` moves to the GPU, as in llama.cpp since the end of 2025; else the last.

    Raises:
        ValueError: the model is impossible, see `tensors_on_cpu`.
    """
    rules = setting.rules
    output_on_cpu = setting.placement == "cpu"
    if output_on_cpu:
        rules = (Rule(tensors="all"),)
    elif setting.gpu_layers is not None:
        start = max(0, num_layers + output_first - setting.gpu_layers)
        rules = (*rules, Rule(Layers("first", start), "all"))
        output_on_cpu = setting.gpu_layers < (1 if output_first else num_layers + 1)
    return Placed(tensors_on_cpu(rules, num_layers, moe_layers), output_on_cpu)
