"""The page of an advice: its formulas against simulations, its script, and what it may load."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import operator
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, reduce
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from advice_questions import question
from hypothesis import given
from hypothesis import strategies as st

from moesim.advice import fits
from moesim.advice.advice import Advice, advise
from moesim.advice.cached import cached_of
from moesim.advice.choice import memory_of
from moesim.advice.expression import affine, evaluate, table, variables_of
from moesim.advice.formulas import Formulas, formulas_of
from moesim.advice.grounds import grounds_of
from moesim.advice.page import Shown, check_page_path, page_of, write_page
from moesim.advice.price import Pricer
from moesim.advice.question import Question
from moesim.advice.samples import Samples, base_of, with_bandwidths
from moesim.advice.upgrades import Cliff
from moesim.errors import UsageError
from moesim.measured.simulated import Simulated

NODE = shutil.which("node")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
DIGITS = 0.0005
"""The relative error that three digits leave."""
CHANGES: list[dict[str, Any]] = [
    {},
    {"n": 0},
    {"n": 16, "kv": "f16"},
    {"n": 5, "context": 32768},
    {"format": "Q8_0", "n": 9},
    {"format": "Q8_0", "n": 11, "context": 20000, "kv": "f16"},
    {"n": 7, "host": 30.0},
    {"n": 7, "gpu": 200.0, "link": 12.5},
    {"format": "Q8_0", "kv": "f16", "n": 3, "gpu": 600.0, "host": 25.0, "context": 65536},
]


@dataclass(frozen=True)
class Made:
    """An advice, its formulas, its page, and how many runs the page took."""

    advice: Advice
    formulas: Formulas
    page: str
    runs: int

    @property
    def data(self) -> Any:
        return json.loads(re.findall(r'id="data">(.*?)</script>', self.page, re.DOTALL)[0])

    @property
    def script(self) -> str:
        return re.findall(r"<script>(.*?)</script>", self.page, re.DOTALL)[0]


def shown_of(advice: Advice, pricer: Pricer) -> Shown:
    terms = pricer.terms(advice.best.choice)
    return Shown(terms, Cliff(9216, 16384), (), grounds_of(advice, pricer), cached_of(advice))


@cache
def made() -> Made:
    asked = question(formats=("Q8_0", "Q4_K_M"))
    pricer = Pricer(asked)
    advice = advise(asked, pricer)
    shown, runs, predict = shown_of(advice, pricer), 0, Simulated.predict

    def counted(self: Simulated, reading: Any) -> Any:
        nonlocal runs
        runs += 1
        return predict(self, reading)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Simulated, "predict", counted)
        page = page_of(advice, shown)
    return Made(advice, formulas_of(advice), page, runs)


# Expressions


def value_of(expression: Any, values: Mapping[str, float]) -> float:
    """Return the value of an expression, by another way than moesim's."""
    if isinstance(expression, int | float):
        return expression
    if isinstance(expression, str):
        return values[expression]
    if expression[0] == "interp":
        x = value_of(expression[1], values)
        points = list(zip(expression[2], expression[3], strict=True))
        for (x0, y0), (x1, y1) in pairwise(points):
            if x <= x1 or (x1, y1) == points[-1]:
                return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
        return points[0][1]
    operation: Any = {
        "+": operator.add, "*": operator.mul, "/": operator.truediv, "min": min, "max": max,
        "floor": lambda a: math.floor(a),
    }[expression[0]]  # fmt: skip
    numbers = [value_of(each, values) for each in expression[1:]]
    return operation(*numbers) if expression[0] == "floor" else reduce(operation, numbers)


numbers = st.floats(-100, 100).map(lambda x: round(x, 3))
rising = st.lists(st.integers(-50, 50), min_size=2, max_size=5, unique=True).map(sorted)


