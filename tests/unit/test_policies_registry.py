"""Policies are found by name, told apart, given typed options, and may come from elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Le, MaxLen
from workloads import tiny_trace

from moesim.errors import UsageError
from moesim.policies import FAMILIES, find, names, parse_options, register, registry
from moesim.policies.registry import NoOptions, option_mistakes

EXPECTED = {
    "eviction": "activation_matrix arc drop_after_use fifo fmoe least_stale lfru lfu lfu_decay "
    "lfu_in_cache lirs lookahead lru min min_window mrs random s3_fifo sieve static",
    "prefetch": "activation_matrix all dial gain layer_ahead none oracle popularity predicted "
    "previous_layer previous_token stride trajectory",
    "batching": "decode_first expert_aware fcfs prefill_first task_aware",
    "placement": "copy cost cpu_experts cpu_layers two_queue",
}
ALL = [(family, name) for family, known in EXPECTED.items() for name in known.split()]


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the registry after each test."""
    names("eviction")
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    monkeypatch.setattr(registry, "_aliases", dict(registry._aliases))


def test_the_built_in_policies_are_these() -> None:
    assert {family: " ".join(names(family)) for family in FAMILIES} == EXPECTED


@pytest.mark.parametrize(("family", "name"), ALL)
def test_a_built_in_policy_knows_its_name_says_what_it_is_and_has_typed_options(
    family: str, name: str
) -> None:
    policy = find(family, name)
    assert policy.name == name
    assert policy.__doc__
    assert is_dataclass(policy.Options)
    assert parse_options(policy, {}) == policy.Options()
    for field in fields(policy.Options):
        assert f"`{field.name}`" in str(policy.Options.__doc__)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("lfu-decay", "lfu_decay"),
        ("lfu_cumulative", "lfu"),
        ("lfu-cumulative", "lfu"),
        ("belady", "min"),
        ("s3-fifo", "s3_fifo"),
        ("s3fifo", "s3_fifo"),
        ("eam", "activation_matrix"),
        ("finemoe", "fmoe"),
        ("least-stale", "least_stale"),
    ],
)
def test_a_name_has_other_spellings(spelling: str, name: str) -> None:
    assert find("eviction", spelling) is find("eviction", name)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("lfu_deca", "did you mean 'lfu_decay'"),
        ("lruu", "did you mean 'lru'"),
        ("", "there are activation_matrix, arc, drop_after_use, .*static"),
        ("something else", "there are activation_matrix, arc, drop_after_use, .*static"),
    ],
)
def test_an_unknown_name_is_answered_with_near_matches_or_all(name: str, answer: str) -> None:
    with pytest.raises(UsageError, match=f"unknown eviction policy '{name}'; {answer}"):
        find("eviction", name)


def test_a_name_of_another_family_is_unknown() -> None:
    with pytest.raises(UsageError, match="unknown prefetch policy 'lru'"):
        find("prefetch", "lru")


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'cooking' is none of eviction, prefetch"):
        register("cooking", "lru")
    with pytest.raises(UsageError, match=r"'cooking' is none of eviction, prefetch"):
        find("cooking", "lru")


@pytest.mark.usefixtures("fresh")
def test_the_decorator_returns_the_class_itself() -> None:
    class Mine:
        """Does nothing."""

    assert register("eviction", "mine", "my_own")(Mine) is Mine
    assert Mine.name == "mine"  # type: ignore[attr-defined]
    assert find("eviction", "mine") is find("eviction", "my-own") is Mine
    assert "mine" in names("eviction")
    assert "my_own" not in names("eviction")
    assert "mine" not in names("prefetch")


