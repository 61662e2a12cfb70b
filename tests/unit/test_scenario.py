"""A scenario is read whole, or all of its mistakes are said at once, each at its line."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from workloads import tiny_trace

from moesim.errors import ScenarioError
from moesim.scenario import (
    Gamma,
    Lengths,
    MemoryShare,
    Scenario,
    expand_sweep,
    json_schema,
    load_scenario,
)
from moesim.scenario.schema import SCHEMA_PATH

FULL = """\
name: all-keys
trace: trace
model: {shape: mixtral-8x7b, expert_bits: 4.5, kv_bits: 8}
hardware:
  profile: rtx-4090
  vram: 8GiB
  pinned: false
  h2d: {bandwidth: 12GB/s, latency: 20us, chunk: 4MiB}
memory: {capacity: 24GiB, kv: 30%, kv_block_tokens: 16, staging: 2, activations: 512MiB}
workload:
  requests: 100
  order: shuffled
  domains: [code, law]
  arrivals: {kind: gamma, rate_per_s: 2, burstiness: 4}
  lengths: {prompt: 128, output: 32}
  prefill: skip
batching: {policy: fcfs, options: {}, token_budget: 1e3, max_sequences: 8}
cache: {policy: lfu, scope: global, slots: 4/layer, admission: always, write_back: true}
prefetch: {policy: oracle, options: {depth: 2}, cancel: false}
placement: {policy: copy}
replay: sequential
seed: 7
bounds: false
timeline: {first_step: 3, steps: 5}
"""
SHORT = "trace: trace\nhardware: t4\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("scenarios")
    tiny_trace(requests=2).save(made / "trace")
    return made


def read(folder: Path, text: str, *overrides: str) -> Scenario:
    path = folder / "x.yaml"
    path.write_text(text)
    return load_scenario(path, overrides)


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(ScenarioError) as caught:
        read(folder, text, *overrides)
    return [p.replace(f"{folder / 'x.yaml'}:", "") for p in caught.value.problems]


def test_every_key_is_read(folder: Path) -> None:
    scenario = read(folder, FULL)
    assert scenario.name == "all-keys"
    assert scenario.trace_path == folder / "trace"
    assert scenario.model.expert_bits == 4.5
    assert scenario.memory.kv == MemoryShare("share", 0.3)
    assert scenario.memory.activations == 512 * 2**20
    assert scenario.workload.arrivals == Gamma(kind="gamma", rate_per_s=2.0, burstiness=4.0)
    assert scenario.workload.lengths == Lengths(prompt=128, output=32)
    assert scenario.batching.token_budget == 1000
    assert scenario.cache.slots == MemoryShare("per_layer", 4)
    hardware = scenario.load_hardware()
    assert hardware.vram_bytes == 8 * 2**30
    assert hardware.h2d.pageable_bytes_per_s == 12 * 10**9
    assert hardware.h2d.latency_ns == 20_000
    assert hardware.h2d.chunk_bytes == 4 * 2**20
    shape = scenario.load_shape(None)
    assert shape.expert_bytes == 176_160_768 * 9 // 16
    assert shape.kv_bits == 8


def test_defaults_fill_what_is_left_out(folder: Path) -> None:
    scenario = read(folder, SHORT)
    assert scenario.name == "x"
    assert scenario.memory.kv == MemoryShare("auto")
    assert scenario.cache.slots == MemoryShare("rest")
    assert scenario.workload.lengths is None
    assert scenario.workload.arrivals.kind == "all_at_once"
    assert scenario.prefetch.policy == "none"
    assert scenario.hardware.pinned
    assert expand_sweep(scenario)[0][0] == {}


@pytest.mark.parametrize("text", [FULL, SHORT])
def test_the_resolved_scenario_reads_back_the_same(folder: Path, text: str) -> None:
    scenario = read(folder, text)
    plain = scenario.resolved()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    again = read(folder, yaml.safe_dump(plain))
    assert again.resolved() == plain
    assert Scenario.model_validate(plain).resolved() == plain
    assert again.model_dump() == scenario.model_dump()


def test_resolved_paths_follow_the_folder_they_are_read_in(folder: Path) -> None:
    run = folder / "runs" / "a"
    run.mkdir(parents=True, exist_ok=True)
    (folder / "mine.json").write_text("{}")
    text = "trace: trace\nhardware: t4\nmodel: mine.json\n"
    text += "cache: {policy: static, options: {profile: other}}\n"
    plain = read(folder, text).resolved_in(run)
    assert plain["cache"]["options"] == {"profile": "../../other"}
    assert (plain["trace"], plain["model"]["shape"]) == ("../../trace", "../../mine.json")
    assert plain["hardware"]["profile"] == "t4"
    (run / "scenario.yaml").write_text(yaml.safe_dump(plain))
    assert load_scenario(run / "scenario.yaml").trace_path.resolve() == folder / "trace"


def test_a_name_stands_for_its_section(folder: Path) -> None:
    text = "trace: trace\nhardware: t4\nmodel: olmoe-1b-7b\ncache: lfu\nprefetch: none\n"
    scenario = read(folder, text + "workload: {arrivals: recorded}\nbatching: fcfs\n")
    assert scenario.model.shape == "olmoe-1b-7b"
    assert scenario.cache.policy == "lfu"
    assert scenario.workload.arrivals.kind == "recorded"
    assert scenario.batching.policy == "fcfs"


@pytest.mark.parametrize(
    ("slots", "amount"),
    [
        ("rest", MemoryShare("rest")),
        ("128", MemoryShare("count", 128)),
        ("0", MemoryShare("count", 0)),
        ("1e2", MemoryShare("count", 100)),
        ("8GiB", MemoryShare("bytes", 8 * 2**30)),
        ("50%", MemoryShare("share", 0.5)),
        ("12.5 %", MemoryShare("share", 0.125)),
        ("4/layer", MemoryShare("per_layer", 4)),
        ('"64"', MemoryShare("count", 64)),
    ],
)
def test_slots_are_read_in_every_spelling(folder: Path, slots: str, amount: MemoryShare) -> None:
    scenario = read(folder, f"{SHORT}cache: {{slots: {slots}}}\n")
    assert scenario.cache.slots == amount
    plain = scenario.resolved()
    assert Scenario.model_validate(plain).cache.slots == amount


def test_all_mistakes_are_reported_at_once_in_the_order_of_the_file(folder: Path) -> None:
    text = """\
