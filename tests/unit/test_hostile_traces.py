"""Any request table or header is a trace that can be used, or one `TraceError` of one line."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damage import damage_table, damaged_bytes, damaged_value
from tiny_traces import adopt, read_header, save_sharded, tiny_trace, write_header

from moesim.errors import TraceError
from moesim.trace import Trace, load_trace, validate_trace
from moesim.trace.locality import locality
from moesim.trace.statistics import describe

EXAMPLES = int(os.environ.get("MOESIM_FUZZ", "1"))
"""Raise it to look further than a test may take time for."""

COUNTS = ("prompt_tokens", "output_tokens", "first_row", "num_rows")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a trace with two shards per role, which tests must not change."""
    folder = tmp_path_factory.mktemp("whole") / "trace"
    save_sharded(tiny_trace(), folder, 5)
    return folder


@contextmanager
def copy_of(whole: Path) -> Iterator[Path]:
    with TemporaryDirectory() as temporary:
        yield Path(shutil.copytree(whole, Path(temporary) / "trace"))


def refusal(folder: Path, read: Callable[[Path], Trace] = load_trace) -> TraceError | None:
    """Return the error of opening a trace; None if it opens and all of it can be read."""
    try:
        trace = read(folder)
    except TraceError as error:
        said = str(error)
        assert said.startswith(str(folder))
        assert "\n" not in said
        assert len(said) < 1000
        return error
    describe(trace)
    locality(trace)
    return None


def set_counts(folder: Path, kind: Any, **columns: list[int]) -> None:
    table = pq.read_table(folder / "requests.parquet")
    for name, values in columns.items():
        column = pa.array(values, kind)
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, folder / "requests.parquet")
    adopt(folder, "requests.parquet")


def test_nonsense_in_a_request_table_is_one_line_or_a_usable_trace(whole: Path) -> None:
    rng = random.Random("requests")
    for number in range(60 * EXAMPLES):
        with copy_of(whole) as folder:
            file = folder / "requests.parquet"
            if number % 4:
                damage_table(file, rng)
            else:
                file.write_bytes(damaged_bytes(file.read_bytes(), rng) or b"?")
            adopt(folder, file.name)
            refusal(folder)


def test_nonsense_in_a_header_is_one_line_or_a_usable_trace(whole: Path) -> None:
    rng = random.Random("header")
    for _ in range(100 * EXAMPLES):
        with copy_of(whole) as folder:
            header = damaged_value(read_header(folder), rng)
            if isinstance(header, dict):
                write_header(folder, header)
            else:
                (folder / "trace.json").write_text(json.dumps(header))
            refusal(folder)


@pytest.mark.parametrize(
    ("prompt", "output", "says"),
    [
        ([2**62, 2**62, 7], [2**62, 2**62, 7], "request 0: prompt_tokens must be at most"),
        ([2**63 - 1, 2**63 - 1, 7], [1, 1, 7], "request 0: prompt_tokens must be at most"),
        ([1, 1, 7], [2**63 - 1, 2**63 - 1, 7], "request 0: output_tokens must be at most"),
    ],
)
def test_row_counts_that_wrap_around_to_the_right_total_are_refused(
    prompt: list[int], output: list[int], says: str, whole: Path
) -> None:
    """In 64 bits, two times 2**63 - 1 and 13 rows are the 11 that the shards hold."""
    rows = [2**63 - 1, 2**63 - 1, 13]
    for read in (load_trace, validate_trace):
        with copy_of(whole) as folder:
            set_counts(folder, pa.int64(), prompt_tokens=prompt, output_tokens=output,
                       num_rows=rows, first_row=[0, 2**63 - 1, -2])  # fmt: skip
            error = refusal(folder, read)
            assert error is not None
            assert says in str(error)


def test_counts_of_a_narrow_type_do_not_wrap_around(whole: Path) -> None:
    trace = tiny_trace(
        seq_len=[11], prompt_tokens=[3], domain=None, arrival_s=None,
        expert_ids=np.zeros((11, 1, 1), int), num_experts=2,
        **dict.fromkeys(("gate_weights", "predictions", "probabilities")),
    )  # fmt: skip
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "trace"
        trace.save(folder)
        for kind in (pa.uint8(), pa.int8(), pa.uint16(), pa.uint64()):
            set_counts(folder, kind, prompt_tokens=[3], output_tokens=[9], first_row=[0],
                       num_rows=[11])  # fmt: skip
            assert all(load_trace(folder).requests[name].dtype == np.int64 for name in COUNTS)
        # 200 + 68 - 1 = 267 = 11 in eight bits.
        set_counts(folder, pa.uint8(), prompt_tokens=[200], output_tokens=[68])
        with pytest.raises(TraceError, match=r"num_rows must be prompt \+ output - 1"):
            load_trace(folder)
        set_counts(folder, pa.uint64(), num_rows=[2**63 + 11])
        with pytest.raises(TraceError, match="num_rows is 9223372036854775819, which is too large"):
            load_trace(folder)


