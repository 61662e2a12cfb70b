"""The heading of an answer, which is printed before anything is simulated."""

from __future__ import annotations

from typing import Final

from moesim.advice.question import GOALS, Question

__all__ = ["heading"]

_UNNAMED: Final = "a processor that is not named"


def heading(question: Question) -> str:
    """Return what is asked, in two lines."""
    machine, goal = question.machine, GOALS[question.goal]
    card = question.parts.own_card or machine.gpu or "no GPU"
    parts = [card, _UNNAMED if not machine.cpu or machine.cpu == "unnamed" else machine.cpu]
    load = f", {question.load} at once" if question.load > 1 else ""
    return (
        f"{question.model.title} on {', '.join(parts)}\n"
        f"goal {question.goal} ({goal.about}): prompts of {question.prompt:,} tokens, answers of "
        f"{question.output:,}, a context of {question.context:,}{load}"
    )
