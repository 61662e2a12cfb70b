"""`workload.arrivals`: when requests arrive, in an open loop or from closed clients."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import Field

from moesim.config.fields import Duration, PositiveCount, PositiveNumber
from moesim.config.markers import PathTo, Short
from moesim.config.validation import Strict

__all__ = ["AllAtOnce", "Arrivals", "Closed", "Csv", "Gamma", "Poisson", "Recorded", "Think"]


class AllAtOnce(Strict):
    """All requests arrive at time zero."""

    kind: Literal["all_at_once"] = "all_at_once"


class Poisson(Strict):
    """A Poisson process: independent, exponentially distributed gaps between arrivals."""

    kind: Literal["poisson"]
    rate_per_s: PositiveNumber = Field(description="Mean arrivals a second.", examples=[2.0])


class Gamma(Strict):
    """Independent, gamma-distributed gaps between arrivals; bursts if the burstiness exceeds 1."""

    kind: Literal["gamma"]
    rate_per_s: PositiveNumber = Field(description="Mean arrivals a second.", examples=[2.0])
    burstiness: PositiveNumber = Field(
        description="Coefficient of variation of the gaps; 1 is Poisson.", examples=[4.0]
    )


class Recorded(Strict):
    """The arrival times of the trace."""

    kind: Literal["recorded"]
    time_scale: PositiveNumber = Field(
        1.0,
        description="Factor on the arrival times: 0.5 doubles the arrival rate.",
        examples=[1.0],
    )


class Csv(Strict):
    """Arrival times and lengths from a CSV file."""

    kind: Literal["csv"]
    path: Annotated[str, PathTo("file", os.path.isfile)] = Field(
        description="Path of the CSV file.", examples=["arrivals.csv"]
    )
    format: Literal["plain", "azure"] = Field(
        "plain",
        description="Columns of the file: plain (arrival_s, prompt_tokens, output_tokens) or azure "
        "(as in Azure's published LLM traces).",
    )
    time_scale: PositiveNumber = Field(
        1.0,
        description="Factor on the arrival times: 0.5 doubles the arrival rate.",
        examples=[1.0],
    )


class Think(Strict):
    """The time between the end of a client's request and its next one."""

    mean: Duration = Field(description="Mean think time.", examples=["2s"])
    distribution: Literal["constant", "exponential"] = Field(
        "constant",
        description="constant (every think time is the mean) or exponential.",
        examples=["exponential"],
    )


class Closed(Strict):
    """Clients that each send the next request when their last one has ended, after a think time."""

    kind: Literal["closed"]
    clients: PositiveCount = Field(
        description="Number of clients; each has at most one request in the system.", examples=[8]
    )
    think: Annotated[Think, Short("mean")] = Field(
        Think(mean=0), description="Think time of a client between two requests.", examples=["2s"]
    )


Arrivals = Annotated[
    AllAtOnce | Poisson | Gamma | Recorded | Csv | Closed,
    Field(discriminator="kind"),
    Short("kind"),
]
