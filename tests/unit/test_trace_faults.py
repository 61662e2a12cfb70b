"""A damaged trace is a `TraceError` with file, place and reason: never another error, never
silently wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_traces import (
    adopt,
    assert_same,
    edit_header,
    edit_shard,
    read_header,
    save_sharded,
    tiny_trace,
    write_header,
)

from moesim.errors import TraceError
from moesim.trace import Trace, load_trace, validate_trace
from moesim.trace.meta import ROLES

SHARDS = [f"{role}-{number:05d}.npy" for role in ROLES for number in range(2)]
FILES = sorted([*SHARDS, "requests.parquet", "trace.json"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a trace with two shards per role, which tests must not change."""
    folder = tmp_path_factory.mktemp("whole") / "trace"
    save_sharded(tiny_trace(), folder, 5)
    assert sorted(file.name for file in folder.iterdir()) == FILES
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "trace"))


@contextmanager
def copy_of(whole: Path) -> Iterator[Path]:
    with TemporaryDirectory() as temporary:
        yield Path(shutil.copytree(whole, Path(temporary) / "trace"))


def refused(folder: Path, file: str, message: str, opening: bool = True) -> TraceError:
    """Return the error, which names `file`; with `opening`, `load_trace` itself raises it."""
    with pytest.raises(TraceError, match=message) as caught:
        validate_trace(folder)
    assert caught.value.file == str(folder / file)
    assert str(caught.value).startswith(str(folder / file))
    if opening:
        with pytest.raises(TraceError, match=message):
            load_trace(folder)
    else:
        load_trace(folder)
    return caught.value


@pytest.mark.parametrize("name", FILES[:-1])
def test_a_missing_file_is_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    refused(folder, name, "cannot be read")


def test_a_folder_without_header_is_no_trace(folder: Path) -> None:
    (folder / "trace.json").unlink()
    refused(folder, "trace.json", "missing: the folder is not a trace")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "", "no such trace folder")


@pytest.mark.parametrize("name", FILES[:-1])
@pytest.mark.parametrize("kept", [0, 1, 0.5, -1])
def test_a_truncated_file_is_named_with_the_byte_where_it_ends(
    name: str, kept: float, folder: Path
) -> None:
    data = (folder / name).read_bytes()
    size = int(kept * len(data)) if kept == 0.5 else int(kept) % len(data)
    (folder / name).write_bytes(data[:size])
    error = refused(folder, name, f"has {size} bytes, the header says {len(data)}")
    assert error.where == f"byte {size}"


@pytest.mark.parametrize("name", FILES[:-1])
def test_a_file_that_grew_is_named(name: str, folder: Path) -> None:
    with (folder / name).open("ab") as file:
        file.write(b"x")
    refused(folder, name, r"has \d+ bytes, the header says")


def test_a_truncated_header_is_named_with_line_and_column(folder: Path) -> None:
    text = (folder / "trace.json").read_text()
    for size in (1, len(text) // 2, len(text) - 3):
        (folder / "trace.json").write_text(text[:size])
        assert refused(folder, "trace.json", "not readable JSON").where.startswith("line ")


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_found(name: str, whole: Path) -> None:
    data = (whole / name).read_bytes()
    rng = np.random.default_rng(FILES.index(name))
    with copy_of(whole) as folder:
        for offset in {0, len(data) - 1, *rng.integers(0, len(data), 60).tolist()}:
            bit = 1 << int(rng.integers(8))
            flipped = bytes([*data[:offset], data[offset] ^ bit, *data[offset + 1 :]])
            (folder / name).write_bytes(flipped)
            with pytest.raises(TraceError) as caught:
                validate_trace(folder)
            # A flip in the header may also make it name another file.
            assert caught.value.file == str(folder / name) or name == "trace.json"
            assert caught.value.reason


@pytest.mark.parametrize("role", ROLES)
def test_exchanged_shards_are_found(role: str, whole: Path, tmp_path: Path) -> None:
    even = tiny_trace(seq_len=[4, 4, 3], prompt_tokens=None)
    save_sharded(even, tmp_path / "trace", 4)
    first, second = (tmp_path / "trace" / f"{role}-0000{number}.npy" for number in (0, 1))
    assert first.stat().st_size == second.stat().st_size
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)
    refused(tmp_path / "trace", first.name, "SHA-256.*replaced", opening=False)


