"""What a scenario asks of its trace, its model and its machine, checked before anything runs.

The schema finds mistakes that show in the file alone. The checks here need the trace, a model's
sizes or a profile. Both report all mistakes together, each at its line: where the schema finds
some, `further_mistakes` leaves the wrong keys out and runs every check that does not read them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from moesim.config.markers import PathTo
from moesim.config.validation import COMMAND_LINE, order
from moesim.config.yaml_document import KeyPath
from moesim.errors import ScenarioError, TraceError, UsageError
from moesim.hardware.hardware import Hardware
from moesim.hardware.shapes import ModelShape, shapes_like
from moesim.policies import find, parse_options
from moesim.policies.guard import find_policy
from moesim.policies.registry import path_options
from moesim.scenario.keys import key_path
from moesim.serving.knowledge import KNOWLEDGE, Knowledge
from moesim.serving.request import Request
from moesim.serving.workload import (
    build_workload,
    check_arrivals,
    check_domains,
    check_prefill,
)
from moesim.trace import Trace, load_trace

if TYPE_CHECKING:
    from moesim.scenario import Scenario

__all__ = ["Parts", "check_parts", "further_mistakes", "policy_of", "profile_trace"]

FAMILIES: Final = {
    "batching": "batching",
    "cache": "eviction",
    "prefetch": "prefetch",
    "placement": "placement",
}
"""The policy family of each section that names a policy."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Parts:
    """What a scenario names, loaded."""

    hardware: Hardware
    shape: ModelShape
    requests: list[Request]


def check_parts(scenario: Scenario, trace: Trace) -> Parts:
    """Load what a scenario names. Raise ScenarioError with every mistake, in document order."""
    checks = _Checks(scenario)
    parts = checks.run(trace)
    if checks.mistakes:
        raise ScenarioError(sorted(dict.fromkeys(checks.mistakes), key=order))
    assert parts is not None
    return parts


def further_mistakes(
    scenario: Scenario, wrong: Collection[KeyPath], traces: dict[Path, Trace]
) -> list[str]:
    """Return what else is wrong with a scenario whose `wrong` keys were left out.

    `traces` keeps the traces that were opened, for the next point of a sweep.
    """
    checks = _Checks(scenario, wrong)
    checks.run(checks.attempt("trace", _open, scenario, traces))
    return checks.mistakes


def policy_of(scenario: Scenario, section: str) -> tuple[type[Any], Any]:
    """Return the class and the options of a section's policy, paths seen from where we stand.

    Raise ScenarioError at its line.
    """
    chosen = getattr(scenario, section)
    try:
        policy = find_policy(FAMILIES[section], chosen.policy)
    except UsageError as error:
        raise ScenarioError.at(scenario, f"{section}.policy", str(error)) from None
    try:
        named = path_options(FAMILIES[section], chosen.policy)
        options = {
            name: str(scenario.path(value)) if name in named and isinstance(value, str) else value
            for name, value in chosen.options.items()
        }
        return policy, parse_options(policy, options)
    except UsageError as error:
        raise ScenarioError.at(scenario, f"{section}.options", str(error)) from None


def profile_trace(scenario: Scenario, trace: Trace, profile: Path) -> Trace:
    """Open the trace that a static placement learns from, which must have the trace's shape.

    Raise ScenarioError where it is none, or has another shape.
    """
    try:
        learnt = load_trace(profile)
    except TraceError as error:
        raise ScenarioError.at(scenario, "cache.options.profile", str(error)) from None
    shapes = [(each.num_layers, each.num_experts) for each in (learnt, trace)]
    if shapes[0] != shapes[1]:
        raise ScenarioError.at(
            scenario,
            "cache.options.profile",
            f"the profile {str(profile)!r} is of another shape than the trace: "
            "{} layers of {} experts, not {} of {}".format(*shapes[0], *shapes[1]),
        )
    return learnt


