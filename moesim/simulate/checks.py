"""Checks of a scenario against its trace, model and machine, made before a run starts.

The schema finds mistakes that show in the file alone. The checks here need the trace, a model's
sizes or a profile. Both report all mistakes together, each with its line. Where the schema finds
some, `further_mistakes` runs every check that does not read a wrong key.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from moesim.config.markers import PathTo
from moesim.config.units import format_bytes
from moesim.config.validation import OVERRIDES, order
from moesim.config.yaml_document import KeyPath
from moesim.cost.cpu import missing_figures
from moesim.engines.engine import Engine
from moesim.errors import ScenarioError, TraceError, UsageError
from moesim.hardware.hardware import Hardware
from moesim.hardware.topology import CPU, GPU
from moesim.model.shapes import ModelShape, shapes_like
from moesim.policies import parse_options
from moesim.policies.base import Input
from moesim.policies.blame import blamed
from moesim.policies.guard import (
    find_policy,
    inputs_of,
    placement_lanes,
    placement_mistakes,
    prefetch_mistakes,
)
from moesim.policies.placement import PlacementContext, fixes_residents
from moesim.policies.prefetch import Lessons, PrefetchContext, Prices
from moesim.policies.registry import path_options
from moesim.results.window import check_window
from moesim.scenario.keys import key_path
from moesim.scenario.policies import FAMILIES
from moesim.serving.experts.host_memory import taken_bytes
from moesim.serving.knowledge import KNOWLEDGE, Knowledge
from moesim.serving.long_prompts import check_prompts
from moesim.serving.request import Request, all_at_once
from moesim.simulate.lessons import profile_at, refuse_served
from moesim.simulate.split import check_split, check_split_apart
from moesim.streams import stream
from moesim.trace import Trace, load_trace
from moesim.workload.arrivals import check_arrivals
from moesim.workload.workload import (
    build_workload,
    check_domains,
    check_prefill,
)

if TYPE_CHECKING:
    from moesim.scenario import Scenario

__all__ = [
    "Parts",
    "check_parts",
    "further_mistakes",
    "policy_of",
    "prefetch_context",
    "profile_trace",
]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Parts:
    """The machine, the engine, the model's sizes and the requests of one scenario.

    `interface` says which of the engine's kernels run on the GPU.
    """

    hardware: Hardware
    engine: Engine
    interface: str | None
    shape: ModelShape
    requests: list[Request]


def check_parts(scenario: Scenario, trace: Trace) -> Parts:
    """Return the loaded parts of a scenario, after all checks.

    Raises:
        ScenarioError: with all mistakes, in the order of the document.
    """
    checks = _Checks(scenario)
    parts = checks.run(trace)
    if checks.mistakes:
        # Two checks may read the same key, and report the same mistake.
        raise ScenarioError(sorted(dict.fromkeys(checks.mistakes), key=order))
    assert parts is not None  # a part is missing only where a check has failed
    return parts


def further_mistakes(
    scenario: Scenario, wrong: Collection[KeyPath], traces: dict[Path, Trace]
) -> list[str]:
    """Return the mistakes of a scenario whose `wrong` keys were left out.

    `traces` keeps opened traces, so that the points of a sweep do not read one again.
    """
    checks = _Checks(scenario, wrong)
    checks.run(checks.attempt("trace", _open, scenario, traces))
    return checks.mistakes


def policy_of(scenario: Scenario, section: str) -> tuple[type[Any], Any]:
    """Return the class and the options of a section's policy.

    Relative paths among the options are changed to start at the working directory.

    Raises:
        ScenarioError: there is no such policy, or an option is wrong; with the key's line.
    """
    chosen = getattr(scenario, section)
    try:
        policy = find_policy(FAMILIES[section], chosen.policy)
    except UsageError as error:
        raise ScenarioError.at(scenario, f"{section}.policy", str(error)) from None
    try:
        paths = path_options(FAMILIES[section], chosen.policy)
        options = {
            name: str(scenario.path(value)) if name in paths and isinstance(value, str) else value
            for name, value in chosen.options.items()
        }
        return policy, parse_options(policy, options)
    except UsageError as error:
        raise ScenarioError.at(scenario, f"{section}.options", str(error)) from None


def profile_trace(scenario: Scenario, trace: Trace, section: str, learnt: Input) -> Trace:
    """Return the trace from which the policy of a section learns; it may be `trace` itself.

    Raises:
        ScenarioError: it is not a trace, or has other layers or experts than `trace`.
    """
    return profile_at(scenario, trace, _key_of(section, learnt), learnt)


def _key_of(section: str, given: Input) -> str:
    """Return the dotted key to which an input of a section's policy belongs."""
    return f"{section}.options.{given.option}" if given.option else f"{section}.policy"


