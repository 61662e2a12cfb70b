"""`moesim calibrate`: measure this machine and write its times as a hardware profile."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.command_line import full_command_line
from moesim.cli.complete import of_models
from moesim.cli.options import JsonOption

if TYPE_CHECKING:
    from moesim.calibrate.profile import Profile

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command of this file to the application."""
    app.command()(calibrate)


def calibrate(
    device: Annotated[str, typer.Option(help="The device to measure: cpu or cuda.")] = "cpu",
    model: Annotated[
        str | None,
        typer.Option(
            help="Measure a model: a name from `moesim list models`, or a config.json's path.",
            autocompletion=of_models,
        ),
    ] = None,
    scenario: Annotated[
        Path | None,
        typer.Option(
            help="Measure a scenario's model, at its step sizes and, on cpu, its emulated links."
        ),
    ] = None,
    bits: Annotated[
        int | None, typer.Option(help="Bits per weight with --model: 64, 32 or 16.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The YAML file to write.")] = Path("profile.yaml"),
    budget: Annotated[str, typer.Option(help="The longest time to measure, like 60s.")] = "60s",
    seed: Annotated[int, typer.Option(help="Seed of the measured workloads.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing profile.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure this machine and write a hardware profile that scenarios can name.

    The real machine serves workloads with random routing. Half of the measured points are fitted;
    the other half give the error of the fit. All raw points are written beside the profile.
    """
    from moesim.cli.output import echo_json
    from moesim.cli.progress import progress
    from moesim.config.units import parse_duration_ns
    from moesim.errors import OutputError, UsageError

    # All options first: a measurement takes a minute, and a mistake found after it wastes it.
    if (model is None) == (scenario is None):
        raise UsageError("calibrate needs one model to measure: pass either --model or --scenario")
    if device not in ("cpu", "cuda"):
        raise UsageError(f"--device {device!r} is none of cpu, cuda")
    if out.suffix not in (".yaml", ".yml"):
        raise UsageError(f"--out {str(out)!r} must end in .yaml, so that scenarios can name it")
    if os.path.exists(out) and not force:
        raise OutputError(out, "already exists; choose another name or pass --force")
    try:
        budget_s = parse_duration_ns(budget) / 1e9
    except ValueError as error:
        raise UsageError(f"--budget: {error}") from None
    settings: dict[str, Any] = {"device": device, "budget_s": budget_s, "seed": seed}
    # The profile keeps this line as its provenance, so that the measurement can be repeated.
    command = full_command_line(
        ["calibrate"],
        {
            "device": device,
            "scenario": scenario,
            "model": model,
            "budget": budget,
            "seed": seed,
            "bits": bits,
        },
    )
    with progress() as show:
        settings |= {"progress": show, "command": command}
        if scenario:
            profile = _of_scenario(scenario, bits, settings)
        else:
            profile = _of_model(model, bits, settings)
    profile.write(out)
    if as_json:
        echo_json(_result(profile, out))
        return
    _print(profile)
    typer.echo(str(out))


def _of_scenario(path: Path, bits: int | None, settings: dict[str, Any]) -> Profile:
    from moesim.calibrate import calibrate_plan
    from moesim.errors import UsageError
    from moesim.scenario import load_scenario
    from moesim.simulate.build import prepare

    if bits is not None:
        raise UsageError("--bits goes with --model; a scenario states its model's bits itself")
    return calibrate_plan(prepare(load_scenario(path)), **settings)


def _of_model(name: str | None, bits: int | None, settings: dict[str, Any]) -> Profile:
    from moesim.calibrate import calibrate as calibrate_model
    from moesim.calibrate import named_subject

    return calibrate_model(named_subject(str(name), bits), **settings)


def _result(profile: Profile, out: Path) -> dict[str, Any]:
    times = profile.times
    return {
        "out": str(out),
        "device": profile.data["measured"]["device"],
        "model": times.shape.name,
        "rounds": profile.rounds,
        "intervals_narrow": profile.narrow,
        "residuals": {kind: errors.model_dump() for kind, errors in times.residuals.items()},
        "overlap": profile.data["overlap"],
        "copy_factor": times.copy_factor,
    }


def _print(profile: Profile) -> None:
    """Print the error of each kind of operation on held-out points, and the main times."""
    from moesim.config.units import format_duration_ns

    def duration(ns: float) -> str:
        return format_duration_ns(round(ns))

    measured, times = profile.data["measured"], profile.times
    machine = ", ".join(f"{key} {value}" for key, value in measured["machine"].items())
    typer.echo(f"{times.shape.name} on {measured['device']} ({machine})")
    typer.echo(f"{'':10} {'points':>7} {'error':>7} {'p90':>7} {'bias':>7} {'interval':>9}")
    for kind, errors in times.residuals.items():
        typer.echo(
            f"{kind:10} {errors.fitted + errors.held_out:7d} {errors.error_median:7.1%} "
            f"{errors.error_p90:7.1%} {errors.bias:+7.1%} {errors.interval:9.1%}"
        )
    experts, h2d = times.experts, profile.hardware().h2d
    # An expert call costs a fixed time, and each expert of it more: this is the smallest call.
    typer.echo(f"one expert, one row: {duration(experts.call_ns + experts.each_ns[0])}")
    typer.echo(f"layer before its experts, at least: {duration(times.front.base_ns)}")
    typer.echo(f"from a copy's end to its expert's start: {duration(times.landing_ns)}")
    typer.echo(f"readback of expert ids: {duration(times.readback.base_ns)}")
    typer.echo(
        f"copies to the device: {h2d.pinned_bytes_per_s / 1e9:.2f} GB/s, "
        f"latency {h2d.latency_ns / 1e3:.0f} us"
    )
    if not profile.narrow:
        typer.echo(
            "warning: some intervals are still wide; measure longer with a larger --budget",
            err=True,
        )
