"""`moesim validate`: run one workload on the simulated and on a real machine, and compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from moesim.cli.drawing import draws
from moesim.cli.options import JsonOption, PlotsOption, SetOption

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command of this file to the application."""
    app.command()(draws(validate))


def validate(
    scenario: Annotated[Path, typer.Argument(help="The scenario's YAML file.")],
    device: Annotated[
        Literal["cpu", "cuda", "fake"],
        typer.Option(help="The real machine; fake tests moesim's CUDA code without a GPU."),
    ] = "cpu",
    runs: Annotated[
        int, typer.Option(min=1, help="Real runs; fewer than 5 show too little of the spread.")
    ] = 5,
    overrides: SetOption = None,
    profile: Annotated[
        Path | None,
        typer.Option(help="A profile that `moesim calibrate` measured on this machine."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder to write (default: a dated one in runs/).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing folder.")] = False,
    plots: PlotsOption = True,
    as_json: JsonOption = False,
    max_step_error: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="PCT", help="Exit with 3 if the median error of step times is above PCT."
        ),
    ] = None,
    max_total_error: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="PCT", help="Exit with 3 if the error of the total time is above PCT."
        ),
    ] = None,
) -> None:
    """Run a scenario on a real machine and in simulation, and compare decisions and times.

    Without a measured profile of this machine, a short calibration runs first. It measures no
    experts on the CPU and no disk; their costs are those of the scenario's hardware. The exit code
    is 1 if the two decide differently, and 3 if an error is above its limit. The last line printed
    is the folder.
    """
    import json

    from moesim.cli.output import echo_json
    from moesim.cli.progress import progress

    with progress() as show:
        from moesim.files import clean_up
        from moesim.scenario import load_scenario
        from moesim.validate.folder import default_folder
        from moesim.validate.session import validate_scenario

        # As JSON, which is YAML too: a path like `1e3` or `no` must stay a text.
        named = [f"hardware.profile={json.dumps(str(profile))}"] if profile is not None else []
        loaded = load_scenario(scenario, [*(overrides or ()), *named])
        folder = out if out is not None else default_folder(loaded.name)
        clean_up(folder.parent)
        validation = validate_scenario(
            loaded, folder, device=device, runs=runs, force=force, draw=plots, progress=show
        )
    if as_json:
        echo_json({"out": str(folder), **validation.summary})
    else:
        from moesim.report.tabular import write_tables
        from moesim.report.validation import validation_tables

        write_tables(validation_tables(validation.summary))
        typer.echo(f"\n{folder}")
    # Last, so that the results are written and shown although they are judged as bad.
    _check_limits(
        validation.comparison.differences, validation.summary, max_step_error, max_total_error
    )


def _check_limits(
    differences: list[str],
    summary: dict[str, Any],
    max_step_error: float | None,
    max_total_error: float | None,
) -> None:
    """Raise `MoesimError` for different decisions, `ThresholdError` for an error above its limit.

    Limits are in per cent; None is no limit.
    """
    from moesim.errors import MoesimError, ThresholdError

    # A placement that looks at copies under way may decide differently on each machine.
    if differences and not summary["decisions_timed"]:
        raise MoesimError("the machines decided differently:\n  " + "\n  ".join(differences))
    limits = {
        "step_time_error_median_pct": ("--max-step-error", max_step_error),
        "total_time_error_pct": ("--max-total-error", max_total_error),
    }
    # An error that could not be measured (None) does not pass a limit.
    exceeded = [
        f"{key} is {summary[key]:.2f}, above {option} {limit:g}"
        for key, (option, limit) in limits.items()
        if limit is not None and not (summary[key] is not None and summary[key] <= limit)
    ]
    if exceeded:
        spread = summary["executor_spread_pct"]
        raise ThresholdError("; ".join(exceeded) + f" (the executor's spread is {spread:.1f} %)")
