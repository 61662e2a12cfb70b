"""Every command with `--json` prints one JSON document on stdout, or nothing."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from paths import ROOT
from stand_in_machines import PretendBench
from typer.testing import CliRunner
from workloads import TINY_CONFIG, tiny_trace

from moesim.cli import app
from moesim.cli.output import echo_json
from moesim.validate import session

DIAL = [
    *("--recall", "1", "--precision", "1", "--depth", "1", "--link", "1x", "--seeds", "1"),
    *("--no-plots", "--workers", "1"),
]
SEARCH = ["--over", "cache.slots=2/layer..5/layer", "--workers", "1"]
LOGS = ROOT / "tests/support/twin_logs"
SUCCEED: dict[str, list[list[str]]] = {
    "run": [["{home}/x.yaml", "--out", "{out}", "--no-plots"]],
    "compare": [["{home}/sweep.yaml", "--out", "{out}", "--no-plots", "--workers", "1"]],
    "search": [
        ["{home}/x.yaml", *SEARCH, "--until", "output_tokens_per_s > 0", "--out", "{out}"],
        ["{home}/x.yaml", *SEARCH, "--maximize", "cache_slots", "--runs", "2", "--out", "{out}"],
    ],
    "split": [["{home}/x.yaml", "--out", "{out}", "--no-plots", "--runs", "3"]],
    "dial": [["{home}/x.yaml", *DIAL, "--out", "{out}"]],
    "report": [
        ["{home}/run", "--no-plots"],
        ["{home}/run", "--perfetto", "{out}.json"],
        ["{home}/run", "{home}/run", "--out", "{out}"],
    ],
    "calibrate": [["--model", "{home}/config.json", "--budget", "2s", "--out", "{out}.yaml"]],
    "validate": [["{home}/x.yaml", "--out", "{out}", "--no-plots", "--runs", "1"]],
    "measured": [["{home}/rows.json", "--fit", "two", "--out", "{out}"]],
    "advise": [
        ["olmoe-1b-7b", "--gpu", "rtx-3060-12gb", "--format", "Q4_K_M"],
        ["olmoe-1b-7b", "--format", "Q4_K_M", "--all", "--explain"],
    ],
    "twin": [["{logs}/rows.json", "--what-if", "ncmoe=12", "--what-if", "cache=lru"]],
    "curve": [
        ["{home}/trace", "--policy", "lru", "--no-plots", "--out", "{out}"],
        [
            "{home}/trace",
            "--policy",
            "arc",
            "--expert-bytes",
            "1MiB",
            "--link",
            "t4",
            "--out",
            "{out}",
        ],
    ],
    "doctor": [[]],
    "list": [[], ["gpus"], ["models"], ["policies"], ["extras"], ["metrics", "hits"]],
    "policies": [[]],
    "systems": [[], ["fiddler"]],
    "trace info": [["{home}/trace", "--no-plots", "--out", "{out}"]],
    "trace redundancy": [["{home}/trace", "--no-plots", "--out", "{out}"]],
    "trace locality": [["{home}/trace", "--no-plots", "--out", "{out}"]],
    "workload info": [["{home}/requests.csv", "--out", "{out}", "--no-plots"]],
}
FAIL: dict[str, list[list[str]]] = {
    "run": [
        ["{home}/x.yaml", "--set", "memory.capacity=1MiB", "--out", "{out}"],
        ["{home}/trace", "--out", "{out}"],
        ["{home}/x.yaml", "--out", "{home}/run"],
    ],
    "compare": [
        ["{home}/x.yaml", "--out", "{out}"],
        ["{home}/half.yaml", "--out", "{out}", "--no-plots", "--workers", "1"],
        ["{home}/none.yaml", "--out", "{out}", "--no-plots", "--workers", "1"],
    ],
    "search": [
        ["{home}/x.yaml", *SEARCH, "--out", "{out}"],
        ["{home}/x.yaml", *SEARCH, "--until", "output_tokens_per_s < 0", "--out", "{out}"],
        ["{home}/none.yaml", "--maximize", "hits", "--workers", "1", "--out", "{out}"],
    ],
    "split": [["{home}/sweep.yaml", "--out", "{out}"], ["{home}/x.yaml", "--goal", "speed"]],
    "dial": [
        ["{home}/sweep.yaml", *DIAL, "--out", "{out}"],
        ["{home}/x.yaml", "--recall", "2", "--out", "{out}"],
        ["{home}/x.yaml", *DIAL, "--set", "memory.capacity=1MiB", "--out", "{out}"],
    ],
    "report": [["{home}/absent"], ["{home}/run", "{home}/absent"]],
    "calibrate": [[], ["--model", "absent"]],
    "validate": [
        ["{home}/sweep.yaml", "--out", "{out}"],
        ["{home}/x.yaml", "--out", "{out}", "--no-plots", "--runs", "1", "--max-total-error", "0"],
    ],
    "measured": [["{home}/absent"], ["{home}/config.json"], ["{home}/rows.json", "--fit", "3"]],
    "advise": [
        ["absent"],
        ["{home}/config.json", "--gpu", "rtx-9999"],
        ["deepseek-v3", "--gpu", "rtx-4090", "--ram", "64GB-ddr5-6000-2ch", "--goal", "art"],
    ],
    "twin": [["{home}/absent"], ["{home}/x.yaml"], ["{logs}/rows.json", "--what-if", "n"]],
    "curve": [
        ["{home}/trace", "--policy", "lruu"],
        ["{home}/trace"],
        ["{home}/trace", "--policy", "lru", "--out", "{home}/run"],
    ],
    "doctor": [["please"]],
    "list": [["models", "gpt"], ["model"]],
    "policies": [["eviction"]],
    "systems": [["fidler"]],
    "trace info": [["{home}/absent"]],
    "trace redundancy": [["{home}/absent"], ["{home}/trace", "--out", "{home}/run"]],
    "trace locality": [["{home}/absent"], ["{home}/trace", "--out", "{home}/run"]],
    "workload info": [["{home}/absent"], ["{home}/rows.json"]],
}


class Slow(PretendBench):
    """A machine that is a tenth slower than simulated."""

    def __init__(self, device: str, plans: Any) -> None:
        super().__init__(device, plans, slower=1.1)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trace, scenarios, a model's configuration and a finished run."""
    home = tmp_path_factory.mktemp("home")
    tiny_trace(requests=3).save(home / "trace")
    (home / "config.json").write_text(json.dumps(TINY_CONFIG))
    (home / "rows.json").write_text('[{"model": "M", "metric": "decode_tok_s", "value": 2}]')
    rows = "arrival_s,prompt_tokens,output_tokens\n0,3,2\n1,5,4\n"
    (home / "requests.csv").write_text(rows)
    plain = "trace: trace\nhardware: rtx-4090\nbounds: false\n"
    for name, more in {
        "x": "cache: {slots: 4/layer}\n",
        "other": "seed: 1\n",
        "sweep": "sweep: {seed: [0, 1]}\n",
        "half": "sweep: {memory.capacity: [1MiB, 8GiB]}\n",
        "none": "sweep: {memory.capacity: [1MiB, 2MiB]}\n",
    }.items():
        (home / f"{name}.yaml").write_text(plain + more)
    done = CliRunner().invoke(app, ["run", f"{home}/other.yaml", "--out", f"{home}/run"])
    assert done.exit_code == 0, done.output
    return home


