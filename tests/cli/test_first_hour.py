"""`moesim init` and `moesim doctor`: a scenario that runs at once, and an honest examination."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from packaging.requirements import Requirement
from paths import ROOT
from typer.testing import CliRunner, Result
from workloads import tiny_trace

from moesim.advice.cards import FoundCard
from moesim.advice.detect import Found
from moesim.cli import app
from moesim.doctor import Check, machine, packages, worst
from moesim.doctor.doctor import _guarded
from moesim.doctor.self_check import DECISIONS, routing
from moesim.errors import MoesimError, OutputError, UsageError
from moesim.scenario import load_scenario
from moesim.sweep import points_of


def moesim(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def printed(*arguments: str | Path) -> str:
    done = moesim(*arguments)
    assert done.exit_code == 0, done.exception or done.output
    return done.stdout


# --- init -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A scenario that `init` wrote without options, and what was printed."""
    folder = tmp_path_factory.mktemp("first") / "a folder"
    return folder / "scenario.yaml", printed("init", folder)


def test_the_first_scenario_runs_at_once_with_the_commands_that_are_printed(
    first: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, said = first
    monkeypatch.chdir(tmp_path)
    run, compare = (shlex.split(line) for line in said.splitlines()[-2:])
    assert (run[:3], compare[:3]) == (
        ["moesim", "run", str(file)],
        ["moesim", "compare", str(file)],
    )
    small = ("--set", "workload.requests=1", "--no-plots", "--json")
    summary = json.loads(printed(*run[1:], *small))
    assert summary["finished"] == 1
    assert summary["routing"] == "synthetic"
    assert summary["out"] == str(file.parent / "runs" / "scenario")
    assert summary["misses"] > 0  # something is offloaded, so there is something to learn
    rows = json.loads(printed(*compare[1:], *small, "--set", "bounds=false", "--workers", "1"))
    assert len(rows["points"] if "points" in rows else rows["rows"]) == 3


def test_the_file_names_its_routing_and_comments_every_key(first: tuple[Path, str]) -> None:
    text = first[0].read_text(encoding="utf-8")
    assert "SYNTHETIC ROUTING: drawn at random" in text
    assert "published for this model (mixtral-8x7b)" in text
    blocks = text.strip().split("\n\n")
    for block in blocks:
        assert block.startswith("#") or block == "seed: 0", block
    example = yaml.safe_load(blocks[-1].splitlines()[-1].removeprefix("# "))["sweep"]
    swept = load_scenario(first[0], [f"sweep={json.dumps(example)}"])
    assert len(points_of(swept, first[0].parent)) == 6
    data = yaml.safe_load(text)
    assert data["trace"] == "synthetic-mixtral-8x7b"
    assert data["model"] == {"shape": "mixtral-8x7b", "format": "Q4_K_M"}
    assert data["workload"]["arrivals"] == {"kind": "closed", "clients": 1}
    assert set(os.listdir(first[0].parent)) >= {"scenario.yaml", "synthetic-mixtral-8x7b"}


def test_nothing_is_overwritten(first: tuple[Path, str]) -> None:
    file, _ = first
    before = file.read_bytes()
    assert isinstance(moesim("init", file.parent).exception, OutputError)
    done = moesim("init", file.parent / "other.yaml")  # its trace is there already
    assert "already exists; use it with --trace" in str(done.exception)
    assert file.read_bytes() == before
    assert not (file.parent / "other.yaml").exists()


def test_options_fill_the_scenario_in(tmp_path: Path) -> None:
    said = printed(
        "init", tmp_path / "x.yaml", "--model", "gpt-oss-20b", "--gpu", "RTX 3090", "--host", "8GiB"
    )
    data = yaml.safe_load((tmp_path / "x.yaml").read_text(encoding="utf-8"))
    assert data["model"] == {"shape": "gpt-oss-20b"}  # published with fewer than 16 bits
    disk = {"latency": "100us", "bandwidth": "3GB/s"}
    assert data["hardware"] == {"gpu": "RTX 3090", "memory": "DDR4-3200 2ch", "disk": disk}
    assert data["memory"] == {"host": "8GiB"}
    assert data["trace"] == "synthetic-gpt-oss-20b"
    assert re.search(r"\d+ of 768 experts fit in 24 GiB of GPU memory", said)


def test_a_recorded_trace_is_named_from_the_folder_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_trace(requests=3).save("traces/mine")
    said = printed("init", "deep/er/x.yaml", "--trace", "traces/mine", "--gpu", "t4")
    data = yaml.safe_load(Path("deep/er/x.yaml").read_text(encoding="utf-8"))
    assert data["trace"] == "../../traces/mine"
    assert "model" not in data
    assert data["workload"]["requests"] == 3
    assert "32 of 32 experts fit" in said
    assert "all fit, so hardly any misses" in said
    assert os.listdir("deep/er") == ["x.yaml"]


def test_a_recorded_trace_is_found_from_a_folder_behind_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_trace(requests=3).save("mine")
    Path("deep/er").mkdir(parents=True)
    Path("short").symlink_to("deep/er")
    printed("init", "short/x.yaml", "--trace", "mine", "--gpu", "t4")
    assert load_scenario("short/x.yaml").trace_path.samefile("mine")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--model", "nope"), "no model shape is called 'nope'"),
        (("--gpu", "nope"), "--gpu nope: no graphics card of the catalogue"),
        (("--host", "nope"), "memory.host: 'nope' is not a size"),
        (("--host", "10"), "nothing is written, because this would not run: "),
        (("--format", "Q99"), "no format of weights is called 'Q99'"),
        (("--trace", "nope"), "nope: no such trace folder"),
    ],
)
def test_a_refused_scenario_leaves_nothing_behind(
    options: tuple[str, str], says: str, tmp_path: Path
) -> None:
    done = moesim("init", tmp_path / "new", "--model", "olmoe-1b-7b", *options)
    assert isinstance(done.exception, MoesimError)
    assert isinstance(done.exception, UsageError) or "--trace" in options
    assert says in str(done.exception)
    assert os.listdir(tmp_path) == []


