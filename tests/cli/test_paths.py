"""A path means the same everywhere: on the command line, in a scenario, from Python, to Arrow."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result
from workloads import tiny_trace

import moesim
from moesim.cli import app
from moesim.errors import MoesimError, OutputError, UsageError
from moesim.files import as_path
from moesim.report import load_run
from moesim.simulate.rundir import TABLES
from moesim.trace import load_trace, validate_trace

SCENARIO = "hardware: rtx-4090\ncache: {slots: 4/layer}\nbounds: false\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home and working folder, with a trace and a scenario in it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    tiny_trace(requests=1, prompt_tokens=2, output_tokens=2).save(tmp_path / "trace")
    (tmp_path / "x.yaml").write_text(f"trace: ~/trace\n{SCENARIO}")
    return tmp_path


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_tilde_is_the_home_folder_on_the_command_line_and_in_a_scenario(home: Path) -> None:
    done = command("run", "~/x.yaml", "--out=~/run", "--set", "trace=~/trace", "--no-plots")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == str(home / "run")
    assert command("report", "~/run", "--no-plots").exit_code == 0
    assert command("trace", "info", "~/trace").exit_code == 0
    assert sorted(path.name for path in home.iterdir()) == ["run", "trace", "x.yaml"]


def test_a_tilde_is_the_home_folder_in_python(home: Path) -> None:
    result = moesim.run("~/x.yaml", out="~/run")
    assert result.path == home / "run"
    assert load_run("~/run").path == home / "run"
    assert load_trace("~/trace").save("~/copy").path == home / "copy"
    assert as_path("./~") == Path("~")
    assert as_path("a~b/~") == Path("a~b/~")


@pytest.mark.parametrize("scheme", ["s3:x", "gs:x", "file:x", "hdfs:x"])
def test_a_name_with_a_colon_is_a_path_to_arrow_too(scheme: str, home: Path) -> None:
    (home / scheme).mkdir()
    (home / "trace").rename(home / scheme / "trace")
    trace = f"trace={scheme}/trace"
    for _ in range(2):  # the second time, the run is read back
        done = command("run", "x.yaml", "--set", trace, "--out", f"{scheme}/run", "--no-plots")
        assert done.exit_code == 0, done.output
        assert done.stdout.splitlines()[-1] == f"{scheme}/run"
    assert command("report", f"{scheme}/run", "--no-plots").exit_code == 0
    assert validate_trace(f"{scheme}/trace").num_requests == 1
    assert {f"{name}.parquet" for name in TABLES} <= set(os.listdir(home / scheme / "run"))


IMPOSSIBLE = {
    "long": ("n" * 300, "File name too long"),
    "loop": ("loop", "Too many levels of symbolic links"),
}


@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_an_impossible_path_is_one_line_in_every_command(kind: str, home: Path) -> None:
    (home / "loop").symlink_to("loop")
    path, says = IMPOSSIBLE[kind]
    sweep = ("--set", "sweep={seed: [0, 1]}")
    for arguments in (
        ("run", "x.yaml", "--out", path),
        ("compare", "x.yaml", *sweep, "--out", path),
        ("compare", path),
        ("run", path),
        ("report", path),
        ("trace", "info", path),
        ("trace", "synth", path),
        ("calibrate", "--model", "mixtral-8x7b", "--out", path),
    ):
        done = command(*arguments)
        assert isinstance(done.exception, UsageError), arguments
        assert says in str(done.exception)
        assert "\n" not in str(done.exception)


@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_an_impossible_path_is_a_typed_error_in_python(kind: str, home: Path) -> None:
    (home / "loop").symlink_to("loop")
    path, _ = IMPOSSIBLE[kind]
    with pytest.raises(OutputError):
        moesim.run("x.yaml", out=path)
    for read in (load_trace, load_run, moesim.run):
        with pytest.raises(MoesimError):
            read(path)


def test_a_scenario_whose_name_is_too_long_for_a_folder_is_refused(home: Path) -> None:
    name = f"name={'n' * 300}"
    for arguments in (
        ("run", "x.yaml", "--set", name),
        ("compare", "x.yaml", "--set", name, "--set", "sweep={seed: [0, 1]}"),
    ):
        done = command(*arguments, "--no-plots")
        assert isinstance(done.exception, OutputError), done.exception
        assert "File name too long" in str(done.exception)


@pytest.mark.parametrize("path", ["a\0b", None, 3, object()])
def test_what_is_no_path_is_a_usage_error(path: object) -> None:
    for read in (load_trace, load_run, as_path):
        with pytest.raises(UsageError, match="is no path"):
            read(path)  # type: ignore[arg-type]