def test_exchanged_places_of_shards_are_found(folder: Path) -> None:
    header = read_header(folder)
    ids = [entry for entry in header["files"] if entry.get("role") == "expert_ids"]
    ids[0]["first_row"], ids[1]["first_row"] = ids[1]["first_row"], ids[0]["first_row"]
    write_header(folder, header)
    refused(folder, "expert_ids-00000.npy", "gap or overlap")


@pytest.mark.parametrize("role", ROLES)
def test_a_missing_last_shard_is_found(role: str, folder: Path) -> None:
    header = read_header(folder)
    entry = [entry for entry in header["files"] if entry.get("role") == role][-1]
    header["files"].remove(entry)
    write_header(folder, header)
    refused(folder, "trace.json", f"num_rows: is 11, {role} has 5")


@pytest.mark.parametrize("unlisted", ["requests.parquet", "expert_ids"])
def test_a_header_must_list_requests_and_ids(unlisted: str, folder: Path) -> None:
    header = read_header(folder)
    kept = [entry for entry in header["files"] if not entry["path"].startswith(unlisted)]
    write_header(folder, {**header, "files": kept})
    refused(folder, "trace.json", f"files: .*{unlisted}")


RESHAPED: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "a shard without its last row": ("expert_ids-00001.npy", lambda a: a[:-1], "num_rows: is 11"),
    "a shard of other layers": ("gate_weights-00000.npy", lambda a: a[:, :1], "rows must be"),
    "ids of another type": ("expert_ids-00000.npy", lambda a: a.astype("uint16"), "uint16"),
    "ids as numbers": ("predictions-00000.npy", lambda a: a.astype("float16"), "float16"),
    "weights of another type": ("gate_weights-00000.npy", lambda a: a.astype("float64"), "float64"),
    "an empty shard": ("expert_ids-00000.npy", lambda a: a[:0], "gap|readable"),
    "a number for a shard": ("expert_ids-00000.npy", lambda a: a[0, 0, 0], "rows must be"),
}


@pytest.mark.parametrize("case", RESHAPED)
def test_a_shard_of_another_shape_or_type_is_found(case: str, folder: Path) -> None:
    name, edit, message = RESHAPED[case]
    edit_shard(folder, name, edit)
    with pytest.raises(TraceError, match=message):
        load_trace(folder)


BAD_SHARDS: dict[str, bytes] = {
    "nothing": b"",
    "text": b"not an array, only words, but enough of them to fill a header" * 4,
    "a pickle": b"\x80\x04K\x01." * 20,
    "a damaged zip": b"PK\x03\x04" + bytes(200),
    "an empty zip": b"PK\x05\x06" + bytes(18),
    "nested without end": b"\x93NUMPY\x01\x00\x60\xea" + b"(" * 60_000,
    "an open string": b"\x93NUMPY\x01\x00\x0a\x00{'descr': '",
    "an unknown array version": b"\x93NUMPY\x09\x00" + bytes(200),
}


@pytest.mark.parametrize("case", BAD_SHARDS)
def test_a_shard_that_is_no_array_is_named(case: str, folder: Path) -> None:
    name = "expert_ids-00000.npy"
    (folder / name).write_bytes(BAD_SHARDS[case])
    adopt(folder, name)
    refused(folder, name, "not a readable array")


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1", b"a,b\n1,2\n"])
def test_a_request_table_that_is_no_parquet_is_named(data: bytes, folder: Path) -> None:
    (folder / "requests.parquet").write_bytes(data)
    adopt(folder, "requests.parquet")
    refused(folder, "requests.parquet", "not a readable request table")


BAD_JSON: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"layers: 3",
    "an array": b"[]",
    "a number": b"3",
    "not UTF-8": b'{"format": "\xff"}',
    "nested without end": b"[" * 100_000,
    "another format": b'{"format": "another"}',
    "no version": b'{"format": "moesim-trace"}',
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_a_header_that_is_no_header_is_named(case: str, folder: Path) -> None:
    (folder / "trace.json").write_bytes(BAD_JSON[case])
    refused(folder, "trace.json", "JSON|format|version")


