"""The command of a server, of which only some options change the time of a token."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["used_options"]

_USED: Final = frozenset(
    re.findall(
        r"\S+",
        """-ngl --n-gpu-layers --gpu-layers -ot --override-tensor -ncmoe --n-cpu-moe -cmoe --cpu-moe
        -ub --ubatch-size -b --batch-size -ctk --cache-type-k -ctv --cache-type-v -fa --flash-attn
        -t --threads -c --ctx-size -nkvo --no-kv-offload -nopo --no-op-offload -ts --tensor-split
        -sm --split-mode -dev --device -rtr --run-time-repack -fmoe --fused-moe -mla --mla-use
        -ser --smart-expert-reduction -md --model-draft --draft --draft-max --numa""",
    )
)
_WITHOUT_EFFECT: Final = frozenset(
    re.findall(
        r"\S+",
        """-m --model -hf --hf-repo -hff --hf-file -a --alias --host --port --api-key --jinja -np
        --parallel --metrics --no-mmap --mlock --mmap -v --verbose --no-webui --temp --top-k --top-p
        --min-p --seed -s --no-warmup --chat-template --chat-template-file --reasoning-format
        --reasoning-budget -n --predict --n-predict --cache-reuse -cb --cont-batching --log-file
        --threads-http --timeout -to --slots --props --no-slots -p -f --prompt --file
        --presence-penalty --repeat-penalty --path
        --log-disable --color -tb --threads-batch --prio --poll -amb""",
    )
)
_WORD: Final = re.compile(r"""(?:"[^"]*"|'[^']*'|[^\s"'])+""")


def used_options(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the options of a command that change times, and notes on those that are not known."""
    used: list[str] = []
    unknown: list[str] = []
    taken = False
    for word in _WORD.findall(text):
        flag = word.partition("=")[0]
        if word.startswith("-") and not word[1:2].isdigit():
            taken = flag in _USED
            if not taken and flag not in _WITHOUT_EFFECT:
                unknown.append(flag)
        elif word in ("|", ">", "&", "2>&1", "\\"):
            taken = False
        if taken:
            used.append(word)
    notes = tuple(
        f"the option {flag} of the command is not known, and left out" for flag in unknown
    )
    return " ".join(used), notes
