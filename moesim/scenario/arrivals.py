"""`workload.arrivals`: when requests arrive, in an open loop or from closed clients."""

from __future__ import annotations

import os
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from moesim.config.fields import Duration, PositiveCount, PositiveNumber
from moesim.config.markers import PathTo, Short
from moesim.config.validation import Strict

__all__ = [
    "AllAtOnce",
    "Arrivals",
    "Closed",
    "Columns",
    "FromFile",
    "Gamma",
    "Poisson",
    "Recorded",
    "Think",
]

_Name = Annotated[str, Field(min_length=1)]


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


class Columns(Strict):
    """Names of a file's own columns, or keys of its JSON objects; the rest are the format's."""

    arrival: _Name | None = Field(None, description="Time of arrival.", examples=["created"])
    unit: Literal["s", "ms", "us", "ns", "date"] | None = Field(
        None,
        description="Unit of the times of arrival; date: UTC times like 2023-11-16 18:17:03.979.",
    )
    prompt: _Name | None = Field(None, description="Prompt tokens.", examples=["input_tokens"])
    output: _Name | None = Field(None, description="Output tokens.", examples=["completion"])
    domain: _Name | None = Field(
        None, description="The domain of the trace that a request belongs to.", examples=["task"]
    )


class FromFile(Strict):
    """Requests of a file: times, lengths and, in some formats, identities of token blocks."""

    kind: Literal["file", "csv"]
    path: Annotated[str, PathTo("file", os.path.isfile)] = Field(
        description="Path of the file.", examples=["arrivals.csv"]
    )
    format: Literal["auto", "plain", "azure", "burstgpt", "vidur", "mooncake", "sharegpt"] = Field(
        "auto",
        description="The file's format: auto (by its header), plain (CSV of arrival_s, "
        "prompt_tokens, output_tokens), azure, burstgpt, vidur, mooncake or sharegpt.",
    )
    columns: Columns = Field(
        Columns(), description="Names of columns that replace those of the format."
    )
    times: Literal["file", "all_at_once", "gamma"] = Field(
        "file",
        description="When requests arrive: at the file's times, counted from the first one, all "
        "at once, or by gamma-distributed gaps of rate_per_s and burstiness.",
        examples=["gamma"],
    )
    rate_per_s: PositiveNumber | None = Field(
        None, description="With times: gamma, mean arrivals a second.", examples=[2.0]
    )
    burstiness: PositiveNumber = Field(
        1.0,
        description="With times: gamma, the coefficient of variation of the gaps; 1 is Poisson.",
        examples=[4.0],
    )
    time_scale: PositiveNumber = Field(
        1.0,
        description="Factor on the file's times: 0.5 doubles the arrival rate.",
        examples=[1.0],
    )
    repair: list[Literal["sort", "drop_empty", "drop_surplus"]] = Field(
        [],
        description="Faults of lines that are repaired and noted, not refused: sort (times out of "
        "order), drop_empty (requests without prompt or output tokens), drop_surplus (cells "
        "beyond the header).",
        examples=[["drop_empty"]],
    )
    block_tokens: PositiveCount | None = Field(
        None,
        description="Tokens of one block id; by default those of the format (mooncake: 512).",
        examples=[512],
    )
    characters_per_token: PositiveNumber | None = Field(
        None,
        description="For texts (sharegpt): lengths are characters divided by this number.",
        examples=[4.0],
    )

    @model_validator(mode="after")
    def _rate_of_gamma(self) -> Self:
        if (self.times == "gamma") != (self.rate_per_s is not None):
            raise ValueError("`times: gamma` needs rate_per_s, and no other times read it")
        return self


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
    AllAtOnce | Poisson | Gamma | Recorded | FromFile | Closed,
    Field(discriminator="kind"),
    Short("kind"),
]
