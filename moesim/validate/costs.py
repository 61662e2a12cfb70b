"""Measured costs for a validation: the scenario's own, or those of a brief calibration.

Costs belong to one machine, so a profile from another machine cannot predict this one. On a CPU
they also belong to one link: an operation takes longer after its thread has slept, and sleeps
depend on the link. So a calibration emulates the link that the runs will have.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moesim.errors import ScenarioError
from moesim.hardware.hardware import Hardware
from moesim.progress import Progress
from moesim.simulate.build import Plan
from moesim.validate.runs import ready_torch

if TYPE_CHECKING:
    from moesim.calibrate.calibrate import Slices
    from moesim.calibrate.profile import Profile
    from moesim.calibrate.samples import Samples
    from moesim.validate.runs import RealBench

__all__ = ["PROFILE", "Interleaved", "check_machine", "measured_costs"]

PROFILE: Final = "profile.yaml"
"""In the folder of a validation: the costs that were measured for it."""
BRIEF_S: Final = 12.0
BRIEF_GPU_S: Final = 16.0  # a model of many layers takes a fifth of a second a step
SLICE_S: Final = 3.0
_SAME: Final = ("processor", "cores", "gpu", "torch", "threads")
"""Facts of a machine that must be equal for measured durations to be valid."""


@dataclass(slots=True)
class Interleaved:
    """More of a calibration, a slice before each real run, with the model of the runs.

    A shared machine may be a third slower in one minute than in the next. So calibration and runs
    must see the same minutes. `profile` is that of the calibration before the runs; None: the
    costs were measured elsewhere, and there is nothing to add.
    """

    profile: Profile | None = None
    samples: list[Samples] = field(default_factory=list)
    slices: Slices | None = None

    def sample(self, plan: Plan, bench: RealBench) -> None:
        """Measure a slice. The bench must have run the plan before."""
        if self.profile is None:
            return
        from moesim.calibrate.calibrate import Slices

        if self.slices is None:
            self.slices = Slices(plan, device=bench.device, executor=bench.executor(plan))
        self.samples.append(self.slices.sample(SLICE_S, seed=1 + len(self.samples)))

    def priced(self, plan: Plan, folder: Path) -> Plan:
        """Return the plan with costs of all slices, which replace the profile in `folder`."""
        if self.profile is None or not self.samples:
            return plan
        from moesim.calibrate.samples import Samples

        more = Samples()
        for samples in self.samples:
            more.add(samples)
        self.samples.clear()
        self.profile = self.profile.refined(more)
        self.profile.write(folder / PROFILE)
        return self.profile.priced(plan)


def measured_costs(
    plan: Plan,
    device: str,
    folder: Path,
    *,
    budget_s: float | None = None,
    progress: Progress | None = None,
    interleaved: Interleaved | None = None,
) -> tuple[Plan, dict[str, Any]]:
    """Return the plan with costs measured on this machine, and the manifest's entries about them.

    Unless the scenario's own profile is measured, a calibration of `budget_s` seconds (by default
    a brief one) writes `profile.yaml` into `folder`, and leaves its result in `interleaved`. The
    fake device is used for its decisions only, so its plan keeps the scenario's costs.

    Raises:
        ScenarioError: the scenario's profile was measured on another machine or device, or with
            other models only.
        MissingExtra: torch is not installed.
    """
    ready_torch(device)  # before any import of torch, which reads the environment once
    from moesim.calibrate.bench import machine_facts
    from moesim.calibrate.calibrate import calibrate_plan

    if budget_s is None:
        budget_s = BRIEF_GPU_S if device == "cuda" else BRIEF_S
    here = machine_facts(device)
    # Its delays are random, so measured costs would predict nothing.
    if device == "fake":
        return plan, {"machine": here, "calibrated": "no: a fake device is late at random"}
    scenario, hardware = plan.scenario, plan.cost.hardware
    if hardware.measured is not None:
        # A named profile is never replaced silently: if it cannot be used, the user has to know.
        if wrong := check_machine(hardware, device, here):
            raise ScenarioError.at(scenario, "hardware.profile", wrong)
        if hardware.operations_of(plan.cost.shape) is None:
            measured = ", ".join(entry.shape.name for entry in hardware.operations) or "none"
            raise ScenarioError.at(
                scenario,
                "hardware.profile",
                f"{hardware.name} was measured with {measured}, not with {plan.cost.shape.name} as "
                "it is here; calibrate with this scenario's model, or name an unmeasured profile",
            )
        return plan, {"machine": here, "calibrated": hardware.measured.date}
    profile = calibrate_plan(plan, device=device, budget_s=budget_s, progress=progress)
    profile.write(folder / PROFILE)
    if interleaved is not None:
        interleaved.profile = profile
    facts = {
        "machine": here,
        "calibrated": "for this validation",
        "calibration_s": budget_s,
        "calibration_slice_s": 0.0 if interleaved is None else SLICE_S,
        "calibration_rounds": profile.rounds,
        "calibration_narrow": profile.narrow,
    }
    return profile.priced(plan), facts


def check_machine(hardware: Hardware, device: str, here: dict[str, Any]) -> str | None:
    """Return why a measured profile is not valid on this machine, or None if it is."""
    measured = hardware.measured
    assert measured is not None
    there: dict[str, Any] = {"device": measured.device, **measured.machine}
    ours = {"device": device, **here}
    names = [key for key in ("device", *_SAME) if there.get(key) != ours.get(key)]
    if not names:
        return None

    def described(facts: dict[str, Any]) -> str:
        return ", ".join(f"{key} {facts.get(key, 'unknown')}" for key in names)

    return (
        f"{hardware.name} was measured on another machine ({described(there)}) than this one "
        f"({described(ours)}); measure this one with `moesim calibrate`"
    )