class _Checks:
    """All checks of one scenario, except those that read one of its `wrong` keys."""

    def __init__(self, scenario: Scenario, wrong: Collection[KeyPath] = ()) -> None:
        self.scenario = scenario
        self.wrong = wrong
        self.mistakes: list[str] = []

    def attempt(self, keys: str, check: Callable[..., T], *arguments: Any) -> T | None:
        """Return what `check` returns; None where it fails, or where one of `keys` is wrong.

        `keys` are the dotted keys that the check reads, separated by spaces.
        """
        paths = [key_path(key) for key in keys.split()]
        if any(_overlap(path, wrong) for path in paths for wrong in self.wrong):
            return None
        try:
            return check(*arguments)
        except ScenarioError as error:
            self.mistakes += error.problems
        return None

    def run(self, trace: Trace | None) -> Parts | None:
        """Run all checks and collect `mistakes`; without a trace, run those that need none.

        Return the loaded parts, or None where one of them is missing.
        """
        scenario, attempt = self.scenario, self.attempt
        hardware = attempt("hardware", scenario.load_hardware)
        engine = attempt("engine", scenario.load_engine)
        interface = None
        if hardware is not None and engine is not None:
            interface = attempt("engine hardware", scenario.interface, hardware, engine)
        config = None if trace is None else trace.meta.model_config
        shape = None
        # Without a trace there is no header to read the shape from.
        if trace is not None or scenario.model.shape != "trace":
            shape = attempt("model", scenario.load_shape, config)
        policies = {
            section: attempt(f"{section}.policy {section}.options", policy_of, scenario, section)
            for section in FAMILIES
        }
        paths_exist = {
            section: attempt(f"{section}.options", _check_paths, scenario, section, *policy)
            for section, policy in policies.items()
            if policy is not None
        }
        if shape is not None and policies["cache"]:
            attempt("model cache.policy", _check_sizes, scenario, shape, policies["cache"][0])
        placement = policies["placement"]
        if placement is not None and hardware is not None:
            attempt("placement.policy hardware", _check_lanes, scenario, hardware, placement[0])
        # A CPU lane needs all figures of host memory, which `_check_lanes` reports.
        on_cpu = placement is not None and CPU in placement_lanes(placement[0])
        if hardware is not None and shape is not None and not on_cpu:
            attempt("memory hardware model", _check_disk, scenario, hardware, shape)
        if shape is not None:
            attempt("memory.prefix_cache model", _check_prefix_cache, scenario, shape)
        fixed = placement is not None and fixes_residents(placement[0])
        if fixed and policies["prefetch"]:
            attempt(
                "prefetch.policy placement.policy", _check_moves, scenario, policies["prefetch"][0]
            )
        if shape is not None and not fixed:
            attempt("model cache.split", _check_split_sizes, scenario, shape)
        if policies["cache"] and not fixed:
            attempt("cache.admission", _check_admission, scenario, policies["cache"][0])
        if trace is None:
            return None
        if policies["cache"] and not fixed:
            attempt("cache.policy", _check_scores, scenario, trace, policies["cache"][0])
        if shape is not None:
            attempt("trace", _check_shape, scenario, trace, shape)
        knowledge = KNOWLEDGE[trace.meta.router]
        for section, check in (("batching", _check_batching), ("prefetch", _check_prefetch)):
            if (policy := policies[section]) is not None:
                attempt(section, check, scenario, trace, knowledge, *policy)
        if policies["prefetch"]:
            attempt("prefetch", _check_predictions, scenario, trace, *policies["prefetch"])
            attempt("prefetch.options", _check_options, scenario, trace, *policies["prefetch"])
        attempt("cache.initial_layers", _check_initial_layers, scenario, trace)
        attempt("cache placement.policy", check_split, scenario, trace)
        for section, policy in policies.items():
            if policy is not None and paths_exist[section]:
                attempt(f"{section}.options", _check_profiles, scenario, trace, section, *policy)
        if placement is not None and shape is not None:
            attempt("placement.options", _check_placement, scenario, trace, shape, *placement)
        requests = self._workload(trace)
        if requests is not None:
            attempt("batching", check_prompts, scenario, requests)
            attempt("metrics.window", check_window, scenario, requests)
            attempt("workload cache", check_split_apart, scenario, trace, requests)
            if policies["cache"] and not fixed:
                keys = "workload cache.policy"
                attempt(keys, _check_future, scenario, requests, policies["cache"][0])
            for section, policy in policies.items():
                if policy is not None and paths_exist[section]:
                    keys = f"workload {section}.options"
                    attempt(keys, _check_apart, scenario, trace, requests, section, *policy)
        if hardware is None or engine is None or shape is None or requests is None:
            return None
        return Parts(hardware, engine, interface, shape, requests)

    def _workload(self, trace: Trace) -> list[Request] | None:
        """Return the requests. Where they cannot be built, check the arrivals by themselves."""
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
    """Return whether two keys are equal, or one is a section that holds the other."""
    short = min(len(path), len(other))
    return path[:short] == other[:short]


