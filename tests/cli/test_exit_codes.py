"""Exit codes mean the same in all commands: docs/cli.md lists them.

Each kind of failure is tried on every command that can fail in this way.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import COMMANDS, answer
from paths import ROOT
from workloads import whole_and_cut_trace

from moesim import errors

WITHOUT_INPUT = {"doctor", "list", "schema"}
NEEDS_TORCH = {"models train", "models readme"}  # importing torch takes seconds; they share code
MISSING = {
    "init": "z --trace nowhere",
    "advise": "nowhere.json",
    "twin": "nowhere.txt",
    "run": "nowhere.yaml",
    "compare": "nowhere.yaml",
    "report": "nowhere",
    "search": "nowhere.yaml --minimize tpot_mean_ms",
    "split": "nowhere.yaml",
    "dial": "nowhere.yaml",
    "curve": "nowhere --policy lru",
    "calibrate": "--scenario nowhere.yaml",
    "validate": "nowhere.yaml",
    "measured": "nowhere.json",
    "record": "--model m --prompts nowhere.jsonl --out new",
    "models prompts": "--out new --text a=nowhere",
    "trace info": "nowhere",
    "trace validate": "nowhere",
    "trace convert": "nowhere.csv new",
    "trace synth": "new --like nowhere.json",
    "trace redundancy": "nowhere",
    "trace locality": "nowhere",
    "workload info": "nowhere.csv",
}
"""A line of each command whose input does not exist."""

DAMAGED = {
    "run": "cut.yaml --out new",
    "compare": "cut.yaml --set sweep.seed=[0,1] --out new",
    "curve": "cut --policy lru",
    "init": "z --trace cut",
    "split": "cut.yaml --out new",
    "trace info": "cut",
    "trace validate": "cut",
    "trace redundancy": "cut",
    "trace locality": "cut",
}
"""A line of each command that reads a trace, with one whose file was cut."""

EXISTS = {
    "init": "ok.yaml",
    "run": "ok.yaml --out full",
    "curve": "trace --policy lru --out full",
    "trace synth": "full",
    "trace convert": "routing.csv full",
    "trace redundancy": "trace --out full",
    "trace locality": "trace --out full",
    "trace info": "trace --out full",
    "record": "--model m --prompts prompts.txt --out full",
    "models prompts": "--out full",
    "calibrate": "--model mixtral-8x7b --out ok.yaml",
    "workload info": "requests.csv --out full",
}
"""A line of each command that writes one result, where something else is already."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("codes")
    whole_and_cut_trace(home)
    for name, trace in (("ok", "trace"), ("cut", "cut")):
        where = f"trace: {trace}\nhardware: t4\nbounds: false\n"
        (home / f"{name}.yaml").write_text(where)
    (home / "full").mkdir()
    (home / "full" / "thesis.txt").write_text("not to be lost")
    (home / "routing.csv").write_text("token,layer,expert\n0,0,1\n0,1,1\n1,0,0\n1,1,0\n")
    (home / "requests.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,2,2\n1,2,2\n")
    (home / "prompts.txt").write_text("a prompt")
    return home


def code_of(name: str, line: str) -> int:
    return answer([*name.split(), *line.split()])[0]


def test_the_tables_leave_no_command_out() -> None:
    assert MISSING.keys() | WITHOUT_INPUT | NEEDS_TORCH == COMMANDS.keys()
    assert (DAMAGED.keys() | EXISTS.keys()) < COMMANDS.keys()


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_is_0_and_an_unknown_option_is_2(name: str) -> None:
    assert code_of(name, "-h") == 0
    assert code_of(name, "--no-such-option") == 2


@pytest.mark.parametrize("name", MISSING)
def test_an_input_that_is_missing_is_2(
    name: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    assert code_of(name, MISSING[name]) == 2


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_trace_is_1(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    assert code_of(name, DAMAGED[name]) == 1
    assert not (home / "new").is_file()


@pytest.mark.parametrize("name", EXISTS)
def test_a_place_that_is_taken_is_1_and_stays_as_it_was(
    name: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    assert code_of(name, EXISTS[name]) == 1
    assert (home / "full" / "thesis.txt").read_text() == "not to be lost"


@pytest.mark.parametrize("name", sorted(EXISTS.keys() - {"init", "calibrate", "models prompts"}))
def test_force_replaces_no_folder_of_something_else(
    name: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    assert code_of(name, f"{EXISTS[name]} --force") == 1
    assert (home / "full" / "thesis.txt").read_text() == "not to be lost"


@pytest.mark.parametrize("name", ["curve", "trace info", "workload info", "trace convert"])
def test_a_place_that_is_taken_is_refused_before_the_input_is_read(
    name: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    line = MISSING[name].removesuffix(" new")
    assert code_of(name, f"{line} full" if name == "trace convert" else f"{line} --out full") == 1


def test_each_code_of_an_error_is_documented() -> None:
    page = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    codes = {getattr(errors, name).exit_code for name in errors.__all__}
    for code in (0, *codes, 129, 130, 143):
        assert f"| {code} |" in page


# --- `--debug` ------------------------------------------------------------------------------------


def moesim(*arguments: str, code: str = "cli.main()") -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", f"from moesim import cli; {code}", *arguments]
    return subprocess.run(program, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [("--debug", "list", "x"), ("list", "x", "--debug")])
def test_debug_shows_the_traceback_of_a_mistake_and_keeps_its_code(
    arguments: tuple[str, ...],
) -> None:
    done = moesim(*arguments)
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: there is no list of 'x'")


FAULT = "cli.app.command('fail')(lambda: 1 / 0); cli.main()"


def test_a_fault_of_moesim_is_one_message_with_its_traceback_in_a_file() -> None:
    done = moesim("fail", code=FAULT)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    first, report = done.stderr.splitlines()
    assert first.startswith("error: ZeroDivisionError: division by zero (at moesim/cli/")
    path = Path(report.partition("the traceback in ")[2].partition(" (--debug")[0])
    assert "ZeroDivisionError: division by zero" in path.read_text()
    path.unlink()


def test_with_debug_a_fault_of_moesim_is_printed() -> None:
    done = moesim("fail", "--debug", code=FAULT)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "the traceback in" not in done.stderr


def test_a_sign_that_the_terminal_lacks_is_shown_as_a_question_mark() -> None:
    program = "from moesim import cli; cli.app = lambda: print('4 × 5'); cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert (done.returncode, done.stdout.split()) == (0, [b"4", b"?", b"5"])
