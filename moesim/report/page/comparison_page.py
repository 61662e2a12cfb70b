"""The page of a comparison: all points, what differs surely, fronts, and where the time went."""

from __future__ import annotations

from moesim.report.comparison import ARRIVALS_LIMIT, Comparison
from moesim.report.marks import shared_sentence
from moesim.report.page.assumptions import WORDS, assumptions, unwarned, warnings
from moesim.report.page.comparison_tables import leaders, points_table, runs_table, varied_table
from moesim.report.page.differences import differences
from moesim.report.page.fronts import fronts
from moesim.report.page.heat_map import heat_map
from moesim.report.page.parts import Block, Code, Page, Paragraph, Plot, Section
from moesim.report.page.swept_plots import lines, stalls
from moesim.report.tables import legend

__all__ = ["comparison_page"]

_WARNING = "WARNING: "


def comparison_page(comparison: Comparison, command: str) -> Page:
    """Return the page of a comparison; `command` made it."""
    names = list(dict.fromkeys(run.text("name") for run in comparison.runs))
    told = [note for note in comparison.notes if note.startswith(_WARNING)]
    shared = shared_sentence(comparison.runs)
    # A warning has the share of the time, too.
    notes = [note for note in comparison.notes if note not in told]
    notes = [note for note in notes if not note.startswith(ARRIVALS_LIMIT)]
    sentences = [shared, *(note.removeprefix(_WARNING) for note in told)]
    sentences += warnings(comparison.runs)
    return Page(
        names[0] if len(names) == 1 else "Comparison",
        comparison.mark(),
        _lead(comparison),
        leaders(comparison),
        [sentence for sentence in sentences if sentence],
        unwarned(notes, shared),
        _sections(comparison, command),
    )


def _lead(comparison: Comparison) -> str:
    counts = ((len(comparison.variants), "variant"), (len(comparison.settings), "setting"),
              (len(comparison.rows), "point"), (len(comparison.runs), "run"))  # fmt: skip
    spelt = [f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counts]
    return f"{', '.join(spelt[:-1])} and {spelt[-1]}."


def _sections(comparison: Comparison, command: str) -> list[Section]:
    column = "a column in a setting" if len(comparison.settings) > 1 else "a column"
    marks = {"best": "marked ▲", "worst": "marked ▼"}
    about = legend(comparison, **marks, column=column, baseline="the baseline that you choose")
    about = about.replace("\\[", "[")
    points: list[Block] = [points_table(comparison), Paragraph(WORDS), Paragraph(about)]
    setting: list[Block] = [Paragraph(comparison.caption(hits=True)), varied_table(comparison)]
    again: list[Block] = [Paragraph("This page:"), Code(command), _RUNS]
    found: list[tuple[str, str, Plot | None]] = [
        ("differences", "Differences", differences(comparison)),
        ("heat", "Variants and sizes", heat_map(comparison)),
        ("fronts", "Pareto fronts", fronts(comparison)),
        ("lines", "Against a swept number", lines(comparison)),
        ("stalls", "Where the time went", stalls(comparison)),
    ]
    return [
        Section("headline", "All points", points),
        *(Section(name, title, [plot]) for name, title, plot in found if plot is not None),
        Section("setting", "What was run", setting),
        Section("runs", "Runs", [runs_table(comparison)]),
        Section("sources", "Figures and sources", _sources(comparison)),
        Section("again", "Run it again", again),
    ]


_RUNS = Paragraph(
    "Each folder in the table of runs has a `scenario.yaml` with all defaults filled in. `moesim "
    "run FOLDER/scenario.yaml --out NEW-FOLDER` runs it again."
)


def _sources(comparison: Comparison) -> list[Block]:
    first = comparison.runs[0]
    return [Paragraph(f"The figures of the first run, {first.path}. What differs between the runs "
                      "is above, under “What was run”."), *assumptions(first)]  # fmt: skip
