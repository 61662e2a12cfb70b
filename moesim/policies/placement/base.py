"""Placement: on which lane each wanted expert is computed, and which layers run on the CPU.

`Placement.place` is called once per layer event, before the eviction policy. It sees the experts
that are not in GPU memory and may name a lane for each. Experts in GPU memory run there. A missing
expert that runs on the GPU is copied first. Where a missing expert runs does not decide whether it
gets a slot: the eviction policy decides that. A key that it keeps and that ran on the CPU is copied
to the GPU behind all demand copies, for later events.

A placement may also fix which experts are in GPU memory for the whole run (`residents`). Then no
eviction policy is asked.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol

import numpy as np

from moesim.errors import UsageError
from moesim.hardware.topology import CPU, GPU
from moesim.policies.base import Policy
from moesim.policies.view import Key, View

__all__ = ["ARRIVING", "CPU", "GPU", "Estimate", "Placement", "PlacementContext"]

ARRIVING: Final = "arriving"
"""The place of an expert whose copy to the GPU is under way."""


@dataclass(frozen=True, slots=True)
class PlacementContext:
    """What a placement is built with.

    `model_layers[l]` is the model layer of trace layer l, of `num_model_layers` in all. Each trace
    layer has `num_experts` experts, of which each row uses `top_k`. `popularity` returns the uses
    of each key in a profile trace; None stands for the replayed trace. `has_gpu`: the machine has a
    GPU to copy to.
    """

    model_layers: tuple[int, ...]
    num_model_layers: int
    num_experts: int
    top_k: int
    rng: np.random.Generator
    popularity: Callable[[Any], Mapping[Key, int]] | None = None
    has_gpu: bool = True

    @property
    def num_layers(self) -> int:
        """The number of trace layers, all with routed experts."""
        return len(self.model_layers)


class Estimate(Protocol):
    """Durations on otherwise idle lanes in nanoseconds, the same on every machine."""

    rows: int
    """Rows of the step."""
    cpu_call_ns: int
    """The part of `cpu_ns` that one call over several experts pays once."""
    gpu_call_ns: int
    """The part of `gpu_ns` that one call over several experts pays once."""

    def copy_ns(self, key: Key) -> int:
        """Return the duration of the expert's copy from host memory to the GPU."""

    def read_ns(self, key: Key) -> int:
        """Return the duration of reading the expert from disk; 0 if it is in host memory."""

    def gpu_ns(self, key: Key, rows: int) -> int:
        """Return the duration of computing `rows` rows of an expert on the GPU."""

    def cpu_ns(self, key: Key, rows: int) -> int:
        """Return the duration of computing `rows` rows of an expert on the CPU."""


def fixes_residents(policy: type[Any]) -> bool:
    """Return whether a placement policy says which experts are in GPU memory for the whole run."""
    residents = getattr(policy, "residents", Placement.residents)
    return residents is not Placement.residents


class Placement(Policy, ABC):
    """Base class of placement policies.

    Building a policy is cheap: work that takes long, like counting a trace, belongs in `residents`.

    Class attributes declare what a policy needs:

    - `clairvoyant`: sees the future, so it is a bound and no real policy;
    - `lanes`: the lanes on which it computes, beside `gpu`; a topology without them is refused;
    - `sees_arriving`: which experts are arriving decides where others run. So its answers depend on
      times, and differ between machines.
    """

    lanes: ClassVar[tuple[str, ...]] = ()
    sees_arriving: ClassVar[bool] = False

    def __init__(self, context: PlacementContext, options: Any = None) -> None:
        self.context = context
        self.options = self.Options() if options is None else options
        if mistakes := self.mistakes(self.options, context):
            texts = [f"{self.name}: {option} {message}" for option, message in mistakes]
            raise UsageError("\n".join(texts))

    @classmethod
    def mistakes(cls, options: Any, context: PlacementContext) -> Sequence[tuple[str, str]]:
        """Return the options that cannot hold for this model: name, and what is wrong with it.

        Called before anything runs, without `context.popularity`. By default there are none.
        """
        return ()

    def layer_lane(self, model_layer: int) -> str:
        """Return the lane of a model layer without its routed experts; its KV entries are there.

        `model_layer` equal to the number of layers stands for the end of a step: embedding and LM
        head.
        """
        return GPU

    def residents(self, slots: int) -> Collection[Key] | None:
        """Return the keys that are in GPU memory for the whole run, at most `slots`.

        None: experts come and go, as the eviction policy decides. Called once per instance, before
        the run. A run builds several instances; all get the same `slots` and must return the same.
        Raise `UsageError` if the options need more slots; the message says how many. A class that
        overrides this method must return keys. It allows no prefetch, and asks no eviction policy.
        """
        return None

    @abstractmethod
    def place(self, view: View, absent: Mapping[Key, str], estimate: Estimate) -> Mapping[Key, str]:
        """Return the lane of each absent key, in the order in which keys are copied or computed.

        `absent` gives the place of each wanted key that is not in GPU memory: `host`, `disk`, or
        `arriving`. Keys that are left out run on the GPU, after the others.
        """
