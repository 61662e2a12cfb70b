"""Redundancy of adjacent layers: joint tables by hand, closed forms, and the same done slowly."""

from __future__ import annotations

import csv
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from moesim.cli import app
from moesim.errors import UsageError
from moesim.report.redundancy import mutual_information, state_name, transition_matrix
from moesim.report.style import house_style
from moesim.trace import Trace
from moesim.trace.choices import choices
from moesim.trace.redundancy import Transition, redundancy, sparse_pairs, transitions


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def trace_of(ids: object, experts: int = 8, **changes: object) -> Trace:
    """Return a trace of one request; `ids` is (rows, layers) or (rows, layers, k)."""
    array = np.asarray(ids)
    array = array[..., None] if array.ndim == 2 else array
    return Trace.from_arrays(
        **{"expert_ids": array, "seq_len": [len(array)], "num_experts": experts, **changes}  # type: ignore[arg-type]
    )


def from_table(table: list[list[int]]) -> Trace:
    """Return a top-1 trace of two layers whose joint counts are `table`."""
    rows = [[i, j] for i, line in enumerate(table) for j, n in enumerate(line) for _ in range(n)]
    return trace_of(rows)


def bits(*shares: float) -> float:
    return -sum(share * math.log2(share) for share in shares if share)


def slow(trace: Trace, layer: int) -> float:
    """Return the plug-in mutual information by its definition."""
    rows = np.asarray(trace.expert_ids[:]).tolist()
    before = [frozenset(row[layer - 1]) - {trace.meta.unused} for row in rows]
    after = [frozenset(row[layer]) - {trace.meta.unused} for row in rows]
    one, two, both = Counter(before), Counter(after), Counter(zip(before, after, strict=True))
    n = len(rows)
    return sum(c / n * math.log2(c * n / (one[x] * two[y])) for (x, y), c in both.items())


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    rows, layers, k = draw(st.integers(2, 60)), draw(st.integers(2, 4)), draw(st.integers(1, 3))
    ids = rng.random((rows, layers, 5)).argsort(-1)[..., :k]
    ids[rng.random(ids.shape) < 0.2] = -1
    return trace_of(ids, 5, gate_weights=rng.random(ids.shape))


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ([[2, 2], [2, 2]], 0.0),
        ([[4, 0], [0, 4]], 1.0),
        ([[1, 0, 1], [0, 2, 0]], 1.0),
        ([[3, 1], [1, 3]], 2 - bits(3 / 8, 1 / 8, 1 / 8, 3 / 8)),
        ([[5, 1], [0, 2]], bits(6 / 8, 2 / 8) + bits(5 / 8, 3 / 8) - bits(5 / 8, 1 / 8, 2 / 8)),
        ([[8]], 0.0),
    ],
)
def test_joint_tables_by_hand(table: list[list[int]], expected: float) -> None:
    plugin, miller_madow = transitions(from_table(table)).information()
    assert plugin == pytest.approx(expected, abs=1e-12)
    shape = np.array(table)
    occupied = [np.count_nonzero(shape.sum(1)), np.count_nonzero(shape.sum(0)), (shape > 0).sum()]
    correction = ((occupied[0] - 1) + (occupied[1] - 1) - (occupied[2] - 1)) / (2 * shape.sum())
    assert miller_madow == pytest.approx(expected + correction / math.log(2), abs=1e-12)


@given(traces())
def test_information_is_that_of_the_definition(trace: Trace) -> None:
    for one in redundancy(trace, shuffles=2):
        assert one.plugin_bits == pytest.approx(slow(trace, one.layer), abs=1e-9)
        assert one.plugin_bits <= one.entropy_bits + 1e-9


@given(traces())
def test_relabelling_experts_and_reordering_places_change_nothing(trace: Trace) -> None:
    ids = np.asarray(trace.expert_ids[:]).astype(np.int64)
    for layer in range(trace.num_layers):
        names = np.append(np.random.default_rng(layer).permutation(5), np.zeros(251, int))
        names[trace.meta.unused] = -1
        ids[:, layer] = names[ids[:, layer]]
    renamed = trace_of(ids[..., ::-1], 5)
    for one, two in zip(redundancy(trace), redundancy(renamed), strict=True):
        assert two.plugin_bits == pytest.approx(one.plugin_bits)
        assert two.miller_madow_bits == pytest.approx(one.miller_madow_bits)
        assert (two.cells, two.states_after) == (one.cells, one.states_after)
        assert abs(two.null_bits - one.null_bits) <= 1 + one.null_spread_bits


