"""Placement policies: where an expert without a slot is computed. There is one so far: `copy`."""

from __future__ import annotations

from typing import Any, ClassVar

from moesim.policies.registry import NoOptions, register


@register("placement", "copy")
class Copy:
    """Copy every missing expert to the GPU and compute it there."""

    name: ClassVar[str]
    clairvoyant: ClassVar[bool] = False
    Options: ClassVar[type[Any]] = NoOptions
