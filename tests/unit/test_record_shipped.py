"""The shipped traces are whole, small, real, and say where they are from."""

from __future__ import annotations

import re
import shlex

import numpy as np
import pytest
from paths import ROOT

from moesim.trace import load_trace, validate_trace

TRACES = ROOT / "traces"


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
    base = [trace.meta.model_config["base"] for trace in (decoupled, layerwise)]
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
    commands = [line for line in readme.split("\n") if line.startswith("moesim ")]
    given = {frozenset(shlex.split(line)) for line in commands}
    for command in (provenance["command"], provenance["training"]["command"]):
        ours = set(shlex.split(command))
        assert any(theirs <= ours for theirs in given), command
    losses = [entry["loss"] for entry in provenance["training"]["validation_loss"]]
    assert losses == sorted(losses, reverse=True)
    header = (TRACES / name / "trace.json").read_text(encoding="utf-8")
    assert "/home/" not in header
    assert "/tmp/" not in header


GATES = {
    "dselect-k": "layerwise",
    "top-k": "layerwise",
    "noisy-top-k": "layerwise",
    "softmax": "layerwise",
    "gumbel": "layerwise",
    "switch": "layerwise",
    "hash-by-token": "decoupled",
    "top-k-ahead": "decoupled",
    "dselect-k-ahead": "decoupled",
    "dselect-k-by-task": "static",
    "top-k-by-task": "static",
}


@pytest.mark.parametrize("name", GATES)
def test_traces_of_gates_differ_in_the_gate_alone(name: str) -> None:
    """The same prompts, lengths and text, and what each gate reveals is what it reads."""
    folder, first = TRACES / f"gates-{name}", load_trace(TRACES / "gates-top-k")
    trace = validate_trace(folder)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 3_000_000
    for key in ("prompt_tokens", "output_tokens", "domain"):
        assert list(trace.requests[key]) == list(first.requests[key])
    ours, theirs = trace.meta.provenance, first.meta.provenance
    assert ours["prompts"]["sha256"] == theirs["prompts"]["sha256"]
    assert ours["training"]["text"] == theirs["training"]["text"]
    assert ours["training"]["tokens_seen"] == theirs["training"]["tokens_seen"]
    assert trace.meta.router == GATES[name]
    assert trace.meta.model == f"gates-{name}"
    assert (trace.num_layers, trace.num_experts) == (4, 8)
    assert ours["command"].startswith(f"moesim record --model build/language/seed-0/gates-{name} ")
    header = (folder / "trace.json").read_text(encoding="utf-8")
    assert not re.search(r'"/\w', header), "no path of the machine that recorded it"


def test_of_gates_what_is_known_ahead_is_so() -> None:
    """By token: the same token, the same experts, so at most as many sets as tokens. Ahead: one
    choice for all layers. By task: one choice for a domain."""
    ahead = load_trace(TRACES / "gates-top-k-ahead").expert_ids[:]
    assert (ahead == ahead[:, :1]).all()
    hashed = load_trace(TRACES / "gates-hash-by-token")
    assert len(np.unique(hashed.expert_ids[:].reshape(hashed.num_rows, -1), axis=0)) <= 1024
    by_task = load_trace(TRACES / "gates-dselect-k-by-task")
    assert len(np.unique(by_task.expert_ids[:].reshape(by_task.num_rows, -1), axis=0)) <= 4
    free = load_trace(TRACES / "gates-top-k")
    assert len(np.unique(free.expert_ids[:].reshape(free.num_rows, -1), axis=0)) > 1024
