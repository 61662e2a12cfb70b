"""A twin: all that is learned from logs, and the answers to what-ifs, as tables and plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from moesim.measured.fit import engine_of, machine_of
from moesim.measured.predict import Answer, Declined
from moesim.report.metrics import number
from moesim.report.tabular import Table
from moesim.twin.learn import SPREAD, Learned, Number, Residual, learn
from moesim.twin.link import Link, learn_link
from moesim.twin.model import OpenMachine
from moesim.twin.read import read_logs
from moesim.twin.samples import Options, Samples, samples_of
from moesim.twin.what_if import Change, Imagined, change_of, imagine

__all__ = ["Twin", "twin_of"]

_EXACT: Final = 2
_LONGEST: Final = 60
_UNITS: Final = {"read_bandwidth": ("read bandwidth (GB/s)", 1e9), "layer_ns": ("layer (us)", 1e3)}


@dataclass(frozen=True)
class Twin:
    """A machine learned from logs, and the answers to what-ifs."""

    samples: Samples
    learned: Learned
    residuals: tuple[Residual, ...]
    link: Link
    imagined: tuple[Imagined, ...]

    @property
    def verdict(self) -> str:
        """How well the line fits, in a sentence."""
        count, settings = len(self.residuals), self.learned.settings
        if self.learned.fit.note:
            return self.learned.fit.note
        if settings < _EXACT:
            return (
                "all rows are of one setting: the two numbers cannot be told apart, and those "
                "nearest to the assumed ones are taken"
            )
        if count <= _EXACT:
            return (
                "two numbers go through two rows exactly, which proves nothing of the line; the "
                f"intervals rest on an assumed spread of {SPREAD:.0%}"
            )
        worst = max(self.residuals, key=lambda each: abs(each.left_out_pct or 0))
        median = sorted(abs(each.left_out_pct or 0) for each in self.residuals)[count // 2]
        return (
            f"each row predicted from the others: median error {median:.1f} %, largest "
            f"{worst.left_out_pct:+.1f} % ({worst.sample.place})"
        )

    def tables(self) -> list[Table]:
        """Return rows, numbers and what-ifs as tables."""
        tables = [self._rows(), self._numbers()]
        if self.link.seen:
            tables.append(self._prompts())
        if self.imagined:
            tables.append(self._what_ifs())
        return tables

    def lines(self) -> list[str]:
        """Return what stands beside the tables: the verdict, what is left out, notes."""
        lines = [f"fit: {self.verdict}"]
        for each in self.learned.numbers():
            if not each.seen and each.name in self.learned.fit.fitted:
                lines.append(f"the rows do not determine the {_UNITS[each.name][0]}")
        if not self.link.seen:
            lines.append(f"link: cannot be seen: {self.link.reason}")
        lines += [f"left out: {place}: {why}" for place, why in self.samples.left_out]
        cached = [each for each in self.imagined if each.change.cache]
        lines += [
            f"what if {e.change.text}: {note}" for e in cached for note in _last_note(e.decode)
        ]
        declined = [each for each in self.imagined if isinstance(each.decode, Declined)]
        lines += [f"what if {e.change.text}: no answer: {e.decode.reason}" for e in declined]  # type: ignore[union-attr]
        return lines + [f"note: {note}" for note in self.samples.notes]

    def heading(self) -> str:
        """Return the machine and engine, and the rows that are read."""
        reading = self.learned.samples[0].reading
        row = reading.row
        parts = ", ".join(filter(None, (machine_of(reading), row.ram, row.pcie)))
        rows = f"{len(self.samples.used)} rows, {len(self.learned.samples)} of single tokens"
        return f"{parts}; {engine_of(reading)}; {rows}"

    def plain(self) -> dict[str, Any]:
        """Return the twin as plain data."""
        reading = self.learned.samples[0].reading
        return {
            "machine": machine_of(reading),
            "engine": engine_of(reading),
            "rows": [_plain_residual(each) for each in self.residuals],
            "numbers": {each.name: _plain_number(each) for each in self.learned.numbers()},
            "link": {
                "seen": self.link.seen,
                "bytes_per_s": self.link.value if self.link.seen else None,
                "assumed": self.link.assumed if self.link.seen else None,
                "share": self.link.share,
                "reason": self.link.reason or None,
                "rows": [
                    {"place": sample.place, "measured": sample.value, "error_pct": error}
                    for sample, error in zip(
                        self.link.samples, self.link.residuals_pct, strict=True
                    )
                ],
            },
            "fit": self.verdict,
            "spread": self.learned.spread,
            "what_if": [_plain_imagined(each) for each in self.imagined],
            "left_out": [{"place": place, "reason": why} for place, why in self.samples.left_out],
            "notes": list(self.samples.notes),
        }

    def _rows(self) -> Table:
        columns = ["row", "model", "format", "setting", "depth", "measured tok/s", "assumed",
                   "fitted", "error %", "left out, error %"]  # fmt: skip
        table = Table("Rows", columns)
        for each in self.residuals:
            row = each.sample.reading.row
            deviation = each.sample.deviation
            spread = "" if deviation is None else f" ± {number(deviation)}"
            without = "" if each.left_out_pct is None else f"{each.left_out_pct:+.1f}"
            table.add(
                each.sample.place, row.model, row.quant, _short(row.setting), str(row.depth or 0),
                number(each.sample.value) + spread, number(each.assumed), number(each.fitted),
                f"{each.error_pct:+.1f}", without,
            )  # fmt: skip
        return table

    def _numbers(self) -> Table:
        table = Table("Fitted numbers", ["", "fitted", "95 %", "assumed", "fitted / assumed"])
        for each in self.learned.numbers():
            label, unit = _UNITS[each.name]
            ends = f"{number(each.low / unit)} to {number(each.high / unit)}"
            shown = ends if each.seen else "not determined"
            table.add(
                label, number(each.value / unit), shown, number(each.assumed / unit),
                f"{each.value / each.assumed:.2f}",
            )  # fmt: skip
        if self.link.seen:
            table.add(
                "link to the GPU (GB/s)", number(self.link.value / 1e9), "",
                number(self.link.assumed / 1e9), f"{self.link.factor:.2f}",
            )  # fmt: skip
        return table

    def _prompts(self) -> Table:
        table = Table(
            "Prompts, at the fitted link", ["row", "setting", "measured tok/s", "error %"]
        )
        for sample, error in zip(self.link.samples, self.link.residuals_pct, strict=True):
            setting = _short(sample.reading.row.setting)
            table.add(sample.place, setting, number(sample.value), f"{error:+.1f}")
        return table

    def _what_ifs(self) -> Table:
        columns = ["what if", "decode tok/s", "95 %", "now", "prompt tok/s", "prompt interval"]
        table = Table("What-ifs, from the fastest row", columns)
        for each in self.imagined:
            decode, decode_ends = _cells(each.decode)
            prompt, prompt_ends = _cells(each.prompt)
            now = number(each.base.value)
            table.add(each.change.text, decode, decode_ends, now, prompt, prompt_ends)
        return table


def twin_of(paths: Sequence[str], options: Options, what_ifs: Sequence[str] = ()) -> Twin:
    """Return the twin of the machine that made the logs.

    Raises:
        UsageError: a log or an option is not understood, or no row can be used.
    """
    changes: list[Change] = [change_of(text) for text in what_ifs]
    samples = samples_of(read_logs(paths), options)
    model = OpenMachine(samples.models)
    learned = learn(samples, model)
    residuals = tuple(learned.residuals(model))
    link = learn_link(samples, (learned.fit.read_bandwidth, learned.fit.layer_ns))
    imagined = tuple(imagine(change, learned, samples, link) for change in changes)
    return Twin(samples, learned, residuals, link, imagined)


def _last_note(answer: Answer) -> Sequence[str]:
    """Return the last note of a prediction, which says what the cache hits; () if declined."""
    return () if isinstance(answer, Declined) else answer.notes[-1:]


def _cells(answer: Answer | None) -> tuple[str, str]:
    if answer is None:
        return "", ""
    if isinstance(answer, Declined):
        return "none", ""
    return number(answer.value), f"{number(answer.low)} to {number(answer.high)}"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _plain_residual(each: Residual) -> dict[str, Any]:
    row = each.sample.reading.row
    return {
        "place": each.sample.place,
        "model": row.model,
        "format": row.quant,
        "setting": row.setting,
        "depth": row.depth,
        "measured": each.sample.value,
        "deviation": each.sample.deviation,
        "assumed": each.assumed,
        "fitted": each.fitted,
        "error_pct": each.error_pct,
        "left_out_error_pct": each.left_out_pct,
    }


def _plain_number(each: Number) -> dict[str, Any]:
    return {
        "value": each.value,
        "low": each.low if each.seen else None,
        "high": each.high if each.seen else None,
        "assumed": each.assumed,
        "determined": each.seen,
    }


def _plain_answer(answer: Answer | None) -> dict[str, Any] | None:
    if answer is None:
        return None
    if isinstance(answer, Declined):
        return {"tok_s": None, "low": None, "high": None, "reason": answer.reason, "notes": []}
    notes = list(answer.notes)
    ends = {"tok_s": answer.value, "low": answer.low, "high": answer.high}
    return {**ends, "reason": None, "notes": notes}


def _plain_imagined(each: Imagined) -> dict[str, Any]:
    return {
        "change": each.change.text,
        "from": each.base.place,
        "now_tok_s": each.base.value,
        "decode": _plain_answer(each.decode),
        "prompt": _plain_answer(each.prompt),
    }