def tables(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return rising.flatmap(
        lambda xs: st.tuples(
            st.just("interp"),
            inner,
            st.just(xs),
            st.lists(numbers, min_size=len(xs), max_size=len(xs)),
        ).map(list)
    )


expressions = st.recursive(
    numbers | st.sampled_from(["a", "b"]),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["+", "*", "min", "max"]), inner, inner).map(list),
        st.tuples(st.just("/"), inner, st.floats(1, 9)).map(list),
        st.tuples(st.just("floor"), inner).map(list),
        tables(inner),
    ),
    max_leaves=8,
)


@given(expressions, numbers, numbers)
def test_an_expression_has_the_value_that_another_evaluator_gives(
    expression: Any, a: float, b: float
) -> None:
    values = {"a": a, "b": b}
    expected = value_of(expression, values)
    # A floor may differ where rounding leaves its argument beside an integer.
    close = 1.0 + 1e-9 * abs(expected) if "floor" in str(expression) else 1e-6
    assert abs(evaluate(expression, values) - expected) <= max(close, 1e-6 * abs(expected)) or (
        "floor" in str(expression)
    )


def test_an_expression_with_an_unknown_name_is_refused() -> None:
    unknown: list[Any] = ["c", ["power", 1, 2]]
    for wrong in unknown:
        with pytest.raises(KeyError):
            evaluate(wrong, {"a": 1.0})


def test_a_table_keeps_corners_only() -> None:
    points = [(x, max(0, x - 3)) for x in range(8)]
    short = table("n", points)
    assert short == ["interp", "n", [0, 3, 7], [0, 0, 4]]
    assert [evaluate(short, {"n": x}) for x, _ in points] == [y for _, y in points]
    assert table("n", [(0, 5), (1, 5)]) == 5
    assert variables_of(["+", short, affine(1, [(2, ["m"])])]) == {"n", "m"}


# Formulas


def settings(change: Mapping[str, Any]) -> dict[str, Any]:
    return {**made().data["base"], **change}


def asked_again(setting: Mapping[str, Any]) -> tuple[Question, Any]:
    """Return the question and the choice that a setting stands for."""
    asked, best = made().advice.question, made().advice.best.choice
    figures = {**with_bandwidths(asked, setting), "vram": 2**36}
    parts = replace(asked.parts, figures=figures)
    choice = replace(
        best, format=setting["format"], kv=setting["kv"], ubatch=int(setting["ubatch"]),
        cpu_layers=setting["n"],
    )  # fmt: skip
    return replace(asked, context=setting["context"], parts=parts), choice


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_formulas_have_three_digits_of_what_the_command_line_says(change: dict[str, Any]) -> None:
    setting, data = settings(change), made().data
    asked, choice = asked_again(setting)
    key = [setting["format"], setting["kv"]]
    priced = Pricer(asked).price(choice)
    decode = value_of(data["decode_s"][" ".join(key)]["expression"], setting)
    assert 1 / decode == pytest.approx(priced.decode.value, rel=DIGITS)
    low, high = data["intervals"]["decode"][setting["n"] > 0]
    assert low / decode == pytest.approx(priced.decode.low, rel=DIGITS)
    assert high / decode == pytest.approx(priced.decode.high, rel=DIGITS)
    if change.keys() & {"gpu", "host", "link"}:
        return  # prompts hold at few bandwidths
    key = [*key, str(setting["ubatch"])]
    prompt = value_of(data["prompt_s"][" ".join(key)]["expression"], setting)
    # Layers differ a little in the tokens of each expert, so prompts are affine but for that.
    assert 1 / prompt == pytest.approx(priced.prefill.value, rel=fits.TOLERANCE)
    usual = data["usual_s"].get(" ".join(key))
    first = prompt if usual is None else value_of(usual["expression"], setting)
    first *= value_of(data["prompt_tokens"], setting)
    assert first == pytest.approx(priced.first_token_s.value, rel=fits.TOLERANCE)


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_memory_has_every_byte_of_the_command_line(change: dict[str, Any]) -> None:
    setting, data = settings(change), made().data
    asked, choice = asked_again(setting)
    asked = replace(
        asked, parts=replace(asked.parts, figures={"vram": round(setting["vram"] * 2**30)})
    )
    memory = memory_of(asked, choice)
    parts = data["memory"][f"{setting['format']} {setting['kv']} {setting['ubatch']}"]
    for place, expected in (("gpu", memory.gpu), ("host", memory.host)):
        found = {name: value_of(each, setting) for name, each in parts[place].items()}
        assert found == pytest.approx(expected, abs=2)


