"""Two numbers of a machine, fitted to a few of its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from measured_rows import Affine, reading, row

from moesim.measured.answers import answer_fitted, as_plain
from moesim.measured.fit import fit_machines, fit_two, machine_of
from moesim.measured.predict import Reading
from moesim.measured.rows import Measured

TRUE = Affine(bandwidth=31e9, layer_ns=150e3)


def measured_by(model: Affine, *counts: int, **fields: Any) -> list[tuple[Reading, float]]:
    """Return readings of `ncmoe` settings with the tokens per second of a model."""
    readings = [reading(setting=f"ncmoe={count}", fit=True, **fields) for count in counts]
    return [(given, 1 / model.seconds(given, *model.assumed(given))) for given in readings]


@dataclass
class Crossed(Affine):
    """A model in which layers of deep rows take more host time, so both numbers are seen."""

    def seconds(self, given: Reading, read_bandwidth: float, layer_ns: float) -> float:
        more = 1 + (given.row.depth or 0) / 1000
        return 1e-3 + 20 * (1e7 / read_bandwidth + more * layer_ns * 1e-9)


CROSSED = Crossed(bandwidth=31e9, layer_ns=150e3)


def crossed_rows() -> list[tuple[Reading, float]]:
    readings = [reading(depth=depth, fit=True, index=depth) for depth in (0, 1000, 5000)]
    return [(given, 1 / CROSSED.seconds(given, *CROSSED.assumed(given))) for given in readings]


def test_two_numbers_are_found_again() -> None:
    fit = fit_two(crossed_rows(), Crossed())
    assert fit.read_bandwidth == pytest.approx(31e9, rel=1e-4)
    assert fit.layer_ns == pytest.approx(150e3, rel=1e-4)
    assert (fit.fitted, fit.rows) == (("read_bandwidth", "layer_ns"), (0, 1000, 5000))
    assert fit.note == ""


def test_a_time_that_is_not_affine_is_fitted_too() -> None:
    class Overlapped(Crossed):
        def seconds(self, given: Reading, read_bandwidth: float, layer_ns: float) -> float:
            more = 1 + (given.row.depth or 0) / 1000
            parts = (1e7 / read_bandwidth, more * layer_ns * 1e-9)
            return 1e-3 + 20 * float(np.hypot(*parts))

    true = Overlapped(bandwidth=60e9, layer_ns=90e3)
    rows = [(given, 1 / true.seconds(given, 60e9, 90e3)) for given, _ in crossed_rows()]
    fit = fit_two(rows, Overlapped())
    times = [true.seconds(given, fit.read_bandwidth, fit.layer_ns) for given, _ in rows]
    assert times == pytest.approx([1 / value for _, value in rows], rel=0.02)


def test_rows_that_cannot_tell_the_numbers_apart_are_met_all_the_same() -> None:
    rows = measured_by(TRUE, 10, 40)
    fit = fit_two(rows, Affine())
    for given, value in rows:
        fitted_s = TRUE.seconds(given, fit.read_bandwidth, fit.layer_ns)
        assert fitted_s == pytest.approx(1 / value, rel=1e-4)


@pytest.mark.parametrize(
    ("start", "chosen"),
    [(Affine(50e9, 1e3), "read_bandwidth"), (Affine(1e12, 500e3), "layer_ns")],
)
def test_one_row_fits_the_number_with_the_greater_share_of_its_time(
    start: Affine, chosen: str
) -> None:
    ((given, _),) = rows = measured_by(start, 20)
    slower = [(given, rows[0][1] / 1.5)]
    fit = fit_two(slower, start)
    assert fit.fitted == (chosen,)
    assert f"only {chosen} is fitted" in fit.note
    kept = "layer_ns" if chosen == "read_bandwidth" else "read_bandwidth"
    index = ("read_bandwidth", "layer_ns").index(kept)
    assert getattr(fit, kept) == start.assumed(given)[index]
    times = start.seconds(given, fit.read_bandwidth, fit.layer_ns)
    assert times == pytest.approx(1 / slower[0][1], rel=1e-4)


def test_an_impossible_value_ends_at_the_limit_and_says_so() -> None:
    ((given, _),) = measured_by(TRUE, 20)
    fit = fit_two([(given, 1e9)], Affine(50e9, 1e3))
    assert "read_bandwidth reached the limit" in fit.note
    assert fit.read_bandwidth == pytest.approx(50 * 50e9, rel=0.05)


def test_a_fit_is_the_same_each_time() -> None:
    assert fit_two(crossed_rows(), Crossed()) == fit_two(crossed_rows(), Crossed())


def test_each_machine_and_engine_is_fitted_alone() -> None:
    rows = [
        *measured_by(TRUE, 10, 40),
        *measured_by(Affine(80e9, 60e3), 10, gpu="Arc B580"),
        *measured_by(Affine(80e9, 60e3), 10, engine="ik_llama.cpp"),
    ]
    fits = fit_machines([given for given, _ in rows], [value for _, value in rows], Affine())
    assert [(fit.machine, fit.engine) for fit in fits] == [
        ("RTX 3090 / i7", "llama.cpp CUDA"),
        ("Arc B580 / i7", "llama.cpp SYCL"),
        ("RTX 3090 / i7", "ik_llama.cpp CUDA"),
    ]


def test_machines_of_one_kind_of_two_owners_are_fitted_apart() -> None:
    rows = [
        *measured_by(TRUE, 10, 40, source="ann/bench README.md"),
        *measured_by(TRUE, 20, source="ann/notes @1234"),
        *measured_by(Affine(80e9, 60e3), 10, 40, source="ben/bench README.md"),
    ]
    fits = fit_machines([given for given, _ in rows], [value for _, value in rows], Affine())
    assert [(fit.owner, len(fit.rows)) for fit in fits] == [("ann", 3), ("ben", 2)]


@pytest.mark.parametrize(
    ("cpu", "machine"),
    [
        ("Core Ultra 7 265K -t 16", "RTX 3090 / Core Ultra 7 265K"),
        ("Core Ultra 7 265K", "RTX 3090 / Core Ultra 7 265K"),
        ("Ryzen 9 7950X, 16 threads", "RTX 3090 / Ryzen 9 7950X"),
        ("2x Xeon Gold 6138, 20 threads", "RTX 3090 / 2x Xeon Gold 6138"),
        ("EPYC 7773X, 64 cores", "RTX 3090 / EPYC 7773X"),
        ("", "RTX 3090"),
    ],
)
def test_a_machine_is_the_same_with_any_number_of_threads(cpu: str, machine: str) -> None:
    assert machine_of(reading(cpu=cpu)) == machine


def test_only_decode_rows_that_permit_it_and_can_be_priced_are_used() -> None:
    readings = [
        reading(fit=True, index=0),
        reading(fit=False, index=1),
        reading(fit=True, index=2, metric="prefill_tok_s", prompt=512),
        reading(fit=True, index=3, model="unknown"),
        reading(fit=True, index=4, gpu="2x RTX 3090"),
        reading(fit=True, index=5),
    ]
    (fit,) = fit_machines(readings, [1.0, 1.0, 1.0, 1.0, 1.0, None], Affine())
    assert fit.rows == (0,)


def test_fitted_rows_get_no_prediction_and_others_the_fitted_numbers() -> None:
    settings = {"ncmoe=10": True, "ncmoe=40": True, "ncmoe=25": False}
    rows = [
        Measured(row(index=index, setting=text, fit=fit), 1 / TRUE.seconds(read_, 31e9, 150e3))
        for index, (text, fit) in enumerate(settings.items())
        for read_ in [reading(setting=text)]
    ]
    answered, fits = answer_fitted(rows, Affine())
    plain = as_plain(answered, fits)
    assert [row["reason"] for row in plain["rows"]] == ["fitted", "fitted", None]
    assert plain["rows"][2]["error_pct"] == pytest.approx(0, abs=0.01)
    assert plain["summary"]["fits"][0]["rows"] == (0, 1)
    assert plain["summary"]["groups"]["decode"]["counted"] == 1


def test_without_rows_to_fit_nothing_changes() -> None:
    answered, fits = answer_fitted([Measured(row(), 1.0)], Affine())
    assert fits == []
    assert answered[0].prediction is not None


@pytest.mark.parametrize(("bandwidth", "layer_ns"), [(60e9, 50e3), (70e9, 70e3)])
def test_a_cap_of_the_memory_does_not_spoil_the_fit(bandwidth: float, layer_ns: float) -> None:
    class Capped(Affine):
        """A model whose reads are at most as fast as the assumed memory."""

        def seconds(self, given: Reading, read_bandwidth: float, layer_ns: float) -> float:
            return super().seconds(given, min(read_bandwidth, self.bandwidth), layer_ns)

    rows = measured_by(Affine(bandwidth, layer_ns), 0, 10, 20, 30, 40)
    model = Capped(bandwidth=50e9, layer_ns=60e3)
    fit = fit_two(rows, model)
    times = [model.seconds(given, fit.read_bandwidth, fit.layer_ns) for given, _ in rows]
    assert times == pytest.approx([1 / value for _, value in rows], rel=0.01)
