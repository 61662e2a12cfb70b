"""The study of published predictors: what it measures, what it runs, and what it committed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from paths import ROOT
from study_scripts import study
from workloads import TINY_CONFIG, tiny_trace

from moesim.dial import Grid, Link
from moesim.scenario import load_scenario
from moesim.trace import Trace

places = study("prefetch", "prefetch_places")
published = study("prefetch", "published_predictors")
held_out = study("prefetch", "held_out_accuracy")
runs = study("prefetch", "prefetch_runs")
main = study("prefetch", "predictor_accuracy")
picture = study("prefetch", "prefetch_picture")

REPORT = ROOT / "reports/prefetch/accuracy.md"


def walk(requests: int, rows: int, turn: int = 0) -> Trace:
    """Return a trace in which each layer wants the experts after those of the layer before.

    In the second half of the requests, the last layer wants experts that are `turn` further.
    """
    row, layer = np.arange(requests * rows)[:, None, None], np.arange(4)[:, None]
    ids = (row + layer + np.arange(2)) % 8
    ids[requests * rows // 2 :, 3] = (ids[requests * rows // 2 :, 3] + turn) % 8
    return Trace.from_arrays(
        expert_ids=ids,
        seq_len=[rows] * requests,
        prompt_tokens=[1] * requests,
        num_experts=8,
        model_config=TINY_CONFIG,
    )


def test_a_table_of_layers_misses_the_first_layer_and_what_has_changed_since() -> None:
    known = held_out.accuracy_of("previous_layer", {}, walk(8, 8))
    assert (known.recall, known.precision) == (3 / 4, 1)
    half = held_out.accuracy_of("previous_layer", {}, walk(8, 8, turn=1))
    assert (half.recall, half.precision) == (2.5 / 4, 2.5 / 3)
    wrong = held_out.accuracy_of("previous_layer", {}, walk(8, 8, turn=4))
    assert (wrong.recall, wrong.precision) == (2 / 4, 2 / 3)


def test_lessons_are_whole_and_other_requests_are_their_middle_rows() -> None:
    trace = walk(4, 10)
    cut = places.half_cut(trace, rows=4)
    assert cut.requests["num_rows"].tolist() == [10, 10, 4, 4]
    assert cut.requests["prompt_tokens"].tolist() == [1, 1, 1, 1]
    ids, kept = np.asarray(trace.expert_ids[:]), np.asarray(cut.expert_ids[:])
    np.testing.assert_array_equal(kept[:20], ids[:20])
    np.testing.assert_array_equal(kept[20:24], ids[23:27])
    np.testing.assert_array_equal(kept[24:], ids[33:37])


def test_every_published_figure_has_a_source_and_says_whether_it_was_read() -> None:
    for each in published.PREDICTORS:
        assert 0 < each.precision <= 1
        assert "arXiv" in each.source
        assert each.read in ("primary", "abstract", "secondary")
        assert each.note


def test_accuracies_by_layer_are_used_for_a_model_of_as_many_layers_only() -> None:
    (adapmoe,) = [each for each in published.PREDICTORS if each.preset]
    assert adapmoe.options(32) == {"preset": "adapmoe", "depth": 1}
    assert adapmoe.options(26) == {"recall": 0.866, "precision": 0.866, "depth": 1}


def test_mixtral_has_synthetic_routing_of_its_own_shape() -> None:
    trace = places.mixtral_trace(requests=1)
    assert trace.meta.synthetic
    assert (trace.num_layers, trace.num_experts, trace.top_k) == (32, 8, 2)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """What the runs of one tiny place say."""
    folder = tmp_path_factory.mktemp("study")
    tiny_trace(requests=4, output_tokens=6).save(folder / "trace")
    keys = {"hardware": "rtx-4090", "cache": {"slots": "3/layer"}}
    place = places.Place("a tiny model", places.DEEPSEEK, keys)
    scenario = load_scenario(place.scenario(folder / "trace", 1))
    grid = Grid((0.5, 1.0), (0.5, 1.0), (1,), (Link("1x"),), 2)
    measured = {name: held_out.Accuracy(0.5, 0.5) for name in held_out.LEARNED}
    return list(
        runs.run_places({place: scenario}, grid, published.PREDICTORS, measured, folder / "runs", 1)
    )


def test_every_predictor_is_compared_with_the_run_without_prefetch(found: list[object]) -> None:
    (each,) = found
    assert isinstance(each, runs.Found)
    exact = each.published["pre-gated gate"]
    assert exact == each.plane.perfect.saved
    assert set(each.published) == {it.name for it in published.PREDICTORS}
    assert set(each.learned) == set(each.dialled) == set(held_out.LEARNED)
    # The same accuracy at random is one run, whatever policy it stands for.
    assert len({str(it) for it in each.dialled.values()}) == 1


def test_the_report_of_a_run_names_losses_and_secondary_sources(
    found: list[object], tmp_path: Path
) -> None:
    accuracies = {"popularity": dict.fromkeys(places.TASKS, held_out.Accuracy(0.25, 0.5))}
    main.write(found, accuracies, tmp_path)
    text = (tmp_path / "accuracy.md").read_text()
    assert "| a tiny model |" in text
    assert "secondary" in text
    assert "| popularity | 0.25, 0.50 |" in text
    assert "▼" in text
    assert (tmp_path / "plots/predictors.png").stat().st_size > 10_000


def test_the_committed_report_has_every_place_and_predictor() -> None:
    text = REPORT.read_text()
    for name in (each.name for each in (*places.PLACES, *published.PREDICTORS)):
        assert f"| {name} |" in text
    assert "python studies/prefetch/predictor_accuracy.py runs/prefetch" in text
    assert "**The routing of Mixtral is synthetic.**" in text
    assert (REPORT.parent / "plots/predictors.png").is_file()
