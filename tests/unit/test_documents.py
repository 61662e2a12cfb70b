"""What the documents say is true of the code."""

from __future__ import annotations

import ast
import csv
import io
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from paths import ROOT
from study_scripts import module_at

import moesim


def commands(text: str) -> list[str]:
    return [
        line for block in re.findall(r"```sh\n(.*?)```", text, re.S) for line in block.splitlines()
    ]


def test_ci_runs_exactly_the_test_command_of_the_readme() -> None:
    test = next(line for line in commands((ROOT / "README.md").read_text()) if "pytest" in line)
    assert test in (ROOT / ".ci/run").read_text().splitlines()


def test_ci_runs_the_slow_tests_that_this_command_leaves_out() -> None:
    lines = (ROOT / ".ci/run").read_text().splitlines()
    assert ".venv/bin/python -m pytest -n auto -m slow" in lines


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (moesim.__version__, "Apache-2.0")


def test_no_test_measures_wall_clock_time() -> None:
    """A deadline (`monotonic() + ...`) guards against a hang; a difference measures."""
    measures = re.compile(r"perf_counter|process_time|thread_time|time\.time\(|monotonic\w*\(\) -")
    files = [*(ROOT / "tests").rglob("test_*.py")]
    assert len(files) > 50
    own = Path(__file__)
    assert [file.name for file in files if file != own and measures.search(file.read_text())] == []


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "CONTRIBUTING.md",
        "docs/design.md",
        "docs/placement.md",
        "docs/machines.md",
        "reports/README.md",
    ],
)
def test_files_that_a_document_names_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    folders = "moesim|docs|scenarios|tests|examples|traces|benchmarks|studies|reports"
    named = re.findall(rf"`((?:{folders})/[\w./-]*)`", text)
    named += re.findall(r"`([\w./-]+/[\w-]+\.(?:py|md|yaml))`", text)  # in any other folder
    missing = [path for path in named if not (ROOT / path).exists()]
    assert named
    assert missing == []


def defined_in(path: Path) -> set[str]:
    """Return the functions, classes and methods (`A.b`) of a module, or of a folder of modules."""
    names = set()
    for file in path.glob("*.py") if path.is_dir() else [path]:
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                names.add(node.name)
            if isinstance(node, ast.ClassDef):
                methods = (part for part in node.body if isinstance(part, ast.FunctionDef))
                names |= {f"{node.name}.{method.name}" for method in methods}
    return names


def test_a_name_that_the_design_gives_with_a_file_is_defined_there() -> None:
    text = (ROOT / "docs/design.md").read_text()
    place = r"\s+\(|,?[^`.]*?\sin\s+|,\s+"  # `name` (`file`), `name` in `file`, `name`, `file`
    pairs = re.findall(rf"`([\w.]+)`(?:{place})`(moesim/[\w/.]+)`", text)
    assert len(pairs) > 20
    wrong = [pair for pair in pairs if pair[0] not in defined_in(ROOT / pair[1])]
    assert wrong == []


def test_every_class_and_method_of_the_design_exists() -> None:
    text = (ROOT / "docs/design.md").read_text()
    named = set(re.findall(r"`([A-Z]\w*[a-z]\w*(?:\.\w+)?)`", text))
    assert len(named) > 10
    defined = {name for file in (ROOT / "moesim").rglob("*.py") for name in defined_in(file)}
    assert sorted(named - defined) == []


def test_labels_that_the_results_quote_are_printed(tmp_path: Path) -> None:
    from run_directories import run_directory

    from moesim.report import print_summary
    from moesim.report.metrics import HEADLINE, SAVED

    stream = io.StringIO()
    print_summary(run_directory(tmp_path / "run"), stream)
    # A machine with every lane, and a host that takes time.
    shares = {"cpu_busy_share": 0.5, "disk_busy_share": 0.5, "stall_host_s": 1.0}
    print_summary(run_directory(tmp_path / "whole", summary=shares), stream)
    ahead = {"prefetch_policy": "oracle", "prefetch_pollution": 3}
    ahead |= {"no_prefetch_time_in_steps_s": 9.0, "prefetch_saved_share": 0.1}
    ahead |= {"regret_policy_s": 1.0}
    print_summary(run_directory(tmp_path / "ahead", summary=ahead), stream)
    printed = stream.getvalue() + "".join(metric.title for metric in (*HEADLINE, SAVED))
    _, results = (ROOT / "docs/results.md").read_text().split("## summary.json")
    labels = re.findall(r'"([^"]+?)[ .]*"', " ".join(results.split()))
    assert len(labels) > 20
    assert [label for label in labels if label not in printed] == []


def test_policies_named_in_the_changelog_exist() -> None:
    from moesim.policies import names

    text = (ROOT / "CHANGELOG.md").read_text()
    for family in ("eviction", "prefetch", "batching", "placement"):
        for policy in names(family):
            assert policy in text


def test_the_page_on_placement_lists_every_policy_with_its_options() -> None:
    from moesim.policies import find, names

    text = (ROOT / "docs/placement.md").read_text()
    table = text.split("## Three memories")[0]
    rows = {row.split("`")[1]: row for row in table.splitlines() if row.startswith("| `")}
    for name in names("placement"):
        options = getattr(find("placement", name), "Options", None)
        for option in getattr(options, "__dataclass_fields__", ()):
            assert f"`{option}`" in rows[name]