# --- doctor ---------------------------------------------------------------------------------------


def lru(ids: Sequence[Sequence[int]], slots: int) -> tuple[int, int]:
    """Return the hits and misses of a plain LRU of one layer over its layer events."""
    cache: OrderedDict[int, None] = OrderedDict()
    hits = misses = 0
    for event in ids:
        hits += sum(key in cache for key in event)
        misses += sum(key not in cache for key in event)
        for key in event:
            cache.pop(key, None)
        for key in event:
            cache[key] = None
        while len(cache) > slots:
            cache.popitem(last=False)
    return hits, misses


def test_the_stored_decisions_are_those_of_a_plain_lru() -> None:
    trace = routing()
    ids = np.asarray(trace.expert_ids[:])
    each = [lru(ids[:, layer].tolist(), 3) for layer in range(trace.num_layers)]
    hits, misses = map(sum, zip(*each, strict=True))
    assert {"hits": hits, "misses": misses, "steps": len(ids)} == DECISIONS


def test_the_doctor_says_that_moesim_works_and_prints_json() -> None:
    done = moesim("doctor", "--json")
    found = json.loads(done.stdout)
    states = {check["name"]: check["state"] for check in found["checks"]}
    assert done.exit_code == 0, states
    assert states["self-check"] == states["Python"] == "ok"
    assert f"{DECISIONS['hits']:,} hits" in done.stdout
    assert {f"extra {name}" for name in packages.PURPOSES} <= states.keys()
    assert found["state"] == worst(Check("", state, "") for state in states.values())


def test_a_check_that_fails_is_a_warning() -> None:
    def fails() -> list[Check]:
        raise OSError("the machine said nonsense")

    (check,) = _guarded("machine", fails)
    assert (check.name, check.state) == ("machine", "warning")
    assert "OSError: the machine said nonsense" in check.found


