"""A changed source of a policy from another package makes a run with it another run."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from watched_machines import enlist
from workloads import tiny_scenario, tiny_trace

from moesim.errors import PolicyViolation, UsageError
from moesim.policies import find, register, registry, sources
from moesim.policies.sources import source_hash
from moesim.scenario import Scenario
from moesim.simulate import prepare
from moesim.simulate.rundir import fingerprint, policy_hashes

EVICTION = """
from moesim.policies import register
from moesim.policies.eviction import LRU


@register("eviction", "mine")
class Mine(LRU):
    pass
"""

PLACEMENT = """
from moesim.policies import register
from moesim.policies.placement import Placement


@register("placement", "elsewhere")
class Elsewhere(Placement):
    lanes = ("cpu",)

    def place(self, view, absent, estimate):
        return {}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a folder from which modules are imported; unload them after the test."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def load(module: str) -> type[Any]:
    """Return the class `Policy` of a module, without registering it."""
    importlib.invalidate_caches()
    return importlib.import_module(module).Policy


def changes(folder: Path, policy: type[Any], name: str, text: str = "x = 2\n") -> bool:
    """Return whether a changed file changes the policy's hash, and the old text restores it."""
    path, before = folder / name, source_hash(policy)
    old = path.read_bytes()
    path.write_text(text)
    changed = source_hash(policy) != before
    path.write_bytes(old)
    assert source_hash(policy) == before
    return changed


def test_the_module_of_a_class_counts_and_others_beside_it_do_not(folder: Path) -> None:
    write(folder, "own_policy.py", "class Policy: pass\n")
    write(folder, "unrelated.py", "")
    policy = load("own_policy")
    assert changes(folder, policy, "own_policy.py")
    assert not changes(folder, policy, "unrelated.py")


@pytest.mark.parametrize(
    "statement",
    [
        "import helper",
        "import helper as h, json",
        "from helper import x",
        "from helper.inner import x",
        "def later():\n    import helper",
        "try:\n    import helper\nexcept ImportError:\n    pass",
        "import importlib\nh = importlib.import_module('helper.inner')",
        "from importlib import import_module\nh = import_module('helper')",
        "h = __import__('helper')",
    ],
)
def test_what_a_module_imports_counts_at_once_or_later(folder: Path, statement: str) -> None:
    write(folder, "own_policy.py", f"class Policy:\n    pass\ndef run():\n    {'pass'}\n")
    write(folder, "helper/__init__.py", "x = 1\n")
    write(folder, "helper/inner.py", "x = 1\n")
    policy = load("own_policy")
    write(folder, "own_policy.py", f"{statement}\nclass Policy: pass\n")
    assert changes(folder, policy, "helper/__init__.py")
    assert changes(folder, policy, "helper/inner.py")


def test_what_a_helper_imports_counts_too_and_circles_end(folder: Path) -> None:
    write(folder, "own_policy.py", "import first\nclass Policy: pass\n")
    write(folder, "first.py", "import second\n")
    write(folder, "second.py", "import own_policy\nx = 1\n")
    assert changes(folder, load("own_policy"), "second.py", "import own_policy\nx = 2\n")


def test_a_package_counts_as_a_whole(folder: Path) -> None:
    write(folder, "pack/__init__.py", "")
    write(folder, "pack/policies/mine.py", "class Policy: pass\n")
    write(folder, "pack/util.py", "x = 1\n")
    write(folder, "pack/weights.json", "[1]")
    write(folder, "pack/__pycache__/util.cpython-311.pyc", "")
    write(folder, "pack/.git/index", "")
    policy = load("pack.policies.mine")
    for name in ("pack/__init__.py", "pack/policies/mine.py", "pack/util.py", "pack/weights.json"):
        assert changes(folder, policy, name), name
    for name in ("pack/__pycache__/util.cpython-311.pyc", "pack/.git/index"):
        assert not changes(folder, policy, name), name
    before = source_hash(policy)
    write(folder, "pack/new.py", "")
    assert source_hash(policy) != before


def test_a_base_class_in_another_package_counts(folder: Path) -> None:
    write(folder, "bases/core.py", "class Base: pass\n")
    write(folder, "own_policy.py", "from bases.core import Base\nclass Policy(Base): pass\n")
    policy = load("own_policy")
    write(folder, "own_policy.py", "")  # the text no longer says where the base comes from
    assert changes(folder, policy, "bases/core.py")


