"""Ten worked questions of `docs/advise.md`, each beside what people measured.

    python studies/advise/questions.py

It asks `moesim advise`, and writes `reports/advise/questions.json` and the answers in the document.
Measured values are those of rows of `../shared/data/measured/throughput.json`, by their indices.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from typer.testing import CliRunner

from moesim.cli import app
from moesim.cli.ending import run_to_its_end
from moesim.errors import MoesimError
from moesim.files import whole_file, write_json
from moesim.report.tabular import with_tables

ROOT: Final = Path(__file__).resolve().parents[2]
REPORT: Final = ROOT / "reports/advise/questions.json"
DOCUMENT: Final = ROOT / "docs/advise.md"
_REFUSED: Final = 2  # exit code of a question that has no answer


@dataclass(frozen=True, slots=True)
class Beside:
    """A measured row: its index, what ran, its tokens per second, its source and grade.

    `of` names the number of the answer that it is compared with, "" for none. `formed` says that
    figures of an engine profile come from rows of this machine. `sequences` ran at once.
    """

    row: int
    what: str
    value: float
    source: str
    grade: str
    of: str = "decode"
    formed: bool = False
    sequences: int = 1


@dataclass(frozen=True, slots=True)
class Worked:
    """A question as arguments of `moesim advise`, and measured rows beside it.

    Its printed answer is shown `whole`, or from the recommendation.
    """

    arguments: str
    beside: tuple[Beside, ...]
    whole: bool = False

    @property
    def words(self) -> list[str]:
        """The arguments as a list."""
        return shlex.split(self.arguments)


_RX: Final = "markb-1/rx6700xt-local-ai README.md"
_TURING: Final = "public notes on GitHub (ko, Qwen3-Coder on 8 GB Turing sm_75)"
_A100: Final = "harshithkantamneni/moe-speed-of-light prereg/anchors/a100.md"
_ARC: Final = "chrisdesrochers/MoEArc README"
_IK: Final = "ikawrakow/ik_llama.cpp discussion"
_HALO: Final = "lhl/strix-halo-testing llm-bench"

QUESTIONS: Final = (
    Worked(
        "qwen3-30b-a3b --gpu 'RX 6700 XT' --cpu 'Ryzen 7 5800X' --ram '32GB DDR4' "
        "--format Q4_K_M --context 1k",
        (
            Beside(38, "decode at 512 with 20 layers, KV f16", 31.4, _RX, "B"),
            Beside(37, "a prompt of 512 tokens with 20 layers", 393.2, _RX, "B", "prefill"),
        ),
        whole=True,
    ),
    Worked(
        "qwen3-30b-a3b --gpu 'RTX 2070' --cpu '6 cores' --ram '32GB DDR5-5600 1ch' "
        "--format Q4_K_M --context 8k",
        (Beside(61, "decode with 34 layers and a cache for 8,192, KV f16", 37.5, _TURING, "A"),),
    ),
    Worked(
        "deepseek-v2-lite --gpu 'A100-SXM4-80GB' --format Q8_0 --context 1k",
        (Beside(0, "decode at 0, all on the GPU", 102.8, _A100, "A", formed=True),),
    ),
    Worked(
        "mixtral-8x7b --gpu 'A100-SXM4-80GB' --format Q4_K_M --context 1k",
        (Beside(5, "decode at 0, all on the GPU", 111.4, _A100, "A", formed=True),),
    ),
    Worked(
        "gpt-oss-120b --gpu 'RTX 3090 Ti' --cpu 'Ryzen 9 9950X' --ram '96GB DDR5-6400 2ch' "
        "--context 16k",
        (
            Beside(
                97, "an Arc B580 with 12 GB and 96 GB of DDR5, decode at 8,192 with all 36 layers",
                28.52, _ARC, "B", "", formed=True,
            ),
        ),
    ),
    Worked(
        "qwen3-30b-a3b --gpu none --cpu 'Ryzen 9 7950X' --ram '64GB DDR5 dual channel' "
        "--format IQ4_XS --context 8k",
        (
            Beside(132, "llama.cpp, decode at 8,192, KV f16, fa=0", 16.44, f"{_IK} #357", "B",
                   formed=True),
            Beside(138, "ik_llama.cpp, decode at 8,192, fa=1", 21.19, f"{_IK} #357", "B", "",
                   formed=True),
        ),
    ),
    Worked(
        "qwen3-30b-a3b --gpu 'Strix Halo' --format Q4_K_XL --context 1k",
        (
            Beside(250, "HIP, decode of 128 tokens, fa=0", 54.256, _HALO, "A"),
            Beside(264, "Vulkan, decode of 128 tokens, fa=0", 72.129, _HALO, "A"),
        ),
    ),
    Worked(
        "deepseek-r1 --gpu 'RTX 4090' --ram '128GB DDR5-6000 2ch'",
        (
            Beside(
                186, "an RTX 5090 with 768 GB, UD-Q2_K_XL, decode at 8,192 with 55 of 58 layers",
                16.32, f"{_IK} #258", "A", "",
            ),
        ),
    ),
    Worked(
        "qwen3.6-35b-a3b --gpu 'RTX 2070' --cpu '6 cores' --ram '32GB DDR5-5600 1ch' "
        "--format UD-Q3_K_XL --context 256k",
        (
            Beside(81, "decode with 40 layers, a cache for 262,144 that is nearly empty", 33.59,
                   _TURING, "A", ""),
            Beside(77, "decode with 32 layers, a cache for 65,536 that is nearly empty", 36.43,
                   _TURING, "A", ""),
        ),
    ),
    Worked(
        "qwen3-30b-a3b --gpu 'RTX 4090' --goal batch --format Q4_0 --context 2k",
        (
            Beside(527, "one batch of 8 tokens at 0, all on the GPU", 597.3,
                   "ggml-org/llama.cpp#15631", "A", sequences=8),
        ),
    ),
)  # fmt: skip
"""The questions, in the order of the document."""


def ask(worked: Worked, *more: str) -> tuple[int, str]:
    """Return the exit code of `moesim advise`, and what it prints or why it refuses."""
    done = CliRunner().invoke(app, ["advise", *worked.words, *more])
    if isinstance(done.exception, MoesimError):
        return done.exception.exit_code, f"error: {done.exception}"
    if done.exit_code and done.exception is not None:
        raise RuntimeError(worked.arguments) from done.exception
    return done.exit_code, done.stdout


def numbers_of(worked: Worked) -> dict[str, Any]:
    """Return the numbers of an answer from its JSON; an empty dictionary if it is refused."""
    code, text = ask(worked, "--json")
    if code == _REFUSED:
        return {}
    best = json.loads(text)["recommended"]
    names = ("format", "cpu_layers", "ubatch", "kv")
    spans = {
        "decode": {key: best[key] for key in ("low", "high")} | {"value": best["decode_tok_s"]},
        "prefill": best["prefill_tok_s"],
    }
    return {name: best[name] for name in names} | spans


def answer_of(worked: Worked) -> str:
    """Return the printed answer: whole, or from the recommendation to the next blank line."""
    code, text = ask(worked)
    if code == _REFUSED or worked.whole:
        return text.strip("\n")
    start = text.index("recommended: ")
    return text[start:].split("\n\n")[0].rstrip()


def block_of(worked: Worked, result: Mapping[str, Any]) -> str:
    """Return the command of a question, its answer, and measured rows as Markdown."""
    command = (
        "<!-- not run: tests/studies/test_advise_exam.py compares this answer -->\n"
        f"```sh\nmoesim advise {worked.arguments}\n```"
    )
    answer = f"```text\n{result['answer']}\n```"
    measured = "\n".join(_line(one, result["numbers"]) for one in worked.beside)
    return f"\n{command}\n\n{answer}\n\n{measured}\n"


def _line(one: Beside, numbers: Mapping[str, Any]) -> str:
    half = "the profile was formed with this machine" if one.formed else "exam"
    where = f"{one.source}, row {one.row}, grade {one.grade}, {half}"
    verdict = "".join(_verdict(one, numbers))
    return f"- Measured: {one.value:g} tokens/s ({one.what}). {verdict}Source: {where}."


def _verdict(one: Beside, numbers: Mapping[str, Any]) -> Iterator[str]:
    if not one.of:
        return
    span, value = numbers[one.of], one.value / one.sequences
    if one.sequences > 1:
        yield f"That is {value:.3g} for each of {one.sequences}. "
    error = span["value"] / value - 1
    inside = span["low"] <= value <= span["high"]
    yield f"The answer is {error:+.0%} off, "
    yield "inside its interval. " if inside else "**and the interval does not hold it**. "


def results() -> list[dict[str, Any]]:
    """Return the numbers and printed answers of all questions."""
    return [
        {"arguments": each.arguments, "numbers": numbers_of(each), "answer": answer_of(each)}
        for each in QUESTIONS
    ]


def tables_of(found: list[dict[str, Any]]) -> dict[str, str]:
    """Return the blocks of the document by the names of their marks."""
    pairs = enumerate(zip(QUESTIONS, found, strict=True), 1)
    return {f"question {number}": block_of(*pair) for number, pair in pairs}


def main() -> None:
    found = results()
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    write_json(REPORT, found)
    text = with_tables(DOCUMENT.read_text(encoding="utf-8"), tables_of(found))
    with whole_file(DOCUMENT) as partial:
        partial.write_text(text, encoding="utf-8")
    sys.stdout.write(f"{len(found)} questions\n")


if __name__ == "__main__":
    run_to_its_end(main)
