"""Settings of a server for a real model that generates: a short form of a scenario."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from moesim.errors import UsageError
from moesim.hardware.hardware import Hardware
from moesim.policies import Key
from moesim.policies.guard import find_policy
from moesim.serving.experts.host_memory import Unit

__all__ = ["Serving"]


@dataclass(frozen=True, slots=True)
class Serving:
    """Settings like those of the sections `cache`, `prefetch`, `batching`, `memory`, `placement`.

    - `slots`: the expert slots of all layers together.
    - `prefetch_buffers`: buffers that only copies ahead fill (0: they take slots at once).
    - `kv_tokens`: limits the keys and values of all sequences together (None: enough for all).
    - `profile`: counts past uses of expert keys, for the policy `static` and for placements.
    - `hardware`: the profile from which a placement estimates durations. It is not measured, so
      decisions are the same on every machine.
    - `host_bytes`: limits the experts in host memory (None: all fit); the others are on disk.
    - `host_cache`: what leaves host memory, whole experts or pages.
    """

    eviction: str = "lru"
    slots: int = 0
    scope: Literal["per_layer", "global"] = "per_layer"
    admission: Literal["bypass", "always"] = "bypass"
    staging: int = 1
    prefetch: str = "none"
    prefetch_options: Mapping[str, Any] | None = None
    prefetch_buffers: int = 0
    batching: str = "decode_first"
    batching_options: Mapping[str, Any] | None = None
    token_budget: int = 256
    max_sequences: int = 16
    kv_tokens: int | None = None
    profile: Mapping[Key, int] | None = None
    seed: int = 0
    placement: str = "copy"
    placement_options: Mapping[str, Any] | None = None
    hardware: str | Hardware = "rtx-4090"
    host_bytes: int | None = None
    host_cache: Unit = "page"

    def __post_init__(self) -> None:
        smallest = {"slots": 0, "staging": 1, "token_budget": 1, "max_sequences": 1, "kv_tokens": 1}
        smallest["prefetch_buffers"] = 0
        for name, least in smallest.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{name} ({value}) must be at least {least}")
        for family in ("eviction", "prefetch", "batching", "placement"):
            policy = getattr(self, family)
            if find_policy(family, policy).clairvoyant:
                raise UsageError(
                    f"{family} policy {policy!r} sees the future, which a model that generates "
                    "does not know; it runs on a trace only"
                )
        if find_policy("eviction", self.eviction).needs_scores:
            raise UsageError(
                f"eviction policy {self.eviction!r} weighs experts by the router's scores, which "
                "stay on the device where a model generates; it runs on a trace only"
            )
