"""Likely mistakes of new users: each message says what is wrong, where, why, and what to try.

The table is tests/support/mistakes.yaml. Other tests try mistakes of one room in depth.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import answer
from paths import ROOT
from workloads import whole_and_cut_trace

MISTAKES: dict[str, dict[str, Any]] = yaml.safe_load(
    (ROOT / "tests/support/mistakes.yaml").read_text(encoding="utf-8")
)
OK = "trace: trace\nhardware: t4\n"
FILES: dict[str, str | bytes] = {
    "ok.yaml": OK,
    "sweep.yaml": f"{OK}sweep: {{cache.policy: [lru, fifo]}}\n",
    "folder/inside.yaml": OK,
    "empty.yaml": "",
    "binary.yaml": bytes(range(256)),
    "utf16.yaml": OK.encode("utf-16"),
    "text.txt": "hello",
    "list.yaml": "- trace: trace\n",
    "tabs.yaml": f"{OK}cache:\n\tpolicy: lru\n",
    "fenced.yaml": f"```yaml\n{OK}```\n",
    "glued.yaml": "trace:trace\nhardware: t4\n",
    "open.yaml": "trace: trace\nhardware: {profile: t4\n",
    "flat.yaml": f"{OK}cache:\npolicy: lru\n",
    "twice.yaml": f"{OK}seed: 1\nseed: 2\n",
    "wrong.yaml": "trace: trace\nhardware: t5\ncache: {policy: lur, slots: 200%}\n"
    "workload: {requests: 0}\nsede: 1\n",
    "foreign/trace.json": '{"format": "other"}',
    "when.csv": "when,in,out\n0,1,2\n",
    "words.csv": "arrival_s,prompt_tokens,output_tokens\n0,x,2\n",
    "log.csv": "a,b\n1,2\n",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what users mix up."""
    home = tmp_path_factory.mktemp("mistakes")
    (home / "empty-folder").mkdir()
    for name, content in FILES.items():
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_bytes(content.encode() if isinstance(content, str) else content)
    whole_and_cut_trace(home)
    return home


@pytest.mark.parametrize("name", MISTAKES)
def test_a_likely_mistake_is_answered_with_its_place_and_what_to_try(
    name: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    before = sorted(os.listdir(home))
    code, message = answer(shlex.split(MISTAKES[name]["run"]))
    assert code == MISTAKES[name].get("code", 2), message
    assert [part for part in MISTAKES[name]["says"] if part not in message] == [], message
    assert "Traceback" not in message
    assert sorted(os.listdir(home)) == before  # a refused command writes nothing


def test_the_table_holds_forty_mistakes_and_more() -> None:
    assert len(MISTAKES) >= 40
    assert len({mistake["run"] for mistake in MISTAKES.values()}) == len(MISTAKES)


@pytest.mark.parametrize(
    "text",
    [OK.replace("\n", "\r\n"), f"\ufeff{OK}", '{"trace": "trace", "hardware": "t4"}'],
    ids=["line ends of Windows", "a byte order mark", "JSON"],
)
def test_what_is_harmless_runs(
    text: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    (home / "harmless.yaml").write_bytes(text.encode())
    options = "--no-plots --set bounds=false --set workload.requests=1"
    code, output = answer(["run", "harmless.yaml", *options.split(), "--out", tmp_path / "run"])
    (home / "harmless.yaml").unlink()
    assert code == 0, output
