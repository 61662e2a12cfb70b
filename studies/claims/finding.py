"""What a claim's study hands back, and the page that puts all claims together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from moesim.files import output_errors
from moesim.report.chart import Chart, write_whole
from moesim.report.style import house_style
from moesim.report.tabular import escaped

__all__ = ["Finding", "page", "read_findings", "save_png", "write_findings"]

HEAD: Final = """# Claims of the field that contradict one another

Each of these claims was published from one trace or one machine. Each holds under a condition,
and flips under another. Here each is a scenario. The condition is swept, and the border is drawn.

```sh
python studies/claims/claims.py                  # all claims
python studies/claims/claims.py --only pinning   # one claim; the others stay as they are
```

- **Routing.** DeepSeek-V2-Lite's real routing on four tasks (deepseek-ai/ESFT; 26 layers, 64
  experts, top-6), unless a part says otherwise. It was recorded teacher-forced, so rows of prompts
  and of answers look alike. Synthetic routing (`moesim trace synth`) crosses borders that no real
  task crosses, and is named. All requests of a task begin with the same template, which would
  look like locality. So their first 24 tokens are left out where hits are counted, and the first
  16 are cached where times are simulated.
- **Hits** are counted in 7 of the 26 layers, by atomic layer events, unless a part says otherwise.
  At batch B, B requests advance in lock-step, one token each. Only steps of a full batch count.
- **Intervals** are 95 %. Those of hits are over blocks of consecutive steps, without the first
  block, in which caches fill. Those of times are over seeds, which draw requests. Differences are
  taken block by block or seed by seed.
- **A border** is drawn only between settings whose intervals lie on different sides of zero.
  Hatched settings are undecided.
- **Times** are simulated with assumed figures of an RTX 4090. Signs carry over further than sizes.
  Their scenarios lie in `studies/claims/scenarios`, to be run with `moesim run`.
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """A claim with its conditions, in Markdown.

    `name` is that of its module and picture, `claim` the published statement, and `source` who says
    so. `holds`, `flips` and `evidence` are cells of the summary. `text` is its section of the page.
    """

    name: str
    claim: str
    source: str
    holds: str
    flips: str
    evidence: str
    text: str
    caption: str


def page(findings: Sequence[Finding]) -> str:
    """Return the page: what all claims share, the summary, and a section for each claim."""
    lines = ["| claim | holds when | flips when | evidence |", "|---|---|---|---|"]
    for found in findings:
        cells = (f"[{found.claim}](#{found.name})", found.holds, found.flips, found.evidence)
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    sections = [
        f'<a id="{found.name}"></a>\n\n## {found.claim}\n\nSource: {found.source}.\n\n'
        f"**Holds:** {found.holds}.\n\n**Flips:** {found.flips}.\n\n{found.text.strip()}\n\n"
        f"![{escaped(found.claim)}]({found.name}.png)\n\n*{found.caption}*\n"
        for found in findings
    ]
    return "\n".join([HEAD, *lines, "", *sections])


def read_findings(folder: Path) -> dict[str, Finding]:
    """Return the findings that a folder holds, by name; none if it holds no `claims.json`."""
    file = folder / "claims.json"
    if not file.exists():
        return {}
    return {row["name"]: Finding(**row) for row in json.loads(file.read_text(encoding="utf-8"))}


def write_findings(folder: Path, findings: Mapping[str, Finding], order: Sequence[str]) -> None:
    """Write `claims.json` and `claims.md`, claims in the given order.

    Raises:
        OutputError: a file cannot be written.
    """
    kept = [findings[name] for name in order if name in findings]
    text = json.dumps([asdict(found) for found in kept], indent=1, ensure_ascii=False)
    write_whole(folder / "claims.json", text + "\n")
    write_whole(folder / "claims.md", page(kept))


def save_png(chart: Chart, folder: Path) -> None:
    """Write a chart as a PNG in the project's style, with the same bytes for the same data.

    Raises:
        OutputError: the file cannot be written.
    """
    file = folder / f"{chart.name}.png"
    with output_errors(file), house_style():
        folder.mkdir(parents=True, exist_ok=True)
        chart.figure.savefig(file, metadata={"Software": None}, dpi=130)
