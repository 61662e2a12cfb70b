"""A policy named by its file or module passes the checks of a registered one."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from workloads import tiny_trace

from moesim.errors import ScenarioError, UsageError
from moesim.policies import names, references
from moesim.policies.registry import find
from moesim.report.comparison import compare_runs
from moesim.report.names import policy_label
from moesim.report.runs import load_run
from moesim.scenario import Scenario, expand_sweep, load_scenario
from moesim.simulate import run
from moesim.simulate.rundir import fingerprint, input_hashes, policy_hashes

EVICTION = """
from dataclasses import dataclass
from pathlib import Path
from moesim.policies.eviction import LRU
from moesim.policies.prefetch import Prefetch

@dataclass(frozen=True)
class Knobs:
    number: int = 1
    table: Path | None = None

class Mine(LRU):
    Options = Knobs

class Other(LRU):
    pass

class fifo(LRU):
    pass

class NoPolicy:
    pass

class Ahead(Prefetch):
    def wanted(self, view):
        return ()

class Unfinished(Prefetch):
    pass

number = 3
"""
PLACEMENT = """
from moesim.policies.placement import Placement

class Never(Placement):
    lanes = ("cpu",)

    def place(self, view, absent, estimate):
        return dict.fromkeys(absent, "cpu")
"""
BATCHING = """
from moesim.policies.batching import Batching

