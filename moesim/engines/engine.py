"""An engine as a set of figures: the host's times, and what its kernels reach of a machine.

The time of an operation depends on the model's shape, the machine, and the engine. An engine
profile is a YAML file. Each figure has a value with a unit, a source, and a kind: `assumed`
(documentation or reasoning), `fitted` (to published throughputs, which the source names) or
`measured`. The engine `ideal` has no profile: the host takes no time, and operations reach the
efficiencies of the hardware profile.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

from moesim.config.suggest import suggest
from moesim.config.units import format_duration_ns
from moesim.config.validation import validate
from moesim.config.yaml_document import load_document
from moesim.engines.profile_schema import (
    KV,
    EngineFigure,
    EngineKind,
    EngineProfile,
    KernelsProfile,
)
from moesim.errors import UsageError
from moesim.files import as_path

__all__ = [
    "BY_SCENARIO",
    "IDEAL",
    "MISSING",
    "PROFILES",
    "Engine",
    "Kernels",
    "Origin",
    "check_engine_name",
    "engine_names",
    "load_engine",
]

PROFILES: Final = Path(__file__).parent / "profiles"
Sorting = Literal["host", "device"]
ThresholdOf = Literal["step", "expert"]
_WEAKEST_FIRST: Final[tuple[EngineKind, ...]] = ("assumed", "fitted", "measured")


@dataclass(frozen=True, slots=True)
class Origin:
    """The value of one figure of an engine as text, and where it comes from.

    `bare` is what was read where the profile gives a number without its unit, else empty.
    """

    value: str
    kind: EngineKind
    source: str
    bare: str = ""


@dataclass(frozen=True, slots=True)
class Kernels:
    """How an engine's kernels run on one kind of processor.

    A kernel takes `kernel_ns`, and `thread_ns` for each thread of a CPU, and then the longer of its
    traffic and its arithmetic. `numbers` are the kernels of the parts of an operation: attention,
    latent, linear, norm, router, experts, each_expert, shared, dense, tail. `bandwidth` and
    `compute` are shares of the peaks, by family of stored formats and for `kv`, with `other` for
    those that are not listed. A product of n rows takes the arithmetic of n + `padding` rows; in a
    step of at most `vector_rows` rows there is no padding, and each row after the first adds
    `vector_row` of the first row's traffic. With several sockets, reads reach the share `sockets`
    of the bandwidth of all.
    """

    kernel_ns: int
    numbers: Mapping[str, int]
    bandwidth: Mapping[str, float]
    compute: Mapping[str, float]
    padding: float = 0
    vector_rows: int = 1
    vector_row: float = 0
    thread_ns: int = 0
    sockets: float = 1

    def number(self, part: str) -> int:
        """Return the number of kernels of a part; attention's stand for `latent` and `linear`."""
        if part in ("latent", "linear") and part not in self.numbers:
            part = "attention"
        return self.numbers[part]

    def bandwidth_of(self, family: str) -> float:
        """Return the share of the peak bandwidth that reading weights of a family reaches."""
        return self.bandwidth.get(family, self.bandwidth["other"])

    def compute_of(self, family: str) -> float:
        """Return the share of the peak arithmetic that products with a family reach."""
        return self.compute.get(family, self.compute["other"])


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine, with times in ns. `gpu` has its kernels by interface (cuda, hip, vulkan, ...).

    Without any `gpu`, or without `cpu`, the engine is ideal there: operations reach the
    efficiencies of the hardware profile. `figures` gives the origin of each number, by its key in
    the profile.
    """

    name: str
    about: str = ""
    step_ns: int = 0
    event_ns: int = 0
    launch_ns: int = 0
    copy_ns: int = 0
    sorting: Sorting = "host"
    gpu: Mapping[str, Kernels] = field(default_factory=lambda: MappingProxyType({}))
    cpu: Kernels | None = None
    switch_ns: int = 0
    batch_threshold: int | None = None
    batch_threshold_of: ThresholdOf = "step"
    ubatch: int | None = None
    pinned: bool | None = None
    figures: Mapping[str, Origin] = field(
        default_factory=lambda: MappingProxyType({}), compare=False, repr=False
    )

    def with_times(
        self,
        *,
        launch_ns: int | None = None,
        copy_ns: int | None = None,
        event_ns: int | None = None,
        sorting: Sorting | None = None,
    ) -> Engine:
        """Return the engine with the changes that are not None; changed figures are assumed."""
        given: dict[str, tuple[str, int | str | None]] = {
            "host.launch": ("launch_ns", launch_ns),
            "host.copy_launch": ("copy_ns", copy_ns),
            "host.layer_event": ("event_ns", event_ns),
            "sorting": ("sorting", sorting),
        }
        changes: dict[str, Any] = {}
        figures = dict(self.figures)
        for key, (name, value) in given.items():
            if value is not None and value != getattr(self, name):
                changes[name] = value
                text = format_duration_ns(value) if isinstance(value, int) else value
                figures[key] = Origin(text, "assumed", BY_SCENARIO)
        return replace(self, **changes, figures=MappingProxyType(figures)) if changes else self

    @property
    def changes(self) -> str:
        """What a scenario changes of the profile: `launch 5us, sorting device`; "" if nothing."""
        return ", ".join(
            f"{key.rpartition('.')[2]} {origin.value}"
            for key, origin in self.figures.items()
            if origin.source == BY_SCENARIO
        )

    def kind(self, interface: str | None = None) -> EngineKind | Literal["ideal"]:
        """Return the weakest kind of the figures that act; `ideal` for an engine without any.

        Figures of other interfaces than the chosen one do not act.
        """
        chosen = interface or next(iter(self.gpu), None)
        others = tuple(f"gpu.{name}." for name in self.gpu if name != chosen)
        kinds = {origin.kind for key, origin in self.figures.items() if not key.startswith(others)}
        return next((kind for kind in _WEAKEST_FIRST if kind in kinds), "ideal")

    def scaled(self, fixed: float, *, cpu_reads: float = 1, gpu_reads: float = 1) -> Engine:
        """Return the engine with its fixed times, and what reads of weights reach, multiplied.

        It is for fits. A share may then exceed 1.
        """

        def scale(kernels: Kernels, reads: float) -> Kernels:
            shares = {
                name: share if name == KV else share * reads
                for name, share in kernels.bandwidth.items()
            }
            return replace(
                kernels,
                kernel_ns=round(kernels.kernel_ns * fixed),
                thread_ns=round(kernels.thread_ns * fixed),
                bandwidth=MappingProxyType(shares),
            )

        gpu = {name: scale(each, gpu_reads) for name, each in self.gpu.items()}
        return replace(
            self,
            step_ns=round(self.step_ns * fixed),
            event_ns=round(self.event_ns * fixed),
            launch_ns=round(self.launch_ns * fixed),
            copy_ns=round(self.copy_ns * fixed),
            switch_ns=round(self.switch_ns * fixed),
            gpu=MappingProxyType(gpu),
            cpu=None if self.cpu is None else scale(self.cpu, cpu_reads),
        )

    def kernels(self, interface: str | None) -> Kernels | None:
        """Return the kernels for an interface, or for the first one if None; None: ideal.

        Raises:
            UsageError: the engine has kernels, but none for this interface.
        """
        if not self.gpu:
            return None
        if interface is None:
            return next(iter(self.gpu.values()))
        if interface not in self.gpu:
            raise UsageError(
                f"the engine {self.name} has no figures for {interface}; it has "
                f"{', '.join(self.gpu)}"
            )
        return self.gpu[interface]


BY_SCENARIO: Final = "set by the scenario"
"""The source of a figure that a scenario changes."""

MISSING: Final = ("vllm", "sglang", "ktransformers", "hf-eager", "moe-infinity")
"""Engines that people ask for, and that have no profile."""

IDEAL: Final = Engine(
    "ideal",
    "The host takes no time. Operations reach the efficiencies of the hardware profile.",
)


def engine_names() -> list[str]:
    """Return `ideal`, and the names of the shipped profiles."""
    return ["ideal", *sorted(path.stem for path in PROFILES.glob("*.yaml"))]


def check_engine_name(name_or_path: str) -> str | None:
    """Return a message if there is no engine of this name or path, else None."""
    if _is_path(name_or_path):
        exists = os.path.isfile(as_path(name_or_path))
        return None if exists else f"there is no engine profile {name_or_path!r}"
    if name_or_path in engine_names():
        return None
    if name_or_path.casefold() in MISSING:
        return (
            f"there are no figures of {name_or_path} yet, because nothing measured is predicted "
            f"with them; there are {', '.join(engine_names())}, and your own .yaml"
        )
    hint = suggest(name_or_path, engine_names(), rest="there are")
    return f"no engine is called {name_or_path!r}, and it is no path of a .yaml{hint}"


def load_engine(name_or_path: str | Path) -> Engine:
    """Return an engine by name, or from a profile of your own by path (.yaml or .yml).

    Raises:
        ScenarioError: the profile is wrong.
        UsageError: there is no such profile.
    """
    text = str(name_or_path)
    if wrong := check_engine_name(text):
        raise UsageError(wrong)
    if text == IDEAL.name:
        return IDEAL
    if _is_path(text):  # not cached: the file may change between two runs of a process
        return _resolve(validate(load_document(as_path(text)), EngineProfile))
    return _shipped(text)


def _is_path(name_or_path: str) -> bool:
    return name_or_path.endswith((".yaml", ".yml"))


@cache  # a sweep loads the same engine at every point
def _shipped(name: str) -> Engine:
    return _resolve(validate(load_document(PROFILES / f"{name}.yaml"), EngineProfile))


def _resolve(profile: EngineProfile) -> Engine:
    """Return the engine of a profile, and note the origin of each figure."""
    figures: dict[str, Origin] = {}

    def value(key: str, figure: EngineFigure[Any] | None, default: Any = None) -> Any:
        if figure is None:
            return default
        plain = figure.value
        if hasattr(plain, "model_dump"):
            plain = plain.model_dump(exclude_none=True)
        figures[key] = Origin(str(plain), figure.kind, figure.source, figure.bare)
        return plain

    def kernels(key: str, part: KernelsProfile) -> Kernels:
        return Kernels(
            kernel_ns=value(f"{key}.kernel", part.kernel),
            numbers=MappingProxyType(value(f"{key}.numbers", part.numbers)),
            bandwidth=MappingProxyType(value(f"{key}.bandwidth", part.bandwidth)),
            compute=MappingProxyType(value(f"{key}.compute", part.compute)),
            padding=value(f"{key}.padding", part.padding),
            vector_rows=value(f"{key}.vector_rows", part.vector_rows),
            vector_row=value(f"{key}.vector_row", part.vector_row, 0.0),
            thread_ns=value(f"{key}.thread", part.thread, 0),
            sockets=value(f"{key}.sockets", part.sockets, 1.0),
        )

    host = profile.host
    return Engine(
        name=profile.name,
        about=profile.about,
        step_ns=value("host.step", host.step, 0),
        event_ns=value("host.layer_event", host.layer_event, 0),
        launch_ns=value("host.launch", host.launch, 0),
        copy_ns=value("host.copy_launch", host.copy_launch, 0),
        sorting=value("sorting", profile.sorting),
        gpu=MappingProxyType(
            {name: kernels(f"gpu.{name}", part) for name, part in profile.gpu.items()}
        ),
        cpu=None if profile.cpu is None else kernels("cpu", profile.cpu),
        switch_ns=value("switch", profile.switch, 0),
        batch_threshold=value("batch_threshold", profile.batch_threshold),
        batch_threshold_of=value("batch_threshold_of", profile.batch_threshold_of, "step"),
        ubatch=value("ubatch", profile.ubatch),
        pinned=value("pinned", profile.pinned),
        figures=MappingProxyType(figures),
    )