def test_prompts_hold_at_the_bandwidths_of_the_question_and_with_faster_host_memory() -> None:
    asked, best = made().advice.question, made().advice.best.choice
    base = {**base_of(asked), "n": 12}
    samples = Samples(asked, best.engine, whole=False)
    for (form, kv, ubatch), formula in made().formulas.prompt_s.items():
        for name in ("gpu", "link"):
            assert formula.holds[name] == (base[name], base[name])
        low, high = formula.holds["host"]
        assert low == base["host"]
        setting = {**base, "host": high}
        simulated = samples.prompt_s(form, kv, int(ubatch), int(ubatch), setting)
        seconds = value_of(formula.expression, setting)
        assert seconds == pytest.approx(simulated, rel=fits.TOLERANCE)


def test_every_formula_was_checked_against_a_simulation() -> None:
    every = {**made().formulas.decode_s, **made().formulas.prompt_s}
    forms = {(key[0], key[2:]) for key in every}
    checked = {(key[0], key[2:]) for key, each in every.items() if each.errors}
    assert checked == forms
    assert all(each.error <= fits.TOLERANCE for each in every.values())


def test_a_variable_in_which_times_are_not_affine_stays_fixed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decode_s = Samples.decode_s

    def curved(self: Samples, form: str, kv: str, setting: Any) -> float:
        return decode_s(self, form, kv, setting) * (1 + 0.002 * setting["n"] ** 2)

    monkeypatch.setattr(Samples, "decode_s", curved)
    found = formulas_of(made().advice)
    low, high = found.space.ranges["n"]
    assert low == high == made().advice.best.choice.cpu_layers


def test_a_formula_that_misses_a_price_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    decode_s = Samples.decode_s
    monkeypatch.setattr(
        Samples, "decode_s",
        lambda self, form, kv, at: decode_s(self, form, kv, at) * (1.002 if form == "Q8_0" else 1),
    )  # fmt: skip
    found = formulas_of(made().advice)
    assert {form for form, _ in found.decode_s} == {"Q4_K_M"}
    assert any("Q8_0" in text for text in found.refused)


def test_decoding_of_several_sequences_has_formulas_by_layers_and_context() -> None:
    asked = question(formats=("Q4_K_M",), load=2, vram=4 * 10**9)
    found = formulas_of(advise(asked))
    assert found.space.varies("n")
    assert found.space.varies("context")
    kv = found.question.kv[0]
    for n, context in ((2, 16384), (13, 5000)):
        setting = {**found.space.base, "n": n, "context": context}
        seconds = value_of(found.decode_s["Q4_K_M", kv].expression, setting)
        simulated = Samples(asked, "llama.cpp", whole=False).decode_s("Q4_K_M", kv, setting)
        assert seconds == pytest.approx(simulated, rel=fits.TOLERANCE)


def test_all_on_the_cpu_and_a_shared_memory_have_formulas_too() -> None:
    for more in ({"gpu": "none"}, {"gpu": "radeon-8060s", "cpu": "", "ram": ""}):
        asked = question(formats=("Q4_K_M",), vram=None, **more)  # type: ignore[arg-type]
        advice = advise(asked)
        found = formulas_of(advice)
        assert not found.divides
        best = advice.best
        key = (best.choice.format, best.choice.kv)
        seconds = value_of(found.decode_s[key].expression, found.space.base)
        assert 1 / seconds == pytest.approx(best.decode.value, rel=DIGITS)


