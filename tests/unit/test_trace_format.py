"""A trace comes back from disk as it was given, whatever its arrays, shards and id type."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tiny_traces import (
    assert_same,
    edit_header,
    read_header,
    save_sharded,
    tiny_arrays,
    tiny_trace,
)

from moesim.errors import OutputError, TraceError
from moesim.trace import Trace, TraceMeta, TraceWriter, load_trace, validate_trace
from moesim.trace.rows import Rows

VARIANTS: dict[str, dict[str, Any]] = {
    "everything": {},
    "ids only": {"gate_weights": None, "predictions": None, "probabilities": None},
    "no domain, no arrivals": {"domain": None, "arrival_s": None},
    "prompts only": {"prompt_tokens": None},
    "no prompt rows": {"prompt_tokens": [3, 2, 7], "prompt_rows": "absent"},
    "a request without rows": {
        "seq_len": [7, 0, 4],
        "prompt_tokens": [3, 2, 1],
        "prompt_rows": "absent",
    },
    "other header fields": {
        "router": "pregated",
        "normalised": True,
        "layer_map": (1, 3),
        "expert_bytes": 1 << 40,
        "num_shared_experts": 2,
        "revision": "main",
        "model_config": {"hidden_size": 8, "list": [1, None, "x"]},
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_saved_is_loaded(variant: str, tmp_path: Path) -> None:
    trace = tiny_trace(**VARIANTS[variant])
    saved = trace.save(tmp_path / "trace")
    assert_same(trace, saved)
    assert_same(trace, load_trace(tmp_path / "trace"))
    assert_same(trace, validate_trace(str(tmp_path / "trace")))
    assert saved.path == tmp_path / "trace"


@pytest.mark.parametrize("shard_rows", [1, 4, 6, 7, 100])
def test_shards_change_nothing(shard_rows: int, tmp_path: Path) -> None:
    trace = tiny_trace()
    loaded = save_sharded(trace, tmp_path / "trace", shard_rows)
    assert_same(trace, validate_trace(tmp_path / "trace"))
    expected = {1: 3, 4: 2, 6: 2, 7: 2, 100: 1}[shard_rows]
    assert len(loaded.expert_ids.pieces()) == expected
    assert_same(loaded, loaded.save(tmp_path / "again"))


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    """Any small trace that obeys the format."""
    experts = draw(st.sampled_from([1, 2, 3, 8, 255, 256, 300]))
    top_k = draw(st.integers(1, min(experts, 4)))
    layers = draw(st.integers(1, 3))
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (sum(lengths), layers)
    ids = rng.random((*shape, experts)).argsort(axis=-1)[..., :top_k]
    ids[rng.random(ids.shape) < 0.2] = -1
    arrays: dict[str, Any] = {"expert_ids": ids}
    if draw(st.booleans()):
        arrays["gate_weights"] = rng.random(ids.shape)
    if draw(st.booleans()):
        depth = draw(st.integers(1, 2))
        arrays["predictions"] = rng.random((*shape, depth, experts)).argsort(-1)[..., :top_k]
    if draw(st.booleans()):
        arrays["probabilities"] = rng.random((*shape, experts))
    return Trace.from_arrays(
        **arrays,
        seq_len=lengths,
        prompt_tokens=[draw(st.integers(1, length)) for length in lengths],
        num_experts=experts,
        domain=draw(st.lists(st.text(max_size=3), min_size=len(lengths), max_size=len(lengths))),
        arrival_s=draw(
            st.lists(
                st.floats(0, 1e9) | st.just(np.nan), min_size=len(lengths), max_size=len(lengths)
            )
        ),
        provenance=draw(st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3))),
    )


@given(traces(), st.integers(1, 8))
def test_any_trace_survives_the_disk(trace: Trace, shard_rows: int) -> None:
    with TemporaryDirectory() as folder:
        save_sharded(trace, Path(folder) / "trace", shard_rows)
        assert_same(trace, validate_trace(Path(folder) / "trace"))


@pytest.mark.parametrize(
    ("experts", "dtype", "unused"),
    [(1, "uint8", 255), (255, "uint8", 255), (256, "uint16", 65_535), (65_535, "uint16", 65_535)],
)
def test_ids_take_the_smallest_type_that_leaves_room_for_unused(
    experts: int, dtype: str, unused: int, tmp_path: Path
) -> None:
    ids = np.array([[[experts - 1]], [[0]], [[-1]]])
    trace = Trace.from_arrays(expert_ids=ids, seq_len=[3], num_experts=experts)
    saved = trace.save(tmp_path / "trace")
    assert saved.expert_ids.dtype == dtype
    assert saved.meta.unused == unused
    assert saved.expert_ids[:].ravel().tolist() == [experts - 1, 0, unused]


def test_more_experts_than_two_bytes_can_name_are_refused() -> None:
    with pytest.raises(TraceError, match=r"65536.*exceeds 65535"):
        TraceWriter("never", TraceMeta(num_layers=1, num_experts=65_536, top_k=1))


@pytest.mark.parametrize(
    ("dtype", "experts"), [("uint8", 256), ("int8", 128), ("uint8", 300), ("uint16", 255)]
)
def test_the_maximum_of_a_given_type_is_unused_only_where_it_names_no_expert(
    dtype: str, experts: int
) -> None:
    top = np.iinfo(dtype).max
    ids = np.array([[[top]], [[0]]], dtype)
    trace = Trace.from_arrays(expert_ids=ids, seq_len=[2], num_experts=experts)
    expected = top if top < experts else trace.meta.unused
    assert int(trace.expert_ids[0][0, 0]) == expected


def test_loaded_shards_are_memory_mapped(tmp_path: Path) -> None:
    trace = save_sharded(tiny_trace(), tmp_path / "trace", 4)
    for role in ("expert_ids", "gate_weights", "predictions", "probabilities"):
        for _, shard in getattr(trace, role).pieces():
            assert isinstance(shard, np.memmap)
            assert shard.mode == "r"


@given(st.data())
def test_rows_over_shards_read_as_one_array(data: st.DataObject) -> None:
    whole = np.arange(24).reshape(12, 2)
    cuts = data.draw(st.lists(st.integers(1, 11), unique=True, max_size=4).map(sorted))
    rows = Rows(np.split(whole, cuts))
    index = data.draw(
        st.integers(-12, 11)
        | st.slices(12)
        | hnp.arrays(np.int64, st.integers(0, 9), elements=st.integers(-12, 11))
        | hnp.arrays(np.int64, (2, 3), elements=st.integers(0, 11))
        | hnp.arrays(bool, 12)
        | st.tuples(st.integers(-12, 11), st.integers(-2, 1))
        | st.tuples(st.slices(12), st.integers(-2, 1) | st.slices(2))
    )
    np.testing.assert_array_equal(rows[index], whole[index])
    np.testing.assert_array_equal(np.asarray(rows), whole)
    assert np.concatenate([shard for _, shard in rows.pieces()]).tolist() == whole.tolist()
    assert [first for first, _ in rows.pieces()] == [0, *cuts]


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("row", [12, -13, [0, 12], [-13]])
def test_a_row_that_does_not_exist_is_an_index_error(shards: int, row: Any) -> None:
    rows = Rows(np.split(np.arange(24).reshape(12, 2), shards))
    with pytest.raises(IndexError):
        _ = rows[row]


def test_a_request_owns_consecutive_rows(tiny: Trace) -> None:
    assert [tiny.slice(number) for number in range(3)] == [slice(0, 5), slice(5, 7), slice(7, 11)]
    assert tiny.requests["output_tokens"].tolist() == [3, 1, 4]
    absent = tiny_trace(prompt_tokens=[9, 9, 9], prompt_rows="absent")
    assert absent.requests["output_tokens"].tolist() == [6, 3, 5]


def test_a_trace_keeps_no_hold_on_the_arrays_it_was_made_from() -> None:
    ids = tiny_arrays()["expert_ids"]
    ids[ids == -1] = 255
    ids = ids.astype(np.uint8)
    weights = np.full(ids.shape, 0.5, np.float16)
    trace = tiny_trace(expert_ids=ids, gate_weights=weights)
    before = trace.expert_ids[:].tolist()
    ids[:] = 0
    weights[:] = 0
    assert trace.expert_ids[:].tolist() == before
    assert float(trace.gate_weights[:].min()) == 0.5


def test_the_memory_order_of_what_is_given_does_not_matter(tiny: Trace, tmp_path: Path) -> None:
    turned = {name: np.asfortranarray(array) for name, array in tiny_arrays().items()}
    tiny_trace(**turned).save(tmp_path / "trace")
    assert_same(tiny, validate_trace(tmp_path / "trace"))


def test_a_changed_header_leaves_the_rows(tiny: Trace) -> None:
    renamed = tiny.with_meta(model="other", router="static")
    assert renamed.meta == replace(tiny.meta, model="other", router="static")
    assert_same(tiny, renamed.with_meta(model="tiny", router="layerwise"))


def test_the_header_lists_every_other_file_with_size_and_hash(tmp_path: Path) -> None:
    save_sharded(tiny_trace(), tmp_path / "trace", 4)
    header = read_header(tmp_path / "trace")
    listed = {entry["path"]: entry for entry in header["files"]}
    assert {"trace.json", *listed} == {file.name for file in (tmp_path / "trace").iterdir()}
    for name, entry in listed.items():
        data = (tmp_path / "trace" / name).read_bytes()
        assert entry["bytes"] == len(data)
        assert entry["sha256"] == sha256(data).hexdigest()
        if name.endswith(".npy"):
            assert entry["shape"] == list(np.load(tmp_path / "trace" / name).shape)


def test_a_later_minor_version_and_its_new_fields_are_read(tiny: Trace, tmp_path: Path) -> None:
    tiny.save(tmp_path / "trace")
    edit_header(tmp_path / "trace", version="1.7", colour="blue")
    assert_same(tiny, validate_trace(tmp_path / "trace"))


def test_a_saved_trace_is_the_same_bytes_every_time(tiny: Trace, tmp_path: Path) -> None:
    for name in ("a", "b"):
        tiny.save(tmp_path / name)
    files = {file.name for file in (tmp_path / "a").iterdir()}
    assert len(files) == 6
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_model_config_with_number_keys_is_kept_as_json_keeps_it(tmp_path: Path) -> None:
    config = {"id2label": {number: str(number) for number in range(12)}}
    saved = tiny_trace(model_config=config).save(tmp_path / "trace")
    assert saved.meta.model_config == json.loads(json.dumps(config))
    validate_trace(tmp_path / "trace")


def test_an_existing_folder_is_refused_unless_forced(tiny: Trace, tmp_path: Path) -> None:
    tiny.save(tmp_path / "trace")
    with pytest.raises(OutputError, match=r"trace: already exists"):
        tiny_trace(model="other").save(tmp_path / "trace")
    assert load_trace(tmp_path / "trace").meta.model == "tiny"
    tiny_trace(model="other").save(tmp_path / "trace", force=True)
    assert load_trace(tmp_path / "trace").meta.model == "other"
    assert [file.name for file in tmp_path.iterdir()] == ["trace"]


def test_a_loaded_trace_may_replace_itself(tiny: Trace, tmp_path: Path) -> None:
    loaded = tiny.save(tmp_path / "trace")
    loaded.with_meta(model="renamed").save(tmp_path / "trace", force=True)
    assert_same(tiny.with_meta(model="renamed"), validate_trace(tmp_path / "trace"))


BAD_ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "ids that are no integers": ({"expert_ids": np.zeros((11, 2, 2))}, "expert_ids.*integers"),
    "ids without a layer axis": ({"expert_ids": np.zeros((11, 2), int)}, "expert_ids.*three axes"),
    "fewer weights": ({"gate_weights": np.ones((10, 2, 2))}, "gate_weights.*10 rows.*11"),
    "weights of another k": ({"gate_weights": np.ones((11, 2, 3))}, r"\(2, 2\), not \(2, 3\)"),
    "weights that are text": ({"gate_weights": np.full((11, 2, 2), "x")}, "gate_weights.*number"),
    "probabilities of other experts": ({"probabilities": np.ones((11, 2, 4))}, r"\(2, 5\)"),
    "predictions that are no integers": ({"predictions": np.ones((11, 2, 1, 2))}, "predictions.*"),
    "predictions without depth": ({"predictions": np.zeros((11, 2, 2), int)}, "predictions.*depth"),
    "predictions without layers": ({"predictions": np.zeros((11, 2), int)}, "predictions.*depth"),
    "requests that are ragged": ({"seq_len": [[5, 2], [4]]}, "seq_len.*one number"),
    "an id below -1": ({"expert_ids": np.full((11, 2, 2), -2)}, "row 0, layer 0.*-2.*range"),
    "an id of no expert": ({"num_experts": 4}, "row 0, layer 1.*4.*range.*4 experts"),
    "requests too short": ({"seq_len": [5, 2, 3]}, "cover 10 rows.*11"),
    "requests too long": ({"seq_len": [5, 2, 5]}, "cover 12 rows.*11"),
    "a length that is no number": ({"seq_len": ["x", 2, 4]}, "seq_len.*whole numbers"),
    "a broken length": ({"seq_len": [5.5, 2, 3.5]}, "seq_len.*whole numbers"),
    "more prompt than rows": ({"prompt_tokens": [6, 2, 1]}, "request 0.*output_tokens"),
    "a request without a prompt": ({"prompt_tokens": [3, 0, 1]}, "request 1.*prompt_tokens"),
    "too few prompts": ({"prompt_tokens": [3, 2]}, "prompt_tokens.*3 entries"),
    "a prompt that is no number": ({"prompt_tokens": [3, 2, None]}, "prompt_tokens.*whole numbers"),
    "unknown prompts": ({"prompt_rows": "absent", "prompt_tokens": None}, "prompt_tokens.*given"),
    "too few domains": ({"domain": ["a", "b"]}, "domain.*3 entries"),
    "an arrival before time": ({"arrival_s": [0, -1, 2]}, "request 1.*arrival_s"),
    "an arrival that is no number": ({"arrival_s": ["soon", 1, 2]}, "arrival_s.*numbers"),
    "no rows": (
        {name: array[:0] for name, array in tiny_arrays().items()}
        | {"seq_len": [], "prompt_tokens": None, "domain": None, "arrival_s": None},
        "at least one",
    ),
    "no experts": ({"num_experts": 0}, "num_experts.*at least 1"),
    "more choices than experts": ({"num_experts": 1}, "top_k.*exceeds"),
    "an unknown router": ({"router": "psychic"}, "psychic.*layerwise"),
    "layers in falling order": ({"layer_map": (3, 1)}, "layer_map.*rising"),
    "a layer missing from the map": ({"layer_map": (3,)}, "layer_map.*2 model layers"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_arrays_that_disagree_are_refused_by_name(case: str) -> None:
    changes, message = BAD_ARRAYS[case]
    with pytest.raises(TraceError, match=message):
        tiny_trace(**changes)


def test_a_number_of_experts_may_come_from_numpy() -> None:
    trace = tiny_trace(num_experts=np.int64(5))
    assert type(trace.meta.num_experts) is int