@pytest.fixture(autouse=True)
def _no_real_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "RealBench", Slow)
    monkeypatch.setattr(session, "measured_costs", lambda plan, *_, **__: (plan, {}))


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command below a group, by its full name."""
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))
    if not hasattr(command, "commands"):
        yield " ".join(path), command


def with_json() -> dict[str, set[str]]:
    """The options of every command that has `--json`."""
    options = {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in commands(typer.main.get_command(app))
    }
    return {name: has for name, has in options.items() if "--json" in has}


def invoke(command: str, arguments: list[str], home: Path, out: Path) -> Any:
    if command == "calibrate":
        pytest.importorskip("torch").set_num_threads(1)
    spelled = [argument.format(home=home, out=out, logs=LOGS) for argument in arguments]
    return CliRunner().invoke(app, [*command.split(), *spelled, "--json"])


def cases(table: dict[str, list[list[str]]]) -> list[Any]:
    return [
        pytest.param(command, arguments, id=f"{command} {number}")
        for command, several in table.items()
        for number, arguments in enumerate(several)
    ]


def test_every_command_with_json_is_tested() -> None:
    assert set(with_json()) == set(SUCCEED) == set(FAIL)


def test_what_is_undefined_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    echo_json({"a": [math.nan, (math.inf,), 1.5]})
    assert json.loads(capsys.readouterr().out) == {"a": [None, [None], 1.5]}


@pytest.mark.parametrize(("command", "arguments"), cases(SUCCEED))
def test_success_prints_one_document_with_the_place_of_what_was_written(
    command: str, arguments: list[str], home: Path, tmp_path: Path
) -> None:
    done = invoke(command, arguments, home, tmp_path / "out")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout, parse_constant=pytest.fail)
    if "--out" in with_json()[command]:
        assert Path(document["out"]).exists()


@pytest.mark.parametrize(("command", "arguments"), cases(FAIL))
def test_failure_prints_nothing_or_one_document(
    command: str, arguments: list[str], home: Path, tmp_path: Path
) -> None:
    done = invoke(command, arguments, home, tmp_path / "out")
    assert done.exit_code != 0
    if done.stdout:
        json.loads(done.stdout, parse_constant=pytest.fail)


@pytest.mark.parametrize(("command", "rows"), [("redundancy", "pairs"), ("locality", "by_layer")])
def test_routing_as_json_has_the_trace_and_every_row_of_the_csv_file(
    command: str, rows: str, home: Path, tmp_path: Path
) -> None:
    done = invoke(f"trace {command}", ["{home}/trace", "--no-plots", "--out", "{out}"], home,
                  tmp_path / "out")  # fmt: skip
    document = json.loads(done.stdout)
    assert (document["synthetic"], document["requests"]) == (True, 3)
    with (tmp_path / "out" / f"{command}.csv").open(encoding="utf-8", newline="") as file:
        written = list(csv.DictReader(file))
    assert [list(row) for row in document[rows]] == [list(row) for row in written]
    for row, line in zip(document[rows], written, strict=True):
        assert [_text(value) for value in row.values()] == list(line.values())
    without = invoke(f"trace {command}", ["{home}/trace"], home, tmp_path)
    assert json.loads(without.stdout) == {k: v for k, v in document.items() if k != "out"}


def _text(value: Any) -> str:
    """A value as a CSV file has it."""
    return "" if value is None else f"{value:.10g}" if isinstance(value, float) else str(value)
