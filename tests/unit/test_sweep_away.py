"""Runs on other machines are the same bytes as local ones, whatever those machines lack."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from fake_cluster import FakeCluster, Held
from sweep_homes import KNOBS, content, sweep_home

from moesim.errors import MoesimError, OutputError, UsageError
from moesim.scenario import load_scenario
from moesim.simulate.rundir import put
from moesim.sweep import LocalProcesses, Point, points_of, simulate_points
from moesim.sweep.addresses import Address, check_reachable
from moesim.sweep.backend import UnlikeMachine
from moesim.trace.synthetic import synthesize

KEYS = """\
cache: {slots: 4/layer}
prefetch: {policy: popularity, options: {profile: other}}
sweep:
  cache.policy: [lru, "mine.py:Mine"]
  seed: [0, 1]
"""
POLICY = """\
from moesim.policies.eviction.lru import LRU

class Mine(LRU):
    pass
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a scenario of two traces and a policy's file; no policy is loaded yet."""
    folder = sweep_home(tmp_path / "home", KEYS)
    synthesize(dataclasses.replace(KNOBS, seed=5)).save(folder / "other")
    (folder / "mine.py").write_text(POLICY)
    store = tmp_path / "store"
    store.mkdir()
    monkeypatch.setattr("moesim.policies.references._loaded", {})
    monkeypatch.setattr("moesim.sweep.inputs.private_folder", lambda: store)
    monkeypatch.setattr("moesim.sweep.away.private_folder", lambda: store)
    monkeypatch.setattr("moesim.sweep.away._runs_folder", lambda: store / "runs")
    return folder


def points(home: Path, out: str) -> list[Point]:
    return points_of(load_scenario(home / "demo.yaml"), home.parent / out)


@pytest.fixture
def local(home: Path) -> dict[str, Any]:
    results = list(simulate_points(points(home, "local"), LocalProcesses(1)))
    assert [result.error for result in results] == [None] * 4
    return content(home.parent / "local")


def without_disk(home: Path) -> Callable[[Callable[[Any], Any], Any], Any]:
    """Return a machine on which the folder with the scenario's inputs does not exist."""

    def around(work: Callable[[Any], Any], task: Any) -> Any:
        home.rename(home.with_name("hidden"))
        try:
            return work(task)
        finally:
            home.with_name("hidden").rename(home)

    return around


@pytest.mark.parametrize("backwards", [False, True])
def test_a_run_elsewhere_is_the_same_bytes_in_whatever_order(
    home: Path, local: Mapping[str, Any], backwards: bool
) -> None:
    cluster = FakeCluster(backwards=backwards)
    results = list(simulate_points(points(home, "cloud"), cluster))
    assert [result.error for result in results] == [None] * 4
    assert content(home.parent / "cloud") == local
    assert cluster.shared == []  # this machine has all inputs at their places
    assert list((home.parent / "store" / "runs").iterdir()) == []


def test_a_machine_without_the_inputs_gets_each_once_and_makes_the_same_bytes(
    home: Path, local: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moesim.policies.references._loaded", {})  # of a process of its own
    cluster = FakeCluster(without_disk(home))
    results = list(simulate_points(points(home, "cloud"), cluster))
    assert [result.error for result in results] == [None] * 4
    assert content(home.parent / "cloud") == local
    assert [held.reads for held in cluster.shared] == [1, 1, 1]  # two traces and a policy


def test_an_input_that_is_too_large_to_send_is_named(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moesim.sweep.inputs.MOST_SHIPPED", 1)
    with pytest.raises(UsageError, match=r"home/trace: has .* bytes, and a worker's machine lacks"):
        list(simulate_points(points(home, "cloud"), FakeCluster(without_disk(home))))


def test_an_input_that_changes_during_a_sweep_is_stored_nowhere(home: Path) -> None:
    class Slow(FakeCluster):
        def share(self, value: Any) -> Held:
            (home / "trace" / "trace.json").write_text("{}")  # too late for the hash
            return super().share([(name, content[:-1]) for name, content in value])

    (result,) = simulate_points(points(home, "cloud")[:1], Slow(without_disk(home)))
    assert "has changed since the sweep began" in str(result.error)
    assert [path.name for path in (home.parent / "store").iterdir() if path.is_dir()] == []


def test_a_machine_with_another_moesim_makes_no_run(home: Path) -> None:
    def older(work: Callable[[Any], Any], task: Any) -> Any:
        return work(dataclasses.replace(task, code="0" * 64))

    results = list(simulate_points(points(home, "cloud"), FakeCluster(older)))
    assert {type(result.error) for result in results} == {UnlikeMachine}
    assert "install the same version on all machines" in str(results[0].error)
    assert not (home.parent / "cloud").exists()


def test_a_run_of_another_fingerprint_is_refused(home: Path) -> None:
    def other(work: Callable[[Any], Any], task: Any) -> Any:
        files = work(task)
        manifest = json.loads(files["manifest.json"])
        return {**files, "manifest.json": json.dumps({**manifest, "fingerprint": "0"}).encode()}

    results = list(simulate_points(points(home, "cloud"), FakeCluster(other)))
    assert all("made another run" in str(result.error) for result in results)
    assert not (home.parent / "cloud").exists()


def test_a_point_that_fails_elsewhere_stops_no_other(home: Path) -> None:
    def full(work: Callable[[Any], Any], task: Any) -> Any:
        if task.values["seed"] == 1:
            raise MoesimError("no space")
        return work(task)

    results = list(simulate_points(points(home, "cloud"), FakeCluster(full)))
    assert [str(result.error) for result in results] == ["None", "no space"] * 2
    assert len(list((home.parent / "cloud").iterdir())) == 2


def test_a_run_that_exists_is_replaced_only_by_force(home: Path) -> None:
    some = points(home, "cloud")[:1]
    assert next(simulate_points(some, FakeCluster())).error is None
    refused = next(simulate_points(some, FakeCluster())).error
    assert isinstance(refused, OutputError)
    assert next(simulate_points(some, FakeCluster(), force=True)).error is None


def test_a_file_from_a_worker_stays_inside_its_run(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"a file with the name '\.\./x'"):
        put({"../x": b""}, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_copy_that_a_machine_has_is_not_fetched_again(home: Path) -> None:
    list(simulate_points(points(home, "cloud"), FakeCluster(without_disk(home))))
    shutil.rmtree(home.parent / "cloud")
    second = FakeCluster(without_disk(home))
    results = list(simulate_points(points(home, "cloud"), second))
    assert [result.error for result in results] == [None] * 4
    assert second.shared == []


@pytest.mark.parametrize(
    "text", ["", "Ray", "ray:", "ray://", "ray://a b", "ray://h:0", "ray://h:x"]
)
def test_what_is_no_address_is_refused_with_those_that_are(text: str) -> None:
    with pytest.raises(UsageError, match="write local, ray"):
        Address.of(text)


def test_an_address_without_a_port_is_that_of_the_client_server() -> None:
    assert Address.of("ray://head").for_ray == "ray://head:10001"
    assert Address.of("ray://[::1]:7").host == "::1"
    assert Address.of("ray://auto").for_ray == "auto"


def test_an_address_at_which_nothing_answers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr("socket.create_connection", refuse)
    with pytest.raises(UsageError, match=r"nothing answers at head:7 \(Connection refused\)"):
        check_reachable(Address.of("ray://head:7"))