@pytest.mark.parametrize("name", ["trace.json", "requests.parquet", "expert_ids-00000.npy"])
@pytest.mark.parametrize("kind", ["pipe", "zeros", "random", "loop", "folder"])
def test_what_is_no_regular_file_is_refused_without_waiting(
    kind: str, name: str, whole: Path
) -> None:
    with copy_of(whole) as folder:
        (folder / name).unlink()
        match kind:
            case "pipe":
                os.mkfifo(folder / name)
            case "zeros":
                (folder / name).symlink_to("/dev/zero")
            case "random":
                (folder / name).symlink_to("/dev/random")
            case "loop":
                (folder / name).symlink_to(name)
            case "folder":
                (folder / name).mkdir()
        for read in (load_trace, validate_trace):
            error = refusal(folder, read)
            assert error is not None
            assert error.file == str(folder / name)


def test_a_header_larger_than_any_is_refused_before_it_is_read(whole: Path) -> None:
    with copy_of(whole) as folder:
        with (folder / "trace.json").open("wb") as file:
            file.truncate(2**40)  # a hole, which takes no space on the disk
        with pytest.raises(TraceError, match="is larger than 16,777,216 bytes"):
            load_trace(folder)


def test_a_header_of_absurd_sizes_is_refused(whole: Path) -> None:
    for field, value in (
        ("num_layers", 10**9), ("num_requests", 10**9), ("num_requests", 2**62),
        ("num_rows", 2**62), ("num_shared_experts", 10**30), ("expert_bytes", 10**30),
        ("layer_map", [0, 10**30]), ("prediction_depth", 10**9),
    ):  # fmt: skip
        with copy_of(whole) as folder:
            write_header(folder, {**read_header(folder), field: value})
            error = refusal(folder)
            assert error is not None
            assert field in str(error)


class _Unfriendly:
    def __array__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("not today")


NONSENSE: tuple[Any, ...] = (
    None, True, -1, 10**9, 2**63, 10**5000, 1.5, float("nan"), "x", "", b"x", [], [[1], [1, 2]],
    {"x": 1}, object(), _Unfriendly(), iter([4]), [10**30], [4, 0], [4, -4, 4], ["\ud800"],
    np.zeros((4, 1, 1)), np.zeros((4, 1, 1), object), np.zeros((4, 1, 1), bool),
    np.zeros((4, 1, 1), complex), np.full((4, 1, 1), -5), np.full((4, 1, 1), 2**63, np.uint64),
    np.zeros((0, 1, 1), int), np.zeros((4, 0, 1), int), np.zeros((4, 1, 0), int), np.array(4),
    np.full((4, 1, 1), np.nan), np.array([2**64 - 1, 5], np.uint64), "x" * 100_000,
)  # fmt: skip
ARGUMENTS = (
    "expert_ids", "seq_len", "num_experts", "gate_weights", "prompt_tokens", "predictions",
    "probabilities", "domain", "arrival_s", "num_layers", "top_k", "model", "router",
    "num_shared_experts", "expert_bytes", "layer_map", "prompt_rows", "model_config", "provenance",
    "nonsense",
)  # fmt: skip


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_nonsense_from_python_is_a_trace_error_or_a_trace(argument: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"expert_ids": np.zeros((4, 1, 1), int), "seq_len": [4]}
    for number, value in enumerate(NONSENSE):
        try:
            trace = Trace.from_arrays(**{**given, "num_experts": 2, argument: value})
            trace.save(tmp_path / str(number))
        except TraceError as error:
            said = str(error)
            assert "\n" not in said
            assert len(said) < 500
        else:
            assert validate_trace(tmp_path / str(number)).num_rows == trace.num_rows


def test_deeply_nested_provenance_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    for field in ("model_config", "provenance"):
        with pytest.raises(TraceError, match=f"{field} must be plain JSON"):
            tiny_trace(**{field: {"deep": deep}})
