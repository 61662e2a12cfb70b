"""The page of one run: verdict, assumptions, numbers, plots, tables, and how to run it again."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from typing import Final

from moesim.inputs import read_bytes
from moesim.report.marks import foresight_sentence, routing_mark, routing_sentence
from moesim.report.metrics import HITS, LATE_HITS, MISSES, costs, error_bar, number
from moesim.report.page.assumptions import WORDS, assumptions, notes, warnings
from moesim.report.page.latency_plots import latencies, over_time
from moesim.report.page.layer_plots import lanes, layers
from moesim.report.page.occupancy import occupancy
from moesim.report.page.parts import (
    Block,
    Code,
    Facts,
    Hidden,
    Page,
    Paragraph,
    Section,
    Side,
    from_table,
)
from moesim.report.page.requests import layer_table, request_table, slowest
from moesim.report.page.what_if_panel import what_if_panel
from moesim.report.runs import Run
from moesim.report.summary import limited_by, summary_tables
from moesim.report.tabular import Table
from moesim.results.what_if import WhatIfs

__all__ = ["run_page"]


def run_page(run: Run, command: str, what_if: WhatIfs | None) -> Page:
    """Return the page of a run. `command` made it, and `what_if` is what changes would bring."""
    setup, *tables = summary_tables(run)
    numbers = [table for table in tables if table.rows and table.title != "notes"]
    bounds = [table for table in numbers if table.title.startswith(("bounds", "regrets"))]
    rest = [table for table in numbers if table not in bounds]
    sections = [
        Section(
            "headline",
            "Headline numbers",
            [_key_facts(run), Paragraph(WORDS), *_shown("bounds", bounds)],
        ),
        Section("setting", "What was run", [from_table("setup", setup)]),
        Section("what-if", "What if", what_if_panel(run, what_if)),
        Section("time", "Latency and throughput", [Side([*latencies(run), *over_time(run)])]),
        Section("stalls", "Hits and stalls", [*layers(run), Side([*lanes(run)])]),
        Section("occupancy", "Occupancy", [Side([*occupancy(run)])]),
        Section("slowest", "Slowest requests", [*slowest(run)] or [Paragraph(_NONE)]),
        Section("numbers", "All numbers", [Side(_shown("numbers", rest))]),
        Section("tables", "Requests and layers", [request_table(run), layer_table(run)]),
        Section("sources", "Figures and sources", assumptions(run)),
        Section("again", "Run it again", _again(run, command)),
    ]
    lead, reasons = _verdict(run)
    marks = filter(None, (routing_sentence(run), foresight_sentence(run)))
    known = [*marks, *warnings([run])]
    return Page(run.text("name"), routing_mark(run), lead, reasons, known, notes(run), sections)


_NONE: Final = "No request finished."


def _shown(name: str, tables: Sequence[Table]) -> list[Block]:
    return [from_table(f"{name}-{place}", table) for place, table in enumerate(tables)]


def _verdict(run: Run) -> tuple[str, list[str]]:
    """Return what limits a run, and the reasons one by one."""
    basis = "; ".join(filter(None, (costs(run), error_bar(run))))
    if not limited_by(run):
        return "No verdict: the run computed no bounds.", [basis]
    reason = run.summary.get("verdict_reason")
    reasons = str(reason).split("; ") if reason else []
    return f"Limited by {limited_by(run)}.", [*reasons, basis]


def _key_facts(run: Run) -> Facts:
    """Return the numbers that most readers look for; those that the run lacks are left out."""
    every = (
        ("decode speed of one user (mean)", run.value("decode_mean_tokens_per_s"), " tokens/s"),
        ("TTFT p95", run.value("ttft_p95_ms"), " ms"),
        ("queued p95", run.value("ttft_queue_p95_ms"), " ms"),
        ("served p95", run.value("ttft_service_p95_ms"), " ms"),
        ("output of all users", run.value("output_tokens_per_s"), " tokens/s"),
        ("TPOT mean", run.value("tpot_mean_ms"), " ms"),
        ("hits in time", HITS.of(run), " %"),
        ("late hits", LATE_HITS.of(run), " %"),
        ("misses", MISSES.of(run), " %"),
        ("stalled", 100 * run.value("stall_share"), " % of step time"),
    )
    return Facts([(term, number(value) + unit, "simulated")
                  for term, value, unit in every if not math.isnan(value)])  # fmt: skip


def _again(run: Run, command: str) -> list[Block]:
    scenario = run.path / "scenario.yaml"
    again = shlex.join(["moesim", "run", str(scenario), "--out", "NEW-FOLDER"])
    facts = {key: run.manifest.get(key) for key in ("fingerprint", "simulation", "point")}
    facts |= {key: run.manifest.get(key) for key in ("versions", "inputs")}
    return [
        Paragraph("The run, from its resolved scenario (all defaults are filled in):"),
        Code(again),
        Paragraph("This page:"),
        Code(command),
        Hidden("The resolved scenario", [Code(read_bytes(scenario).decode())]),
        Hidden("Versions, fingerprint and hashes of inputs", [Code(_indented(facts))]),
    ]


def _indented(value: object) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False)