trace: nowhere
hardware: rtx-409
memry: 3
cache: {polcy: lru, slots: "50 percent", scope: perlayer, write_back: 1}
workload:
  arrivals: gama
  requests: -3
  lengths: {prompt: 0}
  domains: []
batching: {token_budget: many, max_sequences: 1.5}
memory: {capacity: 24Gb, kv: 3 parsec, staging: 0, activations: x}
seed: .nan
model: mixtral
bounds: "yes"
timeline: 3
"""
    said = problems(folder, text)
    expected = [
        ("1:8: trace: ", "there is no trace folder 'nowhere'"),
        ("2:11: hardware: ", "did you mean 'rtx-4090'?"),
        ("3:1: memry: ", "unknown key; did you mean 'memory'?"),
        ("4:9: cache.polcy: ", "unknown key; did you mean 'policy'?"),
        ("4:28: cache.slots: ", "'50 percent' is not a number of expert slots; write rest"),
        ("4:49: cache.scope: ", "'perlayer' is none of per_layer, global; did you mean"),
        ("4:71: cache.write_back: ", "must be true or false, not 1; write for example"),
        ("6:13: workload.arrivals: ", "'gama' is none of all_at_once, poisson, gamma"),
        ("7:13: workload.requests: ", "must be at least 1, not -3"),
        ("8:12: workload.lengths.output: ", "is required and missing; write for example"),
        ("8:21: workload.lengths.prompt: ", "must be at least 1, not 0"),
        ("9:12: workload.domains: ", "must not be empty"),
        ("10:26: batching.token_budget: ", "must be a whole number, not 'many'; write for"),
        ("10:47: batching.max_sequences: ", "must be a whole number, not 1.5"),
        ("11:20: memory.capacity: ", "no unit 'Gb'; did you mean GB?"),
        ("11:30: memory.kv: ", "KV memory is auto, rest, a size"),
        ("11:49: memory.staging: ", "must be at least 1, not 0"),
        ("11:65: memory.activations: ", "'x' is not a size"),
        ("12:7: seed: ", "must be a whole number, not nan; write for example `seed: 0`"),
        ("13:8: model: ", "did you mean 'mixtral-8x7b'?"),
        ("14:9: bounds: ", "must be true or false, not 'yes'"),
        ("15:11: timeline: ", "must be a mapping of keys and values, not 3"),
    ]
    assert len(said) == len(expected), "\n".join(said)
    for problem, (start, part) in zip(said, expected, strict=True):
        assert problem.startswith(start)
        assert part in problem


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("workload: {arrivals: {kind: poisson}}", "rate_per_s: is required and missing"),
        (
            "workload: {arrivals: poisson}",
            "rate_per_s must be given too; write `arrivals: {kind: poisson, rate_per_s: 2.0}`",
        ),
        ("workload: {arrivals: gamma}", "{kind: gamma, rate_per_s: 2.0, burstiness: 4.0}`"),
        ("workload: {arrivals: closed}", "write `arrivals: {kind: closed, clients: 8}`"),
        ("workload: {arrivals: {kind: closed, clients: 0}}", "clients: must be at least 1, not 0"),
        (
            "workload: {arrivals: {kind: closed, clients: 2, think: soon}}",
            "'soon' is not a duration",
        ),
        (
            "workload: {arrivals: {kind: closed, clients: 2, think: {mean: 1, distribution: x}}}",
            "'x' is none of constant, exponential",
        ),
        ("workload: {arrivals: csv}", "write `arrivals: {kind: csv, path: arrivals.csv}`"),
        ("workload: {arrivals: {kind: poisson, rate_per_s: 0}}", "must be greater than 0, not 0"),
        ("workload: {arrivals: {kind: poisson, rate_per_s: .inf}}", "inf must be a finite number"),
        ("workload: {arrivals: {kind: poisson, rate_per_s: 1, rate: 2}}", "unknown key"),
        (
            "workload: {arrivals: {rate_per_s: 1}}",
            "is one of all_at_once, poisson, gamma, recorded, file, closed",
        ),
        ("workload: {arrivals: {kind: csv, path: no.csv}}", "there is no file 'no.csv'"),
        ("workload: {lengths: record}", "did you mean 'recorded'?"),
        ("hardware: {profile: t4, h2d: {bandwidth: 0}}", "must be greater than zero"),
        ("hardware: {vram: 8GiB}", "hardware.profile: is required and missing"),
        ("hardware: mine.yaml", "there is no hardware profile"),
        ("model: none.json", "there is no file 'none.json'"),
        ("model: {expert_bits: 0}", "must be greater than 0"),
        ("memory: {capacity: -1}", "must not be negative"),
        ("cache: {options: {alpha: .nan}}", "nan must be a finite number"),
        ("cache: {options: [1]}", "must be a mapping of keys and values"),
        ("cache: {policy: ''}", "must not be empty"),
        ("cache: {slots: -4}", "-4 is not a number of expert slots"),
        ("cache: {slots: 1.5}", "1.5 is not a number of expert slots"),
        ("cache: {slots: 101%}", "is not a number of expert slots"),
        ("cache: null", "holds nothing; indent its keys below it, or take it out"),
        ("name: a/b", "cannot name a folder"),
        ("seed: -1", "must be at least 0"),
        ("memory: {kv: rest}", "cannot go to both KV blocks and expert slots"),
    ],
)
def test_a_meaningless_value_is_refused(folder: Path, line: str, says: str) -> None:
    kept = [old for old in SHORT.splitlines() if old.split(":")[0] != line.split(":")[0]]
    said = problems(folder, "\n".join([*kept, line]))
    assert len(said) == 1, said
    assert says in said[0]
    assert said[0][0].isdigit()


def test_a_key_is_named_once_where_it_is_also_the_place(folder: Path) -> None:
    with pytest.raises(ScenarioError) as caught:
        read(folder, SHORT, "cache.polcy=lru", "workload.arrivals=gamma", "seed=-1")
    starts = [problem.split(":")[:2] for problem in caught.value.problems]
    assert starts == [
        ["--set cache.polcy", " unknown key; did you mean 'policy'?"],
        ["--set seed", " must be at least 0, not -1; write for example `seed"],
        [
            "--set workload.arrivals",
            " rate_per_s and burstiness must be given too; write `arrivals",
        ],
    ]


def test_a_required_key_that_is_missing_is_named(folder: Path) -> None:
    said = problems(folder, "seed: 1\n")
    assert len(said) == 2
    assert any("trace: is required and missing" in p for p in said)
    assert any("hardware: is required and missing" in p for p in said)


def test_overrides_win_over_the_file_and_say_where_they_are_wrong(folder: Path) -> None:
    scenario = read(
        folder,
        SHORT,
        *("hardware.h2d.bandwidth=10GB/s", "cache.policy=lfu", "name=named"),
        *("workload.lengths.prompt=3", "workload.lengths.output=4", "sweep={seed: [1, 2]}"),
    )
    assert scenario.hardware.profile == "t4"
    assert scenario.load_hardware().h2d.pinned_bytes_per_s == 10**10
    assert scenario.mark("cache.policy") == "--set cache.policy"
    assert scenario.mark("hardware.profile").endswith("x.yaml:2:11")
    assert scenario.workload.lengths == Lengths(prompt=3, output=4)
    assert len(expand_sweep(scenario)) == 2
    said = problems(
        folder,
        SHORT,
        *("cache.polcy=lru", "seed", "=3", "a..b=1", "seed=[1", "trace.x=2", "memory.kv=x"),
    )
    assert [p.split(": ")[0] for p in said] == [
        *("--set cache.polcy", "--set memory.kv", "--set seed", "--set =3"),
        *("--set a..b=1", "--set seed", "--set trace.x"),
    ]
    assert "did you mean 'policy'?" in said[0]


def test_a_sweep_is_the_grid_with_the_last_key_fastest(folder: Path) -> None:
    text = (
        SHORT + "sweep:\n  cache.policy: [lru, lfu]\n  cache.slots: [25%, 4/layer]\n"
        "  hardware.h2d.bandwidth: [12GB/s]\n"
    )
    scenario = read(folder, text)
    points = expand_sweep(scenario)
    assert [(p["cache.policy"], p["cache.slots"]) for p, _ in points] == [
        *(("lru", "25%"), ("lru", "4/layer"), ("lfu", "25%"), ("lfu", "4/layer"))
    ]
    first = points[0][1]
    assert first.cache.policy == "lru"
    assert first.cache.slots == MemoryShare("share", 0.25)
    assert first.load_hardware().h2d.pinned_bytes_per_s == 12 * 10**9
    assert first.sweep == {}
    assert first.base_dir == scenario.base_dir
    assert points[2][1].mark("cache.policy").endswith("x.yaml:4:23")


def test_a_wrong_sweep_names_the_key_and_the_value(folder: Path) -> None:
    text = SHORT + (
        "sweep:\n"
        "  cache.polcy: [lru]\n"
        "  cache.slots: [25%, 26 percent]\n"
        "  seed: [0, a]\n"
        "  replay: [atomic, atomik]\n"
    )
    said = problems(folder, text)
    assert [p.split(": ")[0] for p in said] == ["4:17", "5:22", "6:13", "7:20"]
    assert "unknown key; did you mean 'policy'?" in said[0]


@pytest.mark.parametrize(
    ("sweep", "says"),
    [
        ("{seed: []}", "must not be empty"),
        ("{seed: 3}", "must be a list, not 3"),
        ("[seed]", "must be a mapping"),
        ("{seed: [1, 1]}", "1 is listed twice"),
        (
            "{cache: [lru], cache.policy: [lru]}",
            "cannot be swept together with cache.policy, which",
        ),
        ("{sweep.seed: [1]}", "is not a dotted key"),
        ("{'': [1]}", "is not a dotted key"),
        ("{cache.policy.x: [1]}", "must be text, not {'x': 1}"),
        ("{seed.x: [1]}", "which has no keys to set"),
        (f"{{seed: {list(range(200))}, timeline.steps: {list(range(200))}}}", "40000 points"),
    ],
)
def test_a_sweep_that_is_no_grid_is_refused(folder: Path, sweep: str, says: str) -> None:
    said = problems(folder, f"{SHORT}seed: 0\nsweep: {sweep}\n")
    assert len(said) == 1, said
    assert says in said[0]
    assert said[0].startswith("4:")


def test_combinations_that_are_wrong_only_together_are_found(folder: Path) -> None:
    text = (
        f"{SHORT}cache: {{slots: 4}}\nsweep: {{memory.kv: [auto, rest], cache.slots: [4, rest]}}\n"
    )
    said = problems(folder, text)
    assert len(said) == 1
    assert "cannot go to both" in said[0]
    assert said[0].endswith("give memory.kv or cache.slots a size")


def test_an_overridden_key_is_no_longer_swept(folder: Path) -> None:
    text = SHORT + "sweep: {cache.policy: [lru, lfu], seed: [0, 1]}\n"
    points = expand_sweep(read(folder, text, "cache.policy=fifo"))
    assert [point for point, _ in points] == [{"seed": 0}, {"seed": 1}]
    assert {made.cache.policy for _, made in points} == {"fifo"}
    assert len(expand_sweep(read(folder, text, "sweep=null"))) == 1


def test_an_override_that_a_sweep_would_undo_is_refused(folder: Path) -> None:
    text = SHORT + "sweep: {cache: [lru, lfu], hardware.h2d: [{latency: 1us}]}\n"
    said = problems(folder, text, "cache.slots=9", "hardware.h2d.chunk=1MiB", "hardware.vram=1GiB")
    assert [line.split(";")[0] for line in said] == [
        "--set cache.slots: the sweep sets all of cache at every point",
        "--set hardware.h2d.chunk: the sweep sets all of hardware.h2d at every point",
    ]


def test_a_later_complaint_can_point_at_its_line(folder: Path) -> None:
    scenario = read(folder, SHORT + "cache: {policy: lfu}\n")
    error = ScenarioError.at(scenario, "cache.policy", "no such policy")
    assert str(error) == f"{folder / 'x.yaml'}:3:17: cache.policy: no such policy"
    assert scenario.mark("prefetch.policy").endswith("x.yaml:1:1")
    with pytest.raises(ScenarioError, match=r"model: the trace's header names no model"):
        scenario.load_shape(None)


def test_a_scenario_from_python_has_no_lines(tmp_path: Path) -> None:
    data = {"trace": str(tmp_path), "hardware": "t4", "sweep": {"seed": [1, 2]}}
    scenario = load_scenario(data)
    assert scenario.mark("seed") == "scenario"
    assert [made.seed for _, made in expand_sweep(scenario)] == [1, 2]
    with pytest.raises(ScenarioError, match=r"scenario: sed: unknown key; did you mean 'seed'"):
        load_scenario({**data, "sed": 1})
    with pytest.raises(pydantic.ValidationError):
        Scenario.model_validate({**data, "seed": "x"})
    assert [made.seed for _, made in expand_sweep(Scenario.model_validate(data))] == [1, 2]


def test_a_scenario_survives_a_process_border(folder: Path) -> None:
    scenario = read(folder, FULL)
    copy = pickle.loads(pickle.dumps(scenario))
    assert copy.resolved() == scenario.resolved()
    assert copy.mark("seed") == scenario.mark("seed")
    assert copy.base_dir == scenario.base_dir


def test_the_committed_schema_is_the_generated_one() -> None:
    committed = SCHEMA_PATH.read_text(encoding="utf-8")
    made = json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
    assert committed == made, f"write `moesim schema` to {SCHEMA_PATH.name}"


def test_the_schema_describes_every_field() -> None:
    schema = json_schema()
    for name, part in {"root": schema, **schema["$defs"]}.items():
        assert part.get("additionalProperties") is False, name
        for key, field in part["properties"].items():
            assert field.get("description") or key == "kind", f"{name}.{key}"


SEEDS = [FULL, SHORT, SHORT + "sweep: {cache.policy: [lru, lfu], memory.kv: [auto, 1GiB]}\n"]
SCRAPS = [
    *(
        "- ",
        ": ",
        "{",
        "}",
        "[",
        "]",
        "\n",
        "\t",
        '"',
        "'",
        "&a ",
        "*a",
        "!!int ",
        "<<",
        "? ",
        "|\n",
    ),
    *(
        "null",
        "-1",
        "1e999",
        ".nan",
        "0",
        "9" * 30,
        "sweep",
        "cache",
        "a.yaml",
        "a.json",
        "\\",
        "#",
    ),
    *("é", "\0", "\x85", "x" * 300 + ".yaml", "%", "/layer", "GiB", "true", "~", "kind", ", "),
]


@st.composite
def mutated(draw: st.DrawFn) -> str:
    text = draw(st.sampled_from(SEEDS))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 12)))
        text = text[:start] + draw(st.sampled_from(["", *SCRAPS])) + text[end:]
    return text


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["rest", "auto", "lru", "4/layer", "50%", "1GiB", "t4", "recorded"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["policy", "slots", "kind", "options", "x", "1"]), inner),
    max_leaves=6,
)  # fmt: skip
KEYS = sorted({*Scenario.model_fields, "cache.policy", "memory.kv", "workload.arrivals.kind", "x"})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=mutated())
def test_mutated_yaml_is_a_scenario_or_a_scenario_error(folder: Path, text: str) -> None:
    path = folder / "mutated.yaml"
    path.write_text(text, encoding="utf-8", newline="")
    try:
        load_scenario(path)
    except ScenarioError as error:
        said = error.problems
        assert said
        assert all(problem.startswith(str(path)) for problem in said)


@settings(deadline=None)
@given(changes=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4))
def test_any_plain_data_is_a_scenario_or_a_scenario_error(
    folder: Path, changes: dict[str, Any]
) -> None:
    data = {"trace": str(folder / "trace"), "hardware": "t4", **changes}
    sets = [f"{key}={value!r}" for key, value in changes.items()]
    swept = {**data, "sweep": {key: [value] for key, value in changes.items()}}
    for source, overrides in ((data, []), (swept, []), (data, sets)):
        try:
            scenario = load_scenario(source, overrides)
        except ScenarioError as error:
            said = error.problems
            assert said
        else:
            json.dumps(scenario.resolved(), allow_nan=False)
