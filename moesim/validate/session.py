"""`moesim validate` as a function: measured costs, real runs, a simulation, and a folder.

The folder gets its name only when it is complete, so an interrupted validation leaves nothing.
"""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path

from moesim.errors import ScenarioError
from moesim.executor.supported import check_supported
from moesim.files import whole_folder
from moesim.progress import Progress
from moesim.scenario import Scenario
from moesim.simulate.build import prepare
from moesim.validate.costs import Interleaved, measured_costs
from moesim.validate.folder import OURS, write_validation
from moesim.validate.runs import RealBench
from moesim.validate.validation import Validation, validate_plan

__all__ = ["validate_scenario"]


def validate_scenario(
    scenario: Scenario,
    out: Path,
    *,
    device: str = "cpu",
    runs: int = 5,
    force: bool = False,
    draw: bool = True,
    progress: Progress | None = None,
) -> Validation:
    """Validate a scenario on a device and write the folder `out`.

    If the scenario's hardware profile is not measured, a brief calibration comes first, and its
    profile is kept in the folder.

    Raises:
        ScenarioError: the scenario is wrong, no real machine runs it, or its profile was measured
            on another machine.
        UsageError: this machine has no such device.
        MissingExtra: torch is not installed.
        OutputError: `out` cannot be written.
        DeviceError, InvariantError: the real machine failed.
    """
    if scenario.sweep:
        raise ScenarioError.at(
            scenario, "sweep", "one validation takes no sweep; a study validates many scenarios"
        )
    plan = prepare(scenario)
    check_supported(plan)
    with whole_folder(out, force=force, ours=OURS) as folder:
        # Costs first: a calibration right before the runs sees a similar machine load.
        costs = Interleaved()
        plan, facts = measured_costs(plan, device, folder, progress=progress, interleaved=costs)
        with closing(RealBench(device, [plan])) as bench:
            validation = validate_plan(
                plan,
                bench,
                runs=runs,
                progress=progress,
                between=partial(costs.sample, plan, bench),
                priced=partial(costs.priced, folder=folder),
            )
        write_validation(validation, folder, out, draw=draw, facts=facts)
    return validation