@pytest.mark.parametrize("version", ["2.0", "0.9", "", None, 2, [1], "one"])
def test_another_major_version_is_refused_by_number(version: object, folder: Path) -> None:
    edit_header(folder, version=version)
    refused(folder, "trace.json", r"version: .* is unknown; this moesim reads 1\.x")


BAD_FIELDS: dict[str, list[Any]] = {
    "num_layers": [0, -1, 1.5, "2", True, None, [], ...],
    "num_experts": [0, 70_000, 5.0, "5", False, ...],
    "top_k": [0, 6, "2", None, ...],
    "num_rows": [0, -3, 10, 11.5, "11", True, 10**400, float("inf"), None, ...],
    "num_requests": [0, 2, "3", 3.5, float("nan"), None, ...],
    "files": [None, 3, {}, "files", [3], ["trace.json"], [{}], ...],
    "model": [3, None, ["tiny"]],
    "revision": [3, {}],
    "config_hash": [3.5, []],
    "router": ["psychic", None, ["layerwise"]],
    "normalised": ["yes", 1, None],
    "synthetic": ["no", 0],
    "num_shared_experts": ["2", -1, None, 0.5],
    "expert_bytes": ["24GiB", -1, 0.5, True],
    "layer_map": [[1], [3, 1], "ab", 3, [0.5, 1], [True, 2], [-2, -1], {"0": 1}],
    "prompt_rows": ["some", None, True],
    "prediction_depth": [-1, "1", 0, 2, None],
    "model_config": [[], "mixtral", 3],
    "provenance": [[], "me", None],
}


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field, values in BAD_FIELDS.items() for value in values],
    ids=str,
)
def test_a_wrong_field_of_the_header_is_refused_by_name(
    field: str, value: object, folder: Path
) -> None:
    edit_header(folder, **{field: value})
    with pytest.raises(TraceError) as caught:
        load_trace(folder)
    told = str(caught.value)
    consequence = field in ("num_requests", "num_experts", "prediction_depth", "files", "top_k")
    assert field in told or (consequence and str(folder) in told)


BAD_ENTRIES: dict[str, list[Any]] = {
    "path": ["../trace/trace.json", "..", ".", "", "/etc/hostname", "a\0b", "x" * 5000, 3, None],
    "bytes": ["12", -1, 1.5, None, True, 10**30],
    "sha256": [3, None, [], "abc", ""],
    "role": ["something", 3, []],
    "first_row": ["0", 1.5, None, -1, True, 10**30],
    "shape": [None, 3, "522", [5], [5, 2, 2, 1], [5, 2, "2"], [float("inf"), 2, 2], [5, 2, -2]],
    "dtype": [3, None, "float64"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field, values in BAD_ENTRIES.items() for value in values],
    ids=lambda value: str(value)[:20].replace("\0", "?"),
)
def test_a_wrong_entry_of_the_file_list_is_refused(field: str, value: object, folder: Path) -> None:
    header = read_header(folder)
    header["files"][0][field] = value
    write_header(folder, header)
    with pytest.raises(TraceError):
        validate_trace(folder)


def test_a_hand_edited_header_is_found(folder: Path) -> None:
    text = (folder / "trace.json").read_text()
    (folder / "trace.json").write_text(text.replace('"model": "tiny"', '"model": "huge"'))
    refused(folder, "trace.json", "header_sha256: does not match", opening=False)


def test_a_folder_in_place_of_a_file_is_named(folder: Path) -> None:
    (folder / "expert_ids-00000.npy").unlink()
    (folder / "expert_ids-00000.npy").mkdir()
    refused(folder, "expert_ids-00000.npy", "is a folder, not a regular file")


