"""`moesim curve`: hit rate, missed bytes and a bound on copy time against capacity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from moesim.cli.curve_inputs import check, link_of, numbers, size_of_an_expert
from moesim.cli.drawing import draws

if TYPE_CHECKING:
    from moesim.report.curve import CurveReport
    from moesim.report.curve_points import CopyLink, CurvePoint
    from moesim.trace import Trace

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
            "(default: the trace's own, if it is known)."
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
    plots: Annotated[
        bool, typer.Option("--plots/--no-plots", help="Draw figures into --out.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing --out.")] = False,
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
    from moesim.cli.output import echo_json
    from moesim.cli.progress import progress
    from moesim.files import may_replace, whole_folder
    from moesim.report.curve import FILES, write_curve
    from moesim.report.curve_points import Resampling, curve_points
    from moesim.simulate.curve import curve_hits
    from moesim.trace import load_trace

    loaded = load_trace(trace)
    names = list(dict.fromkeys(policy))  # a policy named twice is one column
    size = size_of_an_expert(loaded, model, expert_bytes)
    copies = None if link is None else link_of(link)
    check(size, copies, seed)
    if out is not None and out.exists():  # before the replay, which may be long
        may_replace(out, force, FILES)
    resampling = Resampling(resamples, seed) if intervals or out is not None else None
    with progress() as show:
        found = curve_hits(
            loaded, names, scope=scope, capacities=None if capacity is None else numbers(capacity),
            batch=batch, replay=replay, admission=admission, seed=seed,
            by_request=resampling is not None, progress=show,
        )  # fmt: skip
    points = curve_points(
        found, loaded.num_layers, expert_bytes=None if size is None else size[0], link=copies,
        resampling=resampling,
    )  # fmt: skip
    how = _replayed(loaded, scope, batch, replay, admission)
    report = _report(trace, loaded, points, how, size, copies, resampling)
    if out is not None:
        with whole_folder(out, force=force, ours=FILES) as folder:
            write_curve(report, folder, plots=plots)
    if as_json:
        rates = {name: dict(zip(found.capacities, found.rates(name).tolist(), strict=True))
                 for name in names}  # fmt: skip
        echo_json(rates if out is None else {"out": str(out), **report.as_plain()})
        return
    typer.echo(f"# {_routing(loaded)}; {how}")
    shown = link is not None or model is not None or expert_bytes is not None
    _print(report, names, intervals=intervals, sizes=shown)
    if out is not None:
        typer.echo(f"\n{out}")


def _report(
    path: Path,
    trace: Trace,
    points: Sequence[CurvePoint],
    how: str,
    size: tuple[int, str] | None,
    link: CopyLink | None,
    resampling: Any,
) -> CurveReport:
    from moesim.report.curve import BOUND, RESAMPLED, CurveReport
    from moesim.report.statistics import CONFIDENCE

    routing = _routing(trace)
    about: dict[str, Any] = {
        "trace": path.resolve().name,
        "routing": routing,
        "requests": trace.num_requests,
        "synthetic": trace.meta.synthetic,
        "replay": how,
        "expert": None if size is None else {"bytes": size[0], "source": size[1]},
        "link": None,
        "intervals": None,
    }
    caption = f"{routing[0].upper()}{routing[1:]}; {how}."
    if size is not None:
        caption += f" Experts of {_size_text(size)}."
    if link is not None:
        about["link"] = {
            "name": link.name, "bytes_per_s": link.bytes_per_s, "latency_ns": link.latency_ns,
            "bound": BOUND,
        }  # fmt: skip
        caption += f" Link: {_link_text(link)}."
    if resampling is not None:
        about["intervals"] = {
            "confidence": CONFIDENCE,
            "method": "percentile bootstrap over requests",
            "resamples": resampling.resamples,
            "seed": resampling.seed,
            "requests": trace.num_requests,
            "note": RESAMPLED,
        }
    names = list(dict.fromkeys(point.policy for point in points))
    return CurveReport(points, about, caption, _knowing_the_future(names))


def _print(report: CurveReport, names: Sequence[str], *, intervals: bool, sizes: bool) -> None:
    """Print the hit rates and, if asked for, intervals, missed bytes and the bound."""
    from moesim.report.marks import FORESEES, marked

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
            f"{_size_text((expert['bytes'], expert['source']))}"
        )
        _columns(report.points, names, heads,
                 lambda point: f"{(point.miss_bytes_per_token or 0) / 2**20:.1f}")  # fmt: skip
    if about["link"] is not None:
        typer.echo(f"\n# {about['link']['bound']} (ms per token; {_link_line(about['link'])})")
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


def _size_text(size: tuple[int, str]) -> str:
    from moesim.config.units import format_bytes

    return f"{format_bytes(size[0])} ({size[1]})"


def _link_text(link: CopyLink) -> str:
    return _link_line(
        {"name": link.name, "bytes_per_s": link.bytes_per_s, "latency_ns": link.latency_ns}
    )


def _link_line(link: dict[str, Any]) -> str:
    """Return the name, bandwidth and latency of a link."""
    from moesim.config.units import exact_bandwidth, format_duration_ns

    speed = exact_bandwidth(link["bytes_per_s"])
    name = "" if link["name"] == speed else f"{link['name']}, "
    latency = link["latency_ns"]
    return f"{name}{speed}, {format_duration_ns(latency) if latency else 'no latency'} per copy"


def _routing(trace: Trace) -> str:
    """Return whose routing a trace holds, and how much of it."""
    name = f"routing of {trace.meta.model}"
    if trace.meta.synthetic:
        name = "SYNTHETIC ROUTING, drawn at random, made by no model"
    return (
        f"{name}: {trace.num_requests:,} requests, {trace.num_rows:,} rows, "
        f"{trace.num_layers} layers of {trace.num_experts} experts, top-{trace.top_k}"
    )


def _replayed(trace: Trace, scope: str, batch: int, replay: str, admission: str) -> str:
    """Return in words how a trace is replayed and what a hit rate is."""
    parts = ["one cache per layer" if scope == "per_layer" else "one cache for all layers"]
    together = batch > trace.num_requests
    requests = f" (the trace has {trace.num_requests:,} requests: all together)" if together else ""
    parts.append(f"batch {batch:,}{requests}")
    parts.append(
        "atomic replay: a layer's experts are looked up together"
        if replay == "atomic"
        else "sequential replay: experts are looked up one by one, which inflates misses"
    )
    if admission == "always":
        parts.append("every fetched expert gets a slot")
    return "; ".join([*parts, "hits over distinct experts of layer events"])


def _knowing_the_future(names: Sequence[str]) -> list[str]:
    """Return the policies that see the replayed trace beforehand, or learn on it."""
    from moesim.policies import find, parse_options
    from moesim.policies.guard import has_hindsight

    policies = {name: find("eviction", name) for name in names}
    return [
        name
        for name, policy in policies.items()
        if policy.clairvoyant or has_hindsight(policy, parse_options(policy, {}))
    ]