@given(traces())
def test_rows_of_the_matrix_are_conditional_shares(trace: Trace) -> None:
    pair = transitions(trace)
    matrix = pair.matrix()
    np.testing.assert_allclose(matrix.sum(axis=1), 1)
    for i, before in enumerate(pair.before.states):
        for j, after in enumerate(pair.after.states):
            rows = [set(row) - {255} for row in np.asarray(trace.expert_ids[:, -2]).tolist()]
            nexts = [set(row) - {255} for row in np.asarray(trace.expert_ids[:, -1]).tolist()]
            both = sum(
                x == set(before) and y == set(after) for x, y in zip(rows, nexts, strict=True)
            )
            assert matrix[i, j] == pytest.approx(both / rows.count(set(before)))
    np.testing.assert_array_equal(pair.matrix(2), matrix[:2, :2])
    assert (np.diff(pair.before.counts) <= 0).all()


def test_a_layer_that_copies_tells_everything(rng: np.random.Generator) -> None:
    first = rng.integers(0, 8, 500)
    names = rng.permutation(8)
    one = redundancy(trace_of(np.stack([first, names[first]], axis=1)))[0]
    assert one.plugin_bits == pytest.approx(one.entropy_bits)
    assert one.normalised == pytest.approx(1)
    assert one.adjusted == pytest.approx(1)


def test_a_decoupled_router_is_wholly_redundant_at_every_layer(rng: np.random.Generator) -> None:
    ids = np.repeat(rng.integers(0, 6, (300, 1)), 5, axis=1)
    measured = redundancy(trace_of(ids, router="decoupled"))
    assert [one.adjusted for one in measured] == pytest.approx([1] * 4)
    assert all(one.likeliest is not None and one.likeliest.probability == 1
               for one in redundancy(trace_of(ids), min_count=10))  # fmt: skip


def test_independent_layers_are_near_the_null_and_their_plug_in_is_not(
    rng: np.random.Generator,
) -> None:
    ids = rng.random((2000, 6, 8)).argsort(-1)[..., :2]
    measured = redundancy(trace_of(ids))
    for one in measured:
        assert abs(one.corrected_bits) < 4 * one.null_spread_bits
        assert one.plugin_bits > 10 * one.null_spread_bits
        expected = 27 * 27 / (2 * 2000 * math.log(2))  # chi-square's mean, all 28 pairs at both
        assert one.plugin_bits == pytest.approx(expected, rel=0.2)
        assert abs(one.miller_madow_bits) < 0.25 * one.plugin_bits
        assert abs(one.adjusted) < 0.01
    assert sparse_pairs(measured) == len(measured)


def test_a_markov_chain_over_layers_has_its_closed_form(rng: np.random.Generator) -> None:
    """Stay with 0.7, else one of the other three: I = 2 - H(0.7, 0.1, 0.1, 0.1) bits."""
    rows = 60_000
    ids = np.empty((rows, 4), np.int64)
    ids[:, 0] = rng.integers(0, 4, rows)
    for layer in range(1, 4):
        moved = (ids[:, layer - 1] + rng.integers(1, 4, rows)) % 4
        ids[:, layer] = np.where(rng.random(rows) < 0.7, ids[:, layer - 1], moved)
    expected = 2 - bits(0.7, 0.1, 0.1, 0.1)
    for one in redundancy(trace_of(ids)):
        assert one.corrected_bits == pytest.approx(expected, abs=0.02)
        assert one.miller_madow_bits == pytest.approx(expected, abs=0.02)
        assert one.likeliest is not None
        assert one.likeliest.probability == pytest.approx(0.7, abs=0.02)


def test_the_null_repeats_with_its_seed_and_each_pair_has_its_own(rng: np.random.Generator) -> None:
    trace = trace_of(rng.integers(0, 8, (200, 3)))
    assert redundancy(trace, seed=1) == redundancy(trace, seed=1)
    assert redundancy(trace, seed=1)[0].null_bits != redundancy(trace, seed=2)[0].null_bits
    shuffled = transitions(trace).shuffled(np.random.default_rng(0))
    np.testing.assert_array_equal(shuffled.before.counts, transitions(trace).before.counts)


def test_the_likeliest_transition_needs_its_count() -> None:
    trace = from_table([[9, 3], [0, 2]])
    assert transitions(trace).likeliest(2) == Transition((1,), (1,), 1.0, 2)
    assert transitions(trace).likeliest(3) == Transition((0,), (0,), 0.75, 12)
    assert transitions(trace).likeliest(13) is None
    assert transitions(from_table([[4, 0], [0, 7]])).likeliest(1) == Transition((1,), (1,), 1.0, 7)


