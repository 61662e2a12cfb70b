"""`moesim calibrate`: what this machine really takes, as a hardware profile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from moesim.calibration.profile import Profile

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command of this file to the application."""
    app.command()(calibrate)


def calibrate(
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    model: Annotated[
        str | None,
        typer.Option(help="A model by name (see `moesim list models`), or a config.json's path."),
    ] = None,
    scenario: Annotated[
        Path | None,
        typer.Option(help="Or a scenario's model, sizes of steps and (on cpu) emulated links."),
    ] = None,
    bits: Annotated[
        int | None, typer.Option(help="Bits of a weight with --model: 64, 32 or 16.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The profile to write.")] = Path("profile.yaml"),
    budget: Annotated[str, typer.Option(help="Most time to spend on measuring, like 60s.")] = "60s",
    seed: Annotated[int, typer.Option(help="Draws the workloads.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON instead of a table.")
    ] = False,
) -> None:
    """Measure this machine and write a hardware profile that scenarios can name.

    Workloads of random routing are served on the real machine; half of the measured points are
    fitted, the others state the error. All raw points are written beside the profile.
    """
    from moesim.cli.output import echo_json
    from moesim.cli.progress import progress
    from moesim.config.units import parse_duration_ns
    from moesim.errors import OutputError, UsageError

    if (model is None) == (scenario is None):
        raise UsageError("say whose operations to measure: give either --model or --scenario")
    if device not in ("cpu", "cuda"):
        raise UsageError(f"--device {device!r} is none of cpu, cuda")
    if out.suffix not in (".yaml", ".yml"):
        raise UsageError(f"--out {str(out)!r} must end in .yaml, for scenarios to name it")
    if out.exists() and not force:
        raise OutputError(out, "already exists; choose another name or pass --force")
    try:
        budget_s = parse_duration_ns(budget) / 1e9
    except ValueError as error:
        raise UsageError(f"--budget: {error}") from None
    given: dict[str, Any] = {"device": device, "budget_s": budget_s, "seed": seed}
    source = f"--scenario {scenario}" if scenario is not None else f"--model {model}"
    command = f"moesim calibrate --device {device} {source} --budget {budget} --seed {seed}"
    command += "" if bits is None else f" --bits {bits}"
    with progress() as show:
        given |= {"progress": show, "command": command}
        made = _of_scenario(scenario, bits, given) if scenario else _of_model(model, bits, given)
    made.write(out)
    if as_json:
        echo_json(_result(made, out))
        return
    _print(made)
    typer.echo(str(out))


def _of_scenario(path: Path, bits: int | None, given: dict[str, Any]) -> Profile:
    from moesim.calibration import calibrate_plan
    from moesim.errors import UsageError
    from moesim.scenario import load_scenario
    from moesim.wiring import prepare

    if bits is not None:
        raise UsageError("--bits goes with --model; the scenario says its model's own")
    return calibrate_plan(prepare(load_scenario(path)), **given)


def _of_model(name: str | None, bits: int | None, given: dict[str, Any]) -> Profile:
    from moesim.calibration import calibrate as measured
    from moesim.calibration import named_subject

    return measured(named_subject(str(name), bits), **given)


def _result(made: Profile, out: Path) -> dict[str, Any]:
    return {
        "out": str(out),
        "device": made.data["measured"]["device"],
        "model": made.times.shape.name,
        "rounds": made.rounds,
        "intervals_narrow": made.narrow,
        "residuals": {kind: held.model_dump() for kind, held in made.times.residuals.items()},
        "overlap": made.data["overlap"],
        "copy_factor": made.times.copy_factor,
    }


def _print(made: Profile) -> None:
    """Each kind of operation with its error on the points that were held out."""
    from moesim.config.units import format_duration_ns

    facts = made.data["measured"]["machine"]
    facts = ", ".join(f"{key} {value}" for key, value in facts.items())
    typer.echo(f"{made.times.shape.name} on {made.data['measured']['device']} ({facts})")
    typer.echo(f"{'':10} {'points':>7} {'error':>7} {'p90':>7} {'bias':>7} {'interval':>9}")
    for kind, held in made.times.residuals.items():
        typer.echo(
            f"{kind:10} {held.fitted + held.held_out:7d} {held.error_median:7.1%} "
            f"{held.error_p90:7.1%} {held.bias:+7.1%} {held.interval:9.1%}"
        )
    experts, h2d = made.times.experts, made.hardware().h2d
    one = round(experts.call_ns + experts.each_ns[0])
    typer.echo(f"an expert with one row: {format_duration_ns(one)}")
    typer.echo(f"a front, at least: {format_duration_ns(round(made.times.front.base_ns))}")
    typer.echo(f"after a landing: {format_duration_ns(round(made.times.landing_ns))}")
    typer.echo(f"readback: {format_duration_ns(round(made.times.readback.base_ns))}")
    typer.echo(f"copies in: {h2d.pinned_bytes_per_s / 1e9:.2f} GB/s, {h2d.latency_ns / 1e3:.0f} us")
    if not made.narrow:
        typer.echo(
            "warning: not every interval became narrow in this time; a longer --budget helps",
            err=True,
        )
