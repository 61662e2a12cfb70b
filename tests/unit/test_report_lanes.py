"""Reports name the lanes and causes that a run has, and read runs of versions that had fewer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_directories import run_directory
from workloads import tiny_scenario, tiny_trace

import moesim
from moesim.config.units import in_one_unit
from moesim.report import Comparison, compare_runs, load_run
from moesim.report.capacity import hit_rate_against_capacity
from moesim.report.lane_names import causes_of, lanes_of
from moesim.report.lanes import lane_timeline
from moesim.report.runs import Run
from moesim.report.several import stalls_side_by_side
from moesim.report.single import hits_by_layer, stall_breakdown
from moesim.report.style import KINDS, OUTCOMES, STALLS
from moesim.report.summary import summary_tables
from moesim.report.swept import metrics_against_number, swept_number
from moesim.report.tables import tables
from moesim.serving.stalls import CAUSES

DISK = {"profile": "rtx-4090", "disk": {"latency": "80us", "bandwidth": "3GB/s"}}
EXPERT_BYTES = 3 * 512 * 1024 * 2


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traces") / "tiny"
    tiny_trace(requests=4, prompt_tokens=5, output_tokens=6, seed=1).save(folder)
    return folder


def run_of(trace: Path, out: Path, point: dict[str, Any] | None = None, **changes: Any) -> Run:
    scenario = tiny_scenario(trace=str(trace), bounds=False, timeline={"steps": 99}, **changes)
    moesim.run(scenario, out=out, point=point)
    return load_run(out)


def with_everything(trace: Path, out: Path) -> Run:
    """A run with a CPU lane, a disk, and an engine that takes time."""
    return run_of(
        trace, out, hardware=DISK, placement={"policy": "cost"},
        cache={"policy": "lfu", "slots": 9}, memory={"host": 12 * EXPERT_BYTES + 4096},
        engine={"launch": "5us", "copy_launch": "3us", "layer_event": "20us"},
    )  # fmt: skip


def rows_of(run: Run) -> dict[str, list[str]]:
    """Return the cells of all rows of the summary by their label."""
    lines = [row for table in summary_tables(run) for row in table.rows]
    return {row[0].text.strip(): [cell.text.strip() for cell in row[1:]] for row in lines}


def test_a_run_names_every_lane_and_cause_that_it_has(trace: Path, tmp_path: Path) -> None:
    run = with_everything(trace, tmp_path / "run")
    assert lanes_of(run) == ["gpu", "cpu", "h2d", "d2h", "disk"]
    assert set(causes_of([run])) == set(CAUSES)
    rows = rows_of(run)
    assert rows["CPU busy"][1] == f"{run.value('cpu_busy_share'):.1%}"
    assert rows["disk busy"][1] == f"{run.value('disk_busy_share'):.1%}"
    assert rows["computed on the CPU"][0] == run.text("elsewhere") != "0"
    assert {"CPU results", "disk read", "host issue", "hidden states, both ways"} <= rows.keys()
    assert rows["disk to host"][0] != "0 B"
    assert rows["placement"] == ["cost"]
    assert rows["host memory"] == ["36 MiB (a cache of pages)"]


def test_a_lane_that_the_gpu_never_waits_for_is_a_cause_of_zero(tmp_path: Path) -> None:
    summary = {"cpu_busy_share": 0.5, "stall_cpu_s": 0.0, "stall_disk_s": 0.0}
    run = load_run(run_directory(tmp_path / "run", summary=summary))
    assert list(causes_of([run])) == ["demand", "late", "readback", "cpu", "other"]
    assert rows_of(run)["CPU results"] == ["0", "0.0%"]


def test_a_run_without_cpu_and_disk_names_neither(trace: Path, tmp_path: Path) -> None:
    run = run_of(trace, tmp_path / "run")
    assert lanes_of(run) == ["gpu", "h2d", "d2h"]
    assert list(causes_of([run])) == ["demand", "late", "readback", "other"]
    labels = " ".join(rows_of(run))
    assert "CPU" not in labels
    assert "disk" not in labels
    assert "placement" not in labels


def test_a_run_directory_of_a_version_with_three_lanes_still_reads(tmp_path: Path) -> None:
    run = load_run(run_directory(tmp_path / "old", steps=4, requests=3))
    assert "stall_cpu_s" not in run.summary
    assert lanes_of(run) == ["gpu", "h2d", "d2h"]
    for chart in (lane_timeline, stall_breakdown, hits_by_layer):
        assert chart(run).rows
    assert stalls_side_by_side(compare_runs([run])).rows
    assert "CPU busy" not in rows_of(run)


def test_host_memory_is_split_where_it_is_limited(tmp_path: Path) -> None:
    sizes = {"host_weights_bytes": 1, "host_kv_bytes": 2, "host_experts_bytes": 12,
             "pinned_bytes": 4, "host_memory_bytes": 8}  # fmt: skip
    limited = load_run(run_directory(tmp_path / "limited", summary=sizes))
    tables_of = {table.title: table for table in summary_tables(limited)}
    cells = [[cell.text.strip() for cell in row] for row in tables_of["host memory"].rows]
    assert cells[2] == ["all experts", "12 B", "150.0%"]  # more than fits: the rest is on disk
    assert cells[3] == ["page-locked", "4 B", "50.0%"]
    sizes["host_memory_bytes"] = None  # type: ignore[assignment]
    unlimited = load_run(run_directory(tmp_path / "unlimited", summary=sizes))
    assert "host memory" not in {table.title for table in summary_tables(unlimited)}


def test_the_timeline_draws_each_lane_of_the_machine(trace: Path, tmp_path: Path) -> None:
    chart = lane_timeline(with_everything(trace, tmp_path / "run"))
    ticks = [label.get_text() for label in chart.axes[0][0].get_yticklabels()]
    assert ticks == [
        "GPU\ncompute", "CPU\ncompute", "host to\nGPU copy", "GPU to\nhost copy",
        "disk to\nhost read",
    ]  # fmt: skip
    lanes = ["gpu", "cpu", "h2d", "d2h", "disk"]
    drawn = [
        round(float(path.vertices[:, 1].mean()))
        for bars in chart.axes[0][0].collections
        for path in bars.get_paths()
    ]
    assert {lanes[place] for place in drawn} == {row[0] for row in chart.rows}
    assert len({row[0] for row in chart.rows}) >= 4
    assert {row[1] for row in chart.rows} <= KINDS.keys()


def test_stalls_drawn_are_those_of_the_summary_and_of_the_layers(
    trace: Path, tmp_path: Path
) -> None:
    run = with_everything(trace, tmp_path / "run")
    rows = stall_breakdown(run).rows
    whole = {cause: seconds for scope, _, cause, seconds in rows if scope == "run"}
    assert whole["CPU results"] == run.value("stall_cpu_s") > 0
    assert whole["disk read"] == run.value("stall_disk_s") > 0
    assert whole["host issue"] == run.value("stall_host_s") > 0
    by_layer = sum(s for scope, _, cause, s in rows if (scope, cause) == ("layer", "CPU results"))
    column = run.table("layers", ["stall_cpu_ns"])["stall_cpu_ns"]
    assert by_layer == pytest.approx(column.sum() / 1e9)


def test_misses_on_the_cpu_and_copied_ones_are_the_misses(trace: Path, tmp_path: Path) -> None:
    run = with_everything(trace, tmp_path / "run")
    chart = hits_by_layer(run)
    bars = {bar.get_label(): np.array([b.get_height() for b in bar])
            for bar in chart.axes[0][0].containers}  # fmt: skip
    assert list(bars) == ["hit", "late hit", "miss, on the CPU", "miss, copied"]
    assert sum(bars.values()) == pytest.approx(np.ones(4))
    table = run.table("layers", ["accesses", "elsewhere"])
    assert bars["miss, on the CPU"] == pytest.approx(table["elsewhere"] / table["accesses"])


def test_no_two_parts_of_a_bar_look_alike_in_grey() -> None:
    for looks in (STALLS, OUTCOMES):
        distinct = {hatch or color for color, hatch in looks.values()}
        same = {"miss", "miss, copied"} & looks.keys()  # never in one figure
        assert len(distinct) == len(looks) - max(0, len(same) - 1)
    assert len(set(KINDS.values())) == len(KINDS)
    assert STALLS.keys() == set(CAUSES)


def swept(
    trace: Path, folder: Path, key: str, values: Sequence[Any], policies: Sequence[str] = ("copy",)
) -> Comparison:
    runs = []
    for policy in policies:
        for number, value in enumerate(values):
            section, name = key.split(".")
            changes: dict[str, Any] = {"placement": {"policy": policy}, section: {name: value}}
            if section == "placement":
                changes = {"placement": {"policy": policy, "options": {"layers": value}}}
            point = {"placement.policy": policy, key: value}
            runs.append(run_of(trace, folder / f"{policy}-{number}", point, **changes))
    return compare_runs(runs)


def test_a_swept_number_has_a_line_for_each_policy(trace: Path, tmp_path: Path) -> None:
    policies = ("copy", "cost")
    comparison = swept(trace, tmp_path, "batching.max_sequences", [4, 1, 2], policies)
    number = swept_number(comparison)
    assert number is not None
    assert (number.key, number.unit) == ("batching.max_sequences", "")
    chart = metrics_against_number(comparison)
    assert chart is not None
    panel = chart.axes[0][0]
    assert panel.get_ylabel() == "tokens/s per user"
    assert panel.get_xlabel() == "largest batch (sequences)"
    lines = {line.get_label(): line for line in panel.get_lines()}
    assert list(lines) == ["copy placement", "cost placement"]
    for policy, line in zip(policies, lines.values(), strict=True):
        drawn = dict(zip(*map(np.asarray, line.get_data()), strict=True))
        assert list(drawn) == [1, 2, 4]
        for row in comparison.rows:
            if row.values["placement.policy"] == policy:
                size = row.values["batching.max_sequences"]
                assert drawn[size] == row.mean("decode_mean_tokens_per_s")


def test_policies_are_compared_at_each_size_of_the_batch(trace: Path, tmp_path: Path) -> None:
    comparison = swept(trace, tmp_path, "batching.max_sequences", [1, 2], ("copy", "cost"))
    assert comparison.variants == ["copy placement", "cost placement"]
    assert comparison.settings == ["max_sequences = 1", "max_sequences = 2"]
    assert metrics_against_number(comparison) is None  # two points are no line


def test_sizes_are_drawn_in_one_unit(trace: Path, tmp_path: Path) -> None:
    comparison = swept(trace, tmp_path, "memory.host", ["1GiB", "512MiB", "2GiB"])
    number = swept_number(comparison)
    assert number is not None
    assert (number.numbers, number.label) == ((1, 0.5, 2), "host memory (GiB)")


def test_slots_that_follow_from_the_placement_are_no_axis(trace: Path, tmp_path: Path) -> None:
    runs = [
        run_of(
            trace, tmp_path / f"{n}", {"placement.options.layers": n},
            placement={"policy": "cpu_layers", "options": {"layers": n}}, cache={"slots": "100%"},
        )
        for n in (1, 2, 3)
    ]  # fmt: skip
    comparison = compare_runs(runs)
    assert hit_rate_against_capacity(comparison) is None
    chart = metrics_against_number(comparison)
    assert chart is not None
    assert chart.axes[0][0].get_xlabel() == "layers whose experts are on the CPU"
    assert "cpu_layers placement" in chart.caption


def test_what_no_run_used_has_no_column(trace: Path, tmp_path: Path) -> None:
    def heads(comparison: Comparison) -> str:
        return " ".join(head for table in tables(comparison) for head in table.columns)

    plain = compare_runs([run_of(trace, tmp_path / "plain")])
    assert "CPU" not in heads(plain)
    assert "disk" not in heads(plain)
    whole = heads(compare_runs([with_everything(trace, tmp_path / "whole")]))
    assert "on the CPU (%)" in whole
    assert "read from disk (GiB)" in whole


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([4, 1.5], ([4, 1.5], "")),
        (["500MB/s", "3GB/s"], ([0.5, 3], "GB/s")),
        (["1ms", "250us"], ([1000, 250], "us")),
        (["25%", "50%"], ([25, 50], "%")),
        ([True, 2], None),
        (["unlimited", "3GiB"], None),
        (["3GiB", 3], None),
        (["3GiB", "3s"], None),
        (["lru", "lfu"], None),
    ],
)
def test_quantities_of_one_kind_get_one_unit(values: list[Any], expected: object) -> None:
    assert in_one_unit(values) == expected
