"""`moesim dial`, from a scenario to the break-even line, for real."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result
from workloads import TINY_CONFIG, tiny_trace

from moesim.cli import app
from moesim.dial import Grid, Link, dial_points
from moesim.errors import UsageError
from moesim.scenario import load_scenario
from moesim.simulate import Result as Simulated
from moesim.simulate import run
from moesim.trace import Trace

LAYERS, EXPERTS, TOKENS = 8, 64, 40
BYTES_PER_S = 25 * 10**9
SCENARIO = "trace: trace\nhardware: rtx-4090\ncache: {slots: 3/layer}\n"
SMALL = ["--recall", "0,1", "--precision", "0.5,1", "--depth", "1", "--seeds", "2"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small trace, a scenario, and one whose break-even is known."""
    home = tmp_path_factory.mktemp("dial")
    tiny_trace(requests=3).save(home / "trace")
    (home / "x.yaml").write_text(SCENARIO)
    never_again().save(home / "walk")
    (home / "walk.yaml").write_text(
        "trace: walk\ncache: {slots: 4/layer}\n"
        f"hardware: {{profile: rtx-4090, h2d: {{bandwidth: {BYTES_PER_S} B/s, latency: 0us}}}}\n"
    )
    return home


def never_again() -> Trace:
    """Return a trace of one request in which each layer wants another expert at each token."""
    config = {**TINY_CONFIG, "num_hidden_layers": LAYERS, "num_local_experts": EXPERTS}
    ids = (np.arange(TOKENS)[:, None] + np.arange(LAYERS)) % EXPERTS
    return Trace.from_arrays(
        expert_ids=ids[..., None],
        seq_len=[TOKENS],
        prompt_tokens=[1],
        num_experts=EXPERTS,
        model_config={**config, "num_experts_per_tok": 1},
    )


def dial(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["dial", *map(str, arguments), "--workers", "1", "--no-plots"])


