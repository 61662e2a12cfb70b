"""Any text or data is a scenario or a `ScenarioError`; nothing fills the memory first."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from damage import NONSENSE, damaged_bytes, damaged_value
from workloads import tiny_trace

from moesim.config import yaml_nodes
from moesim.config.yaml_document import parse_document, plain_document
from moesim.errors import BudgetError, ScenarioError, TraceError
from moesim.scenario import load_scenario
from moesim.simulate import prepare
from moesim.trace import Trace

EXAMPLES = int(os.environ.get("MOESIM_FUZZ", "1"))
"""Raise it to look further than a test may take time for."""


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    folder = tmp_path_factory.mktemp("home") / "trace"
    return tiny_trace(requests=2, prompt_tokens=3, output_tokens=3).save(folder)


def everything(trace: Trace, *, swept: bool = True) -> dict[str, Any]:
    """Return a scenario with every section."""
    sweep = {"sweep": {"cache.policy": ["lru", "lfu"], "seed": [0, 1]}} if swept else {}
    return {
        **sweep,
        "name": "fuzzed", "trace": str(trace.path),
        "model": {"shape": "trace", "expert_bits": 4, "weight_bits": 16, "kv_bits": 8},
        "hardware": {
            "profile": "rtx-4090", "vram": "1GiB", "pinned": True, "kernel_overhead": "5us",
            "h2d": {"bandwidth": "25GB/s", "latency": "10us", "chunk": "1MB"},
        },
        "memory": {"capacity": "900MiB", "kv": "30%", "staging": 2, "kv_block_tokens": 4},
        "workload": {
            "requests": 3, "arrivals": {"kind": "gamma", "rate_per_s": 10.0, "burstiness": 2.0},
            "lengths": {"prompt": 4, "output": 3}, "order": "shuffled", "prefill": "recorded",
        },
        "batching": {"policy": "decode_first", "token_budget": 16, "max_sequences": 2},
        "cache": {"policy": "lfu_decay", "slots": "4/layer", "options": {}, "write_back": False},
        "prefetch": {
            "policy": "predicted", "options": {"depth": 1}, "buffers": 2, "cancel": True,
        },
        "timeline": {"first_step": 1, "steps": 2}, "seed": 3, "bounds": False,
    }  # fmt: skip


def loaded_or_refused(source: Path | dict[str, Any], trace: Trace) -> bool:
    """Return whether a scenario was loaded; prepare it if possible."""
    try:
        scenario = load_scenario(source)
        if not scenario.sweep:
            prepare(scenario, trace if scenario.trace == str(trace.path) else None)
    except ScenarioError as error:
        problems, said = error.problems, str(error)
        assert problems
        assert len(said) < 100_000
        assert not any("\n" in problem for problem in problems)
        return False
    except (BudgetError, TraceError):
        return False
    return True


def test_nonsense_in_a_file_is_named_or_read(trace: Trace, tmp_path: Path) -> None:
    rng = random.Random("yaml")
    path = tmp_path / "scenario.yaml"
    path.write_text(yaml.safe_dump(everything(trace)))
    assert loaded_or_refused(path, trace)
    for number in range(60 * EXAMPLES):
        text = yaml.safe_dump(damaged_value(everything(trace, swept=number % 3 == 0), rng)).encode()
        path.write_bytes(text if number % 4 else damaged_bytes(text, rng))
        loaded_or_refused(path, trace)


def test_nonsense_from_python_is_named_or_read(trace: Trace) -> None:
    rng = random.Random("python")
    deep: list[Any] = []
    endless: list[Any] = []
    endless.append(endless)
    for _ in range(5000):
        deep = [deep]
    more = (deep, endless, 10**5000, object(), {1: 2}, {None: 1}, (1, 2), {1, 2}, b"x", "a\0b")
    for number in range(100 * EXAMPLES):
        data = everything(trace, swept=number % 3 == 0)
        data = damaged_value(data, rng, (*NONSENSE, *more))
        if isinstance(data, dict):
            loaded_or_refused(data, trace)


def only_problem(text: str) -> str:
    with pytest.raises(ScenarioError) as caught:
        parse_document(text, "f")
    (problem,) = caught.value.problems
    return problem


def test_a_long_list_is_refused_while_it_is_composed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after the limit is never parsed: else its mistake would be the one to be told."""
    monkeypatch.setattr(yaml_nodes, "MAX_VALUES", 1000)
    mistake = "- [\n- }\n"
    for text in ("a:\n" + "- 1\n" * 2000, "a: &x [1]\nb:\n" + "- *x\n" * 2000):
        assert "too large or nested too deeply" in only_problem(text + mistake)
    assert "too large or nested too deeply" in only_problem("a: " + "[" * 50 + "}")
    assert "too large or nested too deeply" in only_problem("- " * 50 + "}")


def test_a_file_larger_than_any_scenario_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    with path.open("wb") as file:
        file.truncate(2**40)  # a hole, which takes no space on the disk
    with pytest.raises(ScenarioError, match="is larger than 1,048,576 bytes"):
        load_scenario(path)


@pytest.mark.parametrize("kind", ["pipe", "device", "loop"])
def test_what_is_no_regular_file_is_refused_without_waiting(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path)
    with pytest.raises(ScenarioError, match="cannot be read: "):
        load_scenario(path)


def test_a_message_repeats_no_endless_value_and_shows_a_hundred_mistakes() -> None:
    assert len(only_problem("x" * 10_000)) < 200
    assert len(only_problem("!" + "x" * 10_000 + " y")) < 400
    many = ScenarioError([f"f:{n}:1: wrong" for n in range(250)])
    assert len(many.problems) == 250
    assert str(many).splitlines()[99:] == ["f:99:1: wrong", "and 150 more mistakes"]
    assert ScenarioError(["a\nb" + "c" * 5000]).problems[0].startswith("a bccc")
    assert len(ScenarioError(["c" * 5000]).problems[0]) == 1000


def test_a_sweep_of_endless_size_is_one_mistake() -> None:
    keys = {f"cache.options.k{n}": [1, 2] for n in range(101)}
    for sweep, says in (
        (keys, "has 101 keys; at most 100 are allowed"),
        ({"seed": list(range(10_001))}, "has 10001 points; at most 10000 are allowed"),
    ):
        with pytest.raises(ScenarioError, match=says) as caught:
            load_scenario({"trace": ".", "hardware": "rtx-4090", "sweep": sweep})
        assert len([line for line in caught.value.problems if "sweep" in line]) == 1


def test_data_from_python_is_copied() -> None:
    inner = {"b": [1, {"c": None}]}
    document = plain_document({"a": inner}, "scenario")
    assert document.data == {"a": inner}
    assert document.data["a"]["b"] is not inner["b"]
    with pytest.raises(ScenarioError, match=r"^scenario: a\.b\[0\]: .*object.* must be text, a"):
        plain_document({"a": {"b": [object()]}}, "scenario")
    with pytest.raises(ScenarioError, match=r"^scenario: a: the number is too large"):
        plain_document({"a": 10**5000}, "scenario")
