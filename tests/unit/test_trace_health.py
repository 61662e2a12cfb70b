"""A value that breaks the format is found, and the error says which file, where and why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from costed_traces import costed_trace
from tiny_traces import adopt, edit_header, edit_shard, save_sharded, tiny_arrays, tiny_trace
from workloads import tiny_scenario

from moesim.errors import TraceError
from moesim.scenario import Scenario
from moesim.simulate.build import prepare
from moesim.trace import Trace, load_trace, validate_trace
from moesim.trace.health import check_shard
from moesim.trace.meta import Role, TraceMeta

Place = tuple[int, ...]
IDS, GUESSES = "expert_ids-00001.npy", "predictions-00001.npy"
WEIGHTS, PROBABILITIES = "gate_weights-00001.npy", "probabilities-00001.npy"

# In the second of two shards: the first one holds rows 0 to 4.
BAD_VALUES: dict[str, tuple[str, Place, Any, str, str]] = {
    "id out of range": (IDS, (1, 1, 0), 5, "row 6, layer 1, place 0", "expert id 5 .*5 experts"),
    "id far out": (IDS, (5, 0, 1), 254, "row 10, layer 0, place 1", "expert id 254 .*range"),
    "guess out of range": (
        GUESSES,
        (0, 0, 0, 1),
        9,
        "row 5, layer 0, depth 0, place 1",
        "expert id 9",
    ),
    "NaN weight": (WEIGHTS, (2, 1, 1), np.nan, "row 7, layer 1, place 1", "weight nan .*finite"),
    "infinite weight": (WEIGHTS, (2, 0, 0), np.inf, "row 7, layer 0, place 0", "weight inf"),
    "negative weight": (WEIGHTS, (3, 0, 0), -0.5, "row 8, layer 0, place 0", "weight -0.5"),
    "NaN probability": (
        PROBABILITIES,
        (0, 1, 4),
        np.nan,
        "row 5, layer 1, expert 4",
        "weight nan",
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_sharded(tiny_trace(), tmp_path / "trace", 5)
    return tmp_path / "trace"


@pytest.mark.parametrize("case", BAD_VALUES)
def test_a_bad_value_on_disk_is_named_by_file_offset_and_reason(case: str, folder: Path) -> None:
    name, place, value, where, reason = BAD_VALUES[case]
    edit_shard(folder, name, lambda array: array.__setitem__(place, value))
    load_trace(folder)  # opening reads no values
    with pytest.raises(TraceError, match=reason) as caught:
        validate_trace(folder)
    assert caught.value.file == str(folder / name)
    assert caught.value.where == where


@pytest.mark.parametrize(("name", "place"), [(IDS, (1, 1)), (GUESSES, (1, 0, 0))])
def test_a_repeated_id_is_named_by_row_and_layer(name: str, place: Place, folder: Path) -> None:
    edit_shard(folder, name, lambda array: array.__setitem__(place, 2))
    with pytest.raises(TraceError, match="expert id 2 is repeated") as caught:
        validate_trace(folder)
    assert caught.value.file == str(folder / name)
    assert caught.value.where.startswith(f"row 6, layer {place[1]}")


def test_unused_places_may_repeat(folder: Path) -> None:
    edit_shard(folder, IDS, lambda array: array.__setitem__((1, 1), 255))
    assert validate_trace(folder).expert_ids[6, 1].tolist() == [255, 255]


@pytest.mark.parametrize("case", BAD_VALUES)
def test_the_same_value_is_refused_in_memory(case: str) -> None:
    name, (row, *place), value, where, reason = BAD_VALUES[case]
    role = name.split("-")[0]
    array = tiny_arrays()[role]
    array[(row + 5, *place)] = value
    with pytest.raises(TraceError, match=reason) as caught:
        tiny_trace(**{role: array})
    assert (caught.value.file, caught.value.where) == (role, where)


@pytest.mark.parametrize("row", [0, 16_383, 16_384, 49_999])
def test_values_are_checked_to_the_last_row_of_a_long_shard(row: int) -> None:
    meta = TraceMeta(num_layers=1, num_experts=5, top_k=1)
    ids = np.zeros((50_000, 1, 1), np.uint8)
    ids[row] = 7
    with pytest.raises(TraceError, match=f"shard: row {row + 100}, layer 0, place 0: expert id 7"):
        check_shard(meta, "expert_ids", ids, file="shard", first_row=100)


@pytest.mark.parametrize("role", ["expert_ids", "gate_weights", "predictions", "probabilities"])
def test_what_is_well_formed_passes(role: Role) -> None:
    trace = tiny_trace()
    check_shard(trace.meta, role, getattr(trace, role)[:], file="shard")


def edit_requests(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    columns = pq.read_table(folder / "requests.parquet").to_pydict()
    edit(columns)
    pq.write_table(pa.table(columns), folder / "requests.parquet")
    adopt(folder, "requests.parquet")


def put(name: str, request: int, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda columns: columns[name].__setitem__(request, value)


BAD_REQUESTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another prompt": (put("prompt_tokens", 1, 3), "request 1: num_rows must be prompt"),
    "another output": (put("output_tokens", 2, 9), "request 2: num_rows must be prompt"),
    "no prompt": (put("prompt_tokens", 0, 0), "request 0: prompt_tokens must be at least 1"),
    "no output": (put("output_tokens", 0, 0), "request 0: output_tokens must be at least 1"),
    "rows that overlap": (put("first_row", 1, 4), "request 1: first_row must follow"),
    "rows that start late": (put("first_row", 0, 1), "request 0: first_row must follow"),
    "negative arrival": (put("arrival_s", 1, -0.5), "request 1: arrival_s"),
    "a length that is unknown": (put("num_rows", 1, None), "num_rows: must hold whole numbers"),
    "a length in words": (
        lambda columns: columns.update(num_rows=["5", "2", "4"]),
        "num_rows: must hold whole numbers",
    ),
    "an arrival in words": (
        lambda columns: columns.update(arrival_s=["now", "then", "never"]),
        "arrival_s: must hold numbers",
    ),
    "a domain in numbers": (lambda columns: columns.update(domain=[1, 2, 3]), "domain: must hold"),
    "a domain that is unknown": (put("domain", 1, None), "domain: must hold"),
    "a column missing": (lambda columns: columns.pop("first_row"), "first_row"),
    "a request too many": (
        lambda columns: [column.append(column[-1]) for column in columns.values()],
        "has 4 requests, the header says 3",
    ),
    "a request too few": (
        lambda columns: [column.pop() for column in columns.values()],
        "has 2 requests, the header says 3",
    ),
    "rows beyond all counting": (
        lambda columns: columns.update(
            prompt_tokens=[2**62, 2**62, 8], output_tokens=[2**62, 2**62, 4],
            num_rows=[2**63 - 1 - 2**63] * 2 + [11], first_row=[0, -1, -2],
        ),
        "prompt_tokens must be at most",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_a_wrong_request_table_is_refused_when_opened(case: str, folder: Path) -> None:
    edit, message = BAD_REQUESTS[case]
    edit_requests(folder, edit)
    with pytest.raises(TraceError, match=message) as caught:
        load_trace(folder)
    assert caught.value.file == str(folder / "requests.parquet")


def test_a_trace_of_decoded_rows_needs_no_prompt_rows(tmp_path: Path) -> None:
    trace = tiny_trace(prompt_rows="absent", prompt_tokens=[7, 7, 7]).save(tmp_path / "trace")
    assert trace.requests["output_tokens"].tolist() == [6, 3, 5]
    edit_requests(tmp_path / "trace", put("output_tokens", 1, 2))
    with pytest.raises(TraceError, match="request 1: num_rows must be output - 1"):
        load_trace(tmp_path / "trace")


def test_a_trace_may_leave_every_place_unused() -> None:
    trace = Trace.from_arrays(expert_ids=[[[-1]], [[-1]]], seq_len=[2], num_experts=3)
    assert trace.expert_ids[:].tolist() == [[[255]], [[255]]]


# --- a router that is static per task -------------------------------------------------------------


def static_folder(tmp_path: Path) -> Path:
    """Four requests of 5, 2, 4 and 5 rows of two domains and of none, in shards of 7, 9 rows."""
    domains = ["code", "prose", "", "code"]
    ids = tiny_arrays()["expert_ids"]
    rows = np.repeat(ids[[0, 1, 2, 0]], [5, 2, 4, 5], axis=0)
    rows[3] = rows[3, :, ::-1]  # a set has no order
    trace = Trace.from_arrays(
        expert_ids=rows, seq_len=[5, 2, 4, 5], num_experts=5, domain=domains, router="static"
    )
    save_sharded(trace, tmp_path / "static", 6)
    return tmp_path / "static"


def test_a_static_trace_may_be_static(tmp_path: Path) -> None:
    assert validate_trace(static_folder(tmp_path)).meta.router == "static"


@pytest.mark.parametrize(
    ("shard", "place", "value", "where"),
    [
        (0, (4, 1, 0), 3, "row 4, domain 'code', layer 1"),
        (0, (6, 0, 1), 255, "row 6, domain 'prose', layer 0"),
        (1, (3, 0, 0), 1, "row 10, domain '', layer 0"),
        (1, (8, 1, 1), 1, "row 15, domain 'code', layer 1"),  # of a later request
    ],
)
def test_a_static_trace_whose_rows_differ_within_a_domain_is_refused(
    shard: int, place: Place, value: int, where: str, tmp_path: Path
) -> None:
    folder = static_folder(tmp_path)
    name = f"expert_ids-{shard:05d}.npy"
    was = np.load(folder / name)[place[:2]]
    assert value not in was
    edit_shard(folder, name, lambda array: array.__setitem__(place, value))
    with pytest.raises(TraceError, match="a static router sends all rows of a domain") as caught:
        validate_trace(folder)
    assert caught.value.file == str(folder / name)
    assert caught.value.where == where
    experts = [int(expert) for expert in was if expert != 255]
    assert f"of that domain {sorted(experts)};" in caught.value.reason
    edit_header(folder, router="decoupled")
    validate_trace(folder)  # the rule is for static routers alone


@pytest.mark.parametrize("row", [16_383, 16_384, 49_999])
def test_static_traces_are_compared_to_the_last_row(row: int) -> None:
    ids = np.zeros((50_000, 1, 1), np.uint8)
    ids[row] = 1
    with pytest.raises(TraceError, match=f"expert_ids: row {row}, domain '', layer 0"):
        Trace.from_arrays(expert_ids=ids, seq_len=[50_000], num_experts=2, router="static")


def test_a_run_checks_that_a_static_trace_is_static(tmp_path: Path) -> None:
    """Opening a trace reads no values; a run does, and refuses what is not static."""
    static = costed_trace(np.zeros((9, 2, 1), int), seq_len=[4, 5], router="static")
    static.save(tmp_path / "trace")
    prepare(Scenario.model_validate(tiny_scenario()), load_trace(tmp_path / "trace"))
    name = "expert_ids-00000.npy"
    edit_shard(tmp_path / "trace", name, lambda ids: ids.__setitem__((7, 1, 0), 3))
    with pytest.raises(TraceError, match="row 7, domain '', layer 1: wants experts ") as caught:
        prepare(Scenario.model_validate(tiny_scenario()), load_trace(tmp_path / "trace"))
    assert caught.value.file == str(tmp_path / "trace" / name)
    assert caught.value.exit_code == 1
