"""Every command and every Python block of the pages runs, and prints what its page shows."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from page_blocks import Block, Folder, blocks, commands
from paths import ROOT

LISTS = ("scenarios", "traces", "reports", "examples")
PAGES = {
    path.relative_to(ROOT).as_posix(): blocks(path.read_text(encoding="utf-8"))
    for path in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted(path for name in LISTS for path in (ROOT / name).rglob("README.md")),
    )
}
RUN = ("sh", "python")
LANGUAGES = (*RUN, "text", "yaml", "json", "csv", "toml", "diff", "console")


def runnable(block: Block) -> bool:
    return block.title is not None or (block.language in RUN and block.mark != "not run")


def pages() -> list[Any]:
    """The pages with something to run; those with a slow block are slow tests."""
    found = []
    for name, page in PAGES.items():
        if any(block.language in RUN and runnable(block) for block in page):
            slow = any(block.mark == "slow" for block in page)
            found.append(pytest.param(name, marks=[pytest.mark.slow] if slow else []))
    return found


@pytest.mark.parametrize("name", pages())
def test_a_page_prints_what_it_shows(name: str, tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for block in filter(runnable, PAGES[name]):
        if difference := folder.differs(block):
            pytest.fail(f"{name}:{block.line} prints something else\n{difference}", pytrace=False)


def test_a_block_that_is_not_run_says_why_and_names_only_tests_that_exist() -> None:
    marked = [(name, block) for name, page in PAGES.items() for block in page if block.mark]
    assert marked
    for name, block in marked:
        assert len(block.reason) > 10, f"{name}:{block.line}"
        named = re.findall(r"(?:tests|docs|studies|\.ci)/[\w./-]*\w", block.reason)
        assert [path for path in named if not (ROOT / path).exists()] == [], f"{name}:{block.line}"


def test_every_block_names_a_known_language() -> None:
    unknown = [
        f"{name}:{block.line}"
        for name, page in PAGES.items()
        for block in page
        if block.language not in LANGUAGES
    ]
    assert unknown == []


def scenario_keys() -> set[str]:
    from moesim.scenario import Scenario

    return set(Scenario.model_fields)


def test_every_yaml_of_a_page_can_be_read_and_every_part_of_a_scenario_is_valid() -> None:
    from moesim.scenario import Scenario

    whole = {"trace": "traces/deep", "hardware": "rtx-4090"}
    found = 0
    for name, page in PAGES.items():
        for block in filter(lambda block: block.language == "yaml", page):
            document = yaml.safe_load(block.text)
            if isinstance(document, dict) and set(document) <= scenario_keys():
                found += 1
                try:
                    Scenario.model_validate({**whole, **document})
                except ValueError as error:
                    pytest.fail(f"{name}:{block.line}: {error}")
    assert found > 10


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_links_to_is_in_the_repository(name: str) -> None:
    """Links work where the pages are read as files. `mkdocs build --strict` checks the site."""
    text = re.sub(r"```.*?```", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.S)
    targets = re.findall(r"\]\((?!https?:|#)([^)\s#]+)", text)
    home = (ROOT / name).parent
    assert [target for target in targets if not (home / target).exists()] == []


@cache
def program() -> Any:
    from moesim.cli import app

    return typer.main.get_command(app)


def options_that_fail(words: list[str]) -> str:
    """Return why a command of moesim cannot be parsed; "" if it can, or is another program's."""
    if Path(words[0]).name != "moesim":
        return ""
    group, rest = program(), words[1:]
    while commands_of := getattr(group, "commands", None):
        if not rest or rest[0] not in commands_of:
            own = {name for parameter in group.params for name in parameter.opts}
            return "" if {*rest[:1]} & {"--help", *own} else f"no command {rest[:1]}"
        group, rest = commands_of[rest[0]], rest[1:]
    try:
        context = group.context_class(group, info_name="moesim")
        group.make_parser(context).parse_args(rest)
    except Exception as error:
        return str(getattr(error, "format_message", error.__str__)())
    return ""


def test_every_command_of_a_page_has_options_that_exist() -> None:
    wrong = [
        f"{name}:{block.line}: {' '.join(words)}: {why}"
        for name, page in PAGES.items()
        for block in page
        if block.language == "sh"
        for words in commands(block.text)
        if (why := options_that_fail(words))
    ]
    assert wrong == []


def test_the_check_of_options_sees_a_wrong_one() -> None:
    def why(command: str) -> list[str]:
        return list(map(options_that_fail, commands(command)))

    assert "--colour" in why("moesim run x.yaml --colour red")[0]
    assert why("cd x && .venv/bin/moesim ran x.yaml | head -4") == ["", "no command ['ran']", ""]
    assert why("moesim --version") == [""]
    assert why("moesim models train --out x   # a comment") == [""]
    assert why("moesim search x.yaml --until 'tpot_mean_ms > 3' > out.txt") == ["", ""]


def test_an_output_may_leave_out_parts_and_no_more(tmp_path: Path) -> None:
    text = "```python\nprint('one two')\nprint('three')\n```\n\n```text\n{}\n```\n"
    folder = Folder(tmp_path)
    assert folder.differs(blocks(text.format("one ...\nthree"))[0]) == ""
    assert "four" in folder.differs(blocks(text.format("one ...\nfour"))[0])


def test_a_block_belongs_to_the_mark_and_the_output_beside_it() -> None:
    marked = "<!-- not run: needs a GPU -->\n```sh\na\n```\n"
    first, second = blocks(marked + "\ntext\n\n```sh\nb\n```\n\n```text\nout\n```\n")
    assert (first.mark, first.reason, first.output) == ("not run", "needs a GPU", None)
    assert (second.mark, second.text, second.output) == (None, "b\n", "out\n")
