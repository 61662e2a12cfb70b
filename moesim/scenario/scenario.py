"""A scenario as a checked value: one run or one grid of runs, the root of the YAML schema."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from moesim.config.fields import Count
from moesim.config.markers import BASE_DIR, seen_from
from moesim.config.units import has_no_unit
from moesim.config.validation import COMMAND_LINE, Strict
from moesim.config.yaml_document import Document, KeyPath, dotted, dump_document
from moesim.engines.engine import IDEAL, Engine, load_engine
from moesim.engines.interface import interface_for
from moesim.errors import ScenarioError, UsageError
from moesim.files import as_path
from moesim.hardware.hardware import Hardware, IncompleteDisk, TooManyThreads, load_hardware
from moesim.hardware.parts import Machine, assemble
from moesim.inputs import copy_of
from moesim.model.format_bits import Bits, bits_for, bits_of_file, with_bits_of
from moesim.model.formats import format_named
from moesim.model.gguf_file import read_header
from moesim.model.hf_config import load_shape, shape_from_config
from moesim.model.shapes import ModelShape
from moesim.scenario.engine import EngineChoice, engine_defaults
from moesim.scenario.expert_bits import with_expert_bits
from moesim.scenario.keys import key_path, map_paths, quantities, shorthands
from moesim.scenario.metrics import Metrics
from moesim.scenario.sections import (
    PARTS,
    Batching,
    BatchingField,
    Cache,
    CacheField,
    EngineField,
    HardwareField,
    Memory,
    Model,
    ModelChoice,
    Placement,
    PlacementField,
    Prefetch,
    PrefetchField,
    Sweep,
    SystemName,
    Text,
    Timeline,
    TracePath,
    Workload,
)
from moesim.scenario.system import with_system

__all__ = ["SHORTHANDS", "Scenario"]


class Scenario(Strict):
    """What is simulated: a trace, a model's sizes, a machine, a workload and the policies.

    `load_scenario` builds one from a file or a mapping. `Scenario.model_validate(dict)` builds one
    without line numbers, and checks neither paths nor policy names.
    """

    name: Text = Field(
        "scenario",
        description="Name of the run; the default is the file's name without its ending.",
        examples=["quickstart"],
    )
    trace: TracePath = Field(
        description="Folder of the trace; a relative path starts at the folder of this file.",
        examples=["../traces/shallow"],
    )
    system: SystemName | None = Field(
        None,
        description="An offloading system, whose preset gives values to keys that this file leaves "
        "out; see `moesim list systems`.",
        examples=["fiddler"],
    )
    model: Model = Field(
        ModelChoice(), description="The model whose sizes decide how long operations take."
    )
    hardware: HardwareField = Field(description="The machine: a profile and changes to it.")
    memory: Memory = Field(
        Memory(), description="How GPU memory is divided, and what host memory holds."
    )
    workload: Workload = Field(Workload(), description="Which requests arrive, and when.")
    batching: BatchingField = Field(Batching(), description="Which tokens form a step.")
    cache: CacheField = Field(Cache(), description="Which experts keep a slot in GPU memory.")
    prefetch: PrefetchField = Field(
        Prefetch(), description="Which experts are fetched before they are needed."
    )
    placement: PlacementField = Field(Placement(), description="Where a missing expert runs.")
    engine: EngineField = Field(
        EngineChoice(), description="The engine: the host's times, and what its kernels reach."
    )
    replay: Literal["atomic", "sequential"] = Field(
        "atomic",
        description="How the cache sees a layer's experts: atomic (all at once, as a step uses "
        "them) or sequential (one by one, for comparison; it inflates misses).",
    )
    simulation: Literal["auto", "reference", "compiled"] = Field(
        "auto",
        description="The back end: reference, compiled (of the extra fast), or auto, which takes "
        "the compiled one for long runs that it knows. Results are the same.",
    )
    seed: Count = Field(0, description="Seed of all random streams.", examples=[0])
    bounds: bool = Field(
        True,
        description="Also simulate an infinite cache and an infinite link, and count the misses of "
        "MIN.",
        examples=[True],
    )
    timeline: Timeline = Field(
        Timeline(), description="The steps whose events are kept for the timeline."
    )
    metrics: Metrics = Field(Metrics(), description="Which part of the run its summary counts.")
    sweep: Sweep = Field(
        {}, description="Dotted keys and their values; all combinations of the values are run."
    )

    # Only a scenario that was read from a document has them.
    _document: Document | None = PrivateAttr(None)
    _base_dir: Path = PrivateAttr(Path())

    @model_validator(mode="before")
    @classmethod
    def _as_the_system_does(cls, data: Any) -> Any:
        """Add the settings of the system, unless the loader has done so with their places."""
        if not isinstance(data, dict):
            return data
        return with_system(Document("scenario", data, has_lines=False), shorthands(cls)).data

    @field_validator("name")
    @classmethod
    def _usable_as_folder(cls, name: str) -> str:
        # Characters that Windows forbids are refused on every system: the name becomes a folder's.
        if name in (".", "..") or any(c in '/\\:*?"<>|' or ord(c) < 32 for c in name):
            raise ValueError(f"{name!r} cannot name a folder; use letters, digits, - and _")
        return name

    @model_validator(mode="after")
    def _one_rest(self) -> Self:
        listed = isinstance(self.cache.split, list)  # which gives the slots a number
        if self.memory.kv.kind == "rest" and self.cache.slots.kind == "rest" and not listed:
            raise PydanticCustomError(
                "two_rests",
                "the rest of the memory cannot go to both KV blocks and expert slots; "
                "give memory.kv or cache.slots a size",
                {"at": ("memory", "kv")},
            )
        return self

    @model_validator(mode="after")
    def _as_the_engine_does(self, info: ValidationInfo) -> Self:
        """Give keys that the scenario leaves out the values that its engine has for them."""
        if self.engine.profile == IDEAL.name:
            return self
        base = (info.context or {}).get(BASE_DIR)
        try:
            engine = load_engine(self._engine_path(base))
        except (ScenarioError, UsageError):
            return self  # `load_engine` reports it with its place
        for section, changes in engine_defaults(self, engine).items():
            # Users cannot change a model; its own validator may.
            self.__dict__[section] = getattr(self, section).model_copy(update=changes)
        return self

    @model_validator(mode="after")
    def _as_the_text_of_the_memory_says(self) -> Self:
        """Give host memory the size of the machine's text, where the scenario gives none."""
        nbytes = self.hardware.host_bytes
        if nbytes is not None and "host" not in self.memory.model_fields_set:
            self.__dict__["memory"] = self.memory.model_copy(update={"host": nbytes})
        return self

    def __repr__(self) -> str:
        grid = f", sweep over {', '.join(self.sweep)}" if self.sweep else ""
        return (
            f"<Scenario {self.name}: {self.trace} as {self.model.shape} "
            f"on {self.hardware.label}, {self.cache.policy}{grid}>"
        )

    __str__ = __repr__

    @property
    def base_dir(self) -> Path:
        """The folder from which relative paths start."""
        return self._base_dir

    def path(self, text: str) -> Path:
        """Return a path of this scenario, with the folder of its file in front if relative.

        In a worker of a sweep, it is the path of the copy that this machine has.
        """
        return Path(copy_of(str(self._base_dir / as_path(text))))

    @property
    def trace_path(self) -> Path:
        """The trace's folder."""
        return self.path(self.trace)

    def mark(self, key: str) -> str:
        """Return the `file:line:column` of a dotted key, or of the nearest key around it."""
        return self.document().place(key_path(key))

    def document(self) -> Document:
        """Return the document of `source` with the settings of the system."""
        return with_system(self.source(), SHORTHANDS)

    def source(self) -> Document:
        """Return the document that this scenario was read from, or one made from its values."""
        if self._document is None:
            return Document("scenario", self.resolved(), has_lines=False)
        return self._document

    def resolved(self, paths: Callable[[str, str], str] | None = None) -> dict[str, Any]:
        """Return the scenario as plain data, with defaults filled in and quantities with units.

        Reading the data gives an equal scenario. A number that a user wrote without a unit stays
        one, so that the result of the data has the same notes. Paths stay as written, or become
        `paths(key, path)`.
        """
        plain = self.model_dump(mode="json")
        if self.system is None:
            del plain["system"]
        for (*around, key), number in self.without_unit().items():
            Document("", plain).at(tuple(around))[key] = number
        # Fields of a subclass would come last; a reader expects the profile, or the parts, first.
        firsts = (
            ("model", ("shape",)),
            ("hardware", ("profile", *PARTS)),
            ("engine", ("profile",)),
        )
        for section, keys in firsts:
            values = _without_none(plain[section])
            first = {key: values.pop(key) for key in keys if key in values}
            plain[section] = {**first, **values}
        if paths is None:
            return plain
        moved: dict[str, Any] = map_paths(
            Scenario, (), plain, lambda key, text: paths(dotted(key), text)
        )
        return moved

    def without_unit(self) -> dict[KeyPath, int | float | str]:
        """Return each quantity that a file or `--set` gives as a bare number, by the key's path.

        Zero needs no unit. Data from Python is left out: its integers are in base units.
        """
        document = self._document
        if document is None:
            return {}
        return {
            path: document.at(path)
            for path in quantities(Scenario)
            if has_no_unit(document.at(path))
            and (document.has_lines or document.place(path).startswith(COMMAND_LINE))
        }

    def units_read(self) -> dict[str, str]:
        """Return a note for each quantity of `without_unit`, by dotted key."""
        markers = quantities(Scenario)
        return {
            dotted(path): f"{dotted(path)} {markers[path].read_as(number)}"
            for path, number in self.without_unit().items()
        }

    def resolved_in(self, folder: Path | None) -> dict[str, Any]:
        """Return `resolved()` with relative paths that start at `folder`; absolute ones if None."""
        return self.resolved(lambda _, path: seen_from(folder, self.path(path)))

    def paths(self) -> dict[str, Path]:
        """Return the file or folder that each key with a path names, by dotted key.

        Where a key is both set and swept, its value outside the sweep counts.
        """
        paths: dict[str, Path] = {}
        self.resolved(lambda key, text: str(paths.setdefault(key, self.path(text))))
        return paths

    def text_for(self, reader: Path | None) -> str:
        """Return the resolved scenario as YAML, with relative paths that start at `reader`.

        Without a reader, paths are absolute.
        """
        return dump_document(self.resolved_in(reader))

    def write(self, file: Path, *, reader: Path) -> None:
        """Write the resolved scenario to `file`, with relative paths that start at `reader`."""
        file.write_text(self.text_for(reader), encoding="utf-8", newline="\n")

    def load_hardware(self) -> Hardware:
        """Return the machine of the profile or of the parts, with this scenario's changes to it.

        Raises:
            ScenarioError: the profile cannot be read, or is wrong.
        """
        profile = self.hardware.profile
        if profile is None:
            return self._with_changes(lambda changes: self.assemble(changes).hardware)
        # A shipped profile is a name, which no folder goes in front of.
        if profile.endswith((".yaml", ".yml")):
            profile = str(self.path(profile))
        return self._with_changes(partial(load_hardware, profile))

    def assemble(self, changes: Mapping[str, Any] | None = None) -> Machine:
        """Return the machine of the section's parts, and what their texts leave open."""
        parts = self.hardware.parts()
        return assemble(*(parts.get(key, "") for key in PARTS), overrides=changes)

    def _with_changes(self, load: Callable[[dict[str, Any]], Hardware]) -> Hardware:
        """Return what `load` makes of the section's figures; mistakes point at their keys."""
        try:
            return load(self.hardware.overrides())
        except ScenarioError:
            raise  # its messages point at lines of the profile
        except TooManyThreads as error:
            raise ScenarioError.at(self, "hardware.cpu_threads", str(error)) from None
        except IncompleteDisk as error:
            raise ScenarioError.at(self, "hardware.disk", str(error)) from None
        except UsageError as error:
            raise ScenarioError.at(self, "hardware", str(error)) from None

    def load_engine(self) -> Engine:
        """Return the engine, with this scenario's changes to its profile.

        Raises:
            ScenarioError: the profile cannot be read, is wrong, or lacks the interface.
        """
        choice = self.engine
        try:
            engine = load_engine(self._engine_path(self._base_dir))
        except ScenarioError:
            raise  # its messages point at lines of the profile
        except UsageError as error:
            raise ScenarioError.at(self, "engine", str(error)) from None
        try:
            engine.kernels(choice.interface)
        except UsageError as error:
            raise ScenarioError.at(self, "engine.interface", str(error)) from None
        return engine.with_times(
            launch_ns=choice.launch,
            copy_ns=choice.copy_launch,
            event_ns=choice.layer_event,
            sorting=choice.sorting,
        )

    def interface(self, hardware: Hardware, engine: Engine) -> str | None:
        """Return which of the engine's kernels run on the machine's GPU; None without any.

        Raises:
            ScenarioError: the card cannot have the interface of the scenario.
        """
        try:
            return interface_for(engine, hardware, self.engine.interface)
        except UsageError as error:
            raise ScenarioError.at(self, "engine.interface", str(error)) from None

    def _engine_path(self, base_dir: Path | None) -> str:
        """Return the name of the engine, or the path of its profile from the working directory."""
        profile = self.engine.profile
        if base_dir is None or not profile.endswith((".yaml", ".yml")):
            return profile
        return copy_of(str(base_dir / as_path(profile)))

    def load_shape(self, trace_config: Mapping[str, Any] | None) -> ModelShape:
        """Return the model's sizes; `trace_config` is the Hugging Face config of the trace.

        Raises:
            ScenarioError: the sizes cannot be read, or the trace has none.
        """
        name = self.model.shape
        try:
            if name != "trace":
                shape = load_shape(
                    str(self.path(name)) if name.endswith((".json", ".gguf")) else name
                )
            elif trace_config is None:
                raise UsageError(
                    "the trace's header names no model configuration to take sizes from; "
                    "name a model, like `model: mixtral-8x7b`, or the path of its config.json"
                )
            else:
                shape = shape_from_config(trace_config)
        except UsageError as error:
            raise ScenarioError.at(self, "model", str(error)) from error
        if (bits := self.format_bits(shape)) is not None:
            shape = with_bits_of(shape, bits, by_layer=self.model.format_by_layer)
        shape = shape.with_bits(
            expert_bits=self.model.expert_bits,
            weight_bits=self.model.weight_bits,
            kv_bits=self.model.kv_bits,
        )
        return with_expert_bits(self, shape)

    def format_bits(self, shape: ModelShape) -> Bits | None:
        """Return the bits that `model.format` gives the parts of `shape`; None without a format.

        Raises:
            ScenarioError: the file cannot be read, or is not of this model.
        """
        name = self.model.format
        if name is None:
            return None
        try:
            if name.endswith(".gguf"):
                return bits_of_file(read_header(self.path(name)), shape, name)
            named = format_named(name)
            assert named.format is not None  # the section checks it
            return bits_for(named.format, shape, named.file_bytes)
        except UsageError as error:
            raise ScenarioError.at(self, "model.format", str(error)) from error


def _without_none(section: dict[str, Any]) -> dict[str, Any]:
    """Return a section without its unset keys, which change nothing."""
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in section.items()
        if value is not None
    }


SHORTHANDS: Final = shorthands(Scenario)
"""The key that a section's word stands for: `("hardware",)` is `profile`."""