@pytest.mark.usefixtures("fresh")
def test_a_policy_may_be_registered_with_dashes() -> None:
    @register("eviction", "two-words", "other-two")
    class Mine:
        """Does nothing."""

    for spelling in ("two-words", "two_words", "other-two", "other_two"):
        assert find("eviction", spelling) is Mine
    with pytest.raises(UsageError, match="registered twice"):
        register("eviction", "two_words")(type("Other", (), {}))


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    "spellings", [("lru",), ("new", "lru"), ("belady",), ("new", "belady"), ("new", "new")]
)
def test_a_name_can_be_taken_only_once(spellings: tuple[str, ...]) -> None:
    before = names("eviction")
    with pytest.raises(UsageError, match=f"eviction policy '{spellings[-1]}' is registered twice"):
        register("eviction", *spellings)(type("Mine", (), {}))
    assert names("eviction") == before
    register("prefetch", *dict.fromkeys(spellings))(type("Mine", (), {}))


@dataclass(frozen=True, slots=True)
class Inner:
    depth: Annotated[int, Ge(1)] = 1


@dataclass(frozen=True, slots=True)
class Knobs:
    """Options of every kind that a policy may have."""

    share: Annotated[float, Ge(0), Le(1)] = 0.5
    count: Annotated[int, Ge(0)] = 0
    profile: str | None = None
    eager: bool = False
    layers: tuple[int, ...] = ()
    inner: Inner = Inner()

    def __post_init__(self) -> None:
        if self.eager and not self.count:
            raise ValueError("eager needs a count")


class Tunable:
    name = "tunable"
    Options = Knobs


def test_options_arrive_typed() -> None:
    given = {
        "share": 1,
        "count": 3,
        "profile": "x",
        "eager": True,
        "layers": [1, 2],
        "inner": {"depth": 2},
    }
    assert parse_options(Tunable, given) == Knobs(1.0, 3, "x", True, (1, 2), Inner(2))
    assert isinstance(parse_options(Tunable, given).share, float)
    assert parse_options(Tunable, {"profile": Path("a")}).profile == "a"
    assert parse_options(type("Bare", (), {"name": "bare"}), {}) == NoOptions()


BAD_OPTIONS: list[Any] = [
    ({"shar": 0.5}, "has no option 'shar'; did you mean 'share'"),
    ({"colour": 1}, "has no option 'colour'; did you mean 'count'|it has: share, count, profile"),
    ({3: 1}, "has no option 3; it has: share"),
    ({"share": 1.5}, r"option share: .*less than or equal to 1.*\(got 1.5\)"),
    ({"share": -0.1}, r"option share: .*greater than or equal to 0.*\(got -0.1\)"),
    ({"share": float("nan")}, "option share"),
    ({"share": "0.5"}, r"option share: .*valid number.*\(got '0.5'\)"),
    ({"share": True}, "option share: .*valid number"),
    ({"share": None}, "option share"),
    ({"count": 1.0}, "option count: .*valid integer"),
    ({"count": "many"}, "option count: .*valid integer"),
    ({"count": True}, "option count: .*valid integer"),
    ({"profile": 3}, "option profile: .*valid string"),
    ({"eager": 1}, "option eager: .*valid boolean"),
    ({"eager": "yes"}, "option eager: .*valid boolean"),
    ({"eager": True}, "policy 'tunable': .*eager needs a count"),
    ({"layers": 3}, "option layers"),
    ({"layers": ["1"]}, r"option layers\.0: .*valid integer"),
    ({"inner": {"depth": 0}}, r"option inner\.depth: .*greater"),
    ({"inner": 3}, "option inner"),
    pytest.param({"profile": object()}, "option", id="no plain data"),
]


