"""`benchmarks/gpu` without a GPU: its parts, its budget, its file, and its scenarios."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fake_cuda import rehearse
from paths import ROOT

torch = pytest.importorskip("torch", reason="the benchmark needs the torch extra")

sys.path.append(str(ROOT / "benchmarks"))

from gpu import bench as benches  # noqa: E402
from gpu import commands, experts, hand_over, host, layers, links, recorder  # noqa: E402
from gpu.__main__ import PARTS, Part, main, run_parts  # noqa: E402
from torch.multiprocessing.reductions import StorageWeakRef  # noqa: E402

from moesim.model.shapes import named_shape  # noqa: E402
from moesim.scenario import load_scenario  # noqa: E402
from moesim.simulate.build import prepare  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
GPU_MEMORY = 78 << 30  # bytes, of the smaller GPU that the scenarios are for


def lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "results.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def bench_on(kind: type[benches.Bench], folder: Path) -> benches.Bench:
    facts = recorder.machine_facts("cpu")
    return kind("cpu", recorder.Recorder(folder / "results.jsonl", facts), folder)


def test_every_line_says_what_was_measured_where_when_and_in_which_unit(tmp_path: Path) -> None:
    assert (
        main(["--device", "cpu", "--budget", "5", "--out", str(tmp_path), "--parts", "ends"]) == 0
    )
    taken = lines(tmp_path)
    fields = {"measurement", "value", "unit", "elapsed_s", "date", "device", "driver", "torch"}
    assert all(fields <= set(line) for line in taken)
    (head,) = [line for line in taken if line["measurement"] == "LM head"]
    assert (head["unit"], head["rows"], head["device"]) == ("us", 1, "cpu")
    assert 0 < head["low"] <= head["value"] <= head["high"]


def test_files_of_commands_can_be_kept_apart_from_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: Any = subprocess.CompletedProcess((), 0, "{}", "")
    monkeypatch.setattr(commands, "_moesim", lambda *_, **__: done)
    out, work = tmp_path / "safe", tmp_path / "work"
    arguments = ["--device", "cpu", "--out", str(out), "--work", str(work), "--parts", "calibrate"]
    assert main(arguments) == 0
    assert [file.name for file in out.iterdir()] == ["results.jsonl"]
    assert (work / "calibration.log").is_file()


def test_a_line_is_in_the_file_before_the_next_measurement_begins(tmp_path: Path) -> None:
    bench = bench_on(benches.Bench, tmp_path)
    for number in range(3):
        bench.recorder.put("a rate", number, "GB/s")
        assert len(lines(tmp_path)) == number + 1


class Clock:
    """A clock that a part moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


def test_time_that_a_part_leaves_goes_to_later_parts_and_a_long_part_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock.monotonic)
    bench = bench_on(benches.Bench, tmp_path)
    had: dict[str, float] = {}

    def part(name: str, takes_s: float) -> Part:
        def run(bench: benches.Bench) -> None:
            had[name] = bench.left_s
            clock.now_s += takes_s

        return Part(name, 1.0, run)

    plan = [part("quick", 1), part("long", 35), part("late", 9), part("last", 1)]
    assert run_parts(plan, bench, budget_s=40) == []
    assert had == {"quick": 10, "long": 19, "last": 4}
    (late,) = [line for line in lines(tmp_path) if line["measurement"] == "left out"]
    assert late["part"] == "late"


def test_cases_that_no_longer_fit_are_counted(tmp_path: Path) -> None:
    bench = bench_on(benches.Bench, tmp_path)
    bench.deadline_s = time.monotonic() + 1000
    done = []
    for case in bench.cases("five", range(5)):
        done.append(case)
        if case == 1:
            bench.deadline_s = 0
    assert done == [0, 1]
    (line,) = lines(tmp_path)
    assert (line["measurement"], line["value"], line["part"]) == ("left out", 3, "five")


def test_a_part_that_fails_is_recorded_and_the_others_run(tmp_path: Path) -> None:
    ran = []

    def fails(_: Any) -> None:
        raise RuntimeError("an illegal address")

    bench = bench_on(benches.Bench, tmp_path)
    parts = [Part("fails", 1, fails), Part("runs", 1, lambda _: ran.append(1))]
    assert run_parts(parts, bench, 100) == ["fails"]
    assert ran == [1]
    (line,) = [line for line in lines(tmp_path) if line["measurement"] == "failed"]
    assert "an illegal address" in line["error"]