def test_a_package_without_an_init_file_counts(folder: Path) -> None:
    write(folder, "spaced/mine.py", "class Policy: pass\n")
    write(folder, "spaced/other.py", "")
    policy = load("spaced.mine")
    assert changes(folder, policy, "spaced/mine.py")
    assert changes(folder, policy, "spaced/other.py")


def test_a_zip_counts_as_a_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = folder / "policies.zip"

    def pack(text: str) -> None:
        with zipfile.ZipFile(archive, "w") as zipped:
            zipped.writestr("zipped_policy.py", "class Policy: pass\n")
            zipped.writestr("zipped_helper.py", text)

    pack("x = 1\n")
    monkeypatch.syspath_prepend(str(archive))
    policy = load("zipped_policy")
    before = source_hash(policy)
    assert source_hash(policy) == before
    pack("x = 2\n")
    assert source_hash(policy) != before


def test_a_policy_in_no_file_is_the_same_only_to_this_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = type("Policy", (), {"__module__": "typed_in"})
    before = source_hash(policy)
    assert source_hash(policy) == before
    monkeypatch.setattr(sources, "_NO_FILE", "another process")
    assert source_hash(policy) != before


def install_library(folder: Path, record: str) -> None:
    info = folder / "library-1.0.dist-info"
    write(info, "METADATA", "Metadata-Version: 2.1\nName: library\nVersion: 1.0\n")
    write(info, "top_level.txt", "library\n")
    write(info, "RECORD", record)
    sources._all_distributions.cache_clear()
    importlib.invalidate_caches()


def test_an_installed_library_counts_by_the_record_of_its_installer(folder: Path) -> None:
    write(folder, "library/__init__.py", "")
    write(folder, "own_policy.py", "import library\nclass Policy: pass\n")
    install_library(folder, "library/__init__.py,sha256=1,0\n")
    try:
        policy = load("own_policy")
        before = source_hash(policy)
        assert not changes(folder, policy, "library/__init__.py")  # a library is large
        install_library(folder, "library/__init__.py,sha256=1,0\n../../bin/run,sha256=3,0\n")
        assert source_hash(policy) == before
        install_library(folder, "library/__init__.py,sha256=2,0\n")
        assert source_hash(policy) != before
    finally:
        sources._all_distributions.cache_clear()


def test_an_installed_policy_counts_by_content_with_all_of_its_distribution(folder: Path) -> None:
    write(folder, "library/__init__.py", "class Policy: pass\n")
    write(folder, "library_tools.py", "x = 1\n")
    install_library(folder, "library/__init__.py,sha256=1,0\n")
    write(folder, "library-1.0.dist-info/top_level.txt", "library\nlibrary_tools\n")
    try:
        policy = load("library")
        write(folder, "library/__init__.py", "import library_tools\n")
        assert changes(folder, policy, "library/__init__.py", "x = 1\n")
        assert changes(folder, policy, "library_tools.py")
    finally:
        sources._all_distributions.cache_clear()


def test_a_file_that_changed_after_it_was_loaded_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find("eviction", "lru")
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    write(folder, "own_policy.py", "class Policy: pass\n")
    policy = register("eviction", "edited")(load("own_policy"))
    source_hash(policy)
    write(folder, "own_policy.py", "class Policy: 'other'\n")
    with pytest.raises(UsageError, match=r"'edited'.*own_policy\.py has changed since it was load"):
        source_hash(policy)


def test_a_helper_that_changed_after_it_was_loaded_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find("eviction", "lru")
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    write(folder, "pack/__init__.py", "")
    write(folder, "pack/mine.py", "from pack import util\nimport beside\nclass Policy: pass\n")
    for name in ("pack/util.py", "pack/idle.py", "beside.py"):
        write(folder, name, "x = 1\n")
    policy = register("eviction", "helped")(load("pack.mine"))
    assert changes(folder, policy, "pack/idle.py")  # not loaded, so no old code can run
    for name in ("pack/util.py", "beside.py"):
        write(folder, name, "x = 2\n")
        with pytest.raises(UsageError, match=rf"{Path(name).name} has changed since it was load"):
            source_hash(policy)
        write(folder, name, "x = 1\n")
        source_hash(policy)


