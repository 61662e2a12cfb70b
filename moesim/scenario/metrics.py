"""The section `metrics` of a scenario file: which part of a run its summary counts."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from moesim.config.fields import Count, Duration
from moesim.config.markers import NoneAs
from moesim.config.validation import Strict

__all__ = ["Metrics", "Window"]


class Window(Strict):
    """The part of a run that the summary counts, by finished requests or by time.

    By requests: from the end of the step in which the last of the first `skip_requests` requests
    finished to the end of the step in which the last request inside finished. By time: the whole
    steps between `after` and `until`.
    """

    skip_requests: Count = Field(
        0, description="Number of requests that finish first and are left out.", examples=[100]
    )
    last: Count = Field(
        0, description="Number of requests that finish last and are left out.", examples=[50]
    )
    after: Duration | None = Field(
        None, description="Time from which steps count; the default is time zero.", examples=["10s"]
    )
    until: Duration | None = Field(
        None,
        description="Time until which steps count; the default is the end of the run.",
        examples=["60s"],
    )

    @property
    def by_time(self) -> bool:
        """Whether times give the window, and not requests."""
        return self.after is not None or self.until is not None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if self.by_time and (self.skip_requests or self.last):
            raise ValueError(
                "takes either requests (skip_requests, last) or times (after, until), not both"
            )
        if self.until is not None and self.until <= (self.after or 0):
            raise ValueError("until must be later than after")
        return self


class Metrics(Strict):
    """Which part of a run its summary counts, and what it compares the run with."""

    # None inside, `whole` in YAML.
    window: Annotated[Window | None, NoneAs("whole", "{skip_requests: 100, last: 50}")] = Field(
        "whole",
        validate_default=True,
        description="The part of the run that the summary counts: `whole`, or without its ramp-up "
        "and drain, like {skip_requests: 100, last: 50} or {after: 10s, until: 60s}.",
    )
    without_prefetch: bool | None = Field(
        None,
        description="Where experts are prefetched, also simulate the run without prefetch, to say "
        "how much time prefetching saves or loses; the default is the value of `bounds`.",
        examples=[False],
    )