def _open(scenario: Scenario, traces: dict[Path, Trace]) -> Trace:
    """Return the scenario's trace, from `traces` if it is there. Raise ScenarioError."""
    path = scenario.trace_path
    try:
        if path not in traces:
            traces[path] = load_trace(path)
    except TraceError as error:
        raise ScenarioError.at(scenario, "trace", str(error)) from None
    return traces[path]


def _check_prefix_cache(scenario: Scenario, shape: ModelShape) -> None:
    """Raise ScenarioError where a prefix cache would need states that no block holds."""
    if scenario.memory.prefix_cache and shape.state_bytes_per_sequence:
        raise ScenarioError.at(
            scenario,
            "memory.prefix_cache",
            f"{shape.name} has recurrent layers, whose states belong to a sequence; only keys and "
            "values are cached by prefix; leave the key out",
        )


def _check_paths(scenario: Scenario, section: str, policy: type[Any], parsed: Any) -> bool:
    """Return True. Raise ScenarioError where a path or an input of a policy does not exist."""
    chosen = getattr(scenario, section)
    options = chosen.options
    kind = PathTo("file or folder", lambda path: Path(path).exists())
    mistakes = []
    # By the scenario's name for it: the registry knows no class that a file holds.
    paths = path_options(FAMILIES[section], chosen.policy) & options.keys()
    for given in inputs_of(policy, parsed):
        if given.path is not None and given.option not in paths and not given.path.exists():
            key = _key_of(section, given)
            mistakes.append(
                f"{scenario.mark(key)}: {key}: {policy.name} learns from {str(given.path)!r}, "
                "which does not exist"
            )
    for name in paths:
        value, key = options[name], f"{section}.options.{name}"
        if isinstance(value, str) and not scenario.path(value).exists():
            typed = scenario.mark(key).startswith(OVERRIDES)
            message = kind.missing(value, str(scenario.base_dir), typed=typed)
            mistakes.append(f"{scenario.mark(key)}: {key}: {message}")
    if mistakes:
        raise ScenarioError(mistakes)
    return True


def _check_profiles(
    scenario: Scenario, trace: Trace, section: str, policy: type[Any], options: Any
) -> None:
    for given in inputs_of(policy, options):
        if given.trace:
            profile_trace(scenario, trace, section, given)


def _check_apart(
    scenario: Scenario,
    trace: Trace,
    requests: Sequence[Request],
    section: str,
    policy: type[Any],
    options: Any,
) -> None:
    """Raise ScenarioError where a run serves requests from which a policy learns."""
    for given in inputs_of(policy, options):
        refuse_served(scenario, trace, requests, policy.name, given, _key_of(section, given))


def _check_options(scenario: Scenario, trace: Trace, policy: type[Any], options: Any) -> None:
    """Raise ScenarioError with the options of a prefetch policy that cannot hold for the trace."""
    mistakes = [
        problem
        for option, message in prefetch_mistakes(policy, prefetch_context(scenario, trace), options)
        for problem in ScenarioError.at(scenario, f"prefetch.options.{option}", message).problems
    ]
    if mistakes:
        raise ScenarioError(mistakes)


def prefetch_context(
    scenario: Scenario,
    trace: Trace,
    lessons: Callable[[Input], Lessons] | None = None,
    prices: Prices | None = None,
) -> PrefetchContext:
    """Return what the prefetch policy of a scenario may know before a run."""
    return PrefetchContext(
        num_layers=trace.num_layers,
        num_experts=trace.num_experts,
        top_k=trace.top_k,
        rng=stream(scenario.seed, "prefetch"),
        lessons=lessons,
        recorded_depth=trace.meta.prediction_depth,
        prices=prices,
    )


