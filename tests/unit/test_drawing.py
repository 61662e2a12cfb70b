"""How figures are drawn: sizes, styles, captions, formats, and what is the same in all of them."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from run_directories import run_directory
from typer.testing import CliRunner

from moesim.cli import app
from moesim.errors import UsageError
from moesim.report import compare_runs, load_run, load_runs
from moesim.report.capacity import hit_rate_against_capacity
from moesim.report.chart import Chart, grid, save_charts
from moesim.report.comparison import Comparison
from moesim.report.distribution import latencies_ns
from moesim.report.drawing import FORMATS, Drawing, Size, drawn_as, parse_formats, parse_size
from moesim.report.embedded import embedded, other_files
from moesim.report.figure_styles import check_style
from moesim.report.panels import MOST_BANDS
from moesim.report.several import latency_cdfs
from moesim.report.single import hits_by_layer
from moesim.report.style import house_style, styles_of

POLICIES = ("lru", "lfu", "fifo", "random", "acme")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run directory."""
    return run_directory(tmp_path_factory.mktemp("drawing") / "run", layers=4, steps=12)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """More policies than panels have bands for, with two sizes and two seeds."""
    folder = tmp_path_factory.mktemp("many")
    for policy in POLICIES:
        for slots in (4, 8):
            for seed in (0, 1):
                run_directory(
                    folder / f"{policy}{slots}{seed}", policy=policy, slots_per_layer=slots,
                    seed=seed, steps=12, layers=4, requests=6,
                    point={"cache.policy": policy, "cache.slots": f"{slots}/layer", "seed": seed},
                )  # fmt: skip
    return compare_runs(load_runs(sorted(folder.iterdir())))


def drawn(drawing: Drawing, run: Path, folder: Path) -> dict[str, bytes]:
    """Return the files of one chart that is drawn like this."""
    with drawn_as(drawing):
        save_charts(folder, [partial(hits_by_layer, load_run(run))])
    return {file.suffix: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("page", (7.0, None)), ("column", (3.5, None)), ("3.3x2.5", (3.3, 2.5)),
        ("8.89 x 5.08 cm", (3.5, 2.0)), ("89mm", (89 / 25.4, None)), ("12X8in", (12, 8)),
        ("8.5", (8.5, None)), ("500x300mm", (500 / 25.4, 300 / 25.4)),
    ],
)  # fmt: skip
def test_a_size_has_a_name_or_a_width_with_a_unit(
    text: str, size: tuple[float, float | None]
) -> None:
    found = parse_size(text)
    assert (found.width_in, found.height_in) == pytest.approx(size)


@pytest.mark.parametrize(
    ("text", "said"),
    [("colum", "column"), ("0.1x2in", "in"), ("3px", "89mm"), ("", "page"),
     ("1500x1000", "Without a unit"), ("1in", "at least 2 in")],
)  # fmt: skip
def test_a_size_that_is_none_is_refused_with_an_example(text: str, said: str) -> None:
    with pytest.raises(UsageError, match="--size") as error:
        parse_size(text)
    assert said in str(error.value)


def test_unknown_styles_and_formats_are_refused_with_those_that_exist() -> None:
    with pytest.raises(UsageError, match=r"--style 'papr'.*paper, serif, grey, dark"):
        check_style("papr")
    with pytest.raises(UsageError, match=r"--formats 'png,jpg': 'jpg' is none of png, svg, pdf"):
        parse_formats("png,jpg")
    assert parse_formats("pdf, png") == ("png", "pdf")
    check_style("ggplot")


def test_a_caption_is_beside_the_figure_or_in_it(run: Path, tmp_path: Path) -> None:
    command = "moesim report a b"
    outside = drawn(Drawing(formats=("svg",), command=command), run, tmp_path / "outside")
    inside = drawn(Drawing(formats=("svg",), captions="inside"), run, tmp_path / "inside")
    texts = {name: shown(files[".svg"]) for name, files in (("out", outside), ("in", inside))}
    for files in (outside, inside):
        assert "Hit: the expert was resident" in files[".md"].decode()
    assert f"```sh\n{command}\n```" in outside[".md"].decode()
    assert "Hit: the expert was resident" in texts["in"]
    assert "Hit: the expert was resident" not in texts["out"]