@pytest.mark.parametrize(("given", "message"), BAD_OPTIONS, ids=str)
def test_a_wrong_option_is_refused_by_name_and_rule(given: dict[Any, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_options(Tunable, given)


@pytest.mark.parametrize(
    ("family", "name", "given", "message"),
    [
        ("eviction", "lru", {"depth": 1}, "'lru' has no option 'depth'; it has: none"),
        ("eviction", "lfu_decay", {"decay": 0}, "option decay: .*greater than 0"),
        ("eviction", "lfu_decay", {"decay": 1.01}, "option decay: .*less than or equal to 1"),
        ("eviction", "static", {"profil": "x"}, "did you mean 'profile'"),
        ("prefetch", "predicted", {"depth": 0}, "option depth: .*greater than or equal to 1"),
        ("prefetch", "oracle", {"depth": "2"}, "option depth: .*valid integer"),
    ],
)
def test_built_in_options_have_their_range(
    family: str, name: str, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        parse_options(find(family, name), given)


@dataclass(frozen=True, slots=True)
class Choices:
    """Options that are unions."""

    size: Annotated[int, Ge(0), Le(9)] | Literal["auto", "all"] = 0
    keys: tuple[int, ...] | Literal["all"] = ()
    inner: Inner | bool | None = None
    deep: tuple[Inner | float, ...] = ()
    odd: Annotated[str, MaxLen(2)] | Annotated[int, Ge(1)] = "a"


class Choosing:
    name = "choosing"
    Options = Choices


@pytest.mark.parametrize(
    ("given", "where", "text"),
    [
        ({"size": -1}, ("size",), "is -1; write a number from 0, auto or all"),
        ({"size": 10}, ("size",), "is 10; write a number up to 9, auto or all"),
        ({"size": "some"}, ("size",), "is 'some'; write a whole number, auto or all"),
        ({"keys": 3}, ("keys",), "is 3; write a list or all"),
        ({"keys": [1, "x"]}, ("keys",), "is [1, 'x']; write a whole number at 1 or all"),
        (
            {"inner": {"depth": 0}},
            ("inner",),
            "is {'depth': 0}; write a number from 1 at depth or true or false",
        ),
        ({"deep": [{}, "x"]}, ("deep", 1), "is 'x'; write a mapping of keys and values or a num"),
        (
            {"odd": "abc"},
            ("odd",),
            "is 'abc'; write a value that mends: String should have at most 2 characters or a who",
        ),
    ],
)
def test_the_branches_of_a_union_are_one_mistake_at_the_option(
    given: dict[str, Any], where: tuple[str | int, ...], text: str
) -> None:
    ((found, said),) = option_mistakes(Choosing, given)
    assert found == where
    assert said.startswith(text)
    with pytest.raises(UsageError) as refused:
        parse_options(Choosing, given)
    option = ".".join(map(str, where))
    assert str(refused.value) == f"policy 'choosing', option {option}: {said}"


@pytest.mark.parametrize(("family", "name"), ALL)
def test_a_wrong_option_of_any_policy_is_one_mistake_at_its_own_name(
    family: str, name: str
) -> None:
    policy = find(family, name)
    for field in fields(getattr(policy, "Options", NoOptions)):
        values: list[Any] = [-1.5, "?", [[]], {"a": 1}]
        for wrong in values:
            found = option_mistakes(policy, {field.name: wrong})
            if (field.name, wrong) != ("profile", "?"):  # any text is a path
                assert [where for where, _ in found] == [(field.name,)], (field.name, wrong)
                assert "policy" not in found[0][1]


PLUGIN = '''
"""A package that brings an eviction policy of its own: the newest leaves first."""

from dataclasses import dataclass

from moesim.policies import register
from moesim.policies.eviction import Eviction


@dataclass(frozen=True, slots=True)
class Options:
    """`patience`: unused, but typed."""

    patience: int = 0


@register("eviction", "newest_out")
class NewestOut(Eviction):
    """The newest leaves first."""

    Options = Options

    def decide(self, view):
        self.book.update(dict.fromkeys(view.union))
        leavers = list(self.book)[self.capacity :]
        for key in leavers:
            del self.book[key]
        return leavers

    def victim(self, protected):
        return next((key for key in reversed(self.book) if key not in protected), None)
'''

USE = """
from moesim.simulate.curve import curve
from moesim.policies import find, names, parse_options
from moesim.trace import Trace

assert "newest_out" in names("eviction"), names("eviction")
assert parse_options(find("eviction", "newest-out"), {"patience": 3}).patience == 3
ids = [[[0]], [[1]], [[0]], [[2]], [[0]]]
trace = Trace.from_arrays(expert_ids=ids, seq_len=[5], num_experts=3)
print(curve(trace, ["newest_out", "lru"], capacities=[1]))
"""


def install(folder: Path, module: str) -> None:
    """Write what an installer writes: a module, and metadata that names an entry point."""
    (folder / "moesim_newest.py").write_text(module)
    info = folder / "moesim_newest-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: moesim-newest\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[moesim.policies]\nnewest = moesim_newest\n")


def run(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_an_installed_package_brings_its_policies(tmp_path: Path) -> None:
    install(tmp_path, PLUGIN)
    done = run(tmp_path, USE)
    assert done.stderr == ""
    assert done.stdout.strip() == "{'newest_out': {1: 0.4}, 'lru': {1: 0.0}}"
    assert "newest_out" not in run(tmp_path.parent, USE).stdout


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("import no_such_module", "moesim_newest.*'newest'.*cannot be loaded.*no_such_module"),
        ("1 / 0", "moesim_newest.*cannot be loaded.*ZeroDivisionError"),
        ("raise SystemExit(0)", "moesim_newest.*cannot be loaded.*SystemExit"),
        (PLUGIN + "1 / 0", "moesim_newest.*cannot be loaded.*ZeroDivisionError"),
    ],
)
def test_a_package_that_cannot_be_loaded_is_named_where_a_policy_is_not_found(
    module: str, message: str, tmp_path: Path
) -> None:
    install(tmp_path, module)
    code = (
        "from moesim.errors import UsageError\nfrom moesim.policies import find, names\n"
        "find('eviction', 'lru')\nassert 'newest_out' not in names('eviction')\n"
        "for _ in range(2):\n"
        "    try:\n        find('eviction', 'newest_out')\n"
        "    except UsageError as error:\n        print(error)\n"
    )
    done = run(tmp_path, code)
    assert done.stderr == ""
    first, second = done.stdout.splitlines()
    assert first == second
    with pytest.raises(UsageError, match=f"unknown eviction policy 'newest_out'; .*{message}"):
        raise UsageError(first)


def test_a_broken_package_stops_no_scenario_that_does_without_it(tmp_path: Path) -> None:
    install(tmp_path, "import no_such_module")
    tiny_trace(requests=1).save(tmp_path / "trace")
    (tmp_path / "x.yaml").write_text("trace: trace\nhardware: t4\ncache: newest_out\n")
    code = f"""
from moesim.errors import ScenarioError
from moesim.scenario import load_scenario
load_scenario({str(tmp_path / "x.yaml")!r}, ["cache.policy=lru"])
try:
    load_scenario({str(tmp_path / "x.yaml")!r})
except ScenarioError as error:
    print(error)
"""
    done = run(tmp_path, code)
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    assert "x.yaml:3:8: cache: unknown eviction policy 'newest_out'" in line
    assert "policy package 'moesim_newest' (entry point 'newest') cannot be loaded" in line


def test_the_list_of_policies_leaves_a_broken_package_out_and_names_it(tmp_path: Path) -> None:
    install(tmp_path, "import no_such_module")
    code = "import sys\nfrom moesim.cli import main\nsys.argv[1:] = ['list', 'policies']\nmain()"
    done = run(tmp_path, code)
    assert done.returncode == 0
    assert "lru" in done.stdout
    assert done.stderr.startswith("warning: policy package 'moesim_newest' (entry point 'newest')")


def test_a_name_that_a_package_registers_again_is_not_used(tmp_path: Path) -> None:
    install(tmp_path, PLUGIN.replace("newest_out", "lru"))
    code = (
        "from moesim.errors import UsageError\nfrom moesim.policies import find\n"
        "find('eviction', 'lfu')\n"
        "try:\n    find('eviction', 'lru')\nexcept UsageError as error:\n    print(error)\n"
    )
    done = run(tmp_path, code)
    assert done.stderr == ""
    assert "'moesim_newest'" in done.stdout
    assert "eviction policy 'lru' is registered twice; rename one of the two" in done.stdout
