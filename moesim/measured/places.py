"""Where a setting puts a model's tensors: which of each layer's are in the memory of the CPU.

A setting says it before the model is known, so a `Rule` is resolved with the number of layers and
the layers that have experts. Rules act in order, and the first that takes a tensor decides, as in
llama.cpp. Tensors have llama.cpp's names, like `blk.7.ffn_up_exps.weight`; `ffn_up_exps` is the
short name here.

Patterns of users run in RE2 (through Arrow), whose time is linear in pattern and text. So no
pattern can make moesim hang.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

__all__ = [
    "EXPERTS",
    "MOST_LAYERS",
    "MOST_PATTERN",
    "Choice",
    "Layers",
    "Rule",
    "experts_on_cpu",
    "pattern_fault",
    "tensors_on_cpu",
]

EXPERTS: Final = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
"""Short names of the routed experts' matrices."""
_SHARED: Final = ("ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp")
_DENSE: Final = ("ffn_gate", "ffn_up", "ffn_down")
_ROUTER: Final = "ffn_gate_inp"
_ATTENTION: Final = ("attn_q", "attn_k", "attn_v", "attn_output")

MOST_PATTERN: Final = 1000
"""Characters of the longest pattern that is tried."""
MOST_LAYERS: Final = 10_000


Choice = Literal["all", "first", "last", "range", "first_moe", "last_moe"]


@dataclass(frozen=True, slots=True)
class Layers:
    """A choice of layers, counted from 0.

    `first` and `last` choose `count` layers at the beginning or the end, whether or not they have
    experts. `first_moe` and `last_moe` count MoE layers only. `range` chooses from `low` to `high`,
    both included.
    """

    kind: Choice = "all"
    count: int = 0
    low: int = 0
    high: int = 0

    def of(self, num_layers: int, moe_layers: Sequence[int]) -> frozenset[int]:
        """Return the chosen layers of a model; those that it lacks are left out."""
        every = range(num_layers)
        match self.kind:
            case "first":
                return frozenset(every[: self.count])
            case "last":
                return frozenset(every[max(0, num_layers - self.count) :])
            case "range":
                return frozenset(every[self.low : self.high + 1])
            case "first_moe":
                return frozenset(moe_layers[: self.count])
            case "last_moe":
                return frozenset(moe_layers[max(0, len(moe_layers) - self.count) :])
        return frozenset(every)


@dataclass(frozen=True, slots=True)
class Rule:
    """Which tensors are on the CPU (`cpu`) or stay on the GPU.

    `tensors` is "experts", "ffn" (all of the FFN, with router and shared experts) or "all". With a
    `pattern`, a regular expression on the whole name decides instead of `layers` and `tensors`.
    """

    layers: Layers = Layers()
    tensors: Literal["experts", "ffn", "all"] = "experts"
    pattern: str = ""
    cpu: bool = True


def pattern_fault(pattern: str) -> str:
    """Return why a pattern cannot be used, or "" if it can."""
    if len(pattern) > MOST_PATTERN:
        return f"a pattern of {len(pattern)} characters; at most {MOST_PATTERN} are read"
    try:
        _matches(pattern, ("blk.0.ffn_up_exps.weight",))
    except ValueError as error:
        return f"pattern {pattern!r} is not understood: {error}"
    return ""


def tensors_on_cpu(
    rules: Sequence[Rule], num_layers: int, moe_layers: Collection[int]
) -> tuple[frozenset[str], ...]:
    """Return for each layer the short names of its tensors in the memory of the CPU.

    Raises:
        ValueError: there are more than `MOST_LAYERS` layers, or MoE layers that do not exist.
    """
    if not 0 <= num_layers <= MOST_LAYERS:
        raise ValueError(f"{num_layers} layers: at most {MOST_LAYERS} are read")
    moe = sorted(moe_layers)
    if moe and not 0 <= moe[0] <= moe[-1] < num_layers:
        raise ValueError(f"MoE layers {moe[0]} to {moe[-1]} of a model of {num_layers} layers")
    return _resolved(tuple(rules), num_layers, tuple(moe))


def experts_on_cpu(placed: Sequence[Collection[str]]) -> frozenset[int]:
    """Return the layers of which all matrices of routed experts are on the CPU."""
    return frozenset(
        layer for layer, names in enumerate(placed) if all(name in names for name in EXPERTS)
    )


@lru_cache(maxsize=1024)
def _resolved(
    rules: tuple[Rule, ...], num_layers: int, moe: tuple[int, ...]
) -> tuple[frozenset[str], ...]:
    has_experts = frozenset(moe)
    tensors = [
        (layer, name)
        for layer in range(num_layers)
        for name in (*_ATTENTION, *_ffn(layer in has_experts))
    ]
    open_tensors = dict.fromkeys(tensors)  # in order, and each is looked up at once
    placed: list[set[str]] = [set() for _ in range(num_layers)]
    for rule in rules:
        for layer, name in _taken(rule, list(open_tensors), num_layers, moe):
            del open_tensors[layer, name]
            if rule.cpu:
                placed[layer].add(name)
    return tuple(map(frozenset, placed))


def _ffn(has_experts: bool) -> tuple[str, ...]:
    return (*EXPERTS, *_SHARED, _ROUTER) if has_experts else _DENSE


def _taken(
    rule: Rule, tensors: list[tuple[int, str]], num_layers: int, moe: tuple[int, ...]
) -> list[tuple[int, str]]:
    """Return the tensors to which a rule applies."""
    if rule.pattern:
        names = tuple(f"blk.{layer}.{name}.weight" for layer, name in tensors)
        hits = _matches(rule.pattern, names)
        return [tensor for tensor, hit in zip(tensors, hits, strict=True) if hit]
    layers = rule.layers.of(num_layers, moe)
    return [(layer, name) for layer, name in tensors if layer in layers and _is(name, rule.tensors)]


def _is(name: str, kind: str) -> bool:
    if kind == "experts":
        return name in EXPERTS
    return kind == "all" or name.startswith("ffn_")


def _matches(pattern: str, names: tuple[str, ...]) -> list[bool]:
    """Return for each name whether a pattern is found in it. Raise `ValueError` for a bad one."""
    import pyarrow
    import pyarrow.compute

    try:
        hits = pyarrow.compute.match_substring_regex(pyarrow.array(names), pattern=pattern)
    except (pyarrow.ArrowException, UnicodeError) as error:
        raise ValueError(str(error).splitlines()[0]) from None
    found: list[bool] = hits.to_pylist()
    return found
