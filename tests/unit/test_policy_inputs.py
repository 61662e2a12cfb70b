"""A policy names the files it learns from, and says what it has learnt; moesim names no policy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from watched_machines import enlist
from workloads import plan_of, run_on, tiny_scenario, tiny_trace

from moesim.errors import OutputError, PolicyViolation, ScenarioError
from moesim.policies import FAMILIES, Input, Policy, find, names, parse_options
from moesim.policies.batching import FirstComeFirstServed
from moesim.policies.eviction import LRU, CacheContext, Eviction
from moesim.policies.guard import (
    has_hindsight,
    inputs_of,
    make_batching,
    make_eviction,
    make_prefetch,
    note_of,
)
from moesim.policies.placement import Placement
from moesim.policies.prefetch import NoPrefetch
from moesim.policies.view import View
from moesim.report.names import policy_label
from moesim.scenario import Scenario, load_scenario
from moesim.simulate import prepare, run, summarise
from moesim.simulate.rundir import fingerprint, input_hashes


@dataclass(frozen=True, slots=True)
class TaughtOptions:
    """`lessons`: the trace folder to learn from."""

    lessons: Path | None = None


class Taught:
    """A mixin: a policy that learns from the trace that an option names."""

    Options = TaughtOptions

    @classmethod
    def inputs(cls, options: Any) -> Sequence[Input]:
        return [Input(options.lessons, "lessons", trace=True)]

    @classmethod
    def note(cls, options: Any) -> str | None:
        return f"a plug-in took\n  lessons from {options.lessons}"


class TaughtEviction(Taught, Eviction):
    """Keeps the most popular experts; written without the code of moesim's own such policy."""

    def __init__(self, context: Any, options: Any = None) -> None:
        super().__init__(context, options)
        counts = context.popularity(self.options.lessons)
        ranked = sorted(context.universe, key=lambda key: (-counts[key], key))
        self.book.update(dict.fromkeys(ranked[: self.capacity]))

    def preload(self) -> Sequence[int]:
        return list(self.book)

    def decide(self, view: View) -> Sequence[int]:
        return [key for key in view.union if key not in self.book]

    def victim(self, protected: Any) -> None:
        return None


class TaughtPrefetch(Taught, NoPrefetch):
    """Learns, and prefetches nothing."""


class TaughtBatching(Taught, FirstComeFirstServed):
    """Learns, and orders requests by arrival."""


