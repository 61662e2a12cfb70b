"""Values that a sweep may have and that labels, tables and figures could spoil or mix up."""

from __future__ import annotations

from typing import Any

VALUES: tuple[Any, ...] = (
    "25GB/s", "50GB/s", "4/layer", "8/layer", "25%", "50%", "../traces/deep", "/abs/deep", "deep",
    "C:\\models\\deep", "a b", "a  b", 'say "x"', "it's", '"', "a,b", "a, b", "a = 1", "x\ny",
    "x\\ny", "x y", "tab\tx", "", " ", "_hidden", "__x__", "*bold*", "$x^2$", "$5 and $6", "a|b",
    "`code`", "<b>", "é", "日本", "\x00", "\u2028", "long " * 200, "long " * 199 + "lonG ",
    1, "1", 1.0, "1.0", -1, 1e300, 0.1, "0.1", True, "true", "True", False, "false", None, "null",
    "none", "None", "~", [], "[]", [1], ["1"], [1, 2], ["1, 2"], ["a", "b"], ["a, b"], {}, "{}",
    {"a": 1}, {"a": "1"}, {"a": None}, {"a": "null"}, {"a": 1, "b": 2}, {"a": "1 b 2"},
    {"a": {"b": 2}}, {"a": [1]}, ("{a 1}"), "nan", "NaN", "Infinity", "1e3",
)  # fmt: skip
"""One of each kind of value, and its likenesses."""
