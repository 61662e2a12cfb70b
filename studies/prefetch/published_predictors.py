"""Published predictors, and the accuracy that their sources give.

A predictor that names as many experts as the router chooses has a precision equal to its recall.
`read` says whether the source itself was read, or a secondary note on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import mean
from typing import Any, Final, Literal

from moesim.policies.prefetch.dial import PRESETS

__all__ = ["PREDICTORS", "WITHOUT_FIGURE", "Predictor"]

_ADAPMOE: Final = PRESETS["adapmoe"]
_MEAN: Final = mean(_ADAPMOE[1:])  # the first layer has no layer before it


@dataclass(frozen=True, slots=True)
class Predictor:
    """One predictor: recall and precision, how they were read, and from where."""

    name: str
    recall: float
    precision: float
    source: str
    read: Literal["primary", "abstract", "secondary", "measured here"]
    note: str = ""
    preset: Mapping[str, Any] = field(default_factory=dict)
    """Options of the dial that replace recall and precision, for a model of `preset_layers`."""
    preset_layers: int = 0

    def options(self, layers: int) -> dict[str, Any]:
        """Return the options of the dial for a model of this number of MoE layers."""
        if self.preset and layers == self.preset_layers:
            return {**self.preset, "depth": 1}
        return {"recall": self.recall, "precision": self.precision, "depth": 1}


PREDICTORS: Final = (
    Predictor(
        "pre-gated gate", 1.0, 1.0, "Pre-gated MoE, arXiv 2308.12066", "secondary",
        "exact by construction: the model is tuned to choose one block earlier",
    ),
    Predictor(
        "stacked gates (HOBBIT)", 0.96, 0.96, "HOBBIT, arXiv 2411.01433", "secondary",
        "of the best expert only; taken for all of them, which is too good",
    ),
    Predictor(
        "next gate (AdapMoE)", round(_MEAN, 3), round(_MEAN, 3),
        "AdapMoE, arXiv 2408.10284, its code", "primary",
        "by layer on Mixtral (the mean here, layers by themselves in runs of 32 layers)",
        {"preset": "adapmoe"}, len(_ADAPMOE),
    ),
    Predictor(
        "MoE-Beyond", 0.866, 0.866, "MoE-Beyond, arXiv 2508.17137", "abstract",
        "F1 of 86.6 %, taken for both; measured on DeepSeek-V2-Lite",
    ),
    Predictor(
        "next gate (mixtral-offloading)", 0.85, 0.85, "mixtral-offloading, arXiv 2312.17238",
        "secondary", "80 to 90 % in a figure, its middle taken",
    ),
    Predictor(
        "cross-layer gate (Fate)", 0.605, 0.605, "Fate, arXiv 2502.12224", "secondary",
        "54 to 67 % of the top two, its middle taken",
    ),
    Predictor(
        "SiDA", 0.95, 0.317, "SiDA-MoE, arXiv 2310.18859", "secondary",
        "91.7 to 99 % among three named experts of a top-1 model; so at most a third is right",
    ),
)  # fmt: skip
WITHOUT_FIGURE: Final = (
    "ProMoE", "ExpertFlow", "EdgeMoE", "DuoServe-MoE", "MoE-Infinity", "fMoE",
)  # fmt: skip
"""Systems that predict experts, and of whose accuracy the sources at hand give no figure."""
