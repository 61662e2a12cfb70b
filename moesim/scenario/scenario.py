"""One run, or one grid of runs, as a checked value: the root of the YAML schema."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import Field, PrivateAttr, field_validator, model_validator
from pydantic_core import PydanticCustomError

from moesim.config.fields import Count
from moesim.config.markers import seen_from
from moesim.config.validation import Strict
from moesim.config.yaml_document import Document, dotted, dump_document
from moesim.errors import ScenarioError, UsageError
from moesim.hardware.hardware import Hardware, load_hardware
from moesim.hardware.shapes import ModelShape, load_shape, shape_from_config
from moesim.scenario.keys import key_path, map_paths, shorthands
from moesim.scenario.sections import (
    Batching,
    BatchingField,
    Cache,
    CacheField,
    HardwareField,
    Memory,
    Model,
    ModelChoice,
    Placement,
    PlacementField,
    Prefetch,
    PrefetchField,
    Sweep,
    Text,
    Timeline,
    TracePath,
    Workload,
)

__all__ = ["SHORTHANDS", "Scenario"]


class Scenario(Strict):
    """What is simulated: a trace, a model's sizes, a machine, a workload and the policies.

    Built by `load_scenario`, or in Python by `Scenario.model_validate(dict)`, which knows no
    lines and checks no paths.
    """

    name: Text = Field(
        "scenario",
        description="Names the run; by default the file's stem.",
        examples=["quickstart"],
    )
    trace: TracePath = Field(
        description="The trace's folder, seen from this file.", examples=["../traces/shallow"]
    )
    model: Model = Field(ModelChoice(), description="Whose sizes are costed.")
    hardware: HardwareField = Field(description="The machine.")
    memory: Memory = Field(Memory(), description="How GPU memory is divided.")
    workload: Workload = Field(Workload(), description="Which requests arrive, and when.")
    batching: BatchingField = Field(Batching(), description="Which tokens form a step.")
    cache: CacheField = Field(Cache(), description="Which experts keep a slot.")
    prefetch: PrefetchField = Field(Prefetch(), description="What is fetched in advance.")
    placement: PlacementField = Field(Placement(), description="Where a missing expert runs.")
    replay: Literal["atomic", "sequential"] = Field(
        "atomic",
        description="Layer events are atomic; sequential replays ids one by one, for contrast.",
    )
    seed: Count = Field(0, description="Seeds every random stream.", examples=[0])
    bounds: bool = Field(
        True,
        description="Also simulate an infinite cache and an infinite link, and re-score MIN.",
        examples=[True],
    )
    timeline: Timeline = Field(Timeline(), description="The steps kept in detail.")
    sweep: Sweep = Field(
        {}, description="Dotted keys and the values to try: the grid of all combinations."
    )

    _document: Document | None = PrivateAttr(None)
    _base_dir: Path = PrivateAttr(Path())

    @field_validator("name")
    @classmethod
    def _usable_as_folder(cls, name: str) -> str:
        if name in (".", "..") or any(c in '/\\:*?"<>|' or ord(c) < 32 for c in name):
            raise ValueError(f"{name!r} cannot name a folder; use letters, digits, - and _")
        return name

    @model_validator(mode="after")
    def _one_rest(self) -> Self:
        if self.memory.kv.kind == "rest" and self.cache.slots.kind == "rest":
            raise PydanticCustomError(
                "two_rests",
                "the rest of the memory cannot go to both KV blocks and expert slots; "
                "give memory.kv or cache.slots a size",
                {"at": ("memory", "kv")},
            )
        return self

    def __repr__(self) -> str:
        grid = f", sweep over {', '.join(self.sweep)}" if self.sweep else ""
        return (
            f"<Scenario {self.name}: {self.trace} as {self.model.shape} "
            f"on {self.hardware.profile}, {self.cache.policy}{grid}>"
        )

    __str__ = __repr__

    @property
    def base_dir(self) -> Path:
        """The folder that relative paths start from."""
        return self._base_dir

    def path(self, text: str) -> Path:
        """A path of this scenario, seen from its file."""
        return self._base_dir / text

    @property
    def trace_path(self) -> Path:
        """The trace's folder."""
        return self.path(self.trace)

    def mark(self, key: str) -> str:
        """Where a dotted key, or the nearest key around it, was written: `file:line:column`."""
        return self.document().place(key_path(key))

    def document(self) -> Document:
        """The YAML that this scenario was read from, or what it would be."""
        if self._document is None:
            return Document("scenario", self.resolved(), has_lines=False)
        return self._document

    def resolved(self, paths: Callable[[str, str], str] | None = None) -> dict[str, Any]:
        """The scenario as plain data with defaults filled in and units as integers.

        Reading it again gives the same scenario. Paths stay as written, or become
        `paths(key, path)`.
        """
        plain = self.model_dump(mode="json")
        for section, key in (("model", "shape"), ("hardware", "profile")):
            given = _without_none(plain[section])
            plain[section] = {key: given.pop(key), **given}
        if paths is None:
            return plain
        moved: dict[str, Any] = map_paths(
            Scenario, (), plain, lambda key, text: paths(dotted(key), text)
        )
        return moved

    def resolved_in(self, folder: Path) -> dict[str, Any]:
        """The same with paths as seen from `folder`, in which the result is to be read."""
        return self.resolved(lambda _, path: seen_from(folder, self.path(path)))

    def paths(self) -> dict[str, Path]:
        """Return every file and folder that the scenario itself names, by its dotted key."""
        named: dict[str, Path] = {}
        self.resolved(lambda key, text: str(named.setdefault(key, self.path(text))))
        return named

    def write(self, file: Path, *, reader: Path) -> None:
        """Write the resolved scenario into `file`, to be read again in the folder `reader`."""
        text = dump_document(self.resolved_in(reader))
        file.write_text(text, encoding="utf-8", newline="\n")

    def load_hardware(self) -> Hardware:
        """The machine. Raises ScenarioError where a profile of your own is wrong."""
        profile = self.hardware.profile
        if profile.endswith((".yaml", ".yml")):
            profile = str(self.path(profile))
        try:
            return load_hardware(profile, self.hardware.overrides())
        except ScenarioError:
            raise
        except UsageError as error:
            raise ScenarioError.at(self, "hardware", str(error)) from None

    def load_shape(self, trace_config: Mapping[str, Any] | None) -> ModelShape:
        """The model's sizes; `trace_config` is the Hugging Face config in the trace's header.

        Raises:
            ScenarioError: the shape cannot be read, or the trace has none.
        """
        shape = self.model.shape
        try:
            if shape != "trace":
                made = load_shape(str(self.path(shape)) if shape.endswith(".json") else shape)
            elif trace_config is None:
                raise UsageError(
                    "the trace's header names no model configuration to take sizes from; "
                    "name a model, like `model: mixtral-8x7b`, or the path of its config.json"
                )
            else:
                made = shape_from_config(trace_config)
        except UsageError as error:
            raise ScenarioError.at(self, "model", str(error)) from error
        return made.with_bits(
            expert_bits=self.model.expert_bits,
            weight_bits=self.model.weight_bits,
            kv_bits=self.model.kv_bits,
        )


def _without_none(section: dict[str, Any]) -> dict[str, Any]:
    """Leave out what overrides nothing."""
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in section.items()
        if value is not None
    }


SHORTHANDS: Final = shorthands(Scenario)
