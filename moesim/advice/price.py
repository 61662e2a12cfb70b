"""Prices: how fast a choice decodes and reads prompts, by the code that predicts measured rows.

A choice becomes a row without a value, as a person would write it. So an answer is the one that
`moesim measured` would give for that row, with the same interval.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

from moesim.advice.choice import UBATCHES, Choice, Memory, memory_of
from moesim.advice.question import Question
from moesim.advice.terms import Term, terms_of
from moesim.measured.cached import ExpertCache
from moesim.measured.predict import Answer, Declined, Prediction, Reading, read
from moesim.measured.rows import Row
from moesim.measured.simulated import NamedModel, Simulated, timeline_of

__all__ = ["Priced", "Pricer", "Span"]

DECODE: Final = "decode_tok_s"
PREFILL: Final = "prefill_tok_s"
_DISK_BYTES_PER_S: Final = 3 * 10**9
"""Assumed: what reads of an NVMe disk reach."""
_DISK_LATENCY_NS: Final = 100_000
_DISK_FACTORS: Final = (1 / 2, 4)
"""Reads of single pages may be half as fast. A disk may be twice as fast, and routing that repeats
experts may save half of the reads."""
DISK_NOTE: Final = (
    f"an NVMe disk reads {_DISK_BYTES_PER_S / 1e9:g} GB/s, and every expert is as likely as "
    "another; the interval is that of half the speed, and of twice the speed with half the reads"
)


@dataclass(frozen=True, slots=True)
class Span:
    """A value and its interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, prediction: Prediction) -> Span:
        """Return the span of a prediction, in tokens per second."""
        return cls(prediction.value, prediction.low, prediction.high)

    def divided(self, number: int) -> Span:
        """Return the span of one of some equal parts."""
        return Span(self.value / number, self.low / number, self.high / number)

    def plain(self) -> dict[str, float]:
        """Return the span as plain data."""
        return {"value": self.value, "low": self.low, "high": self.high}

    def over(self, work: float) -> Span:
        """Return the seconds that `work` tokens take at this rate."""
        return Span(work / self.value, work / self.high, work / self.low)


@dataclass(frozen=True, slots=True)
class Priced:
    """A choice with its memory and speeds, each in tokens per second.

    `decode` is the rate of each of the sequences at the asked context, `prefill` the mean over a
    prompt that fills it.
    """

    choice: Choice
    memory: Memory
    decode: Span
    prefill: Span
    bits: float
    """Mean bits of a stored weight."""
    prompt: int
    output: int
    notes: tuple[str, ...] = field(default=(), compare=False)
    usual: Span | None = None
    """The rate of a usual prompt that is shorter than a batch; None where it is `prefill`."""

    @property
    def first_token_s(self) -> Span:
        """Seconds until the first token of the answer to a usual prompt."""
        return (self.usual or self.prefill).over(self.prompt)

    @property
    def request_s(self) -> Span:
        """Seconds of a usual request: its prompt, and then its answer.

        Both may err for the same reason, like a slower memory, so the ends of both are added.
        Independent errors would give a narrower interval.
        """
        prompt, answer = self.first_token_s, self.decode.over(self.output)
        return Span(prompt.value + answer.value, prompt.low + answer.low, prompt.high + answer.high)