def _check_sizes(scenario: Scenario, shape: ModelShape, eviction: type[Any]) -> None:
    if not shape.equal_sizes and not eviction.by_bytes:
        raise ScenarioError.at(
            scenario,
            "cache.policy",
            f"{eviction.name} counts slots, and model.expert_bits_by gives the experts unequal "
            "sizes; choose another policy, or leave model.expert_bits_by out",
        )


def _check_split_sizes(scenario: Scenario, shape: ModelShape) -> None:
    if not shape.equal_sizes and scenario.cache.split != "uniform":
        raise ScenarioError.at(
            scenario,
            "cache.split",
            "counts slots, and the experts have unequal sizes; write split: uniform, which divides "
            "bytes, or give all experts the same bits",
        )


def _check_lanes(scenario: Scenario, hardware: Hardware, policy: type[Any]) -> None:
    """Raise ScenarioError where a placement computes on a lane that the machine lacks."""
    lanes = set(placement_lanes(policy))
    if unknown := sorted(lanes - {GPU, CPU}):
        raise ScenarioError.at(
            scenario,
            "placement.policy",
            f"{policy.name} computes on {', '.join(unknown)}; machines compute on {GPU} and {CPU}",
        )
    missing = missing_figures(hardware, cpu=CPU in lanes)
    if missing:
        raise ScenarioError.at(
            scenario,
            "placement.policy",
            f"{policy.name} computes experts on the CPU, and {hardware.name} is described without "
            f"{' and '.join(missing)}; give the profile these figures, or set them in `hardware`",
        )


def _check_disk(scenario: Scenario, hardware: Hardware, shape: ModelShape) -> None:
    """Raise ScenarioError where experts are read from disk and host memory has no bandwidth.

    For scenarios that keep nothing but experts in host memory.
    """
    memory = scenario.memory
    if memory.host is None or hardware.disk is None:
        return  # without a disk, the budget of host memory refuses experts that do not fit
    nbytes = sum(taken_bytes(size, memory.host_cache) for size in shape.sizes())
    if nbytes > memory.host and missing_figures(hardware, disk=True):
        raise ScenarioError.at(
            scenario,
            "memory.host",
            f"{format_bytes(nbytes)} of experts exceed {format_bytes(memory.host)}, so experts are "
            f"read from disk, which shares host memory; {hardware.name} is described without its "
            "bandwidth; set hardware.host_memory_bandwidth, like 60GB/s",
        )


def _check_placement(
    scenario: Scenario, trace: Trace, shape: ModelShape, policy: type[Any], options: Any
) -> None:
    if (len(shape.moe_layers), shape.num_experts) != (trace.num_layers, trace.num_experts):
        return  # `_check_shape` reports this, and limits of either would mislead
    context = PlacementContext(
        model_layers=tuple(shape.moe_layers),
        num_model_layers=shape.num_layers,
        num_experts=shape.num_experts,
        top_k=shape.top_k,
        rng=stream(scenario.seed, "placement"),
    )
    mistakes = [
        problem
        for option, message in placement_mistakes(policy, context, options)
        for problem in ScenarioError.at(scenario, f"placement.options.{option}", message).problems
    ]
    if mistakes:
        raise ScenarioError(mistakes)


def _check_moves(scenario: Scenario, prefetch: type[Any]) -> None:
    """Raise ScenarioError where experts are prefetched, and the placement lets none come."""
    if prefetch.active:
        raise ScenarioError.at(
            scenario,
            "prefetch.policy",
            f"{prefetch.name} copies experts to GPU memory, and placement "
            f"{scenario.placement.policy} fixes which are there; write prefetch: none, or choose a "
            "placement that lets experts come and go, like cost",
        )


def _check_admission(scenario: Scenario, policy: type[Any]) -> None:
    if policy.needs_bypass and scenario.cache.admission == "always":
        raise ScenarioError.at(
            scenario,
            "cache.admission",
            f"{policy.name} never admits a missing expert, so `admission: always` cannot hold; "
            "write bypass, or choose another cache.policy",
        )


def _check_future(scenario: Scenario, requests: list[Request], policy: type[Any]) -> None:
    """Raise ScenarioError where a policy needs the future, and requests arrive over time."""
    if policy.needs_future and not all_at_once(requests):
        raise ScenarioError.at(scenario, "cache.policy", policy.without_future())


