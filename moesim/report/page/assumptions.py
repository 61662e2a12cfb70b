"""What a run rests on: every figure with its kind and its source, and what to be careful about.

The origins of figures are in the profiles, the trace and the shape that the scenario names. A run
directory holds none of them, so they are read as they are now; what cannot be read is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from moesim import __version__
from moesim.errors import MoesimError, first_line
from moesim.report.marks import routing_mark, routing_sentence
from moesim.report.metrics import number
from moesim.report.page.parts import DataCell, DataTable, Paragraph
from moesim.report.runs import Run

if TYPE_CHECKING:
    from moesim.scenario import Scenario

__all__ = ["KINDS", "WORDS", "assumptions", "notes", "unwarned", "warnings"]

WORDS: Final = (
    "TTFT: from the arrival of a request to its first token. Its parts: queued until the first "
    "step that serves the request, and served from there on; their percentiles do not add up. "
    "TPOT: mean time per output token after the first. ITL: each gap between two tokens. E2E: from "
    "arrival to the last token. p95: 95 % of requests take at most this. MIN: the eviction that "
    "knows the future and misses least, which is a bound. Slot: place for one expert in GPU memory."
)
"""What the abbreviations of a page mean, for a reader who was sent only the page."""

KINDS: Final = (
    "Measured: timed on the machine itself. Fitted: chosen so that simulations match published "
    "throughputs. Assumed: from a datasheet, by reasoning, or set by the scenario. Recorded: a "
    "model's own routing. Synthetic: routing that no model made. Simulated: computed by this run "
    "from all of these. Every time, rate and share of this page is simulated."
)
UNREAD: Final = "cannot be read now"
FEW: Final = 100
"""Below this number of requests, p99 lies between the two slowest of them."""


@dataclass(frozen=True, slots=True)
class _Figure:
    of: str
    name: str
    value: str
    kind: str
    source: str


def assumptions(run: Run) -> list[DataTable | Paragraph]:
    """Return the table of a run's figures, and what could not be read."""
    figures, unread = _figures(run)
    figures.append(_Figure("results", "all times, rates and shares", "this page", "simulated",
                           "moesim, from the figures above"))  # fmt: skip
    rows = [
        [DataCell(each.name), *(DataCell(told, mark="text") for told in (each.of, each.value)),
         DataCell(each.kind, mark="text"), DataCell(each.source, mark="long")]
        for each in figures
    ]  # fmt: skip
    columns = ("figure", "of", "value", "kind", "source")
    table = DataTable("figures-table", "Figures and their sources", columns, rows, interactive=True)
    texts = [KINDS, *_older(run)]
    texts += [f"The sources of some figures cannot be read: {'; '.join(unread)}"] if unread else []
    return [*map(Paragraph, texts), table]


def _figures(run: Run) -> tuple[list[_Figure], list[str]]:
    """Return the figures that can be read, and why others cannot, each reason once."""
    figures: list[_Figure] = []
    unread: dict[str, None] = {}
    try:
        scenario = _scenario(run)
    except (MoesimError, OSError) as error:
        return [_routing(run, run.trace, UNREAD)], [first_line(error)]
    for reader in (_trace, _sizes, _hardware, _engine):
        try:
            for figure in reader(run, scenario):  # one by one: those before an error stay
                figures.append(figure)
        except (MoesimError, OSError) as error:
            unread[first_line(error)] = None
    return figures, list(unread)


def _older(run: Run) -> Iterator[str]:
    versions = run.manifest.get("versions")
    version = versions.get("moesim") if isinstance(versions, dict) else None
    if version and version != __version__:
        yield (f"The run was made by moesim {version}, and the sources are those of moesim "
               f"{__version__}.")  # fmt: skip


def _scenario(run: Run) -> Scenario:
    from moesim.scenario import load_scenario

    return load_scenario(run.path / "scenario.yaml")


def _trace(run: Run, scenario: Scenario) -> Iterator[_Figure]:
    from moesim.trace.meta import read_header

    try:
        header = read_header(scenario.trace_path)
    except MoesimError:
        yield _routing(run, run.trace, UNREAD)
        raise
    size = f"{header.num_requests:,} requests, {header.num_rows:,} rows"
    source = _provenance(header.meta.provenance) or "the header of the trace names none"
    yield _routing(run, size, source)


def _routing(run: Run, value: str, source: str) -> _Figure:
    kind = "synthetic" if routing_mark(run) == "synthetic routing" else "recorded"
    return _Figure("trace", f"routing of {run.text('trace')}", value, kind, source)