def test_a_helper_that_a_function_imports_is_refused_after_an_edit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find("eviction", "lru")
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    write(folder, "own_policy.py", "class Policy: pass\ndef later():\n    import beside\n")
    write(folder, "beside.py", "x = 1\n")
    policy = register("eviction", "helped_late")(load("own_policy"))
    source_hash(policy)
    sys.modules["own_policy"].later()
    source_hash(policy)
    write(folder, "beside.py", "x = 2\n")
    with pytest.raises(UsageError, match=r"beside\.py has changed since it was loaded"):
        source_hash(policy)


def test_the_module_that_registers_a_class_counts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find("eviction", "lru")
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    write(
        folder,
        "maker.py",
        "def make(n):\n    class Policy:\n        depth = n\n    return Policy\n",
    )
    text = "from maker import make\nfrom moesim.policies import register\n"
    text += "Policy = register('eviction', 'made')(make(1))\n"
    write(folder, "plugin.py", text)
    policy = load("plugin")
    assert policy.__module__ == "maker"
    before = source_hash(policy)
    write(folder, "plugin.py", text.replace("1", "2"))
    sys.modules.pop("plugin")  # as in a new process, which has loaded the new text
    monkeypatch.setattr(sources, "_loaded", {})
    assert source_hash(policy) != before


# --- in a run -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "tiny"
    tiny_trace(requests=2, prompt_tokens=2, output_tokens=4).save(path)
    return path


def moesim(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-m", "moesim", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )


def install(folder: Path, module: str) -> None:
    """Write what an installer writes: a module, and metadata that names an entry point."""
    write(folder, "mine.py", module)
    info = folder / "mine-1.dist-info"
    write(info, "METADATA", "Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    write(info, "entry_points.txt", "[moesim.policies]\nmine = mine\n")


def scenario(folder: Path, trace: Path, **changes: Any) -> str:
    plain = {
        "trace": str(trace),
        "hardware": "rtx-4090",
        "cache": {"slots": "3/layer"},
        "bounds": False,
        **changes,
    }
    (folder / "a.yaml").write_text(yaml.safe_dump(plain))
    return "a.yaml"


def inputs(folder: Path) -> dict[str, str]:
    read: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return dict(read["inputs"])


@pytest.mark.parametrize("section", ["cache", "prefetch", "batching", "placement"])
def test_policies_of_all_families_count(
    folder: Path, monkeypatch: pytest.MonkeyPatch, section: str
) -> None:
    family = {"cache": "eviction"}.get(section, section)
    write(folder, "own_policy.py", "class Policy: pass\n")
    name = enlist(monkeypatch, family, load("own_policy"))
    made = Scenario.model_validate(tiny_scenario(**{section: {"policy": name}}))
    before, whole = policy_hashes(made), fingerprint(made)
    assert list(before) == [f"{section}.policy"]
    write(folder, "own_policy.py", "class Policy: 'edited'\n")
    assert policy_hashes(made) != before
    assert fingerprint(made) != whole


def test_a_policy_that_is_no_class_has_no_hash_and_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find("eviction", "lru")
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))

    @register("eviction", "a_function")  # type: ignore[type-var]
    def policy() -> None:
        """A function, which is not a policy."""

    made = Scenario.model_validate(tiny_scenario(cache={"policy": "a_function"}))
    assert policy_hashes(made) == {}
    with pytest.raises(
        PolicyViolation, match=r"not a subclass of moesim\.policies\.eviction\.Eviction"
    ):
        prepare(made, tiny_trace(requests=1))


@pytest.mark.parametrize("section", ["cache", "prefetch", "batching", "placement"])
@pytest.mark.parametrize("name", ["weights.json", "trace/trace.json"])
@pytest.mark.parametrize("inside", [str, lambda text: [text], lambda text: {"of": [1, text]}])
def test_files_that_options_name_count(folder: Path, section: str, name: str, inside: Any) -> None:
    write(folder, name, "1")
    path = str(folder / name.removesuffix("/trace.json"))
    options = {"learnt": inside(path), "other": "x" * 5000}
    made = Scenario.model_validate(tiny_scenario(**{section: {"policy": "p", "options": options}}))
    before = fingerprint(made)
    assert fingerprint(made) == before
    write(folder, name, "2")
    assert fingerprint(made) != before


