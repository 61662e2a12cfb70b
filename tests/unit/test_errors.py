"""Every foreseen error says what, where and why, and can be passed between processes."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from moesim import errors
from moesim.errors import (
    BudgetError,
    InvariantError,
    MissingExtra,
    MoesimError,
    OutputError,
    PolicyViolation,
    ScenarioError,
    SourceError,
    ThresholdError,
    TraceError,
    UsageError,
)

EXAMPLES = [
    (ScenarioError(["a.yaml:1:2: x: wrong", "a.yaml:3:4: y: wrong"]), 2),
    (BudgetError("fixed weights need 30 GiB, the card has 24 GiB"), 2),
    (MissingExtra("torch", "recording a model"), 2),
    (UsageError("no"), 2),
    (TraceError(Path("t/trace.json"), "offset 12", "hash differs"), 1),
    (SourceError(Path("log.csv"), "line 3", "is empty"), 2),
    (PolicyViolation("lru", (3, 1), "kept twice"), 1),
    (InvariantError(4, "slot 3 written by two copies"), 1),
    (OutputError("out/run", "read-only file system"), 1),
    (ThresholdError("ratio 0.1 is below 0.15"), 3),
]


@pytest.mark.parametrize(("error", "code"), EXAMPLES, ids=lambda x: type(x).__name__)
def test_exit_codes_and_messages_survive_pickling(error: MoesimError, code: int) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
    assert copy.exit_code == code


def test_a_message_names_file_place_and_reason() -> None:
    assert str(TraceError("t/trace.json", "offset 12", "bad")) == "t/trace.json: offset 12: bad"
    assert str(TraceError("t/trace.json", "", "bad")) == "t/trace.json: bad"
    assert "pip install -c constraints.txt '.[torch]'" in str(MissingExtra("torch", "recording"))
    assert str(OutputError("a/b", "disk full")) == "cannot write a/b: disk full"
    assert "3" in str(InvariantError(3, "x"))


def test_a_scenario_error_prints_one_problem_a_line() -> None:
    error = ScenarioError(["f:1:1: a", "f:2:1: b"])
    assert error.problems == ["f:1:1: a", "f:2:1: b"]
    assert str(error) == "f:1:1: a\nf:2:1: b"


def test_the_tree_is_drawn_in_the_docstring() -> None:
    assert errors.__doc__ is not None
    for name in errors.__all__:
        assert name in errors.__doc__
        assert issubclass(getattr(errors, name), MoesimError)