def shown(svg: bytes) -> str:
    """Return the letters of an SVG, which are text and not shapes."""
    return " ".join(re.findall(r"<text[^>]*>([^<]*)<", svg.decode()))


def test_what_a_reader_must_know_stays_in_the_figure(tmp_path: Path) -> None:
    facts = {"routing": "synthetic", "cost_kind": "assumed"}
    run = run_directory(tmp_path / "run", layers=4, steps=12, requests=7, summary=facts)
    text = shown(drawn(Drawing(formats=("svg",)), run, tmp_path / "plots")[".svg"])
    assert "n = 7 requests; simulated; costs assumed (datasheet); SYNTHETIC ROUTING" in text


def test_what_does_not_fit_is_refused_and_no_broken_figure_is_written(tmp_path: Path) -> None:
    def chart() -> Chart:
        made = grid("narrow", "x", "", ("x",), height_in=2)
        made.panels[0].set_ylabel("W" * 300)
        made.panels[0].set_yticks([0, 1], ["W" * 60, "W" * 60])
        return made

    with (
        drawn_as(Drawing(Size(2.0, 1.0), formats=("svg",))),
        pytest.raises(UsageError, match="narrow does not fit into 2 x"),
    ):
        save_charts(tmp_path / "plots", [chart])
    assert not (tmp_path / "plots").exists()


