"""The shipped traces are whole, small, real, and say where they are from."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from moesim.trace import load_trace, validate_trace

TRACES = Path(__file__).parent.parent / "traces"


@pytest.mark.parametrize("name", ["shallow", "deep", "readme-decoupled", "readme-layerwise"])
def test_a_shipped_trace_is_whole_small_and_varied(name: str) -> None:
    validate_trace(TRACES / name)
    assert sum(path.stat().st_size for path in (TRACES / name).iterdir()) <= 5_000_000
    trace = load_trace(TRACES / name)
    requests = trace.requests
    assert len(requests["domain"]) >= 100
    assert len(set(requests["domain"])) >= 3
    assert (requests["prompt_tokens"] > 1).all()
    assert (requests["output_tokens"] > 1).all()
    assert not trace.meta.synthetic
    assert trace.gate_weights is not None
    assert trace.meta.model_config is not None
    assert trace.meta.expert_bytes is not None
    header = (TRACES / name / "trace.json").read_text(encoding="utf-8")
    assert not re.search(r'"/\w', header), "no path of the machine that recorded it"


def test_two_routers_of_one_base_differ_in_the_router_alone() -> None:
    decoupled, layerwise = (load_trace(TRACES / f"readme-{n}") for n in ("decoupled", "layerwise"))
    assert (decoupled.meta.router, layerwise.meta.router) == ("decoupled", "layerwise")
    for key in ("prompt_tokens", "domain"):
        assert list(decoupled.requests[key]) == list(layerwise.requests[key])
    assert decoupled.meta.expert_bytes == layerwise.meta.expert_bytes
    ids_TL = np.asarray(decoupled.expert_ids)[:, :, 0]
    assert (ids_TL == ids_TL[:, :1]).all()
    assert not (np.asarray(layerwise.expert_ids)[:, 0] == layerwise.expert_ids[:, 1]).all()
    base = [trace.meta.model_config["base"] for trace in (decoupled, layerwise)]  # type: ignore[index]
    assert base[0] == base[1]


@pytest.mark.parametrize("name", ["shallow", "deep"])
def test_predictions_one_layer_ahead_know_more_than_chance_and_less_than_all(name: str) -> None:
    trace = load_trace(TRACES / name)
    assert trace.predictions is not None
    chosen = trace.expert_ids[:][:, 1:, None, :]
    predicted = trace.predictions[:][:, :-1, 0, :, None]
    recall = float(np.mean((predicted == chosen).any(axis=-1)))
    assert 2 * trace.top_k / trace.num_experts < recall < 1


@pytest.mark.parametrize("name", ["shallow", "deep"])
def test_its_header_holds_the_commands_that_the_readme_gives(name: str) -> None:
    provenance = load_trace(TRACES / name).meta.provenance
    readme = (TRACES / "README.md").read_text(encoding="utf-8")
    given = {frozenset(shlex.split(line)) for line in readme.split("\n") if "moesim " in line}
    for command in (provenance["command"], provenance["training"]["command"]):
        ours = set(shlex.split(command))
        assert any(theirs <= ours for theirs in given), command
    losses = [entry["loss"] for entry in provenance["training"]["validation_loss"]]
    assert losses == sorted(losses, reverse=True)
    header = (TRACES / name / "trace.json").read_text(encoding="utf-8")
    assert "/home/" not in header
    assert "/tmp/" not in header