def test_the_page_on_placement_quotes_the_shipped_comparison() -> None:
    text = (ROOT / "docs/placement.md").read_text()
    _, table = text.split("| time per token (ms), batch |")
    quoted = {
        (name, float(batch)): cell.strip("*")
        for name, *cells in re.findall(r"^\| `(\w+)` \|" + r" ([*\d]+) \|" * 6, table, re.M)
        for batch, cell in zip(table.split("|")[:6], cells, strict=True)
    }
    with (ROOT / "reports/hybrid/compare.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert quoted == {
        (row["placement.policy"], float(row["batching.max_sequences"])): (
            f"{float(row['tpot_mean_ms']):.0f}"
        )
        for row in rows
    }


def test_the_page_on_prefetch_lists_every_policy() -> None:
    from moesim.policies import names

    table = (ROOT / "docs/prefetch.md").read_text().split("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)` \|", table, re.M)
    assert sorted(listed) == sorted(names("prefetch"))


def test_the_example_of_the_page_on_prefetch_says_what_the_command_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from moesim.cli import app

    text = (ROOT / "docs/prefetch.md").read_text()
    (command,) = commands(text)
    (quoted,) = re.findall(r"^> (.*)$", text, re.M)
    monkeypatch.chdir(ROOT)
    arguments = [*shlex.split(command)[1:], "--out", str(tmp_path), "--no-plots"]
    done = CliRunner().invoke(app, [*arguments, "--workers", "1"])
    assert done.exit_code == 0, done.output
    assert quoted in done.stdout.splitlines()


def test_every_key_of_a_summary_is_explained() -> None:
    from workloads import tiny_scenario, tiny_trace

    from moesim.results.metric_names import METRICS
    from moesim.scenario import Scenario
    from moesim.simulate import prepare, result_of

    scenario = Scenario.model_validate({**tiny_scenario(cache="lru"), "bounds": True})
    summary = result_of(prepare(scenario, tiny_trace(requests=2))).summary
    text = (ROOT / "docs/results.md").read_text()
    assert [key for key in (*summary, *METRICS) if f"`{key}`" not in text] == []


def test_every_column_of_a_run_is_explained() -> None:
    from workloads import tiny_scenario, tiny_trace

    from moesim.scenario import Scenario
    from moesim.simulate import prepare, result_of

    scenario = Scenario.model_validate(tiny_scenario(cache="lru"))
    result = result_of(prepare(scenario, tiny_trace(requests=2)))
    _, columns = (ROOT / "docs/results.md").read_text().split("## Columns of the tables")
    for name in ("requests", "steps", "layers", "timeline"):
        section = columns.split(f"### {name}\n")[1].split("\n### ")[0]
        assert [key for key in result.table(name) if f"`{key}`" not in section] == []


def test_the_scores_of_the_readme_are_those_of_the_page_on_measured_rows() -> None:
    readme = (ROOT / "README.md").read_text()
    page = (ROOT / "docs/measured.md").read_text()
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| exam | none")]
    kinds = ("decode", "prefill", "small batch")
    cells_of = [[cell.strip() for cell in row] for row in rows]
    scores = {cells[2]: cells for cells in cells_of if cells[2] in kinds}
    assert len(scores) == 3
    for kind, cells in scores.items():
        predicted, median, within, inside = (cells[column] for column in (4, 5, 8, 9))
        line = f"| {kind} | {predicted.split()[0]} | {median} | {within} | {inside} |"
        assert line in readme.splitlines()


def test_every_shipped_scenario_is_listed_and_the_quoted_one_is_whole() -> None:
    folder = ROOT / "scenarios"
    text = (folder / "README.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \|", text, re.M)
    assert sorted(listed) == sorted(path.stem for path in folder.glob("*.yaml"))
    (code,) = re.findall(r"```yaml\n(.*?)```", text, re.S)
    assert code == (folder / "closed.yaml").read_text()


@pytest.mark.parametrize("folder", ["reports", "traces"])
def test_every_shipped_report_and_trace_is_named_in_its_list(folder: str) -> None:
    text = (ROOT / folder / "README.md").read_text()
    pattern = "*/*.md" if folder == "reports" else "*/trace.json"
    found = [path.relative_to(ROOT / folder) for path in (ROOT / folder).glob(pattern)]
    names = {
        path.parts[0]
        if path.stem in ("compare", "study", "trace")
        else path.as_posix().removesuffix(".md")
        for path in found
    }
    assert names
    assert sorted(name for name in names if name not in text) == []


@pytest.fixture
def words() -> Any:
    return module_at(ROOT / ".ci/words.py")


def test_the_word_check_reads_comments_and_strings_but_no_code(words: Any, tmp_path: Path) -> None:
    path = tmp_path / "code.py"
    path.write_text("nobody = 1  # it goes\n# on\nx = f'so many {x}'\n")
    text = words.prose(path)
    hits = [(" ".join(hit[0].split()), hit.start()) for hit in words.FORBIDDEN.finditer(text)]
    assert hits == [("goes on", text.index("goes")), ("so many", text.index("so many"))]
    assert text.count("\n") == 3


def test_the_length_of_a_sentence_leaves_out_code_tables_and_headings(words: Any) -> None:
    text = (
        "# A heading\n\nThree words `a b`. One e.g. two\n\n| a | b |\n\n```sh\nrun it. now\n```\n"
    )
    assert words.mean_words(text) == pytest.approx((3 + 3) / 2)
    assert words.mean_words("- one two.\n- three four five six") == pytest.approx(3)
