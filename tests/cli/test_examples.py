"""The examples work as they stand."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
from paths import ROOT
from workloads import plan_of, run_on, tiny_scenario, tiny_trace

from moesim.policies import View, find, registry
from moesim.policies.eviction import CacheContext

PLUGIN = ROOT / "examples/plugins/eviction/moesim_hyperbolic.py"


@pytest.fixture
def hyperbolic(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plug-in, registered for one test as its entry point would."""
    registry.names("eviction")  # the built-in ones first
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    spec = importlib.util.spec_from_file_location("moesim_hyperbolic", PLUGIN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "moesim_hyperbolic", module)
    spec.loader.exec_module(module)


@pytest.mark.usefixtures("hyperbolic")
@pytest.mark.parametrize("prefetch", ["none", "predicted"])
def test_the_plugin_serves_a_workload_and_passes_its_audit(prefetch: str) -> None:
    scenario = tiny_scenario(cache={"policy": "hyperbolic", "slots": "3/layer"}, prefetch=prefetch)
    outcome = run_on(plan_of(scenario, tiny_trace(requests=6)))
    assert sum(outcome.ledger.hits) > 0


@pytest.mark.usefixtures("hyperbolic")
def test_the_plugin_obeys_admission_always() -> None:
    context = CacheContext(2, range(4), "always", np.random.default_rng(0))
    policy = find("eviction", "hyperbolic")(context)
    for union in [(0,), (1,), (1,), (1,)]:
        policy.decide(View(0, union))
    assert list(policy.decide(View(0, (0, 2)))) == [1]  # 0 has fewer uses for its age
