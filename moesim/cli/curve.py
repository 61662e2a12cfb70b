"""`moesim curve`: hit rate, missed bytes and a bound on copy time against capacity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from moesim.cli.complete import of_models, of_policies
from moesim.cli.drawing import draws
from moesim.cli.options import PlotsIntoOutOption, ReplaceOption

if TYPE_CHECKING:
    from moesim.report.curve import CurveReport
    from moesim.report.curve_points import CurvePoint

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command of this file to the application."""
    app.command()(draws(curve))


def curve(
    trace: Annotated[Path, typer.Argument(help="The trace's folder.")],
    policy: Annotated[
        list[str],
        typer.Option(
            "--policy",
            help="An eviction policy (see `moesim list policies`); repeat for several.",
            autocompletion=of_policies,
        ),
    ],
    scope: Annotated[
        Literal["per_layer", "global"],
        typer.Option(help="One cache for each layer, or one for all layers."),
    ] = "per_layer",
    capacity: Annotated[
        str | None,
        typer.Option(help="Slots per layer, like 4,8,16 (default: 1 to all experts)."),
    ] = None,
    batch: Annotated[int, typer.Option(help="Requests that advance in lock-step.")] = 1,
    replay: Annotated[
        Literal["atomic", "sequential"],
        typer.Option(
            help="atomic looks up a layer's experts together, as a server does; sequential one "
            "by one, which inflates misses."
        ),
    ] = "atomic",
    admission: Annotated[
        Literal["bypass", "always"],
        typer.Option(
            help="bypass lets the policy use a fetched expert once without a slot; always gives "
            "every fetched expert a slot."
        ),
    ] = "bypass",
    seed: Annotated[
        int, typer.Option(help="Seed of policies that choose at random, and of intervals.")
    ] = 0,
    intervals: Annotated[
        bool, typer.Option("--intervals", help="Print 95 % intervals over requests.")
    ] = False,
    resamples: Annotated[
        int, typer.Option(min=100, max=1_000_000, help="Bootstrap resamples for intervals.")
    ] = 1000,
    model: Annotated[
        str | None,
        typer.Option(
            help="The model whose experts miss: a shipped name, a config.json or a GGUF file "
            "(default: the trace's own, if it is known).",
            autocompletion=of_models,
        ),
    ] = None,
    expert_bytes: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Bytes of an expert, like 16.5MiB.")
    ] = None,
    link: Annotated[
        str | None,
        typer.Option(
            help="The link that copies missed experts: a bandwidth like 25GB/s, or a hardware "
            "profile. It gives a lower bound on the time of a token."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The folder to write curve.csv, curve.json and plots/ into."),
    ] = None,
    plots: PlotsIntoOutOption = True,
    force: ReplaceOption = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print JSON: hit rates; with --out, the content of curve.json."
        ),
    ] = False,
) -> None:
    """Print the hit rate for each cache capacity, by replaying a trace without timing.

    Requests are replayed one after another, one token per step, and caches are never reset. A hit
    is a distinct expert of a layer event that was resident when the event began. --intervals,
    --link and --expert-bytes print more. With --out, the last line printed is the folder.
    """
    from moesim.cli.progress import progress

    with progress("opening the trace"):
        from moesim.cli.output import echo_json
        from moesim.files import may_replace, whole_folder
        from moesim.report.curve import FILES, write_curve
        from moesim.report.curve_points import Resampling
        from moesim.simulate.curve_report import CurveOptions, curve_report
    if out is not None:  # before the replay, which may be long
        may_replace(out, force, FILES)
    capacities = None if capacity is None else _numbers(capacity)
    asked = CurveOptions(
        capacities, scope, batch, replay, admission, seed, model, expert_bytes, link
    )
    resampling = Resampling(resamples, seed) if intervals or out is not None else None
    with progress() as show:
        report = curve_report(trace, policy, asked, resampling=resampling, progress=show)
    names = list(dict.fromkeys(policy))  # a policy named twice is one column
    if out is not None:
        with progress("writing"), whole_folder(out, force=force, ours=FILES) as folder:
            write_curve(report, folder, plots=plots)
    if as_json:
        rates = {name: {p.capacity: p.hit_rate for p in report.points if p.policy == name}
                 for name in names}  # fmt: skip
        echo_json(rates if out is None else {"out": str(out), **report.as_plain()})
        return
    typer.echo(f"# {report.about['routing']}; {report.about['replay']}")
    shown = link is not None or model is not None or expert_bytes is not None
    _print(report, names, intervals=intervals, sizes=shown)
    if out is not None:
        typer.echo(f"\nplots are in {out / 'plots'}\n{out}" if plots else f"\n{out}")


def _print(report: CurveReport, names: Sequence[str], *, intervals: bool, sizes: bool) -> None:
    """Print the hit rates and, if asked for, intervals, missed bytes and the bound."""
    from moesim.report.marks import FORESEES, marked
    from moesim.simulate.curve_report import link_line, size_text

    if report.foresees:
        typer.echo(f"# {', '.join(report.foresees)}: {FORESEES}: a bound, not a policy")
    heads = [marked(name, FORESEES if name in report.foresees else "") for name in names]

    def rate(point: CurvePoint) -> str:
        if not intervals or point.hit_rate_low is None or point.hit_rate_high is None:
            return f"{point.hit_rate:.3f}"
        return f"{point.hit_rate:.3f} [{point.hit_rate_low:.3f}, {point.hit_rate_high:.3f}]"

    _columns(report.points, names, heads, rate)
    about = report.about
    if intervals:
        made = about["intervals"]
        typer.echo(
            f"# [low, high]: {made['confidence']:.0%} {made['method']}: {made['requests']:,} "
            f"requests, {made['resamples']:,} resamples, seed {made['seed']}; {made['note']}"
        )
    if sizes and about["expert"] is not None:
        expert = about["expert"]
        typer.echo(
            "\n# missed bytes (MiB per token), with experts of "
            f"{size_text((expert['bytes'], expert['source']))}"
        )
        _columns(report.points, names, heads,
                 lambda point: f"{(point.miss_bytes_per_token or 0) / 2**20:.1f}")  # fmt: skip
    if about["link"] is not None:
        typer.echo(f"\n# {about['link']['bound']} (ms per token; {link_line(about['link'])})")
        _columns(report.points, names, heads,
                 lambda point: f"{(point.bound_ns_per_token or 0) / 1e6:.2f}")  # fmt: skip


def _columns(
    points: Sequence[CurvePoint],
    names: Sequence[str],
    heads: Sequence[str],
    text: Callable[[CurvePoint], str],
) -> None:
    """Print a column for each policy and a line for each capacity, in the order asked for."""
    texts = {name: [text(point) for point in points if point.policy == name] for name in names}
    capacities = [point.capacity for point in points if point.policy == names[0]]
    widths = [
        max(8, len(head), *map(len, texts[name])) + 2
        for name, head in zip(names, heads, strict=True)
    ]
    columns = list(zip(names, heads, widths, strict=True))
    typer.echo("capacity" + "".join(f"{head:>{width}}" for _, head, width in columns))
    for line, capacity in enumerate(capacities):
        row = "".join(f"{texts[name][line]:>{width}}" for name, _, width in columns)
        typer.echo(f"{capacity:8d}{row}")


def _numbers(text: str) -> list[int]:
    """Return the whole numbers of a list with commas. Raise `typer.BadParameter` otherwise."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a list of whole numbers like 4,8,16", param_hint="--capacity"
        ) from None