def test_packages_that_cannot_be_looked_up_are_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    from moesim.doctor import doctor, machine

    def fail(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(machine, "find_spec", fail)
    monkeypatch.setattr(doctor, "machine_checks", list)
    states = {check.name: check.state for check in doctor.examine()}
    assert (states["torch"], states["numba cache"]) == ("warning", "warning")


def test_a_wrong_decision_is_broken_and_exit_1(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = [lambda: Check("GPU", "absent", "none", "buy one")]
    monkeypatch.setattr("moesim.doctor.doctor.machine_checks", lambda: [quick[0]()])
    monkeypatch.setattr("moesim.doctor.doctor.torch_check", quick[0])
    monkeypatch.setattr("moesim.doctor.doctor.numba_check", quick[0])
    monkeypatch.setattr("moesim.doctor.self_check.decisions", lambda: {**DECISIONS, "hits": 1})
    done = moesim("doctor")
    assert done.exit_code == 1
    assert re.search(rf"broken +self-check +hits 1, not {DECISIONS['hits']}", done.stdout)
    assert "try: buy one" in done.stdout
    assert done.stdout.splitlines()[-1] == "broken: self-check"


def test_the_purposes_are_those_of_the_extras_in_pyproject() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = set(re.findall(r"^(\w+) = \[", section, re.MULTILINE))
    assert extras == packages.PURPOSES.keys() | {"docs", "test", "dev"}


LINES = ("numpy>=2.0", "numba>=0.61; extra == 'fast'", "gguf>=0.17; extra == 'gguf'")


def test_versions_are_compared_with_what_the_installation_states() -> None:
    needed = packages.requirements(LINES)
    assert needed == {
        "": [Requirement("numpy>=2.0")],
        "fast": [Requirement(LINES[1])],
        "gguf": [Requirement(LINES[2])],
    }
    old = {"numpy": "1.26", "numba": "0.5"}.get
    checks = [*packages.package_checks(needed, old), *packages.extra_checks(needed, old)]
    states = {check.name: (check.state, check.found) for check in checks}
    assert states["packages"] == ("broken", "numpy 1.26, not >=2.0")
    assert states["extra fast"] == ("warning", "numba 0.5, not >=0.61")
    assert states["extra gguf"] == ("absent", "gguf is not installed")
    new = {"numpy": "2.1", "numba": "0.61.2", "gguf": "0.18"}.get
    checks = [*packages.package_checks(needed, new), *packages.extra_checks(needed, new)]
    assert {check.state for check in checks} == {"ok"}
    unknown = packages.package_checks({}, new)[-1]
    assert (unknown.state, unknown.name) == ("warning", "packages")


def test_a_card_is_named_as_a_scenario_names_it() -> None:
    def gpu(name: str) -> Check:
        found = Found(cpu="a", memory_bytes=2**34, free_bytes=2**33, cards=(FoundCard(name),))
        return machine.machine_checks(found)[-1]

    assert "`hardware: rtx-4090`" in gpu("NVIDIA GeForce RTX 4090").remedy
    assert "`hardware: {gpu: rtx-4070}`" in gpu("NVIDIA GeForce RTX 4070").remedy
    unknown = gpu("NVIDIA Nothing 9999")
    assert unknown.state == "warning"
    assert "moesim calibrate --device cuda" in unknown.remedy
    none = machine.machine_checks(Found(notes=("no NVIDIA card (NVML lists none)",)))
    assert [check.state for check in none] == ["ok", "warning", "absent"]


def test_limits_of_the_machine_are_warnings(tmp_path: Path) -> None:
    assert machine.terminal_check("ascii").state == "warning"
    assert machine.terminal_check("utf-8").state == "ok"
    assert machine.writable_check("here", tmp_path, "").state == "ok"
    gone = machine.writable_check("here", tmp_path / "gone", "go elsewhere")
    assert (gone.state, gone.remedy) == ("warning", "go elsewhere")
    little = machine.machine_checks(Found(memory_bytes=2**34, free_bytes=2**20))[1]
    assert little.state == "warning"


def test_the_worst_state_counts() -> None:
    assert worst([]) == worst([Check("", "absent", "")]) == "ok"
    assert worst([Check("", "warning", ""), Check("", "absent", "")]) == "warning"
    assert worst([Check("", "broken", ""), Check("", "warning", "")]) == "broken"
