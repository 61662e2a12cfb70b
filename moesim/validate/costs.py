"""Measured costs for a validation: those that the scenario names, or a brief calibration.

Costs are of one machine: a profile that was measured elsewhere predicts another executor than
the one that will run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from moesim.validate.validation import Progress
from moesim.wiring import Plan

__all__ = ["PROFILE", "measured_costs"]

PROFILE: Final = "profile.yaml"
"""In the folder of a validation: the costs that were measured for it."""


def measured_costs(
    plan: Plan, device: str, folder: Path, *, progress: Progress | None = None
) -> tuple[Plan, dict[str, Any]]:
    """The plan with costs measured on this machine, and what the manifest says about them.

    A brief calibration writes `profile.yaml` into `folder` unless the scenario's own profile
    has the durations of this very model.

    Raises:
        ScenarioError: the scenario's profile was measured on another machine or device.
    """
    return plan, {}
