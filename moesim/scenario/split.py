"""How `cache.slots` are divided among the caches of the MoE layers, with `cache.scope: per_layer`.

    cache:
      slots: 128
      split: demand                     # uniform, demand, adapmoe, or the slots of each layer
      split_options: {profile: traces/calibration}

`moesim/simulate/split.py` says what each word does.
"""

from __future__ import annotations

import os
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from moesim.config.fields import Count
from moesim.config.markers import PathTo
from moesim.config.validation import Strict
from moesim.errors import shown

__all__ = ["OPTIONS_OF", "Split", "SplitOptions", "split_label"]

_WORDS: Final = ("uniform", "demand", "adapmoe")
OPTIONS_OF: Final = {
    "demand": ("profile", "train", "need"),
    "adapmoe": ("profile", "train", "accuracy", "single"),
}
"""The options that each split reads; others, and all of the other splits, are unused."""


def _word_or_list(value: object) -> object:
    if isinstance(value, list | tuple) or value in _WORDS:
        return value
    raise ValueError(
        f"{shown(value)} is no split of slots; write uniform, demand, adapmoe, or the slots of "
        "each MoE layer like [4, 2, 6]"
    )


Split = Annotated[
    Literal["uniform", "demand", "adapmoe"] | Annotated[list[Count], Field(min_length=1)],
    BeforeValidator(_word_or_list),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": list(_WORDS)},
                {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
            ],
            "examples": ["uniform", "demand", "adapmoe", [4, 2, 6, 3]],
        }
    ),
]

_Share = Annotated[float, Field(ge=0, le=1)]


class SplitOptions(Strict):
    """What a split of slots learns from, and what it supposes."""

    profile: (
        Annotated[
            str,
            PathTo(
                "trace folder",
                os.path.isdir,
                remedy="make one with `moesim record`, `moesim trace convert` or "
                "`moesim trace synth`",
            ),
        ]
        | None
    ) = Field(
        None,
        description="Trace folder from which the split learns; the default is the replayed trace.",
        examples=["../traces/shallow"],
    )
    train: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="Share of the requests to learn from, the first ones. The run may not serve "
        "them. The default is all, which is hindsight where the replayed trace is learnt from.",
        examples=[0.5],
    )
    need: Literal["lru", "popularity"] = Field(
        "lru",
        description="What demand counts for each size of a layer's cache: the hits of LRU, or the "
        "uses of the most popular experts.",
    )
    accuracy: _Share | list[_Share] | Literal["published"] | None = Field(
        None,
        description="With adapmoe, the share of right predictions: of all layers but the first, of "
        "each MoE layer as a list, or published (AdapMoE's, for 32 layers). By default it is "
        "counted in the predictions of the trace.",
        examples=[0.9, "published"],
    )
    single: _Share | list[_Share] = Field(
        0.0,
        description="With adapmoe, the share of tokens that use one expert only: of all layers, or "
        "of each MoE layer as a list.",
        examples=[0.2],
    )


def split_label(split: str | list[int]) -> str:
    """Return a split in a word: its name, or `listed`."""
    return split if isinstance(split, str) else "listed"