class _Checks:
    """Runs every check that the keys left out do not concern, and collects what is wrong."""

    def __init__(self, scenario: Scenario, wrong: Collection[KeyPath] = ()) -> None:
        self.scenario = scenario
        self.wrong = wrong
        self.mistakes: list[str] = []

    def attempt(self, keys: str, part: Callable[..., T], *given: Any) -> T | None:
        """Return what `part` returns; None where it fails, or where one of `keys` is wrong."""
        paths = [key_path(key) for key in keys.split()]
        if any(_overlap(path, wrong) for path in paths for wrong in self.wrong):
            return None
        try:
            return part(*given)
        except ScenarioError as error:
            self.mistakes += error.problems
        return None

    def run(self, trace: Trace | None) -> Parts | None:
        scenario, attempt = self.scenario, self.attempt
        hardware = attempt("hardware", scenario.load_hardware)
        config = None if trace is None else trace.meta.model_config
        shape = None
        if trace is not None or scenario.model.shape != "trace":
            shape = attempt("model", scenario.load_shape, config)
        policies = {
            section: attempt(f"{section}.policy {section}.options", policy_of, scenario, section)
            for section in FAMILIES
        }
        there = {
            section: attempt(f"{section}.options", _check_paths, scenario, section, policy[0].name)
            for section, policy in policies.items()
            if policy is not None
        }
        attempt("prefetch.cancel", _check_cancel, scenario)
        if policies["placement"]:
            attempt("placement.policy", _check_placement, scenario, policies["placement"][0])
        if policies["cache"]:
            attempt("cache.admission", _check_admission, scenario, policies["cache"][0])
        if trace is None:
            return None
        if shape is not None:
            attempt("trace", _check_shape, scenario, trace, shape)
        knowledge = KNOWLEDGE[trace.meta.router]
        for section, check in (("batching", _check_batching), ("prefetch", _check_prefetch)):
            if (policy := policies[section]) is not None:
                attempt(section, check, scenario, trace, knowledge, *policy)
        if policies["prefetch"]:
            attempt("prefetch.policy", _check_predictions, scenario, trace, policies["prefetch"][0])
        attempt("cache.initial_layers", _check_initial_layers, scenario, trace)
        if policies["cache"] and there["cache"]:
            attempt("cache.options", _check_profile, scenario, trace, *policies["cache"])
        requests = self._workload(trace)
        if hardware is None or shape is None or requests is None:
            return None
        return Parts(hardware, shape, requests)

    def _workload(self, trace: Trace) -> list[Request] | None:
        before = len(self.mistakes)
        self.attempt("workload.prefill", check_prefill, self.scenario, trace)
        self.attempt("workload.domains", check_domains, self.scenario, trace)
        if len(self.mistakes) > before:
            self.attempt(
                "workload.arrivals workload.requests", check_arrivals, self.scenario, trace
            )
            return None
        return self.attempt("workload seed", build_workload, self.scenario, trace)


def _overlap(path: KeyPath, other: KeyPath) -> bool:
    """Whether one of two keys is, or holds, the other."""
    short = min(len(path), len(other))
    return path[:short] == other[:short]


def _open(scenario: Scenario, traces: dict[Path, Trace]) -> Trace:
    path = scenario.trace_path
    try:
        return traces.setdefault(path, traces.get(path) or load_trace(path))
    except TraceError as error:
        raise ScenarioError.at(scenario, "trace", str(error)) from None


def _check_paths(scenario: Scenario, section: str, policy: str) -> bool:
    """Raise ScenarioError where an option of a policy holds a path that leads nowhere."""
    options = getattr(scenario, section).options
    kind = PathTo("file or folder", lambda path: Path(path).exists())
    mistakes = []
    for name in path_options(FAMILIES[section], policy) & options.keys():
        value, key = options[name], f"{section}.options.{name}"
        if isinstance(value, str) and not scenario.path(value).exists():
            typed = scenario.mark(key).startswith(COMMAND_LINE)
            message = kind.missing(value, str(scenario.base_dir), typed=typed)
            mistakes.append(f"{scenario.mark(key)}: {key}: {message}")
    if mistakes:
        raise ScenarioError(mistakes)
    return True


def _check_profile(scenario: Scenario, trace: Trace, policy: type[Any], options: Any) -> None:
    if policy.name == "static" and options.profile is not None:
        profile_trace(scenario, trace, options.profile)


