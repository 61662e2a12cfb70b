"""The site: links of the repository lead to pages, and the reference names all that there is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from paths import ROOT
from study_scripts import script

pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")


@pytest.fixture(scope="module")
def repository() -> Any:
    return script(".ci/site", "repository")


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("README.md", "index.md"),
        ("docs/howto/policy.md", "howto/policy.md"),
        ("reports/README.md", "repository/reports/README.md"),
        ("reports/measured/measured.png", "repository/reports/measured/measured.png"),
        ("moesim/policies/eviction/lru.py", "repository/moesim/policies/eviction/lru.py.md"),
        ("reports/validation", "repository/reports/validation/index.md"),
        ("docs/no_such_page.md", None),
    ],
)
def test_each_file_has_its_place(repository: Any, path: str, place: str | None) -> None:
    assert repository.place(path) == place


def test_a_link_to_a_folder_leads_to_its_list_if_it_has_one(repository: Any) -> None:
    text = "[a](../scenarios) [b](../reports/validation)"
    assert repository.links(text, "docs/design.md") == ["scenarios/README.md", "reports/validation"]


def test_links_lead_to_places_of_the_site_and_others_stay(repository: Any) -> None:
    text = "[a](../README.md#start) [c](https://x.org) [d](gone.md) [e](#f)"
    out = repository.relink(text, "docs/howto/policy.md", "howto/policy.md")
    assert out == text  # from docs/howto, none of these exists
    out = repository.relink(text, "docs/design.md", "design.md")
    assert "[a](index.md#start)" in out
    assert "[c](https://x.org) [d](gone.md) [e](#f)" in out


def test_what_pages_link_to_is_found_with_what_that_links_to(repository: Any) -> None:
    found = repository.reached(["docs/placement.md"])
    assert "reports/hybrid/plots/metrics_swept.png" in found
    assert "moesim/policies/placement/cost.py" in found


def test_nested_lists_are_indented_and_blocks_of_code_are_not(repository: Any) -> None:
    text = "- a\n  - b\n\n```text\n  c\n```\n"
    assert repository.nested(text) == "- a\n    - b\n\n```text\n  c\n```\n"


def test_the_reference_has_every_key_of_a_scenario_with_type_and_default() -> None:
    text = script(".ci/site", "schema").page(
        json.loads((ROOT / "moesim/scenario/scenario.schema.json").read_text())
    )
    assert "| `seed` | integer | `0` | Seed of all random streams. |" in text
    assert "| `cache.policy` | text | `lru` |" in text
    assert "| `workload.arrivals.rate_per_s` | number | required | (kind `poisson`)" in text
    assert "| `memory.host` | `unlimited`, quantity in B, kB," in text


def test_the_reference_has_every_command() -> None:
    text = script(".ci/site", "commands").page()
    assert "### `moesim trace synth`" in text
    assert "| `--set KEY=VALUE` | Override a key" in text
    assert "moesim policies" not in text  # hidden


def test_the_reference_has_every_metric_with_a_unit_and_a_meaning() -> None:
    text = script(".ci/site", "metrics").page()
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    assert [row for row in rows if row.endswith("|  |")] == []
    assert any(row.startswith("| `ttft_p99_ms` | ms |") for row in rows)


def test_the_reference_has_every_policy_and_marks_the_bounds() -> None:
    from moesim.policies import FAMILIES, names

    text = script(".ci/site", "policies").page()
    for family in FAMILIES:
        assert [name for name in names(family) if f"| `{name}` |" not in text] == []
    (bound,) = (line for line in text.splitlines() if line.startswith("| `min` |"))
    assert "knows the future" in bound


def test_the_lists_have_figures_with_kinds_and_numbered_sources() -> None:
    lists = script(".ci/site", "lists")
    engines = lists.figures("Engines", "engines", "engine: NAME")
    assert "| `host.layer_event` | 8.4ms | fitted | arXiv 2312.17238" in engines
    models = lists.rows("Models", "models", "model: NAME")
    assert "| `mixtral-8x7b` | 32 | 32 | 8 | 2 |" in models
    assert "## Other names" in models
    assert "- `deepseek-v3`: DeepSeek-R1," in models