@st.composite
def damage(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Draw a change to some bytes of a file: flip, overwrite, cut, repeat or insert."""
    where = draw(st.floats(0, 1, exclude_max=True))
    length = draw(st.integers(1, 16))
    junk = draw(st.binary(min_size=1, max_size=16))
    kind = draw(st.sampled_from(["flip", "overwrite", "truncate", "cut", "repeat", "insert"]))

    def change(data: bytes) -> bytes:
        at = int(where * len(data))
        return {
            "flip": data[:at] + bytes([data[at] ^ (1 << length % 8)]) + data[at + 1 :],
            "overwrite": data[:at] + junk + data[at + len(junk) :],
            "truncate": data[:at],
            "cut": data[:at] + data[at + length :],
            "repeat": data[: at + length] + data[at:],
            "insert": data[:at] + junk + data[at:],
        }[kind]

    return change


def attempt(read: Callable[[Path], Trace], folder: Path) -> Trace | TraceError:
    try:
        return read(folder)
    except TraceError as error:
        return error


def only_trace_errors(folder: Path) -> Trace | None:
    """Return the validated trace; None if a `TraceError` refuses it. Other errors propagate."""
    opened, trace = attempt(load_trace, folder), attempt(validate_trace, folder)
    if isinstance(trace, TraceError):
        assert trace.file.startswith(str(folder))
        assert trace.reason
        return None
    assert isinstance(opened, Trace)
    return trace


@settings(max_examples=200)
@given(name=st.sampled_from(FILES), change=damage())
def test_random_damage_is_found_or_harmless(
    name: str, change: Callable[[bytes], bytes], whole: Path
) -> None:
    with copy_of(whole) as folder:
        (folder / name).write_bytes(change((whole / name).read_bytes()))
        trace = only_trace_errors(folder)
        if trace is not None:
            assert_same(tiny_trace(), trace)


@settings(max_examples=200)
@given(name=st.sampled_from(FILES[:-1]), changes=st.lists(damage(), min_size=1, max_size=3))
def test_damage_behind_fitting_hashes_raises_nothing_but_trace_errors(
    name: str, changes: list[Callable[[bytes], bytes]], whole: Path
) -> None:
    with copy_of(whole) as folder:
        data = (whole / name).read_bytes()
        for change in changes:
            data = change(data) or b"?"
        (folder / name).write_bytes(data)
        adopt(folder, name)
        if (trace := only_trace_errors(folder)) is not None:
            for role in ROLES:
                assert len(np.asarray(getattr(trace, role))) == trace.num_rows


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(max_examples=200)
@given(data=st.data())
def test_any_json_in_any_field_raises_nothing_but_trace_errors(
    data: st.DataObject, whole: Path
) -> None:
    header = read_header(whole)
    target = data.draw(st.sampled_from([header, *header["files"]]))
    key = data.draw(st.sampled_from(sorted(target)))
    target[key] = data.draw(JSON)
    with copy_of(whole) as folder:
        write_header(folder, header)
        if (trace := only_trace_errors(folder)) is not None:
            trace.with_meta(model="usable").save(folder.with_name("again"))


def test_the_header_of_this_test_is_what_the_writer_writes(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "trace").mkdir()
    write_header(tmp_path / "trace", read_header(whole))
    assert read_header(tmp_path / "trace") == json.loads((whole / "trace.json").read_text())


def test_a_folder_of_traces_names_those_inside(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"t{number:02}").mkdir()
        (tmp_path / f"t{number:02}" / "trace.json").write_text("{}")
    (tmp_path / "other").mkdir()
    with pytest.raises(TraceError, match=r"name one of them: t00, .*, t09 and 2 more"):
        load_trace(tmp_path)
    with pytest.raises(TraceError, match="is not a trace, or its recording never finished"):
        load_trace(tmp_path / "other")


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        (
            np.zeros((60, 2), np.int64),
            r"three axes .*, not the 2 of shape \(60, 2\)",
        ),
        (np.zeros((60, 2, 1)), "must be integers, not float64"),
    ],
)
def test_ids_of_another_shape_or_type_say_which_of_the_two(ids: Any, reason: str) -> None:
    with pytest.raises(TraceError, match=reason):
        Trace.from_arrays(expert_ids=ids, seq_len=[60], num_experts=4)
