"""The accuracy study reads its records right, and says by its own rule where a loss arises."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from study_scripts import study

from moesim.report.statistics import estimate
from moesim.report.tabular import markdown

accuracy = study("readme", "accuracy")
DOMAINS = ("law", "verse")


def record(losses: list[float], *, own: float | None = None, expert: float = 3.2) -> dict[str, Any]:
    """Return a training record whose validation losses are these, the same on both domains."""
    stages = ["start", "round 0 router", "round 0 experts"][-len(losses) :]
    return {
        "untuned": {
            "dense": dict.fromkeys(DOMAINS, 3.0),
            "experts": {
                e: {d: expert if d == e else expert + 0.5 for d in DOMAINS} for e in DOMAINS
            },
        },
        "history": [
            {
                "stage": stage,
                "validation": loss,
                "by_domain": dict.fromkeys(DOMAINS, loss),
                "own_experts": None if own is None else dict.fromkeys(DOMAINS, own),
                "agreement": 0.5,
                "passes": 0.25,
            }
            for stage, loss in zip(stages, losses, strict=True)
        ],
    }


def seed(decoupled: float, oracle: float, dense: float, *, own: float = 3.05) -> dict[Any, Any]:
    return {
        (0.5, "decoupled"): record([3.9, 3.6, decoupled], own=own),
        (0.5, "oracle"): record([3.2, oracle]),
        (0.5, "dense"): record([3.3, dense]),
    }


STORIES = [seed(3.15, 3.0, 3.1), seed(3.17, 3.01, 3.11), seed(3.16, 3.02, 3.13)]


def rows(table: Any) -> dict[str, list[str]]:
    """Return a table's rows by the text of their first cells."""
    lines = [line.strip("| ").split(" | ") for line in markdown(table).splitlines() if "|" in line]
    return {" ".join(cells[:2]) if cells[0] == "0.5" else cells[0]: cells for cells in lines}


def test_headroom_is_the_pooled_mask_less_the_full_model() -> None:
    found = rows(accuracy.before(STORIES))
    assert found["dense, full size"][1].startswith("3.000")
    assert found["pooled mask"][1].startswith("3.300")
    assert found["own domain's expert (oracle routing)"][1].startswith("3.200")
    assert found["another domain's expert"][1].startswith("3.700")
    assert found["router, untrained"][1].startswith("3.900")
    assert found["headroom: pooled mask less full size"][1].startswith("+0.300")
    assert found["own domain's expert less pooled mask"][1].startswith("-0.100")


def test_differences_are_from_the_dense_model_seed_by_seed() -> None:
    found = rows(accuracy.after(STORIES))
    pairs = estimate([0.05, 0.06, 0.03])
    assert found["0.5 decoupled"][3] == f"+{pairs.mean:.3f} ± {pairs.half:.3f}"
    assert found["0.5 decoupled"][4] == "opposite"
    assert found["0.5 decoupled, oracle routing"][2].startswith("3.050")
    assert found["0.5 oracle"][4] == "same direction"
    assert found["0.5 dense"][5].startswith("-0.187")


@pytest.mark.parametrize(
    ("decoupled", "oracle", "limit"),
    [
        ([-0.2, -0.21, -0.2], [-0.3, -0.3, -0.3], "none: the mixture wins"),
        ([0.1, 0.11, 0.1], [-0.3, -0.3, -0.31], "routing"),
        ([0.1, -0.11, 0.1], [-0.3, -0.3, -0.31], "routing"),
        ([0.1, 0.11, 0.1], [0.3, -0.3, 0.1], "masks and experts"),
        ([0.1, 0.11, 0.1], [0.3, 0.3, 0.31], "masks and experts"),
        ([0.1], [-0.3], "one seed"),
    ],
)
def test_the_limit_is_the_protocols(
    decoupled: list[float], oracle: list[float], limit: str
) -> None:
    assert accuracy.limit(estimate(decoupled), estimate(oracle)) == limit


def test_every_table_has_all_shares_and_no_path_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shares run one after the other, each for all seeds."""
    asked = []

    def records_of(number: int, share: float, *_: Any) -> Any:
        asked.append((share, number))
        controls = {(share, "layerwise"): record([3.8, 3.5, 3.0])} if share == 0.5 else {}
        return {(share, name): each for (_, name), each in STORIES[number].items()} | controls

    monkeypatch.setattr(accuracy, "records_of", records_of)
    out = str(tmp_path / "accuracy")
    text = str(tmp_path / "law.txt")
    monkeypatch.setattr(accuracy, "corpus_of", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["accuracy.py", out, "--text", f"law={text}", "--controls"])
    accuracy.main()
    assert asked == [(share, number) for share in (0.5, 0.25, 0.125) for number in range(3)]
    printed = capsys.readouterr().out
    assert printed.startswith("`python studies/readme/accuracy.py accuracy --text law=law.txt ")
    assert str(tmp_path) not in printed
    assert printed.count("share 0.125") == 2
    assert "layerwise, 0.5" in printed
    assert "nan" not in printed