def _check_scores(scenario: Scenario, trace: Trace, policy: type[Any]) -> None:
    """Raise ScenarioError where a policy weighs by gate scores, and would see none."""
    if not policy.needs_scores:
        return
    if trace.gate_weights is None and trace.probabilities is None:
        raise ScenarioError.at(
            scenario,
            "cache.policy",
            f"{policy.name} weighs experts by the router's scores, and the trace holds none; "
            "record it with `moesim record --probabilities`, or choose another policy",
        )
    if scenario.replay == "sequential":
        raise ScenarioError.at(
            scenario,
            "cache.policy",
            f"{policy.name} weighs the scores of a whole layer event, which sequential replay cuts "
            "up; write replay: atomic, or choose another policy",
        )


def _check_shape(scenario: Scenario, trace: Trace, shape: ModelShape) -> None:
    of_trace = (trace.num_layers, trace.num_experts, trace.top_k)
    of_model = (len(shape.moe_layers), shape.num_experts, shape.top_k)
    if of_trace != of_model:
        layers, experts, top_k = of_model
        fitting = [name for name in shapes_like(*of_trace) if name != scenario.model.shape]
        models = f"these shipped models fit the trace: {', '.join(fitting)}; " if fitting else ""
        raise ScenarioError.at(
            scenario,
            "model",
            "the trace has {} MoE layers, {} experts, top-{}; ".format(*of_trace)
            + f"{shape.name} has {layers}, {experts}, top-{top_k}; {models}draw a trace for "
            f"{shape.name} with: moesim trace synth FOLDER --like {scenario.model.shape}",
        )


def _check_batching(
    scenario: Scenario, trace: Trace, knowledge: Knowledge, policy: type[Any], _options: Any
) -> None:
    router = trace.meta.router
    if policy.needs_routing and not knowledge.queued:
        reason = f"needs the experts of queued tokens; the trace's router is {router}, which "
        reason += f"reveals them layer by layer only{_revealed_by(lambda each: each.queued)}"
    elif policy.needs_static and not knowledge.future_tokens:
        reason = f"needs the experts of all future tokens; the trace's router is {router}, and "
        reason += f"only a static one reveals them{_revealed_by(lambda each: each.future_tokens)}"
    else:
        return
    raise ScenarioError.at(
        scenario, "batching.policy", f"{policy.name} {reason}, or write decode_first"
    )


def _revealed_by(reveals: Callable[[Knowledge], bool]) -> str:
    """Return the hint which routers reveal enough."""
    routers = [name for name, knowledge in KNOWLEDGE.items() if reveals(knowledge)]
    return f"; choose a trace whose router is {' or '.join(routers)}"


def _check_prefetch(
    scenario: Scenario, trace: Trace, knowledge: Knowledge, policy: type[Any], options: Any
) -> None:
    depth = getattr(options, "depth", 1)  # a plug-in need not have this option
    if not policy.needs_routing or depth <= knowledge.reach:
        return
    if knowledge.reach:
        remedy = f"write depth: {knowledge.reach}"
    else:
        remedy = "choose predicted (where the trace has predictions), oracle (a bound) or none"
    raise ScenarioError.at(
        scenario,
        "prefetch.policy",
        f"{policy.name} has depth {depth}; the trace's router is {trace.meta.router}, which "
        f"reveals routing to depth {knowledge.reach}; {remedy}",
    )


def _check_predictions(scenario: Scenario, trace: Trace, policy: type[Any], options: Any) -> None:
    """Raise ScenarioError where a policy needs predictions that the trace does not hold."""
    with blamed(policy, "prediction_depth"):
        depth: int = policy.prediction_depth(options)
    recorded = trace.meta.prediction_depth
    if not depth:
        return
    if not recorded:
        raise ScenarioError.at(
            scenario,
            "prefetch.policy",
            f"{policy.name} needs predictions, and the trace holds none; record it with "
            f"`moesim record --depth {depth}`, or choose another policy, like `prefetch: none`",
        )
    if depth > recorded:
        option = "depth" if hasattr(options, "depth") else "stride"
        raise ScenarioError.at(
            scenario,
            f"prefetch.options.{option}",
            f"{policy.name} has {option} {depth}; the trace predicts {recorded} "
            f"layer{'s' if recorded > 1 else ''} ahead; write {option}: {recorded}, or record it "
            f"with `moesim record --depth {depth}`",
        )


def _check_initial_layers(scenario: Scenario, trace: Trace) -> None:
    first = scenario.cache.initial_layers
    if first > trace.num_layers:
        raise ScenarioError.at(
            scenario,
            "cache.initial_layers",
            f"is {first}; it must be at most {trace.num_layers}, the MoE layers of the trace",
        )
