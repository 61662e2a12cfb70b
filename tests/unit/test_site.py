"""The site: links of the repository lead to pages, and the reference names all that there is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
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


def test_pages_of_files_are_read_where_they_lie_and_stay_out_of_the_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hook = script(".ci/site", "hook")
    place = "repository/reports/README.md"
    monkeypatch.setitem(hook._paths, place, "reports/README.md")
    text = "[a](../docs/design.md)"
    for uri, searched in ((place, False), ("design.md", True)):
        page: Any = SimpleNamespace(file=SimpleNamespace(src_uri=uri), meta={})
        out = hook.on_page_markdown(text, page=page, config=None, files=None)
        assert page.meta.get("search") == (None if searched else {"exclude": True})
        assert out == ("[a](design.md)" if searched else "[a](../../design.md)")


# --- The reference --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference() -> dict[str, str]:
    """The pages of the reference by name."""
    pages: dict[str, str] = script(".ci/site", "reference").pages()
    return pages


def targets(nav: Any) -> Iterator[str]:
    """Yield the pages that a navigation of mkdocs names."""
    if isinstance(nav, str):
        yield nav
    for inner in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from targets(inner)


def test_the_navigation_has_every_page_of_the_reference(reference: dict[str, str]) -> None:
    listed = set(targets(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert {f"reference/{name}.md" for name in reference} == {
        name for name in listed if name.startswith("reference/")
    }


def test_the_reference_has_every_key_of_a_scenario_with_type_and_default(
    reference: dict[str, str],
) -> None:
    text = reference["scenario"]
    assert "| `seed` | integer | `0` | Seed of all random streams. |" in text
    assert "| `cache.policy` | text | `lru` |" in text
    assert "| `workload.arrivals.rate_per_s` | number | required | (kind `poisson`)" in text
    assert "| `memory.host` | `unlimited`, quantity in B, kB," in text


def test_the_reference_has_every_command(reference: dict[str, str]) -> None:
    text = reference["commands"]
    assert "### `moesim trace synth`" in text
    assert "| `--set KEY=VALUE` | Override a key" in text
    assert "| `--captions <outside\\|inside>` |" in text  # a bar would end the cell
    assert "moesim policies" not in text  # hidden


def test_the_reference_has_every_name_of_the_python_api(reference: dict[str, str]) -> None:
    import moesim

    named = re.findall(r"^::: moesim\.([\w.]+)$", reference["api"], re.M)
    ends = [name.rpartition(".")[2] for name in named]
    assert [name for name in moesim.__all__ if not name.startswith("__") and name not in ends] == []
    assert "View" in ends
    assert [name for name in ends if name.startswith("__")] == []
    assert "scenario.Scenario\n    options: {members: false}" in reference["api"]


def test_the_reference_has_every_metric_with_a_unit_and_a_meaning(
    reference: dict[str, str],
) -> None:
    rows = [line for line in reference["metrics"].splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    assert [row for row in rows if row.endswith("|  |")] == []
    for key, unit in {
        "ttft_p99_ms": "ms", "name": "text", "stall_share": "share (0 to 1)", "steps": "number",
        "expert_hit_rate": "share (0 to 1)", "requests_per_s": "requests a second",
    }.items():  # fmt: skip
        assert any(row.startswith(f"| `{key}` | {unit} |") for row in rows), key


def test_the_reference_has_every_policy_and_marks_the_bounds(reference: dict[str, str]) -> None:
    from moesim.policies import FAMILIES, names

    text = reference["policies"]
    for family in FAMILIES:
        assert [name for name in names(family) if f"| `{name}` |" not in text] == []
    (bound,) = (line for line in text.splitlines() if line.startswith("| `min` |"))
    assert "knows the future" in bound


def test_the_lists_have_figures_with_kinds_and_numbered_sources(reference: dict[str, str]) -> None:
    assert "| `host.layer_event` | 8.4ms | fitted | arXiv 2312.17238" in reference["engines"]
    models = reference["models"]
    assert "| `mixtral-8x7b` | 32 | 32 | 8 | 2 |" in models
    assert "## Other names" in models
    assert "- `deepseek-v3`: DeepSeek-R1," in models
    assert "| no | assumed | [1] | [2] |" in reference["cards"]
    assert "\n\n## Sources\n\n1. " in reference["cards"]
    assert "\nLeft out:\n\n- " in reference["systems"]