def test_a_machine_without_a_gpu_and_unknown_parts_are_refused(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        assert main(["--out", str(tmp_path)]) == 2
    assert main(["--device", "cpu", "--out", str(tmp_path), "--parts", "spokes"]) == 2
    assert not list(tmp_path.iterdir())


def test_shares_of_the_budget_are_all_of_it() -> None:
    assert sum(part.share for part in PARTS) == pytest.approx(1)


class Rehearsed(benches.Bench):
    """Takes every path for a GPU, with tensors in ordinary memory."""

    on_gpu = property(lambda _: True)
    dtype = property(lambda _: torch.float32)


def test_every_part_runs_its_gpu_paths_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With small sizes, and a stand-in for `torch.cuda`: no name and no argument is wrong."""
    called = rehearse(monkeypatch)
    monkeypatch.setattr(hand_over, "_REPEATS", 5)
    monkeypatch.setattr(hand_over, "staged", lambda numbers, _: numbers.clone())
    monkeypatch.setattr(links, "_SIZES", (1 << 16, 1 << 12))
    monkeypatch.setattr(links, "_LOCKED_BYTES", 1 << 16)
    locked: list[Any] = []
    held: list[bool] = []

    def page_locked(shape: tuple[int], dtype: Any) -> Any:
        memory = torch.zeros(shape, dtype=dtype)
        locked.append(StorageWeakRef(memory.untyped_storage()))
        mine = locked[-1]
        return memory, lambda: held.append(not mine.expired())

    monkeypatch.setattr(links, "page_locked", page_locked)
    monkeypatch.setattr(experts, "_SHAPES", experts._TINY)
    monkeypatch.setattr(experts, "_ROWS", (1, 4))
    monkeypatch.setattr(experts, "_BEYOND_CACHE", 1 << 18)
    monkeypatch.setattr(experts, "_COPY_BYTES", 1 << 16)
    monkeypatch.setattr(layers, "_MODELS", layers._TINY)
    monkeypatch.setattr(layers, "_MEMORY_BYTES", 1 << 16)
    monkeypatch.setattr(layers, "_DECODE", ((1, 8), (2, 8)))
    monkeypatch.setattr(layers, "_PREFILL", (8,))
    monkeypatch.setattr(host, "_READ_BYTES", 1 << 16)
    monkeypatch.setattr(host, "_SHAPES", (("tiny", 1024, 2048),))
    brief = {"stream": None, "batch_s": 0.0, "batches": 2}
    monkeypatch.setattr(benches.Bench.timed, "__kwdefaults__", brief)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    ran = [part for part in PARTS if "validate" not in part.name and part.name != "calibrate"]
    bench = bench_on(Rehearsed, tmp_path)
    assert run_parts(ran, bench, 1000) == []
    taken = {line["measurement"] for line in lines(tmp_path)}
    assert not taken & {"failed", "left out"}
    assert held == [True, True]  # memory is unlocked, and before it is freed
    assert {"round trip", "copy", "expert", "grouped experts", "attention in a graph"} <= taken
    assert {"locking of a gibibyte", "copies both ways at once", "expert on the CPU"} <= taken
    assert {"graph", "stream", "pinned", "empty_cache"} <= set(called)


@pytest.mark.parametrize("name", ["link_bound", "host_bound", "resident"])
def test_a_scenario_for_the_gpu_can_be_prepared_and_fits_into_its_memory(
    name: str, tmp_path: Path
) -> None:
    commands.traces(tmp_path)
    plan = prepare(load_scenario(commands.scenario_file(tmp_path, name)))
    shape = plan.cost.shape
    assert shape == named_shape(shape.name).with_bits(expert_bits=16, weight_bits=16)
    assert plan.buffers * shape.expert_bytes < 0.8 * GPU_MEMORY
    all_fit = sum(plan.slots) == plan.trace.num_layers * plan.trace.num_experts
    assert all_fit == (name == "resident")


def test_a_model_that_is_built_for_the_scenarios_has_experts_of_their_size() -> None:
    from transformers import AutoModelForCausalLM

    from moesim.executor.models import _config_of
    from moesim.record.routers import find_moe_layers

    for name in ("qwen3-30b-a3b", "mixtral-8x7b"):
        shape = named_shape(name).with_bits(expert_bits=16, weight_bits=16)
        build: Any = AutoModelForCausalLM.from_config
        with torch.device("meta"):
            model = build(_config_of(shape), dtype=torch.bfloat16)
        layers_of_experts = find_moe_layers(model)
        assert layers_of_experts[0].expert_bytes == shape.expert_bytes
        assert len(layers_of_experts) == len(shape.moe_layers)


@pytest.mark.parametrize(
    ("key", "unit"),
    [("total_time_error_pct", "%"), ("copy_ms", "ms"), ("real_total_s", "s"), ("runs", "1")],
)
def test_the_unit_of_a_number_is_read_from_its_name(key: str, unit: str) -> None:
    assert commands._unit(key) == unit


def test_a_command_that_hangs_is_ended_and_what_it_printed_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hangs(*command: str, timeout_s: float) -> Any:
        raise subprocess.TimeoutExpired(command, timeout_s, b'{"a": 1}', b"slow")

    monkeypatch.setattr(commands, "_moesim", hangs)
    bench = bench_on(benches.Bench, tmp_path)
    assert commands._summary(commands._run(bench, "x", ("validate",))) == {"a": 1}
    (line,) = lines(tmp_path)
    assert (line["value"], line["errors"]) == (None, "slow")


@pytest.mark.slow
def test_the_whole_script_runs_on_a_cpu_within_minutes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--budget", "60"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    taken = lines(tmp_path)
    assert not [line for line in taken if line["measurement"] == "failed"]
    codes = {line["name"]: line["value"] for line in taken if line["measurement"] == "command"}
    assert codes == {"tiny": 0, "calibration": 0}
    keys = {line["key"] for line in taken if line["measurement"] == "validation"}
    assert {"total_time_error_pct", "real_total_s"} <= keys
    assert (tmp_path / "validate-tiny" / "summary.json").is_file()
    assert (tmp_path / "profile.yaml").is_file()