def answer(*arguments: object) -> Any:
    result = dial(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def steps_ns(result: Simulated) -> int:
    summary = result.summary
    return round(1e9 * summary["window_s"]) - round(1e9 * summary["idle_s"])


def test_the_ends_of_the_dial_are_the_oracle_and_no_prefetch(home: Path) -> None:
    out = home / "ends"
    data = answer(home / "x.yaml", *SMALL, "--link", "0.5x,1x", "--out", out)
    assert [(plane["link"], plane["depth"]) for plane in data["planes"]] == [
        ("12.5GB/s (0.5x)", 1),
        ("25GB/s", 1),
    ]
    plane = data["planes"][1]
    sets = ["bounds=false", "prefetch.policy"]
    none = steps_ns(run(load_scenario(home / "x.yaml", [sets[0], f"{sets[1]}=none"])))
    oracle = steps_ns(run(load_scenario(home / "x.yaml", [sets[0], f"{sets[1]}=oracle"])))
    cells = {(cell["recall"], cell["precision"]): cell for cell in plane["cells"]}
    assert round(1e9 * plane["base_time_in_steps_s"]) == none
    assert oracle != none
    for precision in (0.5, 1.0):
        nothing = cells[0.0, precision]
        assert (round(1e9 * nothing["time_in_steps_s"]), nothing["verdict"]) == (none, "equal")
    assert round(1e9 * cells[1.0, 1.0]["time_in_steps_s"]) == oracle
    assert plane["perfect_saved_pct"] == pytest.approx(100 * (none - oracle) / none)


def test_break_even_is_where_wrong_copies_take_as_long_as_right_ones_hide(home: Path) -> None:
    """A layer computes in c and loads in t > c; each right copy comes with w wrong ones.

    On demand it takes t + c. Ahead the link never rests, so it takes (1 + w) t. Both are equal at
    w = c / t, which is the precision t / (t + c).
    """
    data = answer(
        home / "walk.yaml", "--recall", "1", "--precision", "0.4,0.5,0.58,0.63,0.7,0.8",
        "--depth", "1", "--link", "1x", "--seeds", "4", "--out", home / "walked",
    )  # fmt: skip
    (plane,) = data["planes"]
    load_ns = 3 * 512 * 1024 * 2 * 1e9 / BYTES_PER_S  # three matrices of 16-bit numbers
    layer_ns = 1e9 * plane["base_time_in_steps_s"] / (TOKENS * LAYERS)
    assert load_ns > layer_ns - load_ns
    expected = load_ns / layer_ns
    (border,) = plane["borders"]
    assert border["claimed"]
    assert border["fails_at_precision"] < expected < border["pays_from_precision"]
    assert border["mean_precision"] == pytest.approx(expected, abs=0.02)
    (needed,) = plane["pays_from"]
    assert needed == {"recall": 1.0, "precision": border["pays_from_precision"]}
    assert f"pays from recall 1 at precision {needed['precision']:g}" in data["sentence"]


def test_more_recall_saves_more_where_no_copy_is_wrong(home: Path) -> None:
    (plane,) = answer(
        home / "walk.yaml", "--recall", "0,0.25,0.5,0.75,1", "--precision", "1", "--depth", "1",
        "--link", "1x", "--seeds", "3", "--out", home / "recall",
    )["planes"]  # fmt: skip
    saved = [cell["saved_pct"] for cell in plane["cells"]]
    assert saved == sorted(saved)
    assert saved[-1] > saved[1] > saved[0] == 0
    assert plane["pays_from"] == [{"recall": 0.25, "precision": 1.0}]


def test_prefetch_does_not_pay_where_a_busy_link_has_no_idle_time(home: Path) -> None:
    data = answer(home / "walk.yaml", *SMALL, "--link", "1MB/s,1x", "--out", home / "slow")
    assert "at 1MB/s it never pays" in data["sentence"]
    data = answer(home / "walk.yaml", *SMALL, "--link", "1MB/s", "--out", home / "slow")
    assert "prefetch does not pay" in data["sentence"]
    assert "the link is busy 100 % of this time without prefetch" in data["sentence"]


def test_prefetch_does_not_pay_where_nothing_is_missed(home: Path) -> None:
    ids = np.zeros((12, 4, 2), int) + np.array([0, 1])
    Trace.from_arrays(
        expert_ids=ids, seq_len=[12], prompt_tokens=[1], num_experts=8, model_config=TINY_CONFIG
    ).save(home / "same")
    (home / "same.yaml").write_text(
        "trace: same\nhardware: rtx-4090\n"
        "cache: {policy: static, options: {profile: same}, slots: 3/layer}\n"
    )
    data = answer(home / "same.yaml", *SMALL, "--link", "1x", "--out", home / "same-dial")
    assert "because nothing is missed" in data["sentence"]


def test_a_trace_that_no_model_made_is_named_in_the_sentence_and_the_caption(home: Path) -> None:
    data = answer(home / "x.yaml", *SMALL, "--link", "1x", "--out", home / "ends")
    assert "(trace trace [synthetic routing])" in data["sentence"]
    assert data["caption"].startswith("SYNTHETIC ROUTING")
    assert data["sentence"].startswith("On rtx-4090 with a link of 25GB/s")


def test_one_seed_has_no_interval_and_the_sentence_says_so(home: Path) -> None:
    arguments = [*SMALL[:-1], "1", "--link", "1x", "--out", home / "one"]
    data = answer(home / "x.yaml", *arguments)
    assert "there is one seed, so no interval stands behind this" in data["sentence"]
    assert {cell["saved_low_pct"] for cell in data["planes"][0]["cells"]} == {None}


def test_the_folder_has_the_table_the_page_and_the_picture(home: Path) -> None:
    out = home / "files"
    arguments = [home / "x.yaml", *SMALL, "--link", "1x", "--out", out]
    result = CliRunner().invoke(app, ["dial", *map(str, arguments), "--workers", "1"])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(out)
    assert {path.name for path in out.iterdir()} == {
        "dial.csv", "dial.json", "dial.md", "plots", "runs",
    }  # fmt: skip
    assert (out / "plots" / "break_even.png").stat().st_size > 10_000
    rows = list(csv.DictReader((out / "dial.csv").read_text().splitlines()))
    assert len(rows) == 4
    data = json.loads((out / "dial.json").read_text())
    text = (out / "dial.md").read_text()
    assert data["sentence"] in result.stdout
    assert data["sentence"].replace("[", "\\[") in text
    assert f"moesim dial {home / 'x.yaml'} --recall 0,1" in text
    caption = (out / "plots" / "break_even.svg").read_text()
    assert "SYNTHETIC ROUTING" in caption


def test_finished_runs_are_kept_and_a_larger_grid_adds_to_them(home: Path) -> None:
    out = home / "grown"
    first = ["--recall", "1", "--precision", "1", "--depth", "1", "--link", "1x", "--seeds", "1"]
    assert dial(home / "x.yaml", *first, "--out", out).exit_code == 0
    kept = {path: path.stat().st_mtime_ns for path in (out / "runs").iterdir()}
    assert len(kept) == 2
    assert dial(home / "x.yaml", *SMALL, "--link", "1x", "--out", out).exit_code == 0
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert len(list((out / "runs").iterdir())) > 2
    result = dial(home / "x.yaml", "--set", "cache.slots=2/layer", *SMALL, "--out", out)
    assert "points were made from another scenario" in str(result.exception)


def test_other_keys_of_prefetch_stay_and_the_run_without_prefetch_has_none(home: Path) -> None:
    plain = load_scenario(home / "x.yaml", ["system=mixtral-offloading"])
    kept = plain.prefetch.model_dump(exclude={"policy", "options"})
    grid = Grid((1.0,), (0.5,), (2,), (Link("2x", 2.0),), 1)
    none, half, perfect = dial_points(plain, grid, home)
    assert none.point.scenario.prefetch == type(plain.prefetch)()
    for each, precision in ((half, 0.5), (perfect, 1.0)):
        prefetch = each.point.scenario.prefetch
        assert (prefetch.policy, prefetch.options) == (
            "dial",
            {"recall": 1.0, "precision": precision, "depth": 2},
        )
        assert prefetch.model_dump(exclude={"policy", "options"}) == kept
    links = {each.point.scenario.load_hardware().h2d.pinned_bytes_per_s for each in (none, half)}
    assert links == {2 * plain.load_hardware().h2d.pinned_bytes_per_s}


def test_the_dial_fills_the_buffers_of_the_scenario(home: Path) -> None:
    arguments = ["--recall", "0,1", "--precision", "0.5", "--depth", "1", "--link", "1x"]
    saved = {}
    for buffers in (0, 2):
        override = ["--set", f"prefetch.buffers={buffers}"]
        out = home / f"buffers-{buffers}"
        (plane,) = answer(home / "x.yaml", *override, *arguments, "--out", out)["planes"]
        saved[buffers] = [cell["saved_pct"] for cell in plane["cells"]]
    assert saved[0][0] == saved[2][0] == 0  # slots are given, so buffers take none from them
    assert saved[0][1] != saved[2][1]


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("sweep={seed: [0, 1]}", "sweep: `moesim dial` sweeps accuracies of one run"),
        ("cache.slots=100%", "cache.slots: all 32 experts have a slot"),
        (
            "placement={policy: cpu_layers, options: {layers: 1}}",
            "placement.policy: cpu_layers fixes which experts are in GPU memory",
        ),
    ],
)
def test_scenarios_in_which_no_predictor_can_help_are_refused(
    home: Path, override: str, problem: str
) -> None:
    result = dial(home / "x.yaml", "--set", override, *SMALL, "--out", home / "refused")
    assert problem in str(result.exception)
    assert not (home / "refused").exists()


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("--recall", "0,1.5", "--recall 0,1.5: '1.5' is not a share"),
        ("--precision", "0,1", "--precision 0,1: 0 is no precision"),
        ("--depth", "0", "--depth 0: '0' is not a number of layers"),
        ("--link", "0x", "--link 0x: '0x' is not a factor"),
        ("--link", "fast", "a factor of the own speed is written like 2x"),
        ("--link", "0GB/s", "must be positive"),
    ],
)
def test_a_grid_that_is_none_is_refused(home: Path, option: str, value: str, problem: str) -> None:
    result = dial(home / "x.yaml", option, value, "--out", home / "refused")
    assert problem in str(result.exception)


def test_a_depth_beyond_the_layers_of_the_trace_is_refused(home: Path) -> None:
    arguments = ["--recall", "1", "--precision", "1", "--link", "1x", "--seeds", "1"]
    result = dial(home / "x.yaml", *arguments, "--depth", "1,5", "--out", home / "deep")
    assert isinstance(result.exception, UsageError)
    assert str(result.exception).startswith("--depth 5: the trace has 4 MoE layers")
    assert "give at most 4" in str(result.exception)
    assert not (home / "deep").exists()
    assert dial(home / "x.yaml", *arguments, "--depth", "4", "--out", home / "deep").exit_code == 0


def test_each_seed_draws_other_predictions_and_has_a_baseline_of_its_own(home: Path) -> None:
    points = dial_points(
        load_scenario(home / "x.yaml", ["seed=5"]), Grid((0.5,), (0.5,), (1,), (Link("1x"),)), home
    )
    seeds = [each.point.scenario.seed for each in points]
    assert seeds == [each.seed for each in points] == [5] * 3 + [6] * 3 + [7] * 3
    assert [each.depth for each in points] == [0, 1, 1] * 3
    assert len({each.point.folder for each in points}) == 9
