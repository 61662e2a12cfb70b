"""Questions for advice that are small enough to be priced in tests."""

from __future__ import annotations

from typing import Any

from moesim.advice.question import Model, Parts, Question

CPU = "Ryzen 5 5600"
RAM = "32GB DDR4-3200 2ch"


def question(
    *,
    model: str = "olmoe-1b-7b",
    gpu: str = "rtx-3060-12gb",
    cpu: str = CPU,
    ram: str = RAM,
    vram: int | None = 3 * 10**9,
    context: int = 8192,
    **more: Any,
) -> Question:
    """Return a question about a card with too little memory for the whole model."""
    figures = {} if vram is None else {"vram": vram}
    return Question(Model.of(model), Parts(gpu, cpu, ram, figures=figures), context, **more)
