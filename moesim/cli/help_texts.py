"""What the help of commands has in common: examples, and groups by purpose in `moesim --help`.

An example is a line to type in the folder of a clone of moesim. Files that are not shipped there
have plain names, like `logs.txt`.
"""

from __future__ import annotations

from collections.abc import Iterator
from inspect import getdoc
from typing import Final

import typer

__all__ = ["EXAMPLES", "PANELS", "complete_help"]

EXAMPLES: Final[dict[str, tuple[str, ...]]] = {
    "init": (
        "moesim init first",
        "moesim init study.yaml --model qwen3-30b-a3b --gpu rtx-4090 --host 32GiB",
    ),
    "doctor": ("moesim doctor", "moesim doctor --json"),
    "list": ("moesim list", "moesim list policies lru", "moesim list models --json"),
    "schema": (
        "moesim schema > scenario.schema.json",
        "moesim schema | python -m json.tool --compact",
    ),
    "advise": (
        "moesim advise qwen3-30b-a3b --gpu rtx-3060-12gb --ram 32GB-ddr4-3200-2ch --context 16k",
        "moesim advise gpt-oss-20b --this-machine --no-probe",
    ),
    "twin": (
        "moesim twin logs.txt --gpu rtx-3060-12gb --ram 32GB-ddr4-3200-2ch",
        "moesim twin logs.txt --what-if ncmoe=20 --what-if channels=4",
    ),
    "run": (
        "moesim run scenarios/quickstart.yaml --out runs/quickstart",
        "moesim run scenarios/quickstart.yaml --set cache.policy=lfu --set hardware=t4 --no-plots",
    ),
    "compare": (
        "moesim compare scenarios/policies.yaml --out runs/policies",
        "moesim compare scenarios/quickstart.yaml --set 'sweep.cache.policy=[lru, lfu]'",
    ),
    "report": (
        "moesim report runs/quickstart --html",
        "moesim report runs/policies --out runs/again --json",
    ),
    "search": (
        "moesim search scenarios/disk.yaml --over memory.host=4GiB..24GiB "
        "--until 'tpot_mean_ms <= 200'",
        "moesim search scenarios/policies.yaml --minimize e2e_p95_ms --runs 12",
    ),
    "split": (
        "moesim split scenarios/quickstart.yaml --out runs/split",
        "moesim split scenarios/quickstart.yaml --goal ttft --runs 6",
    ),
    "dial": (
        "moesim dial scenarios/quickstart.yaml --recall 1 --precision 0.75,1 --depth 1 --link 1x",
        "moesim dial scenarios/quickstart.yaml --seeds 2 --out runs/dial",
    ),
    "curve": (
        "moesim curve traces/deep --policy lru --policy lfu --policy min",
        "moesim curve traces/deep --policy lru --expert-bytes 16.5MiB --link 25GB/s",
    ),
    "calibrate": (
        "moesim calibrate --device cuda --model mixtral-8x7b --out mine.yaml",
        "moesim calibrate --scenario scenarios/validate.yaml --budget 30s",
    ),
    "validate": (
        "moesim validate scenarios/validate.yaml",
        "moesim validate scenarios/validate.yaml --runs 3 --max-step-error 25",
    ),
    "measured": ("moesim measured rows.json", "moesim measured rows.json --fit two --out measured"),
    "record": (
        "moesim record --model path/or/hub-id --prompts prompts.jsonl --out traces/mine",
        "moesim record --model path/or/hub-id --prompts prompts.jsonl --out traces/mine --dry-run",
    ),
    "models train": (
        "moesim models train --preset shallow --out models/shallow",
        "moesim models train --preset gated --gate dselect_k --out models/by-task",
    ),
    "models prompts": (
        "moesim models prompts --out prompts.jsonl",
        "moesim models prompts --out law.jsonl --text law=texts/law --per-domain 10",
    ),
    "models readme": (
        "moesim models readme --base models/dense --out models/readme",
        "moesim models readme --base smollm2 --out models/readme --kinds decoupled",
    ),
    "trace info": (
        "moesim trace info traces/shallow",
        "moesim trace info traces/shallow --all --out build/info",
    ),
    "trace validate": ("moesim trace validate traces/deep", "moesim trace validate traces/mine"),
    "trace convert": (
        "moesim trace convert moe_trace.csv traces/mine --from llama_cpp --top-k 8",
        "moesim trace convert recording.pt traces/served --from sglang --model qwen3-30b-a3b",
    ),
    "trace synth": (
        "moesim trace synth traces/like --like mixtral-8x7b --requests 16",
        "moesim trace synth traces/uniform --layers 4 --experts 8 --skew 0 --stickiness 0",
    ),
    "trace redundancy": (
        "moesim trace redundancy traces/deep",
        "moesim trace redundancy traces/deep --state top --out runs/redundancy",
    ),
    "trace locality": (
        "moesim trace locality traces/deep",
        "moesim trace locality traces/deep --out runs/locality --no-plots",
    ),
    "workload info": (
        "moesim workload info requests.csv",
        "moesim workload info chats.json --characters-per-token 4 --out build/workload",
    ),
}
"""Two or more lines for each command, by its name; a test parses each."""

PANELS: Final[dict[str, tuple[str, ...]]] = {
    "Start here": ("init", "doctor", "list"),
    "Ask about a machine": ("advise", "twin"),
    "Simulate": ("run", "compare", "report", "search", "split", "dial", "curve"),
    "Traces, models and requests": ("trace", "record", "models", "workload"),
    "Compare with measurements": ("calibrate", "validate", "measured"),
    "For editors and programs": ("schema",),
}
"""The groups of commands in `moesim --help`, in its order."""


def complete_help(app: typer.Typer) -> None:
    """Give each command its examples, and each command of the first level its panel and order."""
    order = [name for names in PANELS.values() for name in names]
    panel_of = {name: panel for panel, names in PANELS.items() for name in names}
    for path, command in _commands(app, ""):
        command.epilog = _epilog(EXAMPLES.get(path, ()))
        command.help = _without_line_breaks(command.help or getdoc(command.callback) or "")
    for command in app.registered_commands:
        command.rich_help_panel = panel_of.get(_name(command), "Other")
    for group in app.registered_groups:
        group.rich_help_panel = panel_of.get(_name(group), "Other")
    # typer lists commands before groups, and panels in the order of their first command.
    app.registered_commands.sort(key=lambda info: _place(_name(info), order))


def _commands(app: typer.Typer, prefix: str) -> Iterator[tuple[str, typer.models.CommandInfo]]:
    for command in app.registered_commands:
        yield f"{prefix}{_name(command)}", command
    for group in app.registered_groups:
        if group.typer_instance is not None:
            yield from _commands(group.typer_instance, f"{prefix}{_name(group)} ")


def _name(info: typer.models.CommandInfo | typer.models.TyperInfo) -> str:
    return str(info.name or (info.callback.__name__ if info.callback else ""))


def _place(name: str, order: list[str]) -> int:
    return order.index(name) if name in order else len(order)


def _without_line_breaks(text: str) -> str:
    """Return paragraphs of one line each; typer would keep the line breaks of the source."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _epilog(examples: tuple[str, ...]) -> str | None:
    """Return examples for the end of a help text: a line each, without markup."""
    lines = [line.replace("[", "\\[") for line in examples]
    return "\n\n".join(["Examples:", *lines]) if lines else None
