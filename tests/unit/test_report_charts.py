"""Figures: which exist, that they repeat byte for byte, and what they draw where nothing is."""

from __future__ import annotations

import csv
import itertools
import math
import os
import subprocess
import sys
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from run_directories import LAYERS, SKILL, run_directory

from moesim.errors import OutputError
from moesim.report import chart, compare_runs, load_run, load_runs, plots_for_run
from moesim.report.capacity import hit_rate_against_capacity, metrics_against_capacity
from moesim.report.chart import save_charts, write_csv
from moesim.report.comparison import Comparison, _rounded
from moesim.report.distribution import cdf, latency_scale
from moesim.report.drawing import Drawing, drawn_as
from moesim.report.lanes import LEGIBLE, choose_window, lane_timeline
from moesim.report.several import (
    latency_cdfs,
    plots_for_comparison,
    side_by_side,
    stalls_side_by_side,
)
from moesim.report.single import hits_by_layer, latency_cdf, stall_breakdown
from moesim.report.style import BOUNDS, HOUSE, LINES, OTHERS, POLICIES, house_style, styles

RUN_CHARTS = ("hits_by_layer", "lane_timeline", "latency_cdf", "stall_breakdown")
SWEEP_CHARTS = (
    "hit_rate_capacity", "latency_cdf", "metrics_capacity", "side_by_side", "stall_breakdown",
    "ttft_split",
)  # fmt: skip
INTERVALS = ("hit_rate_capacity", "metrics_capacity", "side_by_side")
KINDS = ("png", "svg", "csv", "md")


def sweep(folder: Path, **changes: object) -> Comparison:
    """Two policies, three sizes, two seeds."""
    for policy in ("lru", "lfu"):
        for slots in (4, 8, 12):
            for seed in (0, 1):
                run_directory(
                    folder / f"{policy}-{slots}-{seed}",
                    policy=policy,
                    slots_per_layer=slots,
                    seed=seed,
                    steps=30,
                    requests=12,
                    point={"cache.policy": policy, "cache.slots": f"{slots}/layer", "seed": seed},
                    **changes,  # type: ignore[arg-type]
                )
    return compare_runs(load_runs(sorted(folder.iterdir())))


