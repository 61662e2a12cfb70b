"""Measured costs for a validation: those that the scenario names, or a brief calibration.

Costs are of one machine: a profile that was measured elsewhere predicts another executor than
the one that will run. On a CPU they are also of one link: how long an operation takes depends on
how long its thread has slept, so a calibration emulates the link that the runs will have.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from moesim.errors import ScenarioError
from moesim.hardware.hardware import Hardware
from moesim.progress import Progress
from moesim.validate.runs import ready_torch
from moesim.wiring import Plan

__all__ = ["PROFILE", "check_machine", "measured_costs"]

PROFILE: Final = "profile.yaml"
"""In the folder of a validation: the costs that were measured for it."""
BRIEF_S: Final = 12.0
_SAME: Final = ("processor", "cores", "gpu", "torch", "threads")
"""What must be the same for measured durations to hold."""


def measured_costs(
    plan: Plan,
    device: str,
    folder: Path,
    *,
    budget_s: float | None = None,
    progress: Progress | None = None,
) -> tuple[Plan, dict[str, Any]]:
    """The plan with costs measured on this machine, and what the manifest says about them.

    Unless the scenario's own profile was measured with this very model, a calibration of
    `budget_s` seconds (by default a brief one) writes `profile.yaml` into `folder`. The fake
    device is there for its decisions, and keeps the scenario's costs.

    Raises:
        ScenarioError: the scenario's profile was measured on another machine or device, or with
            other models only.
        MissingExtra: torch is not installed.
    """
    ready_torch(device)  # before anything imports it
    from moesim.calibration.bench import machine_facts
    from moesim.calibration.calibrate import calibrate_plan

    budget_s = BRIEF_S if budget_s is None else budget_s
    here = machine_facts(device)
    if device == "fake":
        return plan, {"machine": here, "calibrated": "no: a fake device is late at random"}
    scenario, hardware = plan.scenario, plan.cost.hardware
    if hardware.measured is not None:
        if wrong := check_machine(hardware, device, here):
            raise ScenarioError.at(scenario, "hardware.profile", wrong)
        if hardware.operations_of(plan.cost.shape) is None:
            known = ", ".join(one.shape.name for one in hardware.operations) or "none"
            raise ScenarioError.at(
                scenario,
                "hardware.profile",
                f"{hardware.name} was measured with {known}, not with {plan.cost.shape.name} as it "
                "is here; calibrate with this scenario's model, or name an unmeasured profile",
            )
        return plan, {"machine": here, "calibrated": hardware.measured.date}
    profile = calibrate_plan(plan, device=device, budget_s=budget_s, progress=progress)
    profile.write(folder / PROFILE)
    facts = {
        "machine": here,
        "calibrated": "for this validation",
        "calibration_s": budget_s,
        "calibration_rounds": profile.rounds,
        "calibration_narrow": profile.narrow,
    }
    return profile.priced(plan), facts


def check_machine(hardware: Hardware, device: str, here: dict[str, Any]) -> str | None:
    """What is wrong with using a measured profile on this machine; None if nothing is."""
    measured = hardware.measured
    assert measured is not None
    there: dict[str, Any] = {"device": measured.device, **measured.machine}
    ours = {"device": device, **here}
    names = [key for key in ("device", *_SAME) if there.get(key) != ours.get(key)]
    if not names:
        return None

    def told(facts: dict[str, Any]) -> str:
        return ", ".join(f"{key} {facts.get(key, 'unknown')}" for key in names)

    return (
        f"{hardware.name} was measured on another machine ({told(there)}) than this one "
        f"({told(ours)}); measure this one with `moesim calibrate`"
    )
