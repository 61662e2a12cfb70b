"""`moesim list`: what scenarios can name, with figures and sources."""

from __future__ import annotations

import json
import re
from typing import Any, get_args

import pytest
from typer.testing import CliRunner

from moesim.cli import app
from moesim.cli.lists import KINDS
from moesim.config.fields import Bandwidth
from moesim.engines.engine import engine_names, load_engine
from moesim.errors import UsageError
from moesim.hardware import hardware_names, load_hardware
from moesim.hardware.parts import cpus, gpus
from moesim.model.formats import block_named, format_names
from moesim.model.hf_config import load_shape
from moesim.model.shapes import shape_names
from moesim.policies import FAMILIES, find, names
from moesim.results.metric_names import METRICS
from moesim.scenario.arrivals import AllAtOnce, Closed, FromFile, Gamma, Poisson, Recorded
from moesim.systems import load_preset, system_names
from moesim.trace.importers import FORMATS as IMPORTED
from moesim.workload.formats import FORMATS as REQUESTED


def listing(kind: str) -> Any:
    return json.loads(CliRunner().invoke(app, ["list", kind, "--json"]).stdout)


def printed(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["list", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_every_figure_of_every_card_is_listed_with_its_kind_and_source() -> None:
    listed = listing("gpus")
    assert sorted(listed) == hardware_names()
    text = printed("gpus")
    for name, gpu in listed.items():
        hardware = load_hardware(name)
        assert gpu["name"] == hardware.name
        assert gpu["figures"].keys() == hardware.figures.keys()
        for key, figure in gpu["figures"].items():
            assert (figure["kind"], figure["source"]) == (
                hardware.figures[key].kind,
                hardware.figures[key].source,
            )
            assert f"{figure['kind']}: {figure['source']}" in text


def test_the_figures_are_spelt_as_a_scenario_may_spell_them() -> None:
    from pydantic import TypeAdapter

    bandwidth = TypeAdapter(Bandwidth)
    for name, gpu in listing("gpus").items():
        spelt = gpu["figures"]["h2d.pinned_bandwidth"]["value"]
        assert bandwidth.validate_python(spelt) == load_hardware(name).h2d.pinned_bytes_per_s


def test_every_figure_of_every_engine_is_listed_with_its_value_kind_and_source() -> None:
    listed = listing("engines")
    assert list(listed) == engine_names()
    text = printed("engines")
    assert listed["ideal"] == {**listed["ideal"], "kind": "ideal", "interfaces": [], "figures": {}}
    for name, entry in listed.items():
        engine = load_engine(name)
        assert f"{name}: {entry['about']}" in text
        assert entry["interfaces"] == list(engine.gpu)
        assert entry["kind"] == engine.kind()
        assert entry["figures"].keys() == engine.figures.keys()
        for key, figure in entry["figures"].items():
            origin = engine.figures[key]
            assert (figure["kind"], figure["source"]) == (origin.kind, origin.source)
            assert f"{figure['kind']}: {figure['source']}" in text
    assert listed["llama.cpp"]["figures"]["switch"]["value"].endswith("us")


def test_each_source_of_an_engine_is_printed_once_and_each_figure_names_its_own() -> None:
    text = printed("engines").split("\nllama.cpp: ")[1]
    figures, sources = (part.splitlines() for part in text.split("\nsources\n"))
    named = dict(line.strip().split("] ", 1) for line in sources)
    assert len(set(named.values())) == len(named) == len(sources)
    engine = load_engine("llama.cpp")
    columns = next(line.split() for line in figures if "cuda" in line)
    assert columns == ["figure", *engine.gpu, "cpu"]
    origins = {f"{origin.kind}: {origin.source}" for origin in engine.figures.values()}
    assert set(named.values()) == origins
    for own in ("kernel", "padding"):
        cells = next(line.split() for line in figures if line.split()[:1] == [own])[1:]
        for column, value, number in zip(columns[1:], cells[::2], cells[1::2], strict=True):
            key = f"cpu.{own}" if column == "cpu" else f"gpu.{column}.{own}"
            origin, listed = engine.figures[key], listing("engines")["llama.cpp"]["figures"][key]
            assert value == str(listed["value"])
            assert named[number.rstrip("]")] == f"{origin.kind}: {origin.source}"
    shared = next(line.split() for line in figures if line.split()[:1] == ["kv"])
    shares = [kernels.bandwidth["kv"] for kernels in engine.gpu.values()]
    assert engine.cpu is not None
    assert [float(share) for share in shared[1:]] == [*shares, engine.cpu.bandwidth["kv"]]


def test_the_help_names_each_list_that_there_is() -> None:
    done = CliRunner().invoke(app, ["list", "--help"])
    said = " ".join(re.sub(r"[^\w.:]", " ", done.stdout).split()).lower()
    sentence = said[said.index("what to list: ") : said.index(" default:")]
    assert sentence.removeprefix("what to list: ").replace(" or ", " ").split() == list(KINDS)


def test_every_model_is_listed_with_its_sizes_and_source() -> None:
    listed = listing("models")
    assert sorted(listed) == shape_names()
    text = printed("models")
    for name, model in listed.items():
        shape = load_shape(name)
        assert model["expert_bytes"] == shape.expert_bytes
        assert (model["num_experts"], model["top_k"]) == (shape.num_experts, shape.top_k)
        assert model["source"] == shape.source
        assert shape.source in text
    mixtral = listed["mixtral-8x7b"]
    assert mixtral["experts_bytes"] == 32 * 8 * 3 * 4096 * 14336 * 2
    assert mixtral["total_bytes"] == pytest.approx(2 * 46.7e9, rel=0.01)


def test_every_policy_is_listed_with_its_options_under_both_spellings() -> None:
    listed = listing("policies")
    assert {family: sorted(members) for family, members in listed.items()} == {
        family: names(family) for family in listed
    }
    assert listed["eviction"]["lfu_decay"]["options"] == {
        "decay": find("eviction", "lfu_decay").Options().decay
    }
    assert CliRunner().invoke(app, ["policies"]).stdout == printed("policies")


def test_every_format_is_listed_with_the_bits_of_its_experts() -> None:
    listed = listing("formats")
    assert sorted(listed) == sorted(format_names())
    text = printed("formats")
    for name, form in listed.items():
        assert form["bits"] == block_named(form["block"]).bits
        assert name in text
    assert listed["Q4_K_M"] == {
        "block": "Q4_K",
        "bits": 4.5,
        "family": "k-quant",
        "other_blocks": ["Q5_K", "Q6_K", "Q8_0"],
        "documented": True,
    }
    assert not listed["Q4_K_XL"]["documented"]
    assert listed["AWQ-4bit"]["block"] == "AWQ-4bit"


@pytest.mark.parametrize("kind", ["cards", "cpus"])
def test_every_part_of_the_catalogue_is_listed_with_its_sources(kind: str) -> None:
    listed, text = listing(kind), printed(kind)
    assert list(listed) == list(gpus() if kind == "cards" else cpus())
    for name, part in listed.items():
        assert name in text
        assert part["kind"] == "assumed"
        for key, value in part.items():
            if key.endswith("source"):
                assert value
                assert value in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["model"], "did you mean 'models'"),
        (["hardware"], "extras; did you mean 'gpus' or 'cards'?"),
        (["traces"], "there is no list of 'traces'; the kinds are gpus, cards, cpus"),
        (["systems", "fidler"], "did you mean 'fiddler'"),
        (["policies", "nothing-like-it"], "there is no 'nothing-like-it'"),
    ],
)
def test_a_wrong_kind_or_name_is_refused_with_those_that_there_are(
    arguments: list[str], said: str
) -> None:
    done = CliRunner().invoke(app, ["list", *arguments])
    assert isinstance(done.exception, UsageError)
    assert said in str(done.exception)