@pytest.mark.parametrize("style", ["paper", "dark", "ggplot"])
def test_equal_data_give_equal_bytes_in_every_style(
    style: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing = Drawing(parse_size("column"), style, formats=FORMATS)
    once = drawn(drawing, run, tmp_path / "once")
    monkeypatch.setattr("time.time", lambda: 2e9)  # dates would differ
    assert drawn(drawing, run, tmp_path / "again") == once
    assert b"CreationDate" not in once[".pdf"]
    assert b"/TrueType" in once[".pdf"] or b"/CIDFontType2" in once[".pdf"]


def test_grey_has_no_colour_and_dark_a_dark_ground(run: Path) -> None:
    from moesim.report.figure_styles import recolour

    for style in ("grey", "dark"):
        with drawn_as(Drawing(style=style)), house_style():
            figure = hits_by_layer(load_run(run)).figure
            recolour(figure, style)
            figure.canvas.draw()
        canvas = figure.canvas
        assert isinstance(canvas, FigureCanvasAgg)
        pixels = np.asarray(canvas.buffer_rgba())[..., :3].astype(int)
        if style == "grey":
            assert np.ptp(pixels, axis=2).max() <= 1
        else:
            assert pixels[2, 2].max() < 40, "the ground"
            assert pixels.max() > 200, "letters"


def test_a_narrow_figure_has_fewer_panels_in_a_row() -> None:
    def panels(size: Size, caption: str = "Left: a. Right: b.") -> Chart:
        with drawn_as(Drawing(size)), house_style():
            return grid("x", "x", caption, ("x",), shape=(2, 4), height_in=4, sharey="row")

    page, column = panels(Size(7.0)), panels(Size(3.5))
    places = [chart.panels[0].get_subplotspec().get_geometry()[:2] for chart in (page, column)]
    assert places == [(2, 4), (4, 2)]
    assert [len(row) for row in column.axes] == [4, 4]
    assert column.axes[0][3].get_shared_y_axes().joined(*column.axes[0][::3])
    assert panels(Size(2.2)).caption == "Top: a. Bottom: b."
    assert panels(Size(7.0, 5.0)).figure.get_figheight() == 5.0
    assert panels(Size(7.0, 2.0)).figure.get_figheight() > 2.5, "more than it can be squeezed into"


def test_percentiles_are_marked_on_each_curve(many: Comparison) -> None:
    with house_style():
        chart = latency_cdfs(many)
    axes = chart.axes[0][0]
    marks = [line for line in axes.lines if line.get_linestyle() == "None"]
    assert len(marks) == len(POLICIES)
    row = many.within(chart.rows[0][0])[0]
    sample = np.concatenate([latencies_ns(run)["ttft"] for run in row.runs])
    scale = np.asarray(marks[0].get_xdata()) / np.percentile(sample, (50, 95, 99))
    assert scale == pytest.approx([scale[0]] * 3)
    assert np.asarray(marks[0].get_ydata()).tolist() == [0.5, 0.95, 0.99]


def test_many_intervals_are_whiskers_and_few_are_bands(many: Comparison) -> None:
    few = compare_runs([run for run in many.runs if run.text("cache_policy") in POLICIES[:2]])
    counts = []
    for comparison in (few, many):
        with house_style():
            chart = hit_rate_against_capacity(comparison)
        assert chart is not None
        (axes,) = chart.axes[0]
        bands = [each for each in axes.collections if hasattr(each, "get_data")]
        counts.append((len(axes.containers), "Shaded" in chart.caption))
        low, high = axes.get_ylim()
        ends = [value for row in chart.rows for value in row[5:7] if value is not None]
        assert low <= min(ends) <= max(ends) <= high
        assert len(bands) in (0, len(few.variants))
    assert counts == [(0, True), (len(POLICIES), False)]
    assert len(few.variants) <= MOST_BANDS < len(POLICIES)


def test_policies_of_other_packages_look_different_from_each_other() -> None:
    names = [f"plugin{number}" for number in range(40)]
    looks = styles_of(names)
    assert len({(look.color, look.marker) for look in looks.values()}) == 40
    assert styles_of(names[:1])["plugin0"] == styles_of(["LRU", "plugin0"])["plugin0"]


DRAWING = ("run", "compare", "report", "curve", "split", "dial", "validate", "measured",
           "trace info", "trace redundancy", "trace locality", "workload info")  # fmt: skip


@pytest.mark.parametrize("command", DRAWING)
def test_every_command_that_draws_has_the_same_options(command: str) -> None:
    shown = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    for option in ("--size", "--style", "--captions", "--formats"):
        assert option in shown.output


def test_the_command_in_a_caption_draws_the_same_bytes(run: Path, tmp_path: Path) -> None:
    options = ["--size", "8.5x6cm", "--style", "serif", "--formats", "svg", "--json"]
    folder = tmp_path / "with space"
    invoked = CliRunner().invoke(app, ["report", str(run), "--out", str(folder), *options])
    assert invoked.exit_code == 0
    before = {file.name: file.read_bytes() for file in (folder / "plots").iterdir()}
    (command,) = re.findall(r"```sh\n(.*)\n```", before["latency_cdf.md"].decode())
    assert "--json" not in command
    import shlex

    for file in (folder / "plots").iterdir():
        file.unlink()
    assert CliRunner().invoke(app, shlex.split(command)[1:]).exit_code == 0
    assert {file.name: file.read_bytes() for file in (folder / "plots").iterdir()} == before


def test_a_wrong_size_is_refused_before_anything_is_simulated(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["run", str(tmp_path / "none.yaml"), "--size", "colum"])
    assert done.exit_code != 0
    assert "colum" in str(done.exception) + done.output


@pytest.mark.parametrize(
    ("formats", "shown", "others"),
    [
        (("png", "svg"), "![T](plots/n.png)", "[SVG](plots/n.svg), [data](plots/n.csv)"),
        (("pdf", "svg"), "![T](plots/n.svg)", "[PDF](plots/n.pdf), [data](plots/n.csv)"),
        (("pdf",), "[T](plots/n.pdf)", "[data](plots/n.csv)"),
    ],
)
def test_a_page_names_the_files_of_a_figure_that_are_there(
    formats: tuple[str, ...], shown: str, others: str
) -> None:
    with drawn_as(Drawing(formats=formats)):
        chart = grid("n", "T", "", (), height_in=1.0)
        assert embedded(chart) == shown
        assert other_files(chart) == others