def read_csv(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def digests(folder: Path) -> dict[str, str]:
    return {file.name: sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with its plots."""
    run = run_directory(tmp_path_factory.mktemp("drawn") / "run", prefetch="predicted")
    plots_for_run(run)
    return run


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    """A sweep, and the folder of its plots."""
    folder = tmp_path_factory.mktemp("compared")
    comparison = sweep(folder / "runs")
    plots_for_comparison(comparison, folder / "plots")
    return comparison, folder / "plots"


def test_a_run_gets_every_chart_in_all_formats_with_its_data_and_caption(drawn: Path) -> None:
    files = {file.name: file for file in (drawn / "plots").iterdir()}
    assert set(files) == {f"{name}.{kind}" for name in RUN_CHARTS for kind in KINDS}
    for name in RUN_CHARTS:
        assert files[f"{name}.png"].read_bytes().startswith(b"\x89PNG")
        assert "<svg" in files[f"{name}.svg"].read_text()
        assert files[f"{name}.md"].read_text().startswith("# ")
        assert read_csv(files[f"{name}.csv"])
    assert max(file.stat().st_size for file in files.values()) < 300_000


def test_a_sweep_gets_every_chart(compared: tuple[Comparison, Path]) -> None:
    expected = {f"{name}.{kind}" for name in SWEEP_CHARTS for kind in KINDS}
    assert {file.name for file in compared[1].iterdir()} == expected


def test_another_process_draws_the_same_bytes_without_pyplot(drawn: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from moesim.report import plots_for_run; "
        "plots_for_run(sys.argv[1], sys.argv[2]); "
        "assert not {'matplotlib.pyplot', 'scipy'} & set(sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(drawn), str(tmp_path / "plots")],
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "1234"},
    )
    assert digests(tmp_path / "plots") == digests(drawn / "plots")


def test_the_users_own_matplotlib_settings_change_nothing_and_stay(
    drawn: Path, tmp_path: Path
) -> None:
    import matplotlib

    chart = partial(hits_by_layer, load_run(drawn))
    with matplotlib.rc_context({"font.size": 20, "axes.grid": False, "svg.hashsalt": "other"}):
        save_charts(tmp_path / "plots", [chart])
        assert matplotlib.rcParams["font.size"] == 20
    made = digests(tmp_path / "plots")
    del made["hits_by_layer.md"]  # it says no command here
    assert made.items() <= digests(drawn / "plots").items()


def test_loading_the_report_does_not_load_matplotlib() -> None:
    look = "assert not {'matplotlib', 'pandas', 'numpy', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", f"import sys, moesim.report; {look}"], check=True)


def test_plots_replace_what_was_there(drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "old.png").write_text("")
    save_charts(tmp_path / "plots", [partial(hits_by_layer, load_run(drawn)), lambda: None])
    assert {file.stem for file in (tmp_path / "plots").iterdir()} == {"hits_by_layer"}


def test_plots_that_cannot_be_written_name_the_path(tmp_path: Path) -> None:
    run = run_directory(tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        plots_for_run(run, tmp_path / "file" / "plots")


def test_what_is_undefined_is_said_and_nothing_breaks(tmp_path: Path) -> None:
    run = load_run(run_directory(tmp_path / "run", output_tokens=1))
    with house_style():
        chart = latency_cdf(run)
    texts = [text.get_text() for row in chart.axes for axes in row for text in axes.texts]
    assert texts.count("undefined\n(no request has two tokens)") == 2
    assert {row[0] for row in chart.rows} == {"ttft", "ttft_queue", "ttft_service", "e2e"}


def test_a_run_in_which_nothing_is_defined_can_be_drawn(tmp_path: Path) -> None:
    path = run_directory(tmp_path / "run", requests=0)
    summary = dict.fromkeys(load_run(path).summary)
    again = run_directory(tmp_path / "again", requests=0, summary={**summary, "requests": 0})
    assert len(list(plots_for_run(again).iterdir())) == len(KINDS) * len(RUN_CHARTS)
    comparison = compare_runs(load_runs([path, again]))
    assert plots_for_comparison(comparison, tmp_path / "plots")


def test_undefined_metrics_of_a_sweep_are_drawn_as_undefined(tmp_path: Path) -> None:
    comparison = sweep(tmp_path / "runs", output_tokens=1)
    with house_style():
        dots, lines, curves = (
            chart(comparison) for chart in (side_by_side, metrics_against_capacity, latency_cdfs)
        )
        dots.figure.canvas.draw()
    assert [row[4] for row in dots.rows if row[1] == "decode speed"] == pytest.approx(
        [math.nan] * 6, nan_ok=True
    )
    assert lines is not None
    texts = [text.get_text() for row in curves.axes for axes in row for text in axes.texts]
    assert texts == ["undefined"] * 3


def test_the_data_of_the_latency_chart_are_the_sample(drawn: Path) -> None:
    rows = read_csv(drawn / "plots" / "latency_cdf.csv")
    ttft = [float(row["value_ns"]) for row in rows if row["latency"] == "ttft"]
    table = load_run(drawn).table("requests", ["arrival_ns", "first_token_ns"])
    assert ttft == sorted((table["first_token_ns"] - table["arrival_ns"]).tolist())
    assert [row["share"] for row in rows if row["latency"] == "ttft"][-1] == "1"


def test_quantiles_in_the_chart_are_those_of_the_summary(drawn: Path) -> None:
    run = load_run(drawn)
    with house_style():
        chart = latency_cdf(run)
    panels = itertools.chain(*chart.axes)
    for axes, name in zip(panels, ("ttft", "tpot", "itl", "e2e"), strict=True):
        p50, p95, p99 = (run.value(f"{name}_{p}_ms") for p in ("p50", "p95", "p99"))
        assert axes.get_title("right") == f"p50 {p50:.4g}, p95 {p95:.4g}, p99 {p99:.4g} ms"


def test_a_cdf_of_many_values_is_thinned_and_keeps_its_ends() -> None:
    sample = np.random.default_rng(0).exponential(size=123_456)
    values, shares = cdf(sample)
    assert len(values) <= 1000
    assert (values[0], values[-1], shares[-1]) == (sample.min(), sample.max(), 1.0)
    assert abs(np.interp(1.0, values, shares) - (sample <= 1.0).mean()) < 1e-3


def test_latencies_are_shown_in_the_unit_of_their_size() -> None:
    assert [latency_scale(ns)[1] for ns in (5, 5e3, 5e6, 5e9)] == ["ns", "µs", "ms", "s"]


def test_stalls_by_layer_add_up_to_the_whole(tmp_path: Path) -> None:
    with house_style():
        chart = stall_breakdown(load_run(run_directory(tmp_path / "run")))
    whole = {row[2]: row[3] for row in chart.rows if row[0] == "run"}
    parts = sum(row[3] for row in chart.rows if row[0] == "layer" and row[2] == "demand copy")
    assert parts == pytest.approx(whole["demand copy"])


def test_a_legend_has_the_parts_that_some_bar_has(tmp_path: Path) -> None:
    """A cause that no variant waited for is in the data and not in the legend."""
    summary = {"stall_late_s": 0.0, "stall_other_s": 0.0}
    paths = [run_directory(tmp_path / policy, policy=policy, summary=summary, requests=4)
             for policy in ("lru", "lfu")]  # fmt: skip
    comparison = compare_runs([load_run(path) for path in paths])
    chart = stalls_side_by_side(comparison)
    (legend,) = chart.figure.legends
    entries = {text.get_text() for text in legend.get_texts()}
    parts: dict[str, list[float]] = {}
    for _, _, part, seconds in chart.rows:
        parts.setdefault(part, []).append(seconds)
    assert entries == {part for part, seconds in parts.items() if any(each > 0 for each in seconds)}
    assert {"late prefetch", "other"} <= parts.keys() - entries


def test_a_timeline_shows_whole_steps_as_long_as_they_stay_legible(tmp_path: Path) -> None:
    run = load_run(run_directory(tmp_path / "run", layers=4))
    with house_style():
        chart = lane_timeline(run)
    steps = sorted({row[4] for row in chart.rows})
    assert len(chart.rows) <= LEGIBLE
    assert steps == list(range(steps[0], steps[-1] + 1))
    table = run.table("timeline", ["step"])
    assert len(chart.rows) == sum(int((table["step"] == step).sum()) for step in steps)


def test_a_timeline_of_a_large_step_shows_its_first_layers(tmp_path: Path) -> None:
    run = load_run(run_directory(tmp_path / "run", layers=200, steps=4))
    window = choose_window(
        run.table("timeline", ("kind", "start_ns", "finish_ns", "step", "layer"))
    )
    assert window is not None
    assert window.text.startswith("layers 0 to ")
    assert 0 < window.chosen.sum() <= LEGIBLE


def test_no_timeline_is_said(tmp_path: Path) -> None:
    nothing = {
        "kind": np.array([], object), "step": np.array([]), "layer": np.array([]),
        "start_ns": np.array([]), "finish_ns": np.array([]),
    }  # fmt: skip
    assert choose_window(nothing) is None


def test_the_capacity_axis_counts_slots_and_bounds_are_drawn(
    compared: tuple[Comparison, Path],
) -> None:
    with house_style():
        chart = hit_rate_against_capacity(compared[0])
    assert chart is not None
    lines = {line.get_label(): line for line in chart.axes[0][0].lines}
    assert set(lines) == {"LRU", "LFU", "MIN bound (misses)", "infinite cache"}
    assert lines["LRU"].get_xdata().tolist() == [4.0, 8.0, 12.0]
    dashes = {line.get_linestyle() for label, line in lines.items() if label in BOUNDS}
    assert "-" not in dashes
    low = {row[1]: row for row in chart.rows if row[2] == 4}
    assert low["LRU"][5] < low["LRU"][4] < low["LRU"][6]
    assert low["MIN bound (misses)"][4] > low["LRU"][4]


def test_a_share_of_experts_is_of_the_model_of_its_setting(tmp_path: Path) -> None:
    """Traces of two models in one comparison have two numbers of experts a layer."""
    experts = {"shallow": 16, "other": 32}
    paths = [
        run_directory(tmp_path / f"{trace}-{policy}-{slots}", trace=trace, policy=policy,
                      slots_per_layer=slots, steps=4, requests=2,
                      point={"trace": trace, "cache.policy": policy, "cache.slots": slots},
                      summary={"num_experts": number})
        for trace, number in experts.items()
        for policy in ("lru", "lfu") for slots in (4, 8)
    ]  # fmt: skip
    with house_style():
        chart = hit_rate_against_capacity(compare_runs(load_runs(paths)))
    assert chart is not None
    bounds = [dict(zip(chart.columns, row, strict=True)) for row in chart.rows if "MIN" in row[1]]
    assert len({row["setting"] for row in bounds}) == 2
    for row in bounds:
        (number,) = [number for trace, number in experts.items() if trace in row["setting"]]
        assert row["share_of_experts"] == row["slots_per_layer"] / number


def test_one_size_of_the_cache_gives_no_curve(tmp_path: Path) -> None:
    for policy in ("lru", "lfu"):
        run_directory(tmp_path / policy, policy=policy, point={"cache.policy": policy})
    comparison = compare_runs(load_runs([tmp_path / "lru", tmp_path / "lfu"]))
    charts = plots_for_comparison(comparison, tmp_path / "plots")
    assert [chart.name for chart in charts] == [
        "side_by_side", "latency_cdf", "ttft_split", "stall_breakdown"
    ]  # fmt: skip


@pytest.mark.parametrize("word", ["SYNTHETIC ROUTING", "W" * 12, "costed as $x_1$"])
def test_a_caption_stays_inside_its_figure(word: str) -> None:
    from moesim.report.chart import grid

    with drawn_as(Drawing(captions="inside")), house_style():
        chart = grid("x", "x", " ".join([word] * 60), ("x",), height_in=2)
        chart.figure.draw_without_rendering()
        (caption,) = [t for t in chart.figure.texts if t.get_text() == chart.figure.get_supxlabel()]
        box = caption.get_window_extent()
    assert box.x1 <= chart.figure.bbox.x1
    assert box.x1 >= 0.8 * chart.figure.bbox.x1


def test_every_caption_says_requests_seeds_and_what_is_assumed(
    compared: tuple[Comparison, Path],
) -> None:
    captions = {name: (compared[1] / f"{name}.svg").read_text() for name in SWEEP_CHARTS}
    drawn = "12 requests a run, seeds 0, 1; intervals: 95 % t-interval over n = 2"
    pooled = "12 requests a run, seeds 0, 1 (n = 2)"
    for name, caption in captions.items():
        assert (drawn if name in INTERVALS else pooled) in caption
        assert "simulated; costs assumed (datasheet)" in caption
        assert "no error bar: costs are assumed, not measured" in caption
    for name in ("hit_rate_capacity", "side_by_side"):
        assert (
            "Hit: the expert was resident when its layer event began. Late hit: its copy"
            in captions[name]
        )


def test_runs_without_bounds_get_none_drawn_and_say_so(tmp_path: Path) -> None:
    keys = ("min_hit_rate", "infinite_cache_hit_rate", "infinite_cache_makespan_s",
            "infinite_link_makespan_s")  # fmt: skip
    comparison = sweep(tmp_path / "runs", summary=dict.fromkeys(keys))
    with house_style():
        chart = hit_rate_against_capacity(comparison)
    assert chart is not None
    assert {line.get_label() for line in chart.axes[0][0].lines} == {"LRU", "LFU"}
    assert "These runs computed no bounds." in chart.caption


def named(tmp_path: Path, policies: list[str]) -> Comparison:
    for policy in policies:
        path = tmp_path / policy
        if not path.exists():
            run_directory(path, policy=policy, steps=3, requests=1, output_tokens=2)
    return compare_runs([load_run(tmp_path / policy) for policy in policies])


def test_a_policy_has_one_colour_wherever_it_appears(tmp_path: Path) -> None:
    everyone = styles(named(tmp_path, [*SKILL, "acme_cache"]))
    few = styles(named(tmp_path, ["acme_cache", "lfu"]))
    assert {name: everyone[name] for name in few} == few
    assert len({(style.color, style.marker) for style in everyone.values()}) == len(everyone)


def test_unknown_policies_never_share_a_colour_nor_take_one_that_is_given(tmp_path: Path) -> None:
    names = [f"third_party_{number}" for number in range(len(OTHERS))]
    colors = {style.color for style in styles(named(tmp_path, names)).values()}
    assert len(colors) == len(names)
    assert not colors & {color for color, _ in POLICIES.values()}


def test_what_else_differs_changes_the_line_and_not_the_colour(tmp_path: Path) -> None:
    for policy in ("lru", "lfu"):
        for prefetch in ("none", "predicted"):
            run_directory(tmp_path / f"{policy}-{prefetch}", policy=policy, prefetch=prefetch)
    looks = styles(compare_runs(load_runs(sorted(tmp_path.iterdir()))))
    plain, fetched = looks["LRU, no prefetch"], looks["LRU, predicted prefetch"]
    assert plain.color == fetched.color == POLICIES["LRU"][0]
    assert plain.line != fetched.line


def test_csv_has_no_text_for_what_is_undefined(tmp_path: Path) -> None:
    write_csv(tmp_path / "x.csv", ["a", "b", "c"], [[float("nan"), None, 1 / 3]])
    assert (tmp_path / "x.csv").read_text() == "a,b,c\n,,0.3333333333\n"


def test_a_chart_that_fails_leaves_the_old_plots(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError

    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "old.png").write_text("")
    with pytest.raises(RuntimeError):
        save_charts(tmp_path / "plots", [fail])
    assert [file.name for file in tmp_path.iterdir()] == ["plots"]
    assert (tmp_path / "plots" / "old.png").exists()


def test_layers_are_all_shown(drawn: Path) -> None:
    rows = read_csv(drawn / "plots" / "hits_by_layer.csv")
    assert [int(row["layer"]) for row in rows] == list(range(LAYERS))
    for row in rows:
        parts = (row["hits"], row["late_hits"], row["misses"])
        assert sum(map(int, parts)) == int(row["accesses"])


def test_the_captions_of_a_run_name_all_its_policies(tmp_path: Path) -> None:
    fetching = load_run(run_directory(tmp_path / "a", prefetch="predicted", slots_per_layer=5.8125))
    plain = load_run(run_directory(tmp_path / "b"))
    with house_style():
        for draw in (lane_timeline, stall_breakdown):
            policies = "LRU with 5.83 of 16 experts a layer, predicted prefetch, decode_first batch"
            assert policies in draw(fetching).caption
            assert "no prefetch, decode_first batching" in draw(plain).caption


def test_one_seed_has_values_and_no_intervals_in_its_caption(tmp_path: Path) -> None:
    with house_style():
        caption = side_by_side(named(tmp_path, ["lru", "lfu"])).caption
    assert caption.startswith("Value of each variant. ")
    assert "intervals" not in caption.replace("so no intervals", "")


def test_no_variant_has_the_line_of_a_bound_and_legends_show_dashes() -> None:
    dashes = [bound["linestyle"] for bound in BOUNDS.values()]
    assert not set(dashes) & set(LINES)
    assert len(set(dashes)) == len(dashes)
    assert BOUNDS["MIN bound (misses)"]["color"] != POLICIES["MIN (misses)"][0]
    assert HOUSE["legend.handlelength"] >= 3


def test_sizes_of_the_cache_have_three_digits_while_they_stay_distinct() -> None:
    assert _rounded([59.7292, 0.8125, 4.0]) == ["59.7", "0.812", "4"]
    assert _rounded([59.7292, 59.6604]) == ["59.73", "59.66"]
    assert _rounded([1234.5, 7.0]) == ["1230", "7"]
    assert _rounded([1.000001, 1.0000011]) == ["1", "1"], "equal but for the last bits"


@pytest.mark.parametrize("letters", ["i", "W", "one WORD in a line, ", "§ and Ω "])
@pytest.mark.parametrize("length", [1, 90, 400])
def test_captions_are_cut_as_exact_extents_say(
    letters: str, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    caption = " ".join([letters * (1 + number % 7) for number in range(length)])[: 8 * length]
    lines = chart._caption_lines(caption, 7.0)
    monkeypatch.setattr(chart, "_narrow", lambda path, room: path.get_extents().width <= room)
    assert chart._caption_lines(caption, 7.0) == lines
