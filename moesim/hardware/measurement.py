"""What calibration measured of one model on one machine: durations, not figures.

A hardware profile may carry, beside its figures, the `operations` of the models it was calibrated
with: how long each kind of operation took, as coefficients fitted to measured points, with the
error of the fit on points that it has not seen. They hold for models of exactly these sizes.
"""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from itertools import pairwise
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from moesim.config.fields import Bits, Count, PositiveCount
from moesim.config.validation import Strict
from moesim.hardware.shapes import DecoupledRouter, Mla, ModelShape

__all__ = [
    "ExpertTable",
    "LayerTimes",
    "OperationTimes",
    "Overlap",
    "Provenance",
    "ReadbackTimes",
    "Residual",
    "ShapeProfile",
    "TailTimes",
    "shape_profile",
    "signature",
]


def _number(value: object) -> object:
    """YAML writes a whole float without its point as well."""
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


Nanoseconds = Annotated[float, BeforeValidator(_number), Field(ge=0, le=1e15)]
MOST_RATIO: Final = 1e6
"""The largest ratio that a profile holds."""

Ratio = Annotated[float, BeforeValidator(_number), Field(ge=0, le=MOST_RATIO)]


class ExpertTable(Strict):
    """Routed experts: a call costs `call_ns`, and each of its experts what the table says.

    Between the given numbers of rows it is linear, beyond the last as steep as before it.
    """

    call_ns: Nanoseconds
    tokens: Annotated[list[PositiveCount], Field(min_length=1)]
    each_ns: list[Nanoseconds]

    @model_validator(mode="after")
    def _rising(self) -> ExpertTable:
        if len(self.tokens) != len(self.each_ns):
            raise PydanticCustomError(
                "uneven_table",
                f"has {len(self.tokens)} numbers of tokens and {len(self.each_ns)} durations",
                {"at": ("each_ns",)},
            )
        for key in ("tokens", "each_ns"):
            row = getattr(self, key)
            strictly = key == "tokens"
            for before, after in pairwise(row):
                if after < before or (strictly and after == before):
                    raise PydanticCustomError(
                        "falling_table", f"must rise: {after:g} follows {before:g}", {"at": (key,)}
                    )
        return self


class LayerTimes(Strict):
    """A layer without its routed experts: a sum over what its batch has of each."""

    base_ns: Nanoseconds
    token_ns: Nanoseconds = 0.0
    sequence_ns: Nanoseconds = 0.0
    kv_token_ns: Nanoseconds = 0.0
    pair_ns: Nanoseconds = 0.0


class TailTimes(Strict):
    """The end of a step, the way to the next one included."""

    base_ns: Nanoseconds
    token_ns: Nanoseconds = 0.0
    sequence_ns: Nanoseconds = 0.0
    sampled_ns: Nanoseconds = 0.0


class ReadbackTimes(Strict):
    """From the end of a front until the first work of its layer event begins."""

    base_ns: Nanoseconds
    byte_ns: Nanoseconds = 0.0


class Residual(Strict):
    """How well a fit holds: errors on the points it was not fitted to."""

    fitted: Count
    held_out: Count
    error_median: Ratio = Field(description="Median of |predicted - measured| / measured.")
    error_p90: Ratio = Field(description="90th percentile of the same.")
    bias: Annotated[float, BeforeValidator(_number), Field(ge=-MOST_RATIO, le=MOST_RATIO)] = Field(
        description="Sum of predicted over sum of measured, less one."
    )
    interval: Ratio = Field(
        description="Half the 95 % interval of the median of predicted over measured."
    )


class _MlaProfile(Strict):
    kv_rank: PositiveCount
    rope_dim: Count
    nope_dim: Count
    value_dim: PositiveCount
    q_rank: PositiveCount | None = None


class _RouterProfile(Strict):
    hidden: PositiveCount
    heads: PositiveCount
    ffn: PositiveCount
    gated: bool = False


class ShapeProfile(Strict):
    """The sizes of a `ModelShape`; its name is for people."""

    name: str = ""
    num_layers: PositiveCount
    hidden: PositiveCount
    expert_ffn: PositiveCount
    num_experts: PositiveCount
    top_k: PositiveCount
    num_heads: PositiveCount
    num_kv_heads: PositiveCount
    head_dim: PositiveCount
    vocabulary: PositiveCount
    dense_layers: list[Count] = Field(default=[])
    shared_ffn: Count = 0
    dense_ffn: Count = 0
    mla: _MlaProfile | None = None
    windowed_layers: list[Count] = Field(default=[])
    window: PositiveCount | None = None
    tied_embeddings: bool = False
    router: _RouterProfile | None = None
    expert_bits: Bits = 16
    weight_bits: Bits = 16
    kv_bits: Bits = 16

    def resolve(self) -> ModelShape:
        """The shape, without a source."""
        parts = ("mla", "router")
        given = {key: getattr(self, key) for key in type(self).model_fields if key not in parts}
        for key in ("dense_layers", "windowed_layers"):
            given[key] = tuple(given[key])
        mla = None if self.mla is None else Mla(**self.mla.model_dump())
        router = None if self.router is None else DecoupledRouter(**self.router.model_dump())
        return ModelShape(mla=mla, router=router, **given)


class OperationTimes(Strict):
    """The measured operations of one model shape."""

    shape: ShapeProfile
    experts: ExpertTable
    front: LayerTimes
    dense: LayerTimes | None = None
    first: LayerTimes = Field(
        LayerTimes(base_ns=0.0), description="What the first layer of a step takes beyond that."
    )
    tail: TailTimes
    readback: ReadbackTimes
    landing_ns: Nanoseconds = Field(
        0.0, description="From a landing until a computation that has waited for it begins."
    )
    copy_factor: Annotated[float, BeforeValidator(_number), Field(ge=1, le=1e3)] = Field(
        1.0, description="How many times longer an expert's copy takes in a run than by itself."
    )
    residuals: dict[str, Residual] = Field(default={})

    @model_validator(mode="after")
    def _dense_where_needed(self) -> OperationTimes:
        if self.shape.dense_layers and self.dense is None:
            raise ValueError(f"{self.shape.name or 'the shape'} has dense layers, but no `dense`")
        return self


class Overlap(Strict):
    """How many times longer each takes while the other is under way: 1 is not at all."""

    compute: Ratio
    copies: Ratio


class Provenance(Strict):
    """When, where and how a profile was measured."""

    device: Annotated[str, Field(min_length=1)]
    date: Annotated[str, Field(min_length=1)]
    command: str = ""
    points: str = Field("", description="The file beside the profile with all raw points.")
    machine: dict[str, str | int | float] = Field(
        default={}, description="Processor, memory, operating system, versions, threads."
    )


def signature(shape: ModelShape) -> ModelShape:
    """The shape less what no duration depends on, for comparison."""
    return replace(shape, name="", source="")


def shape_profile(shape: ModelShape) -> ShapeProfile:
    """The shape as it is written in a profile."""
    given: dict[str, Any] = {
        item.name: getattr(shape, item.name)
        for item in fields(ModelShape)
        if item.name not in ("mla", "router", "source")
    }
    for key in ("dense_layers", "windowed_layers"):
        given[key] = list(given[key])
    mla = None if shape.mla is None else _MlaProfile(**asdict(shape.mla))
    router = None if shape.router is None else _RouterProfile(**asdict(shape.router))
    return ShapeProfile(mla=mla, router=router, **given)
