"""Arrays that others recorded become traces, or a `TraceError` that names the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_traces import assert_same, tiny_arrays, tiny_trace

from moesim.errors import TraceError
from moesim.trace import IMPORTERS, Trace, from_esft, from_npz, validate_trace


def write_npz(path: Path, **changes: Any) -> Path:
    arrays = tiny_arrays()
    given = {
        "expert_ids": arrays["expert_ids"],
        "gate_weights": arrays["gate_weights"],
        "seq_len": [5, 2, 4],
        **changes,
    }
    np.savez(path, **{name: array for name, array in given.items() if array is not None})
    return path


def test_an_npz_becomes_the_trace_of_its_arrays(tmp_path: Path) -> None:
    trace = from_npz(write_npz(tmp_path / "mine.npz"), num_experts=5)
    expected = tiny_trace(
        predictions=None,
        probabilities=None,
        prompt_tokens=None,
        arrival_s=None,
        domain="mine",
        model="mine",
        provenance={"imported_from": "mine.npz", "format": "npz"},
    )
    assert_same(expected, trace)
    assert_same(trace, trace.save(tmp_path / "trace"))


def test_the_caller_may_say_what_the_arrays_do_not(tmp_path: Path) -> None:
    alike = np.repeat(tiny_arrays()["expert_ids"][:1], 11, axis=0)  # as a static router has them
    trace = from_npz(
        write_npz(tmp_path / "mine.npz", expert_ids=alike, gate_weights=None),
        num_experts=8,
        model="named",
        domain=["a", "b", "c"],
        provenance={"by": "me"},
        router="static",
    )
    assert trace.gate_weights is None
    assert (trace.meta.model, trace.meta.router) == ("named", "static")
    assert trace.requests["domain"].tolist() == ["a", "b", "c"]
    assert trace.meta.provenance["by"] == "me"


def test_an_npz_may_hold_all_that_a_trace_can(tmp_path: Path) -> None:
    arrays = tiny_arrays()
    optional = {name: arrays[name] for name in ("predictions", "probabilities")}
    requests = {"prompt_tokens": [3, 2, 1], "arrival_s": [0.0, 1.5, np.nan]}
    path = write_npz(tmp_path / "mine.npz", **optional, **requests)
    expected = tiny_trace(
        domain="mine",
        model="mine",
        provenance={"imported_from": "mine.npz", "format": "npz"},
    )
    assert_same(from_npz(path, num_experts=5), expected)


def test_experts_are_counted_from_the_ids_by_default(tmp_path: Path) -> None:
    assert from_npz(write_npz(tmp_path / "mine.npz")).num_experts == 5


def test_whether_a_full_byte_is_an_expert_must_be_said(tmp_path: Path) -> None:
    ids = np.arange(256, dtype=np.uint8).reshape(128, 1, 2)
    path = write_npz(tmp_path / "all.npz", expert_ids=ids, gate_weights=None, seq_len=[128])
    with pytest.raises(TraceError, match=r"num_experts.*255 is an unused place or an expert"):
        from_npz(path)
    as_expert, as_unused = from_npz(path, num_experts=256), from_npz(path, num_experts=255)
    assert as_expert.expert_ids[:].ravel().tolist() == list(range(256))
    assert as_unused.expert_ids[:].ravel().tolist() == list(range(256))
    assert (as_expert.meta.unused, as_unused.meta.unused) == (65_535, 255)


def save_one_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "not a readable .npz"),
    "empty": (lambda path: path.write_bytes(b""), "not a readable .npz"),
    "text": (lambda path: path.write_text("words"), "not a readable .npz"),
    "a damaged zip": (lambda path: path.write_bytes(b"PK\3\4" + bytes(99)), "not a readable .npz"),
    "a folder": (lambda path: path.mkdir(), "not a readable .npz"),
    "one array": (lambda path: save_one_array(path), "not a readable .npz"),
    "objects": (
        lambda path: write_npz(path, expert_ids=np.array([None, 1], object)),
        "not a readable .npz",
    ),
    "no ids": (lambda path: write_npz(path, expert_ids=None), "expert_ids: missing.*seq_len"),
    "no lengths": (lambda path: write_npz(path, seq_len=None), "seq_len: missing.*expert_ids"),
    "no rows": (lambda path: write_npz(path, expert_ids=np.zeros((0, 2, 2), int)), "at least one"),
    "only unused places": (
        lambda path: write_npz(path, expert_ids=np.full((11, 2, 2), -1)),
        "num_experts",
    ),
    "broken ids": (lambda path: write_npz(path, expert_ids=np.ones((11, 2, 2))), "integers"),
    "ids in words": (lambda path: write_npz(path, expert_ids=np.full((11, 2, 2), "a")), "integers"),
    "too few lengths": (lambda path: write_npz(path, seq_len=[5]), "cover 5 rows"),
    "lengths in words": (lambda path: write_npz(path, seq_len=["5", "6"]), "whole numbers"),
    "weights in words": (
        lambda path: write_npz(path, gate_weights=np.full((11, 2, 2), "a")),
        "gate_weights.*numbers",
    ),
    "NaN weights": (
        lambda path: write_npz(path, gate_weights=np.full((11, 2, 2), np.nan)),
        "row 0, layer 0, place 0.*finite",
    ),
    "a repeated id": (
        lambda path: write_npz(path, expert_ids=np.ones((11, 2, 2), int)),
        "row 0, layer 0.*repeated",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_npz_is_a_trace_error_naming_the_file(case: str, tmp_path: Path) -> None:
    spoil, message = BAD_FILES[case]
    path = tmp_path / "bad.npz"
    spoil(path)
    with pytest.raises(TraceError, match=message) as caught:
        from_npz(path)
    assert caught.value.file == str(path)


@settings(max_examples=300)
@given(data=st.data())
def test_a_damaged_npz_raises_nothing_but_trace_errors(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write_npz(tmp_path_factory.getbasetemp() / "damaged.npz")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))])
    try:
        assert from_npz(path, num_experts=5).num_rows >= 1
    except TraceError as error:
        assert error.file == str(path)  # noqa: PT017


def test_importers_go_by_name() -> None:
    assert sorted(IMPORTERS) == ["esft", "npz"]
    assert IMPORTERS["esft"] is from_esft


@pytest.mark.parametrize("task", ["intent", "law", "summary", "translation"])
def test_esft_routing_is_deepseek_v2_lite(task: str, esft: Callable[[str], Trace]) -> None:
    trace = esft(task)
    assert (trace.num_layers, trace.num_experts, trace.top_k) == (26, 64, 6)
    assert trace.meta.model_layers == tuple(range(1, 27))
    assert trace.meta.model == "deepseek-v2-lite"
    assert not trace.meta.normalised
    assert trace.gate_weights is not None
    assert float(np.asarray(trace.gate_weights, np.float32).sum(-1).max()) <= 1.01
    assert set(trace.requests["domain"]) == {task}


def test_esft_routing_survives_the_disk(esft: Callable[[str], Trace], tmp_path: Path) -> None:
    saved = esft("law").save(tmp_path / "law")
    assert_same(esft("law"), saved)
    assert_same(saved, validate_trace(tmp_path / "law"))
