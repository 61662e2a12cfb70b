"""Parts of a trace: the rows, layers and weights of the requests that are picked."""

from __future__ import annotations

import numpy as np
from tiny_traces import tiny_trace

from moesim.trace.parts import halves, pick


def test_requests_keep_their_rows_in_the_order_asked_for() -> None:
    whole = tiny_trace()
    found = pick(whole, [2, 0])
    rows = [*range(*whole.slice(2).indices(99)), *range(*whole.slice(0).indices(99))]
    assert np.array_equal(found.expert_ids[:], np.asarray(whole.expert_ids[:])[rows])
    assert np.array_equal(found.gate_weights[:], np.asarray(whole.gate_weights[:])[rows])
    assert [found.slice(0), found.slice(1)] == [
        slice(0, whole.slice(2).stop - whole.slice(2).start),
        slice(whole.slice(2).stop - whole.slice(2).start, len(rows)),
    ]


def test_layers_can_be_left_out() -> None:
    whole = tiny_trace()
    found = pick(whole, range(whole.num_requests), [1])
    assert found.num_layers == 1
    assert np.array_equal(found.expert_ids[:], np.asarray(whole.expert_ids[:])[:, [1]])


def test_first_rows_can_be_left_out_and_requests_with_them() -> None:
    whole = tiny_trace()
    lengths = [whole.slice(n).stop - whole.slice(n).start for n in range(whole.num_requests)]
    skip = min(lengths)
    found = pick(whole, range(whole.num_requests), skip=skip)
    assert found.num_requests == sum(length > skip for length in lengths)
    first = next(n for n, length in enumerate(lengths) if length > skip)
    row = whole.slice(first).start + skip
    assert np.array_equal(found.expert_ids[0], np.asarray(whole.expert_ids[:])[row])


def test_both_halves_hold_each_request_once() -> None:
    whole = tiny_trace()
    both = halves(whole)
    assert (both.train.num_requests, both.test.num_requests) == (1, 2)
    joined = np.concatenate([both.train.expert_ids[:], both.test.expert_ids[:]])
    assert np.array_equal(joined, whole.expert_ids[:])
