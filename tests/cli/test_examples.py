"""The examples work as they stand."""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from command_line import write_program
from paths import ROOT
from workloads import plan_of, run_on, tiny_scenario, tiny_trace

from moesim.policies import View, find, registry
from moesim.policies.eviction import CacheContext
from moesim.policies.placement import PlacementContext
from moesim.policies.placement.base import ARRIVING, CPU
from moesim.policies.prefetch import PrefetchContext

EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py"))
MOST_LINES = 55


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_prints_its_recorded_output(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert capsys.readouterr().out == (EXAMPLES / f"{name}.out").read_text()


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_short_and_says_which_question_it_answers(name: str) -> None:
    text = (EXAMPLES / f"{name}.py").read_text()
    assert text.startswith('"""')
    assert "?" in text.split('"""')[1]
    assert len(text.splitlines()) <= MOST_LINES


def test_the_list_of_examples_is_complete() -> None:
    listed = re.findall(r"^\| \[`([^`]+)`\]\(([^)]+)\)", (EXAMPLES / "README.md").read_text(), re.M)
    files = {f"{name}.py" for name in SCRIPTS} | {path.name for path in EXAMPLES.glob("*.ipynb")}
    packages = {f"plugins/{path.parent.name}" for path in EXAMPLES.glob("plugins/*/pyproject.toml")}
    assert all(name == target for name, target in listed)
    assert {name for name, _ in listed} == files | packages | {"ci_gate"}


def test_the_packages_install_and_their_policies_serve(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling builds the packages")
    packages = tmp_path / "packages"  # a build may leave files beside the sources
    shutil.copytree(EXAMPLES / "plugins", packages)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--no-cache-dir", "--quiet"]
    target = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", *options]
    subprocess.run([*pip, "--target", str(target), *map(str, packages.iterdir())], check=True)
    tiny_trace(requests=3).save(tmp_path / "trace")
    code = f"""
import sys
sys.path.insert(0, {str(target)!r})
import moesim
scenario = {tiny_scenario(trace=str(tmp_path / "trace"), cache={"slots": "3/layer"})!r}
names = {{"cache": "hyperbolic", "prefetch": "agreed", "placement": "few_rows"}}
sections = {{f"{{section}}.policy": name for section, name in names.items()}}
summary = moesim.run(scenario, overrides=sections).summary
assert summary["finished"] == 3 and summary["hits"] and summary["elsewhere"], summary
assert summary["prefetch_useful_bytes"] + summary["prefetch_late_bytes"], summary
from moesim.policies import find
for family, name in zip(("eviction", "prefetch", "placement"), names.values()):
    print(find(family, name).__module__, sys.modules[find(family, name).__module__].__file__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    modules = ("moesim_hyperbolic", "moesim_agreed", "moesim_few_rows")
    assert done.stdout.splitlines() == [f"{name} {target / name}.py" for name in modules]


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plug-ins, registered for one test as their entry points would."""
    registry.names("eviction")  # the built-in ones first
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    for file in EXAMPLES.glob("plugins/*/moesim_*.py"):
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, file.stem, module)
        spec.loader.exec_module(module)


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize("prefetch", ["none", "predicted", "agreed"])
def test_the_plugin_serves_a_workload_and_passes_its_audit(prefetch: str) -> None:
    scenario = tiny_scenario(cache={"policy": "hyperbolic", "slots": "3/layer"}, prefetch=prefetch)
    outcome = run_on(plan_of(scenario, tiny_trace(requests=6)))
    assert sum(outcome.ledger.hits) > 0


@pytest.mark.usefixtures("plugins")
def test_the_plugin_obeys_admission_always() -> None:
    context = CacheContext(2, range(4), "always", np.random.default_rng(0))
    policy = find("eviction", "hyperbolic")(context)
    for union in [(0,), (1,), (1,), (1,)]:
        policy.decide(View(0, union))
    assert list(policy.decide(View(0, (0, 2)))) == [1]  # 0 has fewer uses for its age


@pytest.mark.usefixtures("plugins")
def test_agreed_fetches_what_each_of_the_last_steps_wanted() -> None:
    agreed = find("prefetch", "agreed")()
    agreed.prepare(PrefetchContext(2, 8, 2, np.random.default_rng(0)))
    for union in [(8, 9, 10), (9, 10, 11)]:
        assert list(agreed.wanted(View(0, (0,)))) == []  # fewer than two steps are over
        assert list(agreed.wanted(View(1, union))) == []  # the last layer has no next one
    assert list(agreed.wanted(View(0, (0,)))) == [9, 10]
    agreed.wanted(View(1, (10, 11)))
    assert list(agreed.wanted(View(0, (0,)))) == [10, 11]


@pytest.mark.usefixtures("plugins")
def test_few_rows_leaves_experts_of_many_rows_and_those_on_their_way_to_the_gpu() -> None:
    context = PlacementContext((0,), 1, 4, 2, np.random.default_rng(0))
    few_rows = find("placement", "few_rows")(context)
    absent = {0: "host", 1: "host", 2: ARRIVING}
    view = View(0, (0, 1, 2, 3), (1, 2, 1, 1))  # 3 is in GPU memory
    assert few_rows.place(view, absent, None) == {0: CPU}


@pytest.mark.slow
def test_the_notebook_runs_and_is_kept_without_outputs(tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient")
    import nbformat

    path = EXAMPLES / "first_look.ipynb"
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    # In a process of its own, because a kernel's threads and warnings are those of its libraries.
    code = (
        "import sys, nbclient, nbformat\n"
        "notebook = nbformat.read(sys.argv[1], as_version=4)\n"
        "options = {'timeout': 300, 'resources': {'metadata': {'path': sys.argv[2]}}}\n"
        "nbclient.NotebookClient(notebook, **options).execute()\n"
        "nbformat.write(notebook, sys.argv[3])\n"
    )
    done = tmp_path / "done.ipynb"
    command = [sys.executable, "-c", code, str(path), str(EXAMPLES), str(done)]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    assert nbclient.__version__
    cells = [cell for cell in nbformat.read(done, as_version=4).cells if cell.cell_type == "code"]
    kinds = [{kind for each in cell.outputs for kind in each.get("data", {})} for cell in cells]
    assert "text/html" in kinds[0]  # a table, not a line
    assert sum("image/png" in each for each in kinds) == 3


@pytest.mark.slow
def test_the_gate_refuses_a_worse_policy_and_passes_the_same_one(tmp_path: Path) -> None:
    program = tmp_path / "bin/moesim"
    write_program(program)
    for checkout in ("base", "new"):
        shutil.copytree(EXAMPLES / "ci_gate", tmp_path / checkout / "examples/ci_gate")
        (tmp_path / checkout / "traces").symlink_to(ROOT / "traces")
    policy = tmp_path / "new/examples/ci_gate/policy.py"

    def gate() -> subprocess.CompletedProcess[str]:
        command = ["sh", "new/examples/ci_gate/gate.sh", "base/examples/ci_gate"]
        variables = {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
        environment = os.environ | variables | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    same = gate()
    assert same.returncode == 0, same.stderr
    assert "passed: all 2 thresholds hold" in same.stdout
    policy.write_text(policy.read_text().replace("RECENCY = 1", "RECENCY = -1"))
    worse = gate()
    assert worse.returncode == 3, worse.stderr
    assert "failed: 2 of 2 thresholds exceeded" in worse.stdout


def test_the_workflow_runs_the_script_on_the_base_branch_and_fails_with_it() -> None:
    workflow = yaml.safe_load((EXAMPLES / "ci_gate/workflow.yml").read_text())
    steps = workflow["jobs"]["gate"]["steps"]
    checkouts = {step["with"]["path"]: step["with"].get("ref") for step in steps if "with" in step
                 and "path" in step["with"]}  # fmt: skip
    assert checkouts == {"new": None, "base": "${{ github.base_ref }}"}
    script = steps[-1]["run"]
    for place in ("new/examples/ci_gate/gate.sh", "base/examples/ci_gate"):
        assert place in script
        assert (ROOT / place.split("/", 1)[1]).exists()
    assert script.rstrip().endswith('exit "${code:-0}"')
