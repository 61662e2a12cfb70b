"""The packages that are published: they hold what the repository tracks, and work alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IN_SDIST = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md", "constraints.txt",
            "pyproject.toml"}  # fmt: skip
MADE = {".gitignore", "PKG-INFO"}  # which the build adds to a source distribution

SCENARIO = "{trace: trace, hardware: rtx-4090, model: {shape: qwen3-30b-a3b, expert_bits: 4}}"

pytestmark = pytest.mark.slow


def tracked() -> set[str]:
    """Return the files of the package that git tracks."""
    listed = subprocess.run(
        ["git", "ls-files", "moesim"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("this is no clone, so it is not known which files belong to the package")
    return {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution, and the wheel that is built from it."""
    for needed in ("build", "hatchling", "hatch_fancy_pypi_readme"):
        pytest.importorskip(needed)
    folder = tmp_path_factory.mktemp("dist")
    # Without isolation, so that the test needs no network.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def the_only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def test_the_wheel_holds_the_tracked_files_and_nothing_else(built: Path) -> None:
    with zipfile.ZipFile(the_only(built, "*.whl")) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == tracked()
    assert "moesim/py.typed" in names


def test_the_source_distribution_holds_what_a_build_needs(built: Path) -> None:
    with tarfile.open(the_only(built, "*.tar.gz")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names - MADE == tracked() | IN_SDIST


def test_the_text_for_a_package_index_needs_no_file_of_the_repository(built: Path) -> None:
    with zipfile.ZipFile(the_only(built, "*.whl")) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = message_from_bytes(wheel.read(name))
    text = metadata.get_payload()
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert isinstance(text, str)
    assert text.startswith("# moesim")
    targets = re.findall(r'\]\(([^)]*)\)|src="([^"]*)"', text)
    assert all(a.startswith(("http", "#")) for pair in targets for a in pair if a), targets


def test_an_installed_wheel_runs_from_an_empty_folder(built: Path, tmp_path: Path) -> None:
    target, home = tmp_path / "installed", tmp_path / "home"
    home.mkdir()
    wheel = the_only(built, "*.whl")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(wheel)], check=True, capture_output=True)
    # The packages that moesim needs come from this environment; `-P` leaves the folder out.
    environment = {**os.environ, "PYTHONPATH": f"{target}{os.pathsep}{_others()}"}

    def moesim(*arguments: str) -> str:
        command = [sys.executable, "-P", "-m", "moesim", *arguments]
        done = subprocess.run(
            command, cwd=home, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", moesim("--version"))
    moesim("trace", "synth", "trace", "--like", "qwen3-30b-a3b", "--requests", "2",
           "--prompt-tokens", "2", "--output-tokens", "4")  # fmt: skip
    (home / "x.yaml").write_text(SCENARIO)
    assert moesim("run", "x.yaml", "--out", "run", "--no-plots").endswith("\nrun\n")
    where = subprocess.run(
        [sys.executable, "-P", "-c", "import moesim; print(moesim.__file__)"],
        cwd=home, env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert where.startswith(str(target))


def _others() -> str:
    """Return the rest of PYTHONPATH without this repository."""
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(path for path in given if path and not path.startswith(f"{ROOT}/tests")
                           and Path(path) != ROOT)  # fmt: skip