@pytest.mark.parametrize(
    ("call", "command"),
    [
        (lambda: load_hardware("gtx"), "moesim list gpus"),
        (lambda: load_shape("gpt-5"), "moesim list models"),
        (lambda: find("eviction", "cleverest"), "moesim list policies"),
    ],
)
def test_an_unknown_name_points_to_its_list(call: Any, command: str) -> None:
    with pytest.raises(UsageError, match=command):
        call()


def test_without_a_kind_each_is_shown_with_the_number_of_its_names_and_an_example() -> None:
    lines = {line.split()[0]: line.split() for line in printed().splitlines() if line[:2] == "  "}
    listed = listing_of()
    assert set(lines) == {"kind", *KINDS} == {"kind", *listed}
    for kind, about in listed.items():
        assert lines[kind][1] == str(len(about["names"]))
        assert any(name in lines[kind][-1] or name in lines[kind] for name in about["names"])
    assert len(listed["policies"]["names"]) == sum(len(names(family)) for family in FAMILIES)


def listing_of(*arguments: str) -> Any:
    return json.loads(printed(*arguments, "--json"))


@pytest.mark.parametrize("kind", KINDS)
def test_each_name_can_be_shown_alone(kind: str) -> None:
    name = KINDS[kind].names()[-1]
    alone = listing_of(kind, name)
    assert [name] == (list(alone) if kind != "policies" else list(*alone.values()))
    assert name in printed(kind, name)
    assert printed(kind, name.upper().replace("-", " ")) == printed(kind, name)


def test_every_arrival_importer_and_format_of_requests_is_listed() -> None:
    kinds = (AllAtOnce, Poisson, Gamma, Recorded, FromFile, Closed)
    listed = listing("arrivals")
    assert [each["what"] for each in listed.values()] == [
        " ".join((kind.__doc__ or "").split())
        for kind in kinds
        for _ in get_args(kind.model_fields["kind"].annotation)
    ]
    assert list(listing("importers")) == list(IMPORTED)
    assert list(listing("workloads")) == list(REQUESTED)


def test_every_metric_has_the_unit_that_its_name_ends_with() -> None:
    listed = listing("metrics")
    assert list(listed) == list(METRICS)
    for name, unit in {
        "ttft_p99_ms": "ms",
        "makespan_s": "s",
        "output_tokens_per_s": "1/s",
        "h2d_bytes": "bytes",
        "stall_share": "share, 0 to 1",
        "expert_hit_rate": "share, 0 to 1",
        "preemptions": "count",
    }.items():
        assert listed[name]["unit"] == unit


def test_systems_prints_every_setting_source_and_gap_of_a_preset() -> None:
    for name in system_names():
        done = CliRunner().invoke(app, ["list", "systems", name])
        printed = " ".join(done.stdout.split())
        preset = load_preset(name)
        parts = [preset.about, preset.source, *preset.cannot_express]
        parts += [each.source for each in preset.sets.values()]
        parts += preset.sets
        assert [part for part in parts if " ".join(part.split()) not in printed] == []


def test_systems_lists_all_presets_in_one_table() -> None:
    lines = printed("systems").splitlines()
    assert CliRunner().invoke(app, ["systems"]).stdout.splitlines() == lines  # its older spelling
    assert [line.split()[0] for line in lines[1 : 1 + len(system_names())]] == system_names()


def test_systems_refuses_a_wrong_name_with_a_suggestion() -> None:
    done = CliRunner().invoke(app, ["systems", "fidler"])
    assert "did you mean 'fiddler'" in str(done.exception)
