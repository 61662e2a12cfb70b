"""`moesim advise --this-machine`: an answer for the machine that runs the tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from moesim.advice.probe import Bounds, probe
from moesim.cli import app
from moesim.errors import UsageError

ASKED = ("olmoe-1b-7b", "--format", "Q4_K_M", "--context", "4k", "--this-machine")
TINY = Bounds(round_s=0.0, rounds=2, core_rounds=1, least_bytes=2**20)


@pytest.fixture(autouse=True)
def _quick_without_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read little memory, and find no card, whatever machine this is."""
    monkeypatch.setattr("moesim.cli.this_machine.probe", partial(probe, bounds=TINY))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setenv("PATH", os.devnull)


def asked(*more: str) -> Result:
    done = CliRunner().invoke(app, ["advise", *ASKED, *more])
    assert done.exit_code == 0, (done.output, done.exception)
    return done


def test_the_answer_without_a_gpu_shows_what_was_found_and_measured() -> None:
    done = asked()
    found, measured = (
        [line for line in done.stdout.splitlines() if line.startswith(kind)]
        for kind in ("found: ", "measured: ")
    )
    assert any("of host memory" in line for line in found)
    assert any("no NVIDIA card" in line for line in found)
    reads, core = measured
    assert "GB/s, the best of 2 rounds" in reads
    assert "by one core" in core
    assert "-ngl 0" in done.stdout
    assert "1 measured" in done.stdout  # of the figures that the answer rests on
    assert "about ten seconds" in done.stderr


def test_json_has_the_measured_texts_and_nothing_else_is_printed() -> None:
    answer = json.loads(asked("--json").stdout)
    assert "sequential read measured" in answer["question"]["ram"]
    assert len(answer["this_machine"]["measured"]) == 2
    assert answer["recommended"]["low"] < answer["recommended"]["decode_tok_s"]


def test_no_probe_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moesim.cli.this_machine.probe", None)
    answer = json.loads(asked("--no-probe", "--json").stdout)
    assert answer["this_machine"]["measured"] == []
    assert "measured" not in answer["question"]["ram"]


def test_parts_that_are_named_replace_those_of_this_machine() -> None:
    named = ("--cpu", "ryzen-7950x", "--ram", "64GB-ddr5-6000-2ch", "--gpu", "rtx-3060-12gb")
    answer = json.loads(asked(*named, "--json").stdout)
    question = answer["question"]
    assert question["gpu"] == "rtx-3060-12gb"
    assert question["cpu"] == "ryzen-7950x"
    assert question["ram"] == "64GB-ddr5-6000-2ch"
    assert answer["this_machine"]["measured"] == []


def test_a_broken_library_of_the_driver_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError("Driver Not Loaded")

    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(nvmlInit=fail))
    assert "no NVIDIA card (NVML: Driver Not Loaded)" in asked().stdout


def test_a_card_that_is_found_is_priced(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_card(value: Any) -> Any:
        return lambda handle: value

    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=of_card("NVIDIA GeForce RTX 3060"),
        nvmlDeviceGetMemoryInfo=of_card(SimpleNamespace(total=12 * 2**30)),
        nvmlDeviceGetMaxPcieLinkGeneration=of_card(4),
        nvmlDeviceGetMaxPcieLinkWidth=of_card(8),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr("moesim.advice.probe.find_spec", lambda name: None)
    answer = json.loads(asked("--json").stdout)
    assert answer["question"]["gpu"] == "rtx-3060-12gb"
    assert answer["question"]["pcie"] == "PCIe 4.0 x8"
    assert not answer["recommended"]["all_on_cpu"]
    assert "torch is not installed" in answer["this_machine"]["notes"][0]


def test_no_probe_is_refused_without_this_machine() -> None:
    done = CliRunner().invoke(app, ["advise", "olmoe-1b-7b", "--no-probe"])
    assert isinstance(done.exception, UsageError)
    assert "--this-machine" in str(done.exception)


def test_a_question_that_is_wrong_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("moesim.cli.this_machine.probe", None)
    done = CliRunner().invoke(app, ["advise", "no-such-model", "--this-machine"])
    assert isinstance(done.exception, UsageError)


def test_help_asks_nothing_of_the_machine() -> None:
    code = (
        "import sys; sys.argv = ['moesim', 'advise', '--help']\n"
        "import moesim.cli\n"
        "try: moesim.cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'psutil', 'pynvml', 'torch', 'numpy', 'moesim.advice.detect'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