# The page


class Elements(HTMLParser):
    """Collects tags with their attributes, and the text outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._inside = "", ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data


def test_a_page_loads_nothing_and_its_policy_allows_its_own_style_and_script_only() -> None:
    page = made().page
    elements = Elements(page)
    assert not [tag for tag, attrs in elements.tags if attrs.keys() & {"src", "href", "style"}]
    assert not [tag for tag, attrs in elements.tags if any(key.startswith("on") for key in attrs)]
    assert not re.search(r"url\(|@import|fetch\(|XMLHttp|WebSocket|import\(", page)
    policy = next(
        attrs["content"] or "" for tag, attrs in elements.tags
        if attrs.get("http-equiv") == "Content-Security-Policy"
    )  # fmt: skip
    assert policy.startswith("default-src 'none'")
    style = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)[0]
    for text, kind in ((style, "style-src"), (made().script, "script-src")):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy


def test_the_answer_is_in_the_page_without_its_script() -> None:
    text, best = Elements(made().page).text, made().advice.best
    assert f"experts on the CPU: {best.choice.cpu_layers} of 16 layers" in text
    assert f"--n-cpu-moe {best.choice.cpu_layers}" in text
    assert "Limited by: " in text
    for title in ("Memory", "takes the time of a token", "Longer contexts", "answer rests on"):
        assert title in text
    assert "assumed" in text


def test_texts_of_a_user_are_no_markup() -> None:
    asked = question(formats=("Q4_K_M",))
    evil = '</script><img src=x onerror="alert(1)">&'
    parts = replace(asked.parts, own_card=evil)
    asked = replace(asked, parts=parts, model=replace(asked.model, name=asked.model.name))
    pricer = Pricer(asked)
    advice = advise(asked, pricer)
    page = page_of(advice, shown_of(advice, pricer))
    assert "<img" not in page
    assert evil in Elements(page).text


def test_a_page_is_small_and_takes_few_simulations() -> None:
    assert len(made().page.encode()) < 300_000
    assert made().runs <= 30 + 10 * 2  # ten for a format, and the others once


def test_without_formulas_the_page_has_the_answer_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_: Advice) -> Formulas:
        raise UsageError("nothing <holds>")

    monkeypatch.setattr("moesim.advice.page.formulas_of", failing)
    pricer = Pricer(made().advice.question)
    page = page_of(made().advice, shown_of(made().advice, pricer))
    assert "nothing &lt;holds&gt;" in page
    assert "<script" not in page
    assert "--n-cpu-moe" in page


@pytest.mark.parametrize("name", ["model.gguf", "page", "none/page.html", "folder.html"])
def test_a_path_that_is_none_for_a_page_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(UsageError, match="--html"):
        check_page_path(str(tmp_path / name))


# The script


@dataclass(frozen=True)
class Node:
    """Runs the script of the page without a browser."""

    results: list[Any]

    @classmethod
    def run(cls, tmp_path: Path, calls: str) -> Any:
        (tmp_path / "data.json").write_text(json.dumps(made().data), encoding="utf-8")
        code = (
            f"{made().script}\nconst data = JSON.parse(require('fs').readFileSync("
            f"{json.dumps(str(tmp_path / 'data.json'))}, 'utf8'));\n"
            f"process.stdout.write(JSON.stringify({calls}));"
        )
        (tmp_path / "run.js").write_text(code, encoding="utf-8")
        command = [str(NODE), str(tmp_path / "run.js")]
        return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


@needs_node
def test_the_script_has_the_numbers_of_the_formulas(tmp_path: Path) -> None:
    every = [settings(change) for change in CHANGES]
    found = Node.run(tmp_path, f"{json.dumps(every)}.map((each) => answer(data, each))")
    for setting, shown in zip(every, found, strict=True):
        key = f"{setting['format']} {setting['kv']}"
        decode = value_of(made().data["decode_s"][key]["expression"], setting)
        assert shown["decode"]["value"] == pytest.approx(1 / decode, rel=1e-9)
        prompt = made().data["prompt_s"][f"{key} {setting['ubatch']}"]
        if "reason" in shown["prompt"]:
            assert any(
                not low <= setting[name] <= high for name, (low, high) in prompt["holds"].items()
            )
            continue
        seconds = value_of(prompt["expression"], setting)
        assert shown["prompt"]["value"] == pytest.approx(1 / seconds, rel=1e-9)
        asked, choice = asked_again(setting)
        first = Pricer(asked).price(choice).first_token_s
        for end in ("value", "low", "high"):
            seconds = getattr(first, end)
            assert shown["first"][end] == pytest.approx(seconds, rel=fits.TOLERANCE)
        parts = made().data["memory"][f"{key} {setting['ubatch']}"]["gpu"]
        used = sum(value_of(each, setting) for each in parts.values())
        assert shown["memory"]["gpuLeft"] == pytest.approx(setting["vram"] * 2**30 - used, abs=1)


@needs_node
def test_the_script_chooses_the_layers_and_the_flags_of_the_command_line(tmp_path: Path) -> None:
    layers, flags = Node.run(
        tmp_path, "[fewestLayers(data, data.base), flagsOf(data, 'llama.cpp', data.base)]"
    )
    assert layers == made().advice.best.choice.cpu_layers
    assert flags in made().page


@needs_node
def test_the_script_evaluates_every_operation_as_python_does(tmp_path: Path) -> None:
    inner: Any = ["interp", "a", [0, 2, 5], [1, 7, 4]]
    every: list[Any] = [
        ["min", ["max", "a", 3], 4], ["floor", ["/", ["*", 3, "a"], 4]], ["+", inner, 1],
        ["interp", "a", [3], [8]], ["interp", "a", [5, 6], [0, 1]], 2, "a",
    ]  # fmt: skip
    calls = f"{json.dumps(every)}.map((each) => [-1, 2, 3.5, 9].map((a) => evaluate(each, {{a}})))"
    for expression, values in zip(every, Node.run(tmp_path, calls), strict=True):
        expected = [value_of(expression, {"a": a}) for a in (-1, 2, 3.5, 9)]
        assert values == pytest.approx(expected)
        assert [evaluate(expression, {"a": a}) for a in (-1, 2, 3.5, 9)] == pytest.approx(expected)


@needs_browser
@pytest.mark.parametrize("change", [CHANGES[3], CHANGES[8]], ids=str)
def test_a_browser_shows_the_numbers_of_the_command_line(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    file = tmp_path / "page.html"
    file.write_text(made().page, encoding="utf-8")
    address = f"{file.as_uri()}#{'&'.join(f'{name}={value}' for name, value in change.items())}"
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", address,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, check=False)
    if not done.stdout:
        pytest.skip(f"the browser does not run here: {done.stderr[-300:]!r}")
    values = {
        attrs["id"]: attrs.get("data-value")
        for tag, attrs in Elements(done.stdout.decode()).tags
        if tag == "output" and "id" in attrs
    }
    asked, choice = asked_again(settings(change))
    priced = Pricer(asked).price(choice)
    assert float(values["decode"] or 0) == pytest.approx(priced.decode.value, rel=DIGITS)
    if not change.keys() & {"gpu", "host", "link"}:
        seconds = priced.first_token_s.value
        assert float(values["first"] or 0) == pytest.approx(seconds, rel=fits.TOLERANCE)


def test_a_page_is_written_whole(tmp_path: Path) -> None:
    path, pricer = tmp_path / "page.html", Pricer(made().advice.question)
    write_page(str(path), made().advice, shown_of(made().advice, pricer))
    text = path.read_text(encoding="utf-8")
    assert text.endswith("</html>\n")
    assert [each.name for each in tmp_path.iterdir()] == ["page.html"]