def _check_cancel(scenario: Scenario) -> None:
    if scenario.prefetch.cancel:
        raise ScenarioError.at(
            scenario,
            "prefetch.cancel",
            "cancelling prefetches is not available yet; leave the key out",
        )


def _check_placement(scenario: Scenario, policy: type[Any]) -> None:
    """No placement but `copy` acts yet: a missing expert always runs on the GPU."""
    if policy is not find("placement", "copy"):
        raise ScenarioError.at(
            scenario,
            "placement.policy",
            f"{policy.name} would not be asked: so far a missing expert is always copied to the "
            "GPU; leave the key out, or write copy",
        )


def _check_admission(scenario: Scenario, policy: type[Any]) -> None:
    if policy.needs_bypass and scenario.cache.admission == "always":
        raise ScenarioError.at(
            scenario,
            "cache.admission",
            f"{policy.name} never admits anything: it cannot have `admission: always`; "
            "write bypass, or choose another cache.policy",
        )


def _check_shape(scenario: Scenario, trace: Trace, shape: ModelShape) -> None:
    ours = (trace.num_layers, trace.num_experts, trace.top_k)
    theirs = (len(shape.moe_layers), shape.num_experts, shape.top_k)
    if ours != theirs:
        layers, experts, top_k = theirs
        fitting = [name for name in shapes_like(*ours) if name != scenario.model.shape]
        models = f"these shipped models fit the trace: {', '.join(fitting)}; " if fitting else ""
        raise ScenarioError.at(
            scenario,
            "model",
            f"the trace has {ours[0]} MoE layers, {ours[1]} experts, top-{ours[2]}; "
            f"{shape.name} has {layers}, {experts}, top-{top_k}; {models}draw a trace for "
            f"{shape.name} with: moesim trace synth FOLDER --layers {layers} --experts {experts} "
            f"--top-k {top_k}",
        )


def _check_batching(
    scenario: Scenario, trace: Trace, knowledge: Knowledge, policy: type[Any], _options: Any
) -> None:
    router = trace.meta.router
    if policy.needs_routing and not knowledge.queued:
        what = f"asks which experts queued tokens want; the trace's router is {router}, which "
        what += f"reveals it layer by layer only{_revealed_by(lambda each: each.queued)}"
    elif policy.needs_static and not knowledge.for_ever:
        what = f"asks what requests will ever want; the trace's router is {router}, and only a "
        what += f"static one reveals it{_revealed_by(lambda each: each.for_ever)}"
    else:
        return
    raise ScenarioError.at(scenario, "batching.policy", f"{policy.name} {what}, or decode_first")


def _revealed_by(reveals: Callable[[Knowledge], bool]) -> str:
    routers = [name for name, knowledge in KNOWLEDGE.items() if reveals(knowledge)]
    return f"; choose a trace whose router is {' or '.join(routers)}"


def _check_prefetch(
    scenario: Scenario, trace: Trace, knowledge: Knowledge, policy: type[Any], options: Any
) -> None:
    if not policy.needs_routing or getattr(options, "depth", 1) <= knowledge.reach:
        return
    if knowledge.reach:
        remedy = f"write depth: {knowledge.reach}"
    else:
        remedy = "choose predicted (where the trace has predictions), oracle (a bound) or none"
    raise ScenarioError.at(
        scenario,
        "prefetch.policy",
        f"{policy.name} looks {getattr(options, 'depth', 1)} layers ahead; the trace's router is "
        f"{trace.meta.router}, which reveals {knowledge.reach}; {remedy}",
    )


def _check_predictions(scenario: Scenario, trace: Trace, policy: type[Any]) -> None:
    """A policy that fetches what is predicted needs a trace that recorded predictions."""
    if policy.needs_predictions and not trace.meta.prediction_depth:
        raise ScenarioError.at(
            scenario,
            "prefetch.policy",
            f"{policy.name} needs predictions, and the trace holds none; record it with "
            "`moesim record --depth 1`, or choose another policy",
        )


def _check_initial_layers(scenario: Scenario, trace: Trace) -> None:
    first = scenario.cache.initial_layers
    if first > trace.num_layers:
        raise ScenarioError.at(
            scenario, "cache.initial_layers", f"is {first}; the trace has {trace.num_layers}"
        )
