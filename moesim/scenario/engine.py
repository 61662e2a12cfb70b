"""The section `engine` of a scenario file: the host's time to hand work to the machine.

Engines differ in how long their host code takes to issue a kernel or a copy, and where they sort
the tokens of a layer by expert. All times are 0 by default: the host is never late.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from moesim.config.fields import Duration
from moesim.config.validation import Strict

__all__ = ["Engine"]


class Engine(Strict):
    """The host's time to hand work to the machine, and where a layer's tokens are sorted."""

    launch: Duration = Field(
        0, description="The host's time to issue one computation, like 5us.", examples=["5us"]
    )
    # Not `copy`, which is a method of every model.
    copy_launch: Duration = Field(
        0, description="The host's time to issue one copy, like 8us.", examples=["8us"]
    )
    layer_event: Duration = Field(
        0,
        description="The host's time to decide one layer's experts, before it issues their first "
        "work. With sorting on the device, a layer without a readback takes none.",
        examples=["20us"],
    )
    sorting: Literal["host", "device"] = Field(
        "host",
        description="Where tokens are sorted by expert. With host, the ids of every layer are read "
        "back. With device, a layer whose experts are all in GPU memory needs no readback, unless "
        "a prefetch policy needs its ids or predictions.",
    )