def test_an_edited_policy_never_gives_the_old_result(tmp_path: Path, trace: Path) -> None:
    install(tmp_path, EVICTION)
    file = scenario(tmp_path, trace, cache={"policy": "mine"})
    run = ["run", file, "--out", "there", "--no-plots"]
    assert moesim(tmp_path, *run).returncode == 0
    before = inputs(tmp_path / "there")
    assert moesim(tmp_path, *run).returncode == 0
    assert not (tmp_path / "__pycache__").exists()  # same size, same second: it would be stale
    write(tmp_path, "mine.py", EVICTION.replace("(LRU)", "(LRU, )"))
    edited = moesim(tmp_path, *run)
    assert edited.returncode == 1
    assert "holds another run" in edited.stderr
    assert moesim(tmp_path, *run, "--force").returncode == 0
    after = inputs(tmp_path / "there")
    assert {key for key in before if before[key] != after[key]} == {"cache.policy"}


def test_an_edited_placement_never_gives_the_old_result(tmp_path: Path, trace: Path) -> None:
    install(tmp_path, PLACEMENT)
    file = scenario(tmp_path, trace, placement="elsewhere")
    run = ["run", file, "--out", "there", "--no-plots"]
    done = moesim(tmp_path, *run)
    assert done.returncode == 0, done.stderr
    before = inputs(tmp_path / "there")
    assert moesim(tmp_path, *run).returncode == 0
    write(tmp_path, "mine.py", PLACEMENT.replace("{}", "{ }"))
    edited = moesim(tmp_path, *run)
    assert (edited.returncode, "holds another run" in edited.stderr) == (1, True)
    assert moesim(tmp_path, *run, "--force").returncode == 0
    after = inputs(tmp_path / "there")
    assert {key for key in before if before[key] != after[key]} == {"placement.policy"}


def test_the_default_folder_of_an_edited_policy_is_another_one(tmp_path: Path, trace: Path) -> None:
    install(tmp_path, EVICTION)
    file = scenario(tmp_path, trace, cache={"policy": "mine"})
    folders = set()
    for module in (EVICTION, EVICTION.replace("(LRU)", "(LRU, )")):
        write(tmp_path, "mine.py", module)
        done = moesim(tmp_path, "run", file, "--no-plots")
        assert done.returncode == 0, done.stderr
        folders.add(done.stdout.splitlines()[-1])
    assert len(folders) == 2


def test_compare_keeps_no_point_of_an_edited_policy(tmp_path: Path, trace: Path) -> None:
    install(tmp_path, EVICTION)
    file = scenario(tmp_path, trace, sweep={"cache.policy": ["lru", "mine"]})
    compare = ["compare", file, "--out", "both", "--no-plots", "--workers", "1"]
    assert moesim(tmp_path, *compare).returncode == 0
    assert moesim(tmp_path, *compare).returncode == 0
    write(tmp_path, "mine.py", EVICTION.replace("LRU", "FIFO"))
    edited = moesim(tmp_path, *compare)
    assert edited.returncode == 1
    assert "1 of its 2 points were made from another" in edited.stderr
    assert "Traceback" not in edited.stderr


def test_policies_of_moesim_count_with_its_code(tmp_path: Path, trace: Path) -> None:
    file = scenario(tmp_path, trace)
    assert moesim(tmp_path, "run", file, "--out", "there", "--no-plots").returncode == 0
    assert not [key for key in inputs(tmp_path / "there") if key.endswith(".policy")]


def test_a_policy_that_fails_ends_a_run_with_one_line(tmp_path: Path, trace: Path) -> None:
    install(tmp_path, EVICTION.replace("pass", "def decide(self, view):\n        return 1 / 0"))
    file = scenario(tmp_path, trace, cache={"policy": "mine"})
    done = moesim(tmp_path, "run", file, "--out", "there", "--no-plots")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "policy 'mine'" in done.stderr
    assert "ZeroDivisionError: division by zero (mine.py:" in done.stderr


SCRIPT = """
from moesim.policies import register
from moesim.policies.eviction import LRU
from moesim.policies.sources import source_hash

from .parts import depth


@register("eviction", "scripted")
class Mine(LRU):
    pass


print(source_hash(Mine))
"""


def test_a_script_of_a_package_counts_with_the_package(tmp_path: Path) -> None:
    hashes = set()
    for part in ("depth = 1\n", "depth = 2\n"):
        write(tmp_path, "pack/__init__.py", "")
        write(tmp_path, "pack/script.py", SCRIPT)
        write(tmp_path, "pack/parts.py", part)
        done = subprocess.run(
            [sys.executable, "-m", "pack.script"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        hashes.add(done.stdout)
    assert len(hashes) == 2