class Pricer:
    """Prices the choices of a question. A price is computed once.

    With `cache`, experts of layers on the CPU are in that cache instead.
    """

    def __init__(self, question: Question, cache: ExpertCache | None = None) -> None:
        self.question = question
        model = question.model
        named = {model.name: NamedModel(model.section, model.shape)}
        self._named = named
        self._simulated = Simulated(models=named, overrides=question.parts.figures, cache=cache)
        self._answers: dict[tuple[Row, int | None], Answer] = {}

    def decode(self, choice: Choice) -> Answer:
        """Return the tokens per second of all sequences together, at the asked context."""
        return self._answered(choice, self._decode_row(choice))

    def prefill(self, choice: Choice) -> Answer:
        """Return the tokens per second of the prompt that fills the context.

        The time of a step changes evenly with its depth, so a step in the middle stands for all.
        """
        return self.prompt(choice, choice.ubatch)

    def prompt(self, choice: Choice, tokens: int) -> Answer:
        """Return the tokens per second of a step of at most `tokens`, in the middle of a prompt."""
        longest = max(1, self.question.context - self.question.output)
        prompt = min(longest, tokens)
        return self.answer(choice, PREFILL, (longest - prompt) // 2, prompt, 1)

    def answer(self, choice: Choice, metric: str, depth: int, prompt: int, batch: int) -> Answer:
        """Return the tokens per second of a choice as those of a row with these fields."""
        return self._answered(choice, self._row(choice, metric, depth, prompt, batch))

    def price(self, choice: Choice) -> Priced | Declined:
        """Return a choice with its speeds, or why it has none."""
        question = self.question
        decode = self.decode(choice)
        if isinstance(decode, Declined):
            return decode
        prefill = self.prefill(choice)
        if isinstance(prefill, Declined):
            return prefill
        # A batch that is not full copies and reads nearly as many weights as a full one.
        usual = self.prompt(choice, question.prompt) if question.prompt < choice.ubatch else None
        if isinstance(usual, Declined):
            return usual
        shape = question.model.stored(choice.format, choice.kv)
        nbytes = shape.fixed_bytes + sum(question.model.weights(choice.format).experts)
        return Priced(
            choice,
            memory_of(question, choice),
            Span.of(decode).divided(question.load),
            Span.of(prefill),
            8 * nbytes / shape.total_params,
            question.prompt,
            question.output,
            tuple(dict.fromkeys((*decode.notes, *prefill.notes))),
            None if usual is None else Span.of(usual),
        )

    def reading(self, choice: Choice) -> Reading:
        """Return the row of a choice that decodes, as it is read."""
        return read(self._decode_row(choice))

    def terms(self, choice: Choice) -> list[Term]:
        """Return what takes the time of a step that decodes one token of each sequence."""
        model = self._from_disk(choice) if choice.disk else self._simulated
        return terms_of(timeline_of(model.case_of(self.reading(choice))))

    def _decode_row(self, choice: Choice) -> Row:
        question = self.question
        return self._row(_for_decode(choice), DECODE, question.context - 1, 0, question.load)

    def _answered(self, choice: Choice, row: Row) -> Answer:
        room = memory_of(self.question, choice).host.get("experts") if choice.disk else None
        key = (row, room)
        if key not in self._answers:
            reading = read(row)
            if reading.reason:
                self._answers[key] = Declined(reading.reason)
            elif choice.disk:
                self._answers[key] = self._predict_from_disk(choice, reading)
            else:
                self._answers[key] = self._simulated.predict(reading)
        return self._answers[key]

    def _predict_from_disk(self, choice: Choice, reading: Reading) -> Answer:
        """Return the prediction of a choice that reads from an assumed disk.

        The disk may be as much slower or faster as `_DISK_FACTORS` say, and it takes at most all of
        the time. So these are factors of the interval too.
        """
        answer = self._from_disk(choice).predict(reading)
        if isinstance(answer, Declined):
            return answer
        slow, fast = _DISK_FACTORS
        return replace(
            answer, low=answer.low * slow, high=answer.high * fast, notes=(*answer.notes, DISK_NOTE)
        )

    def _from_disk(self, choice: Choice) -> Simulated:
        """Return the simulator with a disk and the host memory that a choice leaves to experts."""
        memory = memory_of(self.question, choice)
        parts = ("experts", "weights", "KV cache") if choice.whole else ("experts",)
        host = sum(memory.host[part] for part in parts)
        disk = {"latency": _DISK_LATENCY_NS, "bandwidth": _DISK_BYTES_PER_S}
        figures = {**self.question.parts.figures, "disk": disk}
        return Simulated(
            models=self._named, overrides=figures, memory={"host": host, "pinned": "none"}
        )

    def _row(self, choice: Choice, metric: str, depth: int, prompt: int, batch: int) -> Row:
        question = self.question
        hardware, (parts, _) = question.machine.hardware, question.parts.filled()
        return Row(
            model=question.model.name,
            quant=choice.format,
            gpu="none" if choice.whole else parts.gpu,
            cpu=parts.cpu,
            ram=parts.ram,
            pcie=parts.pcie,
            engine=choice.engine,
            setting=choice.setting(question.model.shape, unified=hardware.unified),
            metric=metric,
            depth=depth,
            prompt=prompt or None,
            batch=batch,
        )


def _for_decode(choice: Choice) -> Choice:
    """Return a choice without what changes prompts only, where it changes nothing else."""
    return replace(choice, ubatch=UBATCHES[0]) if choice.cpu_layers or choice.whole else choice