def _provenance(told: dict[str, Any]) -> str:
    """Return the plain entries of a trace's provenance as text."""
    plain = {key: value for key, value in told.items() if isinstance(value, str | int | float)}
    text = ", ".join(f"{key} {value}" for key, value in plain.items())
    return text if len(text) <= 300 else text[:297] + "..."


def _sizes(run: Run, scenario: Scenario) -> Iterator[_Figure]:
    from moesim.trace.meta import read_header

    own = scenario.model.shape == "trace"
    config = read_header(scenario.trace_path).meta.model_config if own else None
    shape = scenario.load_shape(config)
    source = shape.source or ("the trace's own configuration" if own else "a file of the scenario")
    value = f"{run.text('num_layers')} MoE layers of {run.text('num_experts')} experts"
    yield _Figure("model", f"sizes of {shape.name}", value, "assumed", source)
    bits = f"experts {number(shape.expert_bits)}, other weights {number(shape.weight_bits)}"
    basis = "the scenario, or its default"
    if format_ := run.summary.get("format"):
        basis = f"format {format_}: {run.text('format_basis')}"
    yield _Figure("model", "bits of a weight", bits, "assumed", basis)


def _hardware(_run: Run, scenario: Scenario) -> Iterator[_Figure]:
    from moesim.hardware.overrides import spelled_figure

    machine = scenario.load_hardware()
    for key, figure in machine.figures.items():
        value = spelled_figure(key, figure.value)
        yield _Figure("machine", key, value, figure.kind, figure.source)


def _engine(run: Run, scenario: Scenario) -> Iterator[_Figure]:
    engine = scenario.load_engine()
    if not engine.figures:
        yield _Figure("engine", engine.name, run.engine, "assumed", "no engine: host time is zero")
    for key, origin in engine.figures.items():
        yield _Figure("engine", key, str(origin.value), origin.kind, origin.source)


def warnings(runs: Sequence[Run]) -> list[str]:
    """Return what makes the numbers of runs less than they seem.

    What holds for a part of the runs says for how many. Where a number differs between them, the
    least and the most are named. Marks and their sentences are not among these warnings.
    """
    idle = [run for run in runs if run.limited_by_arrivals]
    few = [run for run in runs if 2 <= _counted(run) < FEW]
    tiled = [run for run in runs if run.value("tiled_share") > 0]
    ideal = [run for run in runs if run.text("engine_kind") == "ideal"]
    found = [
        ([run for run in runs if run.text("cost_kind") == "assumed"],
         "Costs are assumed, not measured: the error of these times is not known. `moesim "
         "calibrate` measures the costs of a machine."),
        *(([run for run in ideal if run.engine == engine], f"The engine is {engine}.")
          for engine in dict.fromkeys(run.engine for run in ideal)),
        (idle, f"Arrivals limit throughput: for {_ends((run.idle_share for run in idle), '.0%')} "
         "of the time there was no request."),
        ([run for run in runs if _counted(run) < 2],
         "At most one request is counted, so all its percentiles are the same number."),
        (few, f"Only {_ends(map(_counted, few), '.0f')} requests are counted: p99 lies between the "
         "two slowest, and the tail of the distribution is not known."),
        (tiled, f"The trace is short: {_ends((run.value('tiled_share') for run in tiled), '.1%')} "
         "of the rows are borrowed from other sequences of the trace."),
        ([run for run in runs if run.windowed],
         "Numbers are of a window; bounds, the verdict and tables are of the whole run."),
    ]  # fmt: skip
    return [text if len(of) == len(runs) else f"{text} ({len(of)} of {len(runs)} runs)"
            for of, text in found if of]  # fmt: skip


def _counted(run: Run) -> float:
    """Return how many requests the latencies of a summary are of."""
    return run.value("window_requests" if run.windowed else "finished")


def _ends(values: Iterable[float], form: str) -> str:
    """Return the least and the most of some numbers as text, or the one text of both."""
    ordered = sorted(values)
    return " to ".join(dict.fromkeys(format(end, form) for end in (*ordered[:1], *ordered[-1:])))


def unwarned(told: Sequence[str], warning: str | None) -> list[str]:
    """Return the notes without that of foreign sizes, if a warning about the routing says it."""
    return [note for note in told if not (warning and " is costed with the sizes of " in note)]


def notes(run: Run) -> list[str]:
    """Return the notes of the run, and its caveats where no note says them."""
    told = unwarned(run.notes, routing_sentence(run))
    return [*told, *(f"Caveat: {each}" for each in run.caveats if not run.notes)]
