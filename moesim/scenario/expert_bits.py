"""Experts of unequal sizes: the bits of single layers and experts, as mixed quantisation has them.

    model:
      expert_bits: 4.5                # of all experts that are not named below
      expert_bits_by:
        layer: {0: 8, 10-12: 6.5}     # of all experts of these model layers
        expert: {3/0: 16}             # of expert 0 of layer 3, whatever its layer has

Layers are model layers, dense ones included, as in the names of a checkpoint's tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from moesim.config.fields import Bits
from moesim.config.validation import SEVERAL, Strict
from moesim.errors import ScenarioError, shown

if TYPE_CHECKING:
    from moesim.model.shapes import ModelShape
    from moesim.scenario.scenario import Scenario

__all__ = ["ExpertBitsBy", "with_expert_bits"]

_KEY: Final = "model.expert_bits_by"
_LAYERS: Final = re.compile(r"([0-9]{1,6})(?:-([0-9]{1,6}))?")
_EXPERT: Final = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")


def _check_layers(bits: dict[str, float]) -> dict[str, float]:
    """Return the mapping. Raise for each key that is no layer or range, or repeats a layer."""
    mistakes, named = [], dict[int, str]()
    for key in bits:
        layers = _layers(key)
        if not layers:
            rule = "is neither a layer nor a range of layers; write 3, or 0-3"
            mistakes.append(((key,), f"{shown(key)} {rule}"))
        for layer in layers:
            if layer in named:
                message = f"layer {layer} is in {named[layer]!r} too; give its bits once"
                mistakes.append(((key,), message))
                break
        named.update(dict.fromkeys(layers, key))
    return _refuse(bits, mistakes)


def _check_experts(bits: dict[str, float]) -> dict[str, float]:
    """Return the mapping. Raise for each key that is no `layer/expert`, or repeats one."""
    mistakes, named = [], dict[tuple[int, int], str]()
    for key in bits:
        if not _EXPERT.fullmatch(key):
            rule = "is no expert; write its layer and its number, like 0/3"
            mistakes.append(((key,), f"{shown(key)} {rule}"))
        elif _expert(key) in named:
            message = f"is the same expert as {named[_expert(key)]!r}; give its bits once"
            mistakes.append(((key,), message))
        else:
            named[_expert(key)] = key
    return _refuse(bits, mistakes)


def _refuse(bits: dict[str, float], mistakes: list[tuple[tuple[str], str]]) -> dict[str, float]:
    if mistakes:
        raise PydanticCustomError(SEVERAL, "wrong keys", {"mistakes": mistakes})
    return bits


class ExpertBitsBy(Strict):
    """Bits of the experts that differ from `model.expert_bits`."""

    layer: Annotated[dict[str, Bits], AfterValidator(_check_layers)] = Field(
        {},
        description="Bits of the experts of a model layer, or of a range of layers, like "
        "{0: 8, 10-12: 6.5}.",
        examples=[{"0": 8}],
        json_schema_extra={"propertyNames": {"pattern": f"^{_LAYERS.pattern}$"}},
    )
    expert: Annotated[dict[str, Bits], AfterValidator(_check_experts)] = Field(
        {},
        description="Bits of single experts, by layer and number, like {3/0: 16}; they win over "
        "those of the layer.",
        examples=[{"0/3": 16}],
        json_schema_extra={"propertyNames": {"pattern": f"^{_EXPERT.pattern}$"}},
    )


def with_expert_bits(scenario: Scenario, shape: ModelShape) -> ModelShape:
    """Return the shape with the bits that `model.expert_bits_by` gives.

    Raise `ScenarioError` with each layer and expert that the model does not have.
    """
    by = scenario.model.expert_bits_by
    if by is None:
        return shape
    if mistakes := [
        f"{scenario.mark(key)}: {key}: {message}" for key, message in _unknown(by, shape)
    ]:
        raise ScenarioError(mistakes)
    # Sorted and without repetition, so that shapes with the same bits are equal.
    usual = shape.expert_bits
    named = {layer: bits for key, bits in by.layer.items() for layer in _layers(key)}
    layers = {
        layer: bits
        for layer, bits in {**dict(shape.layer_bits), **named}.items()
        if layer in shape.moe_layers and bits != usual
    }
    experts = {
        _expert(key): bits
        for key, bits in by.expert.items()
        if bits != layers.get(_expert(key)[0], usual)
    }
    return replace(
        shape,
        layer_bits=tuple(sorted(layers.items())),
        single_expert_bits=tuple((*place, bits) for place, bits in sorted(experts.items())),
    )


def _unknown(by: ExpertBitsBy, shape: ModelShape) -> Iterator[tuple[str, str]]:
    """Yield key and message of each layer or expert that `shape` does not have."""
    for key in by.layer:
        layers = _layers(key)
        if layers[-1] >= shape.num_layers:
            yield f"{_KEY}.layer.{key}", f"{shape.name} has the layers 0 to {shape.num_layers - 1}"
        elif not set(layers).intersection(shape.moe_layers):
            yield f"{_KEY}.layer.{key}", f"{shape.name} has no routed experts there"
    for key in by.expert:
        layer, expert = _expert(key)
        if layer not in shape.moe_layers:
            yield f"{_KEY}.expert.{key}", f"{shape.name} has no routed experts in layer {layer}"
        elif expert >= shape.num_experts:
            most = shape.num_experts - 1
            yield f"{_KEY}.expert.{key}", f"a layer of {shape.name} has the experts 0 to {most}"


def _layers(key: str) -> range:
    """Return the layers that a key names; none where it is no layer and no range."""
    match = _LAYERS.fullmatch(key)
    if match is None:
        return range(0)
    return range(int(match[1]), int(match[2] or match[1]) + 1)


def _expert(key: str) -> tuple[int, int]:
    """Return layer and number of the expert that a valid key names."""
    match = _EXPERT.fullmatch(key)
    assert match is not None
    return int(match[1]), int(match[2])
