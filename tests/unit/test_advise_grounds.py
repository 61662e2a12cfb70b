"""Grounds of an advice: kinds of figures, and the errors of measured rows like it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from advice_questions import question
from measured_rows import reading, row
from paths import ROOT

from moesim.advice.advice import advise
from moesim.advice.choice import MEMORY_ASSUMED
from moesim.advice.grounds import SCORES, Grounds, Score, grounds_of, score_of
from moesim.advice.price import Pricer
from moesim.measured.score import GROUPS

KINDS: list[dict[str, Any]] = json.loads(SCORES.read_text(encoding="utf-8"))["kinds"]
SCOREBOARD: Any = json.loads((ROOT / "reports/measured/scores.json").read_text(encoding="utf-8"))


def compared(half: str, group: str) -> Any:
    return SCOREBOARD["summaries"]["none"][half]["groups"][group]


@pytest.mark.parametrize("group", GROUPS)
def test_the_errors_are_of_the_rows_of_the_scoreboard(group: str) -> None:
    exam, both = compared("exam", group), compared("exam", group)["compared"]
    both += compared("forming", group)["compared"]
    for engine in (True, False):  # the rows of each engine, and those of any
        kinds = [
            kind for kind in KINDS if kind["group"] == group and bool(kind["engine"]) == engine
        ]
        assert sum(kind["exam"]["rows"] for kind in kinds) == exam["compared"]
        assert sum(kind["all"]["rows"] for kind in kinds) == both


@pytest.mark.parametrize("group", ["decode", "prefill"])
def test_the_errors_of_any_engine_are_those_of_the_scoreboard_by_placement(group: str) -> None:
    kinds = [kind for kind in KINDS if kind["group"] == group and not kind["engine"]]
    assert kinds
    for kind in kinds:
        expected = compared("exam", group)["by"]["placement"].get(kind["placement"])
        if expected is None or not expected["compared"]:
            assert kind["exam"]["rows"] == 0
            continue
        assert kind["exam"]["rows"] == expected["compared"]
        error = kind["exam"]["median_abs_error_pct"]
        assert error == pytest.approx(expected["median_abs_error_pct"], abs=0.1)
        assert kind["exam"]["inside"] == pytest.approx(expected["inside"], abs=0.001)


def test_the_errors_hold_no_measured_value() -> None:
    keys = {"rows", "machines", "median_abs_error_pct", "inside"}
    for kind in KINDS:
        assert set(kind) == {"engine", "backend", "placement", "group", "exam", "all"}
        assert set(kind["exam"]) == set(kind["all"]) == keys


def test_rows_of_the_engine_and_the_placement_come_first() -> None:
    score = score_of(reading(gpu="RTX 4090", setting="ncmoe=5"), "decode")
    assert score is not None
    assert (score.engine, score.placement, score.formed) == ("llama.cpp CUDA", "offload", False)
    (kind,) = (
        kind
        for kind in KINDS
        if (kind["engine"], kind["backend"]) == ("llama.cpp", "CUDA")
        and (kind["placement"], kind["group"]) == ("offload", "decode")
    )
    assert score.rows == kind["exam"]["rows"] >= 5
    text = f"median error {kind['exam']['median_abs_error_pct']:.0f} % over {score.rows}"
    assert text in str(score)
    assert "that no figure was formed with" in str(score)


def test_with_few_rows_of_the_engine_those_of_any_engine_count() -> None:
    score = score_of(reading(gpu="Arc A770", setting="ncmoe=5"), "decode")  # SYCL: no exam rows
    assert score is not None
    assert (score.engine, score.placement, score.formed) == ("", "offload", False)


def test_rows_that_figures_were_formed_with_say_so() -> None:
    score = score_of(reading(gpu="RTX 4090", setting="resident"), "decode")
    assert score is not None
    assert score.formed
    assert "no figure" not in str(score)


def test_an_answer_lists_the_kinds_of_its_figures_and_what_is_assumed() -> None:
    asked = question(formats=("Q4_K_M",))
    pricer = Pricer(asked)
    grounds = grounds_of(advise(asked, pricer), pricer)
    assert set(grounds.figures) == {"the machine", "llama.cpp CUDA"}
    engine = grounds.figures["llama.cpp CUDA"]
    assert engine["fitted"] > 0
    assert engine["assumed"] > 0
    assert set(MEMORY_ASSUMED) < set(grounds.assumed)
    assert set(asked.assumed) < set(grounds.assumed)
    assert [score.group for score in grounds.scores] == ["decode", "prefill"]
    text = "\n".join(grounds.lines())
    for part in (*grounds.assumed, *map(str, grounds.scores)):
        assert part in text
    assert json.loads(json.dumps(grounds.plain()))["scores"][0]["rows"] == grounds.scores[0].rows


def test_several_sequences_are_said_to_wait_for_no_other_prompt() -> None:
    texts = []
    for load in (1, 4):
        asked = question(formats=("Q4_K_M",), load=load)
        pricer = Pricer(asked)
        texts.append(" ".join(grounds_of(advise(asked, pricer), pricer).assumed))
    assert "a prompt waits for no other one" not in texts[0]
    assert "4 sequences decode together, and a prompt waits for no other one" in texts[1]


def test_the_figures_are_those_of_the_processors_that_are_used() -> None:
    numbers = {}
    for gpu, vram in (("none", None), ("rtx-3060-12gb", None), ("rtx-3060-12gb", 3 * 10**9)):
        asked = question(gpu=gpu, vram=vram, formats=("Q4_K_M",))
        pricer = Pricer(asked)
        (_, engine) = grounds_of(advise(asked, pricer), pricer).figures.values()
        numbers[gpu, vram] = sum(engine.values())
    cpu, resident, both = numbers.values()
    assert both > max(cpu, resident)


def test_rows_without_a_class_have_no_score() -> None:
    assert row().placement == ""
    assert score_of(reading(setting="ncmoe=5"), "absent") is None


@pytest.mark.parametrize(("inside", "cautions"), [(0.2, 1), (0.5, 0), (0.8, 0)])
def test_an_interval_that_held_for_few_rows_is_cautioned(inside: float, cautions: int) -> None:
    score = Score("decode", "llama.cpp CPU", "cpu-only", 10, 3, 50.0, inside, False)
    lines = list(Grounds({}, (), (score,)).caution())
    assert len(lines) == cautions
    assert all("20% of 10 measured rows" in line for line in lines)
