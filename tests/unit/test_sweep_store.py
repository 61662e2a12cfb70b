"""Output behind a URL: runs are copied there as they end, and a second sweep finds them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sweep_homes import sweep_home
from typer.testing import CliRunner, Result

from moesim.cli import app
from moesim.errors import MissingExtra, OutputError, UsageError
from moesim.sweep.store import Store, is_url

fsspec = pytest.importorskip("fsspec", reason="fsspec is in the extra `ray`")

KEYS = """\
sweep:
  cache.policy: [lru, fifo]
  seed: [0, 1]
"""
URL = "memory://sweep"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sweep_home(tmp_path_factory.mktemp("store"), KEYS)


@pytest.fixture(autouse=True)
def _empty() -> Iterator[None]:
    """Empty the store of this process before and after a test."""
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    yield
    memory.store.clear()


def compare(home: Path, out: str | Path, *options: str) -> Result:
    command = ["compare", str(home / "demo.yaml"), "--no-plots", "--workers", "1"]
    return CliRunner().invoke(app, [*command, "--out", str(out), *options])


SWEEPS: dict[str, tuple[str, ...]] = {
    "dial": ("--set", "sweep={}", "--recall", "1", "--precision", "1", "--depth", "1", "--link",
             "1x", "--seeds", "1"),
    "search": ("--maximize", "output_tokens_per_s", "--runs", "5", "--prefix", "0.5", "--over",
               "cache.slots=1/layer..3/layer", "--over", "cache.policy=lru,fifo"),
}  # fmt: skip


def ended(command: str, home: Path, out: str) -> Result:
    arguments = [command, str(home / "demo.yaml"), *SWEEPS[command], "--workers", "1"]
    result = CliRunner().invoke(app, [*arguments, "--out", out])
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize("command", SWEEPS)
def test_other_sweeps_write_there_too_and_repeat_no_run(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    ended(command, home, str(tmp_path / "o"))
    made = ended(command, home, URL)
    assert made.stdout.splitlines()[-1] == URL
    local = {
        file.relative_to(tmp_path / "o").as_posix(): file
        for file in (tmp_path / "o").rglob("*.*")
        if file.is_file() and not file.name.startswith(".")
    }
    there = stored()
    assert there.keys() == local.keys()
    page = there[f"{command}.json"].decode()
    assert page.replace(URL, str(tmp_path / "o")) == local[f"{command}.json"].read_text()

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a run is repeated")

    monkeypatch.setattr("moesim.simulate.run", never)
    ended(command, home, URL)
    again = stored()
    assert {name for name in again if not again[name].startswith(there[name])} == set()
    if command == "search":  # as where the machine of the command was lost
        assert len(again["optuna.journal"]) < 1.5 * len(there["optuna.journal"])
        fsspec.filesystem("memory").rm_file("/sweep/optuna.journal")
        ended(command, home, URL)
        assert stored()[f"{command}.json"] == there[f"{command}.json"]


def stored() -> dict[str, bytes]:
    memory = fsspec.filesystem("memory")
    return {name.removeprefix("/sweep/"): memory.cat_file(name) for name in memory.find("/sweep")}


def test_a_sweep_behind_a_url_holds_what_a_folder_would(home: Path, tmp_path: Path) -> None:
    assert compare(home, tmp_path / "local").exit_code == 0
    done = compare(home, URL)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == URL
    files = stored()
    local = [file for file in (tmp_path / "local").rglob("*.*") if file.is_file()]
    assert set(files) == {file.relative_to(tmp_path / "local").as_posix() for file in local}
    for name in ("compare.csv", "runs.csv"):
        assert files[name] == (tmp_path / "local" / name).read_bytes()
    texts = [text.decode() for name, text in files.items() if name.endswith("scenario.yaml")]
    assert all(f"trace: {home}/trace\n" in text for text in texts)  # from wherever it is read


def test_finished_runs_are_found_there_and_only_others_are_made(home: Path) -> None:
    compare(home, URL)
    memory = fsspec.filesystem("memory")
    before = stored()
    lost = "cache.policy=fifo,seed=1"
    memory.rm_file(f"/sweep/runs/{lost}/manifest.json")  # as if the copy had been cut short
    assert compare(home, URL).exit_code == 0
    after = stored()
    assert after.keys() == before.keys()
    changed = {name for name in after if after[name] != before[name]}
    assert changed <= {f"runs/{lost}/manifest.json"}  # its wall time


def test_runs_of_another_scenario_are_not_overwritten_there(home: Path) -> None:
    compare(home, URL)
    before = stored()
    refused = compare(home, URL, "--set", "batching.max_sequences=1")
    assert isinstance(refused.exception, OutputError)
    assert stored() == before
    assert compare(home, URL, "--set", "batching.max_sequences=1", "--force").exit_code == 0
    assert stored() != before


def test_a_store_that_cannot_be_written_is_named_before_anything_runs(
    home: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    refused = compare(home, f"file://{tmp_path}/file/out")
    assert isinstance(refused.exception, OutputError)
    assert f"cannot write file://{tmp_path}/file/out" in str(refused.exception)


def test_a_copy_that_fails_ends_the_sweep_with_the_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(URL)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").touch()

    def full(*_: object) -> None:
        raise OSError("quota exceeded")

    monkeypatch.setattr(store._files, "put_file", full)
    store.save_run(tmp_path / "run", "runs/run")
    with pytest.raises(OutputError, match="memory://sweep: OSError: quota exceeded"):
        store.close()


def test_a_manifest_is_copied_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("manifest.json", "summary.json", "zz.parquet"):
        (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "run" / name).touch()
    store, order = Store(URL), []
    monkeypatch.setattr(store._files, "put_file", lambda _, target: order.append(target))
    store.save_run(tmp_path / "run", "runs/run")
    store.close()
    assert [name.rpartition("/")[2] for name in order] == [
        "summary.json", "zz.parquet", "manifest.json",
    ]  # fmt: skip
    shutil.rmtree(tmp_path / "run")


@pytest.mark.parametrize("text", ["nosuch://bucket/x", "s3://bucket/x"])
def test_a_url_of_a_kind_that_is_not_there_is_refused(
    home: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)  # as if it were not installed
    refused = compare(home, text)
    assert isinstance(refused.exception, UsageError)
    assert f"--out {text}: " in str(refused.exception)


def test_without_fsspec_the_extra_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fsspec.core", None)
    refused = compare(home, URL)
    assert isinstance(refused.exception, MissingExtra)
    assert "'.[ray]'" in str(refused.exception)


def test_a_path_is_no_url() -> None:
    assert is_url("s3://a/b")
    assert is_url("gcs+x://a")
    assert not any(map(is_url, ("", "a/b", "://x", "a b://c", "C:\\x", "runs/a:b")))
