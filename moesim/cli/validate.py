"""`moesim validate`: the same workload on the simulated and on a real machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command of this file to the application."""
    app.command()(validate)


def validate(
    scenario: Annotated[Path, typer.Argument(help="The scenario's YAML file.")],
    device: Annotated[
        Literal["cpu", "cuda", "fake"],
        typer.Option(help="Where to run for real; fake tests the code for GPUs without one."),
    ] = "cpu",
    runs: Annotated[int, typer.Option(min=1, help="Real runs; fewer than 5 say little.")] = 5,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key, like cache.policy=lru."),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(help="A profile that `moesim calibrate` measured on this machine."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder to write (default: a dated one under runs/).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    plots: Annotated[bool, typer.Option("--plots/--no-plots", help="Draw figures.")] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON instead of tables.")
    ] = False,
    max_step_error: Annotated[
        float | None,
        typer.Option(min=0, metavar="PCT", help="Exit 3 if the median error of steps is above."),
    ] = None,
    max_total_error: Annotated[
        float | None,
        typer.Option(min=0, metavar="PCT", help="Exit 3 if the error of the whole is above."),
    ] = None,
) -> None:
    """Run a scenario for real and in simulation, and compare decisions and times.

    Without a measured profile of this machine, one is measured first, briefly. Exits 1 if the two
    decide differently, 3 if a stated error is exceeded. The last line printed is the folder.
    """
    import json

    from moesim.cli.output import echo_json
    from moesim.cli.progress import progress
    from moesim.files import clean_up
    from moesim.scenario import load_scenario
    from moesim.validate.folder import default_folder
    from moesim.validate.session import validate_scenario

    named = [f"hardware.profile={json.dumps(str(profile))}"] if profile is not None else []
    loaded = load_scenario(scenario, [*(overrides or ()), *named])
    folder = out if out is not None else default_folder(loaded.name)
    clean_up(folder.parent)
    with progress() as show:
        made = validate_scenario(
            loaded, folder, device=device, runs=runs, force=force, draw=plots, progress=show
        )
    if as_json:
        echo_json({"out": str(folder), **made.summary})
    else:
        from moesim.report.tabular import write_tables
        from moesim.report.validation import validation_tables

        write_tables(validation_tables(made.summary))
        typer.echo(f"\n{folder}")
    _judge(made.comparison.differences, made.summary, max_step_error, max_total_error)


def _judge(
    differences: list[str],
    summary: dict[str, Any],
    max_step_error: float | None,
    max_total_error: float | None,
) -> None:
    from moesim.errors import MoesimError, ThresholdError

    if differences:
        raise MoesimError("the machines decided differently:\n  " + "\n  ".join(differences))
    limits = {
        "step_time_error_median_pct": ("--max-step-error", max_step_error),
        "total_time_error_pct": ("--max-total-error", max_total_error),
    }
    exceeded = [
        f"{key} is {summary[key]:.2f}, above {option} {limit:g}"
        for key, (option, limit) in limits.items()
        if limit is not None and not (summary[key] is not None and summary[key] <= limit)
    ]
    if exceeded:
        spread = summary["executor_spread_pct"]
        raise ThresholdError("; ".join(exceeded) + f" (the executor's spread is {spread:.1f} %)")