class Refuses(Batching):
    def plan(self, *arguments):
        raise RuntimeError("on purpose")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder with a trace and policies; forget what was loaded after the test."""
    before = set(sys.modules), dict(references._loaded), dict(references._hashes)
    tiny_trace().save(tmp_path / "trace")
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "mine.py").write_text(EVICTION)
    (tmp_path / "policies" / "place.py").write_text(PLACEMENT)
    (tmp_path / "policies" / "batch.py").write_text(BATCHING)
    yield tmp_path
    for name in set(sys.modules) - before[0]:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
    references._loaded.clear()
    references._loaded.update(before[1])
    references._hashes.clear()
    references._hashes.update(before[2])


def scenario_in(
    folder: Path, text: str = "cache: {policy: 'policies/mine.py:Mine', slots: 8}"
) -> Path:
    path = folder / "s.yaml"
    path.write_text(f"trace: trace\nhardware: rtx-4090\nbounds: false\n{text}\n")
    return path


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(ScenarioError) as error:
        load_scenario(scenario_in(folder, text))
    return str(error.value)


def test_a_policy_in_a_file_decides_like_the_registered_one_that_it_copies(folder: Path) -> None:
    mine = run(load_scenario(scenario_in(folder))).summary
    lru = run(load_scenario(scenario_in(folder, "cache: {policy: lru, slots: 8}"))).summary
    assert mine["cache_policy"] == "Mine"
    assert mine["misses"] == lru["misses"] > 0


def test_every_section_takes_a_policy_from_a_file(folder: Path) -> None:
    text = (
        "prefetch: policies/mine.py:Ahead\nplacement: policies/place.py:Never\n"
        "cache: {policy: 'policies/mine.py:Other', slots: 8}"
    )
    summary = run(load_scenario(scenario_in(folder, text))).summary
    assert summary["prefetch_policy"] == "Ahead"
    assert summary["placement_policy"] == "Never"
    with pytest.raises(Exception, match=r"'Refuses' broke its contract .*at 'plan'.*on purpose"):
        run(load_scenario(scenario_in(folder, "batching: policies/batch.py:Refuses")))


def test_a_relative_path_starts_at_the_folder_of_the_scenario(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario_in(folder)
    monkeypatch.chdir(folder.parent)
    scenario = load_scenario(f"{folder.name}/s.yaml")
    assert scenario.cache.policy == f"{folder / 'policies' / 'mine.py'}:Mine"


def test_a_path_of_set_starts_at_the_working_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario_in(folder)
    monkeypatch.chdir(folder / "policies")
    (folder / "policies" / "t.csv").write_text("1")
    overrides = ["cache.policy=mine.py:Mine", "cache.options.table=t.csv"]
    scenario = load_scenario(folder / "s.yaml", overrides)
    assert scenario.cache.policy == f"{folder / 'policies' / 'mine.py'}:Mine"
    assert scenario.path(scenario.cache.options["table"]).resolve().name == "t.csv"
    assert input_hashes(scenario)["cache.options.table"]


def test_the_written_scenario_names_the_file_from_its_own_folder(folder: Path) -> None:
    out = folder / "runs" / "one"
    run(load_scenario(scenario_in(folder)), out=out)
    written = (out / "scenario.yaml").read_text()
    assert "policy: ../../policies/mine.py:Mine" in written
    assert load_scenario(out / "scenario.yaml").cache == load_scenario(folder / "s.yaml").cache


def test_the_fingerprint_depends_on_the_source_and_not_on_the_folder(folder: Path) -> None:
    scenario = load_scenario(scenario_in(folder))
    assert "cache.policy" in policy_hashes(scenario)
    before = fingerprint(scenario)
    copied = folder / "elsewhere" / "deep"
    copied.mkdir(parents=True)
    for name in ("policies", "trace"):
        os.rename(folder / name, copied / name)
    assert fingerprint_elsewhere(scenario_in(copied)) == before
    with (copied / "policies" / "mine.py").open("a") as file:
        file.write("\n# edited\n")
    assert fingerprint_elsewhere(scenario_in(copied)) != before


def fingerprint_elsewhere(path: Path) -> str:
    """Return the fingerprint that another process computes."""
    code = (
        "import sys; from moesim.scenario import load_scenario; "
        "from moesim.simulate.rundir import fingerprint; "
        "print(fingerprint(load_scenario(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_another_class_of_the_same_file_is_another_run(folder: Path) -> None:
    mine = load_scenario(scenario_in(folder))
    other = load_scenario(folder / "s.yaml", [f"cache.policy={folder}/policies/mine.py:Other"])
    assert fingerprint(mine) != fingerprint(other)


def test_a_file_that_changes_after_it_was_loaded_is_refused(folder: Path) -> None:
    load_scenario(scenario_in(folder))
    (folder / "policies" / "mine.py").write_text(EVICTION + "\n# edited\n")
    with pytest.raises(ScenarioError, match=r"s\.yaml:4:.*has changed since it was loaded"):
        load_scenario(folder / "s.yaml")


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        (
            "policies/mni.py:Mine",
            "there is no policy file 'policies/mni.py'.*did you mean 'mine.py'",
        ),
        ("policies/mine.py:Mien", "mine.py has no class 'Mien'; did you mean 'Mine'"),
        ("policies/mine.py", "mine.py needs the name of a class; write mine.py:Ahead"),
        ("policies/mine.py:NoPolicy", "is not a subclass of moesim.policies.eviction.Eviction"),
        ("policies/mine.py:Ahead", "is not a subclass of moesim.policies.eviction.Eviction"),
        ("policies/mine.py:Unfinished", "class 'Unfinished' lacks the method wanted"),
        ("policies/mine.py:fifo", "'fifo' is the name of a registered policy; rename the class"),
        ("policies/mine.py:number", "'number' of mine.py is 3, not a class"),
        ("moesim.policies.eviction.base:Eviction", "is a base class of moesim, not a policy"),
        ("no_such_module:Mine", "there is no module 'no_such_module' that Python can import"),
        ("json:JSONDecoder", "is not a subclass of moesim.policies.eviction.Eviction"),
        ("a b:Mine", "'a b:Mine' is no place of a policy"),
        ("__import__('os'):Mine", "is no place of a policy"),
    ],
)
def test_a_wrong_reference_is_refused_with_its_place(
    folder: Path, reference: str, reason: str
) -> None:
    message = refusal(folder, f'cache: {{policy: "{reference}", slots: 8}}')
    pattern = rf"(?s)s\.yaml:4:17: cache\.policy: .*{reason}"
    assert re.search(pattern, message), message


def test_a_refused_class_stays_as_it_was(folder: Path) -> None:
    refusal(folder, "cache: {policy: 'json:JSONDecoder', slots: 8}")
    assert not hasattr(json.JSONDecoder, "name")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def broken(:\n", r"bad.py cannot be loaded: SyntaxError: .*\(bad.py:1\)"),
        ("x = 1\nraise OSError('gone')\n", r"cannot be loaded: .*OSError: gone \(bad.py:2\)"),
        ("raise SystemExit(0)\n", "cannot be loaded: .*SystemExit"),
        ("import beside_it\n", "cannot be loaded: .*No module named 'beside_it'"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_refused_with_its_own_line(
    folder: Path, text: str, reason: str
) -> None:
    (folder / "policies" / "bad.py").write_text(text)
    with pytest.raises(ScenarioError, match=reason):
        load_scenario(scenario_in(folder, "cache: {policy: 'policies/bad.py:Mine'}"))


def test_a_wrong_option_of_a_policy_in_a_file_is_refused_with_its_place(folder: Path) -> None:
    text = "cache: {policy: 'policies/mine.py:Mine', options: {numbr: 2, number: two}}"
    message = refusal(folder, text)
    assert "s.yaml:4:52: cache.options.numbr: policy 'Mine' has no option 'numbr'" in message
    assert "s.yaml:4:62: cache.options.number:" in message


def test_a_path_among_the_options_is_checked_and_counts_as_input(folder: Path) -> None:
    text = "cache: {policy: 'policies/mine.py:Mine', slots: 8, options: {table: t.csv}}"
    with pytest.raises(
        ScenarioError, match=r"s\.yaml:4:\d+: cache\.options\.table: there is no file or"
    ):
        run(load_scenario(scenario_in(folder, text)))
    (folder / "t.csv").write_text("1")
    scenario = load_scenario(folder / "s.yaml")
    before = fingerprint(scenario)
    (folder / "t.csv").write_text("2")
    assert fingerprint(scenario) != before


def test_names_that_a_file_registers_are_no_names_of_other_scenarios(folder: Path) -> None:
    text = EVICTION.replace("class Mine", "@register('eviction', 'fresh_name')\nclass Mine")
    text = "from moesim.policies import register\n" + text
    (folder / "policies" / "named.py").write_text(text)
    policy = find("eviction", f"{folder}/policies/named.py:Mine")
    assert policy.name == "fresh_name"
    assert "fresh_name" not in names("eviction")


def test_a_module_names_a_policy_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "packed_policy.py").write_text(EVICTION)
    monkeypatch.syspath_prepend(str(folder))
    scenario = load_scenario(scenario_in(folder, "cache: {policy: 'packed_policy:Mine', slots: 8}"))
    assert run(scenario).summary["cache_policy"] == "Mine"
    assert "cache.policy" in policy_hashes(scenario)


def test_a_sweep_takes_policies_from_files(folder: Path) -> None:
    text = "sweep: {cache.policy: [lru, 'policies/mine.py:Mine', 'policies/mine.py:Other']}"
    points = expand_sweep(load_scenario(scenario_in(folder, text)))
    assert [point.cache.policy.rpartition(":")[2] for _, point in points] == [
        "lru",
        "Mine",
        "Other",
    ]


def test_the_label_of_a_reference_is_its_class_and_loads_nothing() -> None:
    assert policy_label("absent/file.py:Mine") == "Mine"


def test_a_comparison_names_policies_in_files_by_their_classes(folder: Path) -> None:
    text = "cache: {slots: 8}\nsweep: {cache.policy: [lru, policies/mine.py:Mine]}"
    runs = []
    for place, (_, point) in enumerate(expand_sweep(load_scenario(scenario_in(folder, text)))):
        run(point, out=folder / f"run-{place}")
        runs.append(load_run(folder / f"run-{place}"))
    assert [row.variant for row in compare_runs(runs).rows] == ["LRU", "Mine"]


def test_a_scenario_that_is_only_validated_loads_no_file() -> None:
    data: dict[str, Any] = {"trace": "t", "hardware": "rtx-4090", "cache": "absent.py:Mine"}
    assert Scenario.model_validate(data).cache.policy == "absent.py:Mine"


def test_the_name_of_a_file_hides_no_module_of_python(folder: Path) -> None:
    (folder / "policies" / "random.py").write_text(EVICTION)
    find("eviction", f"{folder}/policies/random.py:Mine")
    assert not hasattr(random, "Mine")


def test_an_unknown_family_is_refused_for_references_too() -> None:
    with pytest.raises(UsageError, match="policy family"):
        find("evictoin", "mine.py:Mine")
