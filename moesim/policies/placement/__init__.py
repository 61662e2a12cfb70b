"""Placement policies: where a missing expert runs. So far there is one answer."""

from __future__ import annotations

from typing import Any, ClassVar

from moesim.policies.registry import NoOptions, register


@register("placement", "copy")
class Copy:
    """Every missing expert is copied to the GPU and computed there."""

    name: ClassVar[str]
    clairvoyant: ClassVar[bool] = False
    Options: ClassVar[type[Any]] = NoOptions