LEARNERS = {"cache": TaughtEviction, "prefetch": TaughtPrefetch, "batching": TaughtBatching}
FAMILY = {"cache": "eviction", "prefetch": "prefetch", "batching": "batching"}
SECTIONS = pytest.mark.parametrize("section", LEARNERS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a trace to replay, one to learn from, and one of another shape."""
    tiny_trace(requests=3).save(tmp_path / "trace")
    tiny_trace(requests=4, seed=9).save(tmp_path / "lessons")
    tiny_trace(requests=4, seed=10).save(tmp_path / "others")
    tiny_trace(num_experts=16).save(tmp_path / "wide")
    return tmp_path


def enlisted(monkeypatch: pytest.MonkeyPatch, section: str) -> str:
    return enlist(monkeypatch, FAMILY[section], LEARNERS[section])


def written(folder: Path, section: str, name: str, options: str) -> Path:
    """Write a scenario whose options stand in line 4; return its file."""
    text = f"trace: trace\nhardware: rtx-4090\n{section}: {{policy: {name}, options:\n"
    text += f"  {{{options}}}}}\nbounds: false\n"
    (folder / "a.yaml").write_text(text, encoding="utf-8")
    return folder / "a.yaml"


def taught(name: str, profile: Path | None, section: str = "cache") -> dict[str, Any]:
    options = {} if profile is None else {"lessons": str(profile)}
    chosen = {"policy": name, "options": options, **({"slots": 9} if section == "cache" else {})}
    return {section: chosen}


def test_the_policies_of_all_families_declare_inputs_and_notes() -> None:
    for family in FAMILIES:
        for name in names(family):
            policy = find(family, name)
            assert issubclass(policy, Policy), name
            assert all(isinstance(each, Input) for each in inputs_of(policy, policy.Options()))


# --- before a run ---------------------------------------------------------------------------------


@SECTIONS
def test_a_profile_of_another_shape_is_refused_with_its_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, section: str
) -> None:
    name = enlisted(monkeypatch, section)
    file = written(folder, section, name, "lessons: wide")
    with pytest.raises(ScenarioError, match="another shape") as caught:
        prepare(load_scenario(file))
    (problem,) = caught.value.problems
    assert problem.startswith(f"{file}:4:13: {section}.options.lessons: the profile ")
    assert "4 layers of 16 experts, not 4 of 8" in problem
    prepare(load_scenario(written(folder, section, name, "lessons: lessons")))


@SECTIONS
def test_a_profile_that_is_no_trace_is_refused_with_its_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, section: str
) -> None:
    name = enlisted(monkeypatch, section)
    for given, said in ((".", "trace.json"), ("nowhere", "there is no file or folder 'nowhere'")):
        file = written(folder, section, name, f"lessons: {given}")
        with pytest.raises(ScenarioError, match=said) as caught:
            prepare(load_scenario(file))
        assert caught.value.problems[0].startswith(f"{file}:4:13: {section}.options.lessons: ")


def test_an_input_that_no_option_names_must_exist(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = enlisted(monkeypatch, "cache")
    inputs = classmethod(lambda cls, options: [Input(folder / "weights.json")])
    monkeypatch.setattr(TaughtEviction, "inputs", inputs)
    file = written(folder, "cache", name, "")
    with pytest.raises(ScenarioError, match=r"a\.yaml:3:17: cache\.policy: .*weights\.json.* not"):
        prepare(load_scenario(file))


def test_counts_of_a_trace_that_is_no_input_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = enlisted(monkeypatch, "cache")
    monkeypatch.setattr(TaughtEviction, "inputs", classmethod(lambda cls, options: []))
    plan = plan_of(tiny_scenario(**taught(name, folder / "lessons")), tiny_trace(requests=2))
    with pytest.raises(PolicyViolation, match="none of its inputs; return it from `inputs`"):
        run_on(plan)


def test_a_path_option_is_an_input_by_default(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = enlisted(monkeypatch, "cache")
    monkeypatch.delattr(Taught, "inputs")
    profile = folder / "lessons"
    assert inputs_of(TaughtEviction, TaughtOptions(profile)) == (Input(profile, "lessons"),)
    assert inputs_of(TaughtEviction, TaughtOptions()) == ()
    run_on(plan_of(tiny_scenario(**taught(name, profile)), tiny_trace(requests=2)))


# --- a plug-in and moesim's own policy ------------------------------------------------------------


@pytest.mark.parametrize("profile", ["lessons", "trace", "copy"])
def test_a_plug_in_that_learns_is_treated_as_moesims_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch, profile: str
) -> None:
    name = enlisted(monkeypatch, "cache")
    shutil.copytree(folder / "trace", folder / "copy")
    path = folder / profile
    own = {"policy": "static", "options": {"profile": str(path)}, "slots": 9}
    summaries = [
        summarise(run_on(prepare(Scenario.model_validate(tiny_scenario(
            trace=str(folder / "trace"), **changes
        )))))
        for changes in ({"cache": own}, taught(name, path))
    ]  # fmt: skip
    mine, theirs = (
        json.loads(json.dumps(each).replace(each["cache_policy"], "POLICY")) for each in summaries
    )
    assert theirs["knows_the_future"] == ("" if profile == "lessons" else "eviction POLICY")
    assert f"POLICY was learnt on the trace {path}" in mine["notes"]
    assert f"a plug-in took lessons from {path}" in theirs["notes"]
    hindsight = "POLICY was learnt on the replayed trace itself: hindsight, an oracle"
    assert (hindsight in mine["notes"]) == (hindsight in theirs["notes"]) == (profile != "lessons")
    assert {k: v for k, v in mine.items() if k != "notes"} == {
        k: v for k, v in theirs.items() if k != "notes"
    }


def test_what_learns_on_the_replayed_trace_is_an_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    name = enlisted(monkeypatch, "cache")
    assert has_hindsight(TaughtEviction, TaughtOptions())
    assert not has_hindsight(TaughtEviction, TaughtOptions(Path("lessons")))
    assert policy_label(name, {}) == f"{name} (oracle)"
    assert policy_label(name, {"lessons": "lessons"}) == name
    assert policy_label(name, {"an option of another version": 1}) == name


# --- in the fingerprint ---------------------------------------------------------------------------


@SECTIONS
def test_an_edited_profile_makes_another_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, section: str
) -> None:
    name, trace = enlisted(monkeypatch, section), str(folder / "trace")
    plain = tiny_scenario(trace=trace, **taught(name, folder / "lessons", section))
    first = run(plain, out=folder / "out")
    inputs = json.loads((folder / "out" / "manifest.json").read_text())["inputs"]
    assert f"{section}.options.lessons" in inputs
    monkeypatch.setattr(
        "moesim.simulate.simulation.result_of", None
    )  # a finished run simulates nothing
    assert run(plain, out=folder / "out").summary == first.summary
    shutil.rmtree(folder / "lessons")
    shutil.copytree(folder / "others", folder / "lessons")
    with pytest.raises(OutputError, match="holds another run"):
        run(plain, out=folder / "out")


def test_a_profile_that_moved_is_the_same_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = enlisted(monkeypatch, "cache")
    before = Scenario.model_validate(tiny_scenario(**taught(name, folder / "lessons")))
    shutil.copytree(folder / "lessons", folder / "elsewhere")
    after = Scenario.model_validate(tiny_scenario(**taught(name, folder / "elsewhere")))
    assert fingerprint(before) == fingerprint(after)


@pytest.mark.parametrize("place", ["weights.json", "weights/layer/0.bin", "other/trace.json"])
def test_a_file_that_no_option_names_counts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    name = enlisted(monkeypatch, "cache")
    file = folder / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("1", encoding="utf-8")
    named = folder / place.split("/")[0]
    monkeypatch.setattr(TaughtEviction, "inputs", classmethod(lambda *_: [Input(named)]))
    scenario = Scenario.model_validate(tiny_scenario(cache={"policy": name}))
    before = fingerprint(scenario)
    assert list(input_hashes(scenario)) == ["cache.policy.inputs.0"]
    assert fingerprint(scenario) == before
    file.write_text("2", encoding="utf-8")
    assert fingerprint(scenario) != before


def test_a_policy_with_wrong_options_has_a_fingerprint_and_is_refused_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = enlisted(monkeypatch, "cache")
    wrong = tiny_scenario(cache={"policy": name, "options": {"lesson": "x"}})
    assert fingerprint(Scenario.model_validate(wrong))
    with pytest.raises(ScenarioError, match="did you mean 'lessons'"):
        prepare(Scenario.model_validate(wrong), tiny_trace(requests=1))


# --- in the notes ---------------------------------------------------------------------------------


@SECTIONS
def test_what_a_policy_says_of_itself_is_among_the_notes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, section: str
) -> None:
    name = enlisted(monkeypatch, section)
    file = written(folder, section, name, "lessons: ./lessons")
    # The path is as written: a resolved one would differ between working directories.
    assert run(file).summary["notes"].count("a plug-in took lessons from lessons") == 1


def test_a_policy_says_nothing_by_default() -> None:
    assert note_of(LRU, LRU.Options()) is None
    notes = summarise(run_on(plan_of(tiny_scenario(), tiny_trace(requests=1))))["notes"]
    assert notes == ["the trace is synthetic"]


# --- answers of the wrong type --------------------------------------------------------------------


def test_guards_pass_on_what_a_policy_declares(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for section in LEARNERS:
        enlisted(monkeypatch, section)
    context = CacheContext(
        2, range(8), "bypass", np.random.default_rng(), lambda _: dict.fromkeys(range(8), 1)
    )
    options = TaughtOptions(folder / "lessons")
    guards = [
        make_eviction(TaughtEviction, context, options),
        make_prefetch(TaughtPrefetch, options),
        make_batching(TaughtBatching, options),
    ]
    for guard in guards:
        assert guard.inputs(options) == (Input(folder / "lessons", "lessons", trace=True),)
        assert guard.note(options) == f"a plug-in took lessons from {folder / 'lessons'}"


@pytest.mark.parametrize(
    ("method", "answer", "said"),
    [
        ("inputs", "weights.json", "returns str 'weights.json'; it must return a list of Input"),
        ("inputs", [Path("weights.json")], "each item must be an Input"),
        ("inputs", [Input("weights.json")], "whose path is str 'weights.json'"),  # type: ignore[arg-type]
        ("inputs", [Input(None)], "or None for the replayed trace"),
        ("inputs", [Input(Path("x"), 3)], "`option` must be text"),  # type: ignore[arg-type]
        ("inputs", [Input(Path("x"), "x", 1)], "`trace` True or False"),  # type: ignore[arg-type]
        ("inputs", ZeroDivisionError("oh"), "raises ZeroDivisionError: oh"),
        ("note", 3, "returns int 3; it must return a sentence or None"),
        ("note", " ", "must return a sentence or None"),
        ("note", KeyError("profile"), "raises KeyError: 'profile'"),
    ],
)
@SECTIONS
def test_a_wrong_declaration_names_the_policy(
    monkeypatch: pytest.MonkeyPatch, section: str, method: str, answer: Any, said: str
) -> None:
    name, policy = enlisted(monkeypatch, section), LEARNERS[section]

    def declared(cls: type[Any], options: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(policy, method, classmethod(declared))
    with pytest.raises(PolicyViolation) as caught:
        (inputs_of if method == "inputs" else note_of)(policy, parse_options(policy, {}))
    assert caught.value.policy == name
    assert said in str(caught.value)


def test_placement_policies_declare_the_same() -> None:
    class Elsewhere(Taught, Placement):
        """Learns where experts are computed."""

    assert inputs_of(Elsewhere, TaughtOptions(Path("x"))) == (Input(Path("x"), "lessons", True),)
    assert note_of(Elsewhere, TaughtOptions(Path("x"))) == "a plug-in took lessons from x"
    assert inputs_of(object, None) == ()
    assert note_of(object, None) is None
