"""Every message about an unknown name uses one hint."""

from __future__ import annotations

import pytest
from paths import ROOT

from moesim.config.suggest import suggest


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("mixtral", "; did you mean 'mixtral-8x7b'?"),
        ("RTX_4090", "; did you mean 'rtx-4090'?"),
        ("lfudecay", "; did you mean 'lfu_decay'?"),
        ("zzz", ""),
        ("", ""),
    ],
)
def test_the_nearest_name_is_suggested_whatever_its_case_and_hyphens(word: str, hint: str) -> None:
    assert suggest(word, ["mixtral-8x7b", "rtx-4090", "lfu_decay"]) == hint


def test_all_names_follow_where_none_is_near() -> None:
    assert suggest("zzz", ["lru", "lfu"], rest="there are") == "; there are lru, lfu"
    assert suggest("zzz", [], rest="it has") == "; it has none"


def test_no_other_module_looks_for_near_names_itself() -> None:
    modules = (ROOT / "moesim").rglob("*.py")
    users = [path.name for path in modules if "difflib" in path.read_text(encoding="utf-8")]
    assert users == ["suggest.py"]
