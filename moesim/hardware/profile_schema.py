"""The schema of a hardware profile: each figure is a value with its kind and its source."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Generic, Literal, Self, TypeVar

from pydantic import Field, ModelWrapValidatorHandler, PrivateAttr, model_validator
from pydantic_core import PydanticCustomError

from moesim.config.fields import (
    Bandwidth,
    Bytes,
    Duration,
    Flops,
    PositiveCount,
    PositiveShare,
    Quantity,
)
from moesim.config.units import has_no_unit
from moesim.config.validation import Strict
from moesim.errors import shown
from moesim.hardware.measurement import OperationTimes, Overlap, Provenance, signature
from moesim.model.shapes import ModelShape

__all__ = ["DiskProfile", "Kind", "LinkProfile", "Profile", "ProfileFigure"]

Kind = Literal["assumed", "measured"]
T = TypeVar("T")


class ProfileFigure(Strict, Generic[T]):
    value: T = Field(description="The number with its unit.")
    kind: Kind = Field(description="assumed (a datasheet or reasoning) or measured.")
    source: Annotated[str, Field(min_length=1)] = Field(description="Origin of the number.")

    # Calibration writes measured numbers in base units; people write the assumed ones.
    by_people: ClassVar[tuple[str, ...]] = ("assumed",)

    _bare: str = PrivateAttr("")

    @property
    def bare(self) -> str:
        """What was read where a number that people write has no unit; else an empty text."""
        return self._bare

    @model_validator(mode="wrap")
    @classmethod
    def _note_bare(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        figure = handler(data)
        if isinstance(data, dict) and figure.kind in cls.by_people and has_no_unit(data["value"]):
            for quantity in cls.model_fields["value"].metadata:
                if isinstance(quantity, Quantity):
                    figure._bare = quantity.read_as(data["value"])
        return figure

    @model_validator(mode="before")
    @classmethod
    def _with_origin(cls, figure: Any) -> Any:
        """Refuse a number without its origin, and show how to write both."""
        if isinstance(figure, str | int | float):
            raise ValueError(
                f"{shown(figure)} needs its origin; write "
                f"{{value: {figure}, kind: assumed, source: where the number is from}}"
            )
        return figure


class LinkProfile(Strict):
    latency: ProfileFigure[Duration]
    pinned_bandwidth: ProfileFigure[Bandwidth]
    pageable_bandwidth: ProfileFigure[Bandwidth]
    chunk: ProfileFigure[Bytes] | None = None


class DiskProfile(Strict):
    latency: ProfileFigure[Duration]
    bandwidth: ProfileFigure[Bandwidth]
    queue_depth: ProfileFigure[PositiveCount] | None = None


class Profile(Strict):
    name: str
    vram: ProfileFigure[Bytes]
    flops: ProfileFigure[Flops]
    memory_bandwidth: ProfileFigure[Bandwidth]
    compute_efficiency: ProfileFigure[PositiveShare]
    memory_efficiency: ProfileFigure[PositiveShare]
    kernel_overhead: ProfileFigure[Duration]
    h2d: LinkProfile
    d2h: LinkProfile
    readback_latency: ProfileFigure[Duration]
    host_memory: ProfileFigure[Bytes] | None = None
    host_memory_bandwidth: ProfileFigure[Bandwidth] | None = None
    host_memory_efficiency: ProfileFigure[PositiveShare] | None = None
    cpu_flops: ProfileFigure[Flops] | None = None
    cpu_efficiency: ProfileFigure[PositiveShare] | None = None
    cpu_overhead: ProfileFigure[Duration] | None = None
    cpu_cores: ProfileFigure[PositiveCount] | None = None
    core_memory_bandwidth: ProfileFigure[Bandwidth] | None = None
    disk: DiskProfile | None = None
    int8_ops: ProfileFigure[Flops] | None = None
    cpu_int8_ops: ProfileFigure[Flops] | None = None
    cpu_memory_bandwidth: ProfileFigure[Bandwidth] | None = None
    cpu_sockets: ProfileFigure[PositiveCount] | None = None
    architecture: str = ""
    unified: bool = False
    has_gpu: bool = True
    measured: Provenance | None = None
    overlap: Overlap | None = None
    operations: list[OperationTimes] = Field(default=[])

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        numbers: dict[ModelShape, int] = {}
        for number, times in enumerate(self.operations):
            shape = signature(times.shape.resolve())
            if shape in numbers:
                raise PydanticCustomError(
                    "same_shape",
                    f"has the same sizes as operations[{numbers[shape]}]; keep one of the two",
                    {"at": ("operations", number, "shape")},
                )
            numbers[shape] = number
        return self
