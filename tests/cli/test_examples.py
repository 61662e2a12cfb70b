"""The examples work as they stand."""

from __future__ import annotations

import importlib.util
import sys

import pytest
from paths import ROOT
from workloads import plan_of, run_on, tiny_scenario, tiny_trace

from moesim.policies import registry

PLUGIN = ROOT / "examples/plugin/moesim_lfru.py"


@pytest.fixture
def lfru(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plug-in, registered for one test as its entry point would."""
    registry.names("eviction")  # the built-in ones first
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    spec = importlib.util.spec_from_file_location("moesim_lfru", PLUGIN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "moesim_lfru", module)
    spec.loader.exec_module(module)


@pytest.mark.usefixtures("lfru")
@pytest.mark.parametrize("prefetch", ["none", "predicted"])
def test_the_plugin_serves_a_workload_and_passes_its_audit(prefetch: str) -> None:
    scenario = tiny_scenario(cache={"policy": "lfru", "slots": "3/layer"}, prefetch=prefetch)
    outcome = run_on(plan_of(scenario, tiny_trace(requests=6)))
    assert sum(outcome.ledger.hits) > 0
