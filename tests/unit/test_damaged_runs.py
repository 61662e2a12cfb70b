"""A damaged run directory is one typed error of one line, or a report; never a traceback."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib.pyplot as plt
import pyarrow.parquet as pq
import pytest
import yaml
from damage import damage_table, damaged_bytes, damaged_value
from workloads import tiny_trace

import moesim
from moesim.errors import DamagedRun, MoesimError
from moesim.report import compare_runs, load_run
from moesim.report.comparison import Comparison
from moesim.report.lanes import lane_timeline
from moesim.report.several import side_by_side
from moesim.report.single import hits_by_layer, latency_cdf, stall_breakdown
from moesim.report.summary import print_summary
from moesim.report.tables import as_json, tables
from moesim.report.tabular import write_tables

TABLES = ("requests", "steps", "layers", "timeline")
FILES = ("manifest.json", "summary.json", "scenario.yaml", *(f"{name}.parquet" for name in TABLES))
CHARTS = (latency_cdf, stall_breakdown, hits_by_layer, lane_timeline)
EXAMPLES = int(os.environ.get("MOESIM_FUZZ", "1"))
"""Raise it to look further than a test may take time for."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a real run, which tests must not change."""
    home = tmp_path_factory.mktemp("home")
    tiny_trace(requests=2, prompt_tokens=3, output_tokens=3).save(home / "trace")
    scenario = {
        "trace": str(home / "trace"), "hardware": "rtx-4090", "cache": {"slots": "4/layer"},
        "prefetch": {"policy": "predicted"}, "timeline": {"steps": 3},
    }  # fmt: skip
    moesim.run(scenario, out=home / "run")
    return home / "run"


@contextmanager
def copy_of(whole: Path) -> Iterator[Path]:
    with TemporaryDirectory() as temporary:
        yield Path(shutil.copytree(whole, Path(temporary) / "run"))


def seal(run: Path) -> None:
    """Write fitting hashes into the manifest, so that only the content of files can be wrong."""
    try:
        manifest = json.loads((run / "manifest.json").read_text())
        for name in manifest["outputs"]:
            if (run / name).exists():
                digest = hashlib.sha256((run / name).read_bytes()).hexdigest()
                manifest["outputs"][name] = digest
    except (ValueError, TypeError, KeyError):
        return
    (run / "manifest.json").write_text(json.dumps(manifest))


def report(run: Path, charts: tuple[Callable[..., Any], ...] = CHARTS) -> None:
    """Do all that `moesim report` does, without writing files."""
    loaded = load_run(run)
    print_summary(run, io.StringIO())
    comparison: Comparison = compare_runs([loaded, loaded])
    write_tables(tables(comparison), io.StringIO())
    json.dumps(as_json(comparison), allow_nan=False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of matplotlib, about axes without extent
            for chart in charts:
                chart(loaded)
            side_by_side(comparison)
    finally:
        plt.close("all")


def refusal(run: Path, **how: Any) -> MoesimError | None:
    """Return the error of a report; None if the report is made."""
    try:
        report(run, **how)
    except MoesimError as error:
        text = str(error)
        assert "\n" not in text
        assert len(text) < 1000
        assert str(run) in text
        return error
    return None


def damage(run: Path, name: str, rng: random.Random) -> None:
    file = run / name
    if rng.random() < 0.2:
        file.write_bytes(damaged_bytes(file.read_bytes(), rng))
    elif name.endswith(".parquet"):
        damage_table(file, rng)
    elif name.endswith(".json"):
        file.write_text(json.dumps(damaged_value(json.loads(file.read_text()), rng)))
    else:
        file.write_text(yaml.safe_dump(damaged_value(yaml.safe_load(file.read_text()), rng)))


@pytest.mark.parametrize("name", FILES)
def test_any_change_of_a_file_is_found_by_its_hash(name: str, whole: Path) -> None:
    rng = random.Random(name)
    for _ in range(12 * EXAMPLES):
        with copy_of(whole) as run:
            damage(run, name, rng)
            if (run / name).read_bytes() == (whole / name).read_bytes():
                continue
            error = refusal(run, charts=CHARTS if EXAMPLES > 1 else ())
            if name in ("summary.json", "scenario.yaml"):
                assert isinstance(error, DamagedRun)
                assert error.file == str(run / name)


@pytest.mark.parametrize("name", FILES)
def test_nonsense_behind_fitting_hashes_is_one_line_or_a_report(name: str, whole: Path) -> None:
    rng = random.Random(f"sealed {name}")
    for _ in range(3 * EXAMPLES):
        with copy_of(whole) as run:
            damage(run, name, rng)
            seal(run)
            refusal(run)


@pytest.mark.parametrize(
    ("table", "column", "values", "says"),
    [
        ("layers", "hits", ["x", "y"], "column hits must hold numbers, not object"),
        ("layers", "hits", [1.0, float("nan")], "column hits must hold finite numbers"),
        ("layers", "hits", [1, None], "column hits must hold finite numbers"),
        ("steps", "start_ns", [0.0, 1e300], "column start_ns must hold finite numbers"),
        ("timeline", "lane", [1, 2], "column lane must hold text"),
        ("timeline", "kind", ["load", None], "column kind must hold text"),
        ("requests", "token_ns", [1, 2], "column token_ns must hold lists of whole numbers"),
        ("requests", "token_ns", [["x"], []], "column token_ns must hold lists of whole numbers"),
    ],
)
def test_a_column_of_another_kind_is_named(
    table: str, column: str, values: list[Any], says: str, whole: Path
) -> None:
    with copy_of(whole) as run:
        file = run / f"{table}.parquet"
        old = pq.read_table(file)
        values = (values * old.num_rows)[: old.num_rows]
        pq.write_table(old.set_column(old.column_names.index(column), column, [values]), file)
        seal(run)
        error = refusal(run)
        assert isinstance(error, DamagedRun)
        assert error.file == str(file)
        assert error.reason.startswith(says)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["missing", "empty", "folder", "pipe", "device", "loop"])
def test_what_is_no_file_is_refused_without_waiting(name: str, kind: str, whole: Path) -> None:
    with copy_of(whole) as run:
        (run / name).unlink()
        match kind:
            case "empty":
                (run / name).write_bytes(b"")
            case "folder":
                (run / name).mkdir()
            case "pipe":
                os.mkfifo(run / name)
            case "device":
                (run / name).symlink_to("/dev/zero")
            case "loop":
                (run / name).symlink_to(name)
        assert refusal(run) is not None
