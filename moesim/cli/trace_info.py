"""`moesim trace info`: what a trace holds, what its routing is like, and what it is good for."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from moesim.cli.options import PlotsIntoOutOption, ReplaceOption

if TYPE_CHECKING:
    from moesim.report.findings import Verdict
    from moesim.trace import Trace
    from moesim.trace.findings import Findings

__all__ = ["info"]

_SHORT, _LONG = 70, 400
_LEFT_OUT: Final = ("load_skew",)
"""Keys that the sentences below them give, so that one screen is enough."""


def info(
    trace: Annotated[Path, typer.Argument(help="The trace's folder.")],
    everything: Annotated[
        bool, typer.Option("--all", help="Print all fields, and a table of the layers.")
    ] = False,
    rows: Annotated[
        int, typer.Option(min=100, help="Measure about this many tokens, in whole requests.")
    ] = 20_000,
    out: Annotated[
        Path | None, typer.Option(help="The folder to write info.json, layers.csv and plots into.")
    ] = None,
    plots: PlotsIntoOutOption = True,
    seed: Annotated[int, typer.Option(min=0, help="Seed of samples and tests.")] = 0,
    force: ReplaceOption = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, with all measures and verdicts.")
    ] = False,
) -> None:
    """Show what a trace holds, what its routing is like, and what it can tell.

    One sentence each on popularity, collapse, tokens, layers, predictions, unions, domains and
    prompts, and whether the trace is long enough. Words in capitals are warnings. With --out, the
    last line printed is the folder.
    """
    from moesim.cli.progress import progress

    with progress("opening the trace"):
        from moesim.cli.output import echo_json
        from moesim.files import may_replace, whole_folder
        from moesim.report.findings import FILES, verdicts
        from moesim.trace import load_trace
        from moesim.trace.statistics import describe

        if out is not None:  # before the measures, which may be long
            may_replace(out, force, FILES)
        loaded = load_trace(trace)
    about = describe(loaded)
    found = _examined(loaded, rows, seed)
    said = verdicts(found)
    plain = {
        **about,
        "verdicts": {one.topic: one.text for one in said},
        "warnings": [one.topic for one in said if one.alarm],
        "measures": found.as_plain(),
    }
    if out is not None:
        with progress("writing"), whole_folder(out, force=force, ours=FILES) as folder:
            _write(folder, trace, loaded, found, plain, plots)
    if as_json:
        echo_json(plain if out is None else {"out": str(out), **plain})
        return
    _print(loaded, about, found, said, everything)
    if out is not None:
        typer.echo(f"\n{out}")


def _examined(trace: Trace, rows: int, seed: int) -> Findings:
    """Return the measures of a trace, with the hits of LRU with slots for a quarter."""
    from moesim.cli.progress import progress
    from moesim.simulate.curve import curve_hits
    from moesim.trace.findings import examine, sampled

    sample = sampled(trace, rows, seed)
    slots = max(trace.top_k, trace.num_experts // 4)
    hits = None
    with progress() as show:
        if (sample.ids != sample.unused).any():
            replayed = curve_hits(
                sample.as_trace(), ["lru"], capacities=[slots], by_request=True, progress=show
            )
            hits = (slots, replayed.hits["lru"][:, 0], replayed.accesses)
        return examine(trace, sample, seed=seed, hits=hits, progress=show)


def _print(
    trace: Trace, about: dict[str, Any], found: Findings, said: list[Verdict], everything: bool
) -> None:
    from moesim.cli.routing import SYNTHETIC
    from moesim.report.findings import layer_table
    from moesim.report.tabular import write_tables

    if trace.meta.synthetic:
        typer.echo(f"{SYNTHETIC}\n")
    most = _LONG if everything else _SHORT
    for key, value in about.items():
        text = json.dumps(value) if isinstance(value, dict | list) else str(value)
        if len(text) > most:  # a recorded configuration can fill several screens
            text = f"{text[:most]} ... (cut; use --json for all of it)"
        if everything or key not in _LEFT_OUT:
            typer.echo(f"{key:<24} {text}")
    of = "" if found.whole else f" (measured on {found.rows} rows of {found.requests} requests)"
    typer.echo(f"\nWhat it shows{of}:")
    for one in said:
        typer.echo(_filled(f"{'!' if one.alarm else '-'} {one.topic}: {one.text}"))
    if everything:
        typer.echo()
        write_tables([layer_table(found)])


def _filled(text: str) -> str:
    """Return a text in lines of at most 100 characters; a number stays with its %."""
    joined = text.replace(" %", "\0%")
    lines = textwrap.fill(joined, 100, subsequent_indent="  ", break_on_hyphens=False)
    return lines.replace("\0", " ")


def _write(
    folder: Path, path: Path, trace: Trace, found: Findings, plain: dict[str, Any], plots: bool
) -> None:
    from moesim.cli.output import finite
    from moesim.cli.routing import caption_of
    from moesim.report.chart import write_whole
    from moesim.report.findings_charts import plots_for_findings, write_layers

    text = json.dumps(finite(plain), indent=1, allow_nan=False)
    write_whole(folder / "info.json", f"{text}\n")
    write_layers(folder / "layers.csv", found)
    if plots:
        how = "all rows" if found.whole else f"{found.rows} rows of {found.requests} requests"
        about = caption_of(path, trace, f"measured: {how}")
        plots_for_findings(folder / "plots", found, about=about)
