"""Predictions of all rows, next to their measured values, and the output of `--json`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from moesim.measured.fit import Fitted, TimeModel, fit_machines
from moesim.measured.predict import Answer, Declined, Prediction, Predictor, Reading, read
from moesim.measured.rows import Measured
from moesim.measured.score import FITTED, error_pct, summary

__all__ = ["Answered", "answer_fitted", "answer_rows", "as_plain", "notes_of", "summarised"]

Show = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Answered:
    """One row: what its texts say, its measured value if any, and the answer."""

    reading: Reading
    value: float | None
    answer: Answer

    @property
    def prediction(self) -> Prediction | None:
        """Return the prediction, None where the row was declined."""
        return self.answer if isinstance(self.answer, Prediction) else None

    @property
    def reason(self) -> str | None:
        """Return why there is no prediction, None where there is one."""
        return self.answer.reason if isinstance(self.answer, Declined) else None

    @property
    def error_pct(self) -> float | None:
        """Return the error of the prediction in per cent; None without prediction or value."""
        if self.prediction is None or self.value is None:
            return None
        return error_pct(self.prediction.value, self.value)

    @property
    def notes(self) -> tuple[str, ...]:
        """Return all that was supposed, while reading and while predicting."""
        predicted = self.prediction.notes if self.prediction is not None else ()
        return (*self.reading.notes, *predicted)


def answer_rows(
    rows: Sequence[Measured],
    predictor: Predictor,
    *,
    fitted: Collection[int] = (),
    progress: Show | None = None,
) -> list[Answered]:
    """Return the answers for rows, in their order; rows with an index in `fitted` get none.

    The predictor gets readings of rows, which have no values.
    """
    answered = []
    for done, measured in enumerate(rows):
        reading = read(measured.row)
        answered.append(Answered(reading, measured.value, _answer(reading, predictor, fitted)))
        if progress is not None:
            progress("rows", done + 1, len(rows))
    return answered


def answer_fitted(
    rows: Sequence[Measured], model: TimeModel, *, progress: Show | None = None
) -> tuple[list[Answered], list[Fitted]]:
    """Fit two numbers of each machine to its rows with `fit: true`, and predict the others."""
    readings = [read(measured.row) for measured in rows]
    fits = fit_machines(readings, [measured.value for measured in rows], model)
    used = frozenset(index for fit in fits for index in fit.rows)
    predictor = model.with_fitted(fits).predict
    return answer_rows(rows, predictor, fitted=used, progress=progress), fits


def _answer(reading: Reading, predictor: Predictor, fitted: Collection[int]) -> Answer:
    if reading.row.index in fitted:
        return Declined(FITTED)
    return Declined(reading.reason) if reading.reason else predictor(reading)


def as_plain(rows: Sequence[Answered], fits: Sequence[Fitted] = ()) -> dict[str, Any]:
    """Return rows and summary as plain data for JSON, with the fitted numbers if there are any."""
    fitted = {"fits": [asdict(fit) for fit in fits]} if fits else {}
    notes = {"notes": notes_of(rows)}
    return {"rows": [_row(row) for row in rows], "summary": {**summarised(rows), **notes, **fitted}}


def notes_of(rows: Sequence[Answered]) -> dict[str, list[int]]:
    """Return each reason and note with the indices of its rows, in the order of the rows."""
    indices: dict[str, list[int]] = {}
    for row in rows:
        for text in (*filter(None, (row.reason,)), *row.notes):
            indices.setdefault(text, []).append(row.reading.row.index)
    return indices


def summarised(rows: Sequence[Answered]) -> dict[str, Any]:
    """Return the summary of answered rows."""
    return summary(
        [row.reading for row in rows], [row.answer for row in rows], [row.value for row in rows]
    )


def _row(row: Answered) -> dict[str, Any]:
    prediction = row.prediction
    return {
        "index": row.reading.row.index,
        "predicted": prediction.value if prediction is not None else None,
        "low": prediction.low if prediction is not None else None,
        "high": prediction.high if prediction is not None else None,
        "error_pct": row.error_pct,
        "reason": row.reason,
    }
