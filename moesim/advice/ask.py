"""Asking for advice: the question in plain texts, as the command and Python take it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from moesim.advice.advice import Advice
from moesim.advice.advice import advise as advise_on
from moesim.advice.own_card import HOW_TO_DESCRIBE, with_own_card
from moesim.advice.question import GOALS, GoalName, Model, Parts, Question, tokens_of
from moesim.errors import UsageError, shown

__all__ = ["advise", "question_of"]


def advise(
    model: str,
    *,
    gpu: str = "none",
    cpu: str = "",
    ram: str = "",
    pcie: str = "",
    vram: str = "",
    gpu_bandwidth: str = "",
    gpu_tflops: str = "",
    context: str | int = "8k",
    goal: GoalName = "chat",
    load: int | None = None,
    formats: Sequence[str] = (),
    engine: Literal["llama.cpp", "ik_llama.cpp"] = "llama.cpp",
    thorough: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Advice:
    """Say whether a model runs on a machine, how fast, and with which flags.

    `model` is a shipped name, or the path of a Hugging Face config.json or of a GGUF file. Parts
    of the machine are texts: `gpu="rtx-3060-12gb"`, `cpu="ryzen-7950x"`,
    `ram="32GB-ddr4-3200-2ch"`, `pcie="4.0-x16"`. `context` is in tokens (`"16k"` are 16384), `load`
    in sequences at once. `formats` limits what is compared; `thorough` also prices choices that
    take longer than another. Other arguments are those of `moesim advise`; docs/advise.md explains
    the answer. Speeds are predictions, each with its interval.

    Raises:
        UsageError: a text is not understood, or no choice fits the machine or can be priced.

    >>> moesim.advise("olmoe-1b-7b", gpu="rtx-3060-12gb", formats=["Q4_K_M"]).best.choice.format
    'Q4_K_M'
    """
    _check_texts(
        model=model, gpu=gpu, cpu=cpu, ram=ram, pcie=pcie, vram=vram, gpu_bandwidth=gpu_bandwidth,
        gpu_tflops=gpu_tflops, goal=goal, engine=engine,
    )  # fmt: skip
    _check_formats(formats)
    parts, card = Parts(gpu, cpu, ram, pcie), (vram, gpu_bandwidth, gpu_tflops)
    question = question_of(model, parts, card, str(context), goal, load, formats, engine)
    return advise_on(question, progress=progress, thorough=thorough)


def _check_texts(**arguments: object) -> None:
    """Raise UsageError for the first argument that is no text, or a model without a name."""
    for name, value in arguments.items():
        if not isinstance(value, str):
            raise UsageError(f"{name} must be a text, not {shown(value)}")
    if not arguments["model"]:
        raise UsageError("model must name a model, like 'olmoe-1b-7b', or the path of its config")


def _check_formats(formats: Sequence[object]) -> None:
    """Raise UsageError unless `formats` lists texts; a lone text would be read letter by letter."""
    listed = isinstance(formats, Iterable) and not isinstance(formats, str)
    if not listed or not all(isinstance(name, str) for name in formats):
        raise UsageError(
            f"formats must list names of formats, like ['Q4_K_M'], not {shown(formats)}"
        )


def question_of(
    model: str,
    parts: Parts,
    card: tuple[str, str, str],
    context: str,
    goal: GoalName,
    load: int | None,
    formats: Sequence[str],
    engine: str,
) -> Question:
    """Return the question that texts ask; `card` are memory, bandwidth and rate of a GPU.

    Raises:
        UsageError: a text is not understood.
    """
    if goal not in GOALS:
        raise UsageError(f"there is no goal {goal!r}; there are {', '.join(GOALS)}")
    question = Question(
        Model.of(model),
        with_own_card(parts, *card),
        tokens_of(context),
        goal,
        GOALS[goal].load if load is None else load,
        (engine,),
        tuple(dict.fromkeys(formats)),
    )
    try:
        _ = question.machine  # its mistakes are those of the question
    except UsageError as error:
        if str(error).startswith("no graphics card"):
            raise UsageError(f"{error}; {HOW_TO_DESCRIBE}") from error
        raise
    return question