def test_states_are_sets_without_the_unused_or_top_experts() -> None:
    ids = [[[3, 5]], [[5, 3]], [[5, -1]], [[-1, -1]], [[3, 5]]]
    weights = [[[0.9, 0.1]], [[0.9, 0.1]], [[0.2, 0.0]], [[0.0, 0.0]], [[0.5, 0.5]]]
    trace = trace_of(ids, gate_weights=weights)
    whole, top = choices(trace, 0), choices(trace, 0, "top")
    assert [whole.states[code] for code in whole.codes] == [(3, 5), (3, 5), (5,), (), (3, 5)]
    assert [top.states[code] for code in top.codes] == [(3,), (5,), (5,), (), (3,)]
    assert list(map(state_name, whole.states)) == ["{3,5}", "{5}", "{}"] or whole.states[0] == (
        3,
        5,
    )


def test_many_experts_do_not_overflow_a_state(rng: np.random.Generator) -> None:
    ids = rng.random((50, 2, 300)).argsort(-1)[..., :20]
    trace = trace_of(np.concatenate([ids, ids]), 300)
    assert (choices(trace, 0).counts == 2).all()
    assert redundancy(trace)[0].plugin_bits == pytest.approx(math.log2(50))


def test_a_layer_that_always_chooses_the_same_has_nothing_to_tell() -> None:
    one = redundancy(trace_of(np.zeros((10, 2), int)))[0]
    assert (one.plugin_bits, one.entropy_bits, one.null_bits) == (0, 0, 0)
    assert math.isnan(one.normalised)
    assert math.isnan(one.adjusted)


@pytest.mark.parametrize(
    ("trace", "options", "message"),
    [
        (trace_of([[1], [2]]), {}, "one layer"),
        (trace_of([[1, 2]]), {}, "one token"),
        (trace_of([[1, 2], [2, 1]]), {"shuffles": 1}, "shuffles must be at least 2"),
        (trace_of([[1, 2], [2, 1]]), {"min_count": 0}, "min_count"),
        (trace_of([[1, 2], [2, 1]]), {"state": "sets"}, "'sets' is none of set, top"),
        (trace_of(np.ones((2, 2, 2), int) * [0, 1]), {"state": "top"}, "no gate weights"),
    ],
)
def test_bad_input_is_refused(trace: Trace, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        redundancy(trace, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("layer", [-1, 0, 3])
def test_an_absent_pair_of_layers_is_refused(layer: int) -> None:
    with pytest.raises(UsageError, match="choose from 1 to 2"):
        transitions(trace_of(np.ones((4, 3), int)), layer)


def test_charts_hold_what_was_measured(rng: np.random.Generator) -> None:
    trace = trace_of(rng.random((400, 3, 8)).argsort(-1)[..., :3])
    pair, measured = transitions(trace), redundancy(trace, shuffles=3)
    with house_style():
        heat = transition_matrix(pair, about="About.", seed=0)
        lines = mutual_information(measured, about="About.")
    image: Any = heat.axes[0][0].images[0]
    assert image.get_array().shape == (28, 28)
    np.testing.assert_allclose(image.get_array().filled(0), 100 * pair.matrix(28))
    assert f"28 most frequent of {len(pair.before.states)} states of layer 1" in heat.caption
    assert len(heat.rows) == 2 * 28 * 28
    assert [row[:3] for row in lines.rows] == [(0, 1, 400), (1, 2, 400)]
    assert lines.figure.axes[0].get_ylabel().endswith("(bits per token)")


def test_the_command_prints_a_table_and_writes_figures(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    trace_of(rng.random((200, 3, 5)).argsort(-1)[..., :2], 5).save(tmp_path / "t")
    command = ["trace", "redundancy", str(tmp_path / "t"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*command, "--layer", "1"])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1] == str(tmp_path / "out")
    assert "1 -> 2" in done.output
    with (tmp_path / "out/redundancy.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [row["layer"] for row in rows] == ["1", "2"]
    assert rows[0]["likeliest_before"] == ""  # no state has a hundred tokens
    drawn = {file.name for file in (tmp_path / "out/plots").glob("*.png")}
    assert drawn == {"transition_matrix.png", "mutual_information.png"}
    again = CliRunner().invoke(app, command)
    assert "--force" in str(again.exception)
    assert CliRunner().invoke(app, [*command, "--force", "--no-plots"]).exit_code == 0
    assert not (tmp_path / "out/plots").exists()


def test_a_mistake_leaves_no_folder(tmp_path: Path) -> None:
    trace_of(np.ones((4, 1), int)).save(tmp_path / "t")
    command = ["trace", "redundancy", str(tmp_path / "t"), "--out", str(tmp_path / "out")]
    assert isinstance(CliRunner().invoke(app, command).exception, UsageError)
    assert [file.name for file in tmp_path.iterdir()] == ["t"]
