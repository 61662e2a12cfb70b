"""The command line: exit codes, what goes to stdout, what a mistake looks like."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner
from workloads import tiny_trace

from moesim.cli import app
from moesim.errors import MissingExtra

MOESIM = [sys.executable, "-m", "moesim"]


def moesim(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MOESIM, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, check=False
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trace and a scenario."""
    home = tmp_path_factory.mktemp("home")
    tiny_trace(requests=4).save(home / "trace")
    (home / "x.yaml").write_text("trace: trace\nhardware: rtx-4090\ncache: {slots: 4/layer}\n")
    return home


def test_run_writes_a_run_directory_and_names_it_last(home: Path) -> None:
    done = moesim("run", home / "x.yaml", "--out", home / "run")
    assert done.returncode == 0, done.stderr
    *_, plots_line, page_line, last = done.stdout.splitlines()
    assert plots_line == f"plots are in {home / 'run' / 'plots'}"
    assert page_line.endswith(shlex.join(["moesim", "report", str(home / "run"), "--html"]))
    assert last == str(home / "run")
    summary = json.loads((home / "run" / "summary.json").read_text())
    for key in (
        "expert_hit_rate",
        "ttft_p95_ms",
        "tpot_mean_ms",
        "e2e_p95_ms",
        "output_tokens_per_s",
        "h2d_bytes",
        "stall_share",
    ):
        assert summary[key] is not None
    plots = {path.stem for path in (home / "run" / "plots").glob("*.png")}
    assert plots == {"latency_cdf", "stall_breakdown", "hits_by_layer", "lane_timeline"}


def test_set_overrides_the_file_and_no_plots_leaves_them_out(home: Path) -> None:
    arguments = ("run", home / "x.yaml", "--set", "cache.policy=fifo", "--set", "seed=3")
    done = moesim(*arguments, "--no-plots", "--json", "--out", home / "fifo")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["cache_policy"], summary["seed"]) == ("fifo", 3)
    assert summary["out"] == str(home / "fifo")
    assert not (home / "fifo" / "plots").exists()


def test_a_curve_says_which_policies_know_the_future_and_what_batch_there_was(home: Path) -> None:
    policies = [f"--policy={name}" for name in ("lru", "min_window", "static")]
    head, seers, columns, *_ = moesim("curve", home / "trace", *policies).stdout.splitlines()
    assert head.startswith("# SYNTHETIC ROUTING, drawn at random, made by no model: ")
    assert "; one cache per layer; batch 1; atomic replay: a layer's experts are looked up" in head
    assert "<" not in head
    assert re.split(r"  +", columns) == [
        "capacity", "lru", "min_window [knows the future]", "static [knows the future]",
    ]  # fmt: skip
    assert seers == "# min_window, static: knows the future: a bound, not a policy"
    alone = moesim("curve", home / "trace", "--policy", "lru", "--batch", "999").stdout
    assert re.search(r"; batch 999 \(the trace has \d+ requests: all together\); ", alone)
    assert "future" not in alone
    one_by_one = ["--replay", "sequential", "--scope", "global", "--admission", "always"]
    head = moesim("curve", home / "trace", "--policy", "lru", *one_by_one).stdout.splitlines()[0]
    assert "one cache for all layers" in head
    assert "sequential replay: experts are looked up one by one, which inflates misses" in head
    assert "every fetched expert gets a slot" in head


def test_curve_prints_json_by_policy_and_capacity(home: Path) -> None:
    done = moesim("curve", home / "trace", "--policy", "lru", "--policy", "min", "--json")
    rates = json.loads(done.stdout)
    assert list(rates) == ["lru", "min"]
    assert list(rates["lru"]) == [str(capacity) for capacity in range(1, 9)]
    assert all(rates["min"][c] >= rates["lru"][c] for c in rates["lru"])
    some = json.loads(
        moesim("curve", home / "trace", "--policy", "lru", "--capacity", "2,4", "--json").stdout
    )
    assert some["lru"] == {c: rates["lru"][c] for c in ("2", "4")}


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("trace: trace\nhardware: rtx-4091\n", ["x.yaml:2:11", "rtx-4090"]),
        ("trace: trace\nhardware: t4\ncashe: {}\n", ["x.yaml:3:1", "cache"]),
        ("trace: trace\nhardware: t4\ncache: {policy: lruu}\n", ["x.yaml:3:17", "lru"]),
        ("trace: trace\nhardware: t4\ntrace: trace\n", ["x.yaml:3:1"]),
        ("trace: trace\nhardware: t4\ncache: {slots: -3}\n", ["x.yaml:3:16"]),
        ("trace: trace\nhardware: t4\nmodel: mixtral-8x7b\n", ["x.yaml:3:8", "4 MoE layers", "32"]),
        ("", ["x.yaml"]),
        ("trace: [\n", ["x.yaml"]),
        (
            "trace: trace\nhardware: t4\nworkload: {arrivals: {kind: recorded}}\n",
            ["no arrival times"],
        ),
        (
            "trace: trace\nhardware: t4\nprefetch: {policy: oracle, options: {deth: 1}}\n",
            ["x.yaml:3", "depth"],
        ),
    ],
)
def test_a_wrong_scenario_is_exit_2_with_its_place(
    home: Path, tmp_path: Path, text: str, fragments: list[str]
) -> None:
    (tmp_path / "trace").symlink_to(home / "trace")
    (tmp_path / "x.yaml").write_text(text)
    done = moesim("run", "x.yaml", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    for fragment in fragments:
        assert fragment in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trace", "x.yaml"]


def test_all_mistakes_are_reported_at_once(home: Path, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("trace: nope\nhardware: t5\nseed: minus one\n")
    done = moesim("run", tmp_path / "x.yaml")
    assert done.returncode == 2
    for place in ("x.yaml:1:8", "x.yaml:2:11", "x.yaml:3:7"):
        assert place in done.stderr


def test_a_sweep_is_refused_by_run_which_names_compare(home: Path) -> None:
    (home / "sweep.yaml").write_text("trace: trace\nhardware: t4\nsweep: {seed: [0, 1]}\n")
    done = moesim("run", home / "sweep.yaml")
    assert (done.returncode, "compare" in done.stderr) == (2, True)


def test_impossible_memory_is_refused_with_the_numbers(home: Path) -> None:
    done = moesim("run", home / "x.yaml", "--set", "memory.capacity=1MiB", "--out", home / "no")
    assert done.returncode == 2
    assert "fixed weights" in done.stderr
    assert "1048576 bytes" in done.stderr
    assert not (home / "no").exists()


def test_a_broken_trace_is_exit_1_naming_file_and_place(home: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(home / "trace", tmp_path / "bad")
    shard = tmp_path / "bad" / "expert_ids-00000.npy"
    data = bytearray(shard.read_bytes())
    data[-5] ^= 0xFF
    shard.write_bytes(bytes(data))
    done = moesim("trace", "validate", tmp_path / "bad")
    assert done.returncode == 1
    assert "expert_ids-00000.npy" in done.stderr
    assert moesim("trace", "validate", home / "trace").returncode == 0
    shard.write_bytes(bytes(data[:-7]))
    (tmp_path / "y.yaml").write_text("trace: bad\nhardware: t4\n")
    done = moesim("run", tmp_path / "y.yaml")
    assert (done.returncode, "expert_ids-00000.npy" in done.stderr) == (1, True)


def test_a_place_that_cannot_be_written_is_exit_1_naming_it(home: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = moesim("run", home / "x.yaml", "--out", tmp_path / "file" / "run", "--no-plots")
    assert done.returncode == 1
    assert str(tmp_path / "file") in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGHUP, 129, "hung up"),
    ],
)
def test_a_run_that_a_signal_ends_says_so_and_leaves_nothing_behind(
    home: Path, tmp_path: Path, number: int, code: int, said: str
) -> None:
    arguments = ["run", str(home / "x.yaml"), "--out", str(tmp_path / "run")]
    many = ["--set", "workload.requests=20000", "--set", "workload.order=resampled"]
    process = subprocess.Popen(
        [*MOESIM, *arguments, *many], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 300
    while not any(tmp_path.glob(".run.partial-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, number)
    output, errors = process.communicate(timeout=300)
    assert (process.returncode, errors, output) == (code, f"{said}\n", "")
    assert not any(tmp_path.iterdir())


def test_figures_that_cannot_be_written_are_refused_with_a_way_to_the_tables(
    home: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert moesim("run", home / "x.yaml", "--out", run, "--no-plots").returncode == 0
    (tmp_path / "file").touch()
    done = moesim("report", run, "--out", tmp_path / "file/figures")
    assert done.returncode == 1
    assert done.stderr.endswith("and --no-plots prints the tables alone\n")
    assert moesim("report", run, "--no-plots").returncode == 0


def test_a_second_run_is_refused_by_name_and_a_killed_one_is_cleaned_up(
    home: Path, tmp_path: Path
) -> None:
    arguments = ["run", str(home / "x.yaml"), "--no-plots", "--out"]
    many = ["--set", "workload.requests=20000", "--set", "workload.order=resampled"]
    with subprocess.Popen([*MOESIM, *arguments, str(tmp_path / "a"), *many]) as first:
        try:
            deadline = time.monotonic() + 60
            while not any(tmp_path.glob(".a.partial-*")) and time.monotonic() < deadline:
                time.sleep(0.02)
            second = moesim(*arguments, tmp_path / "a")
        finally:
            first.kill()
    assert second.returncode == 1
    assert f"a: is being written by process {first.pid} on " in second.stderr
    assert any(tmp_path.iterdir())
    assert moesim(*arguments, tmp_path / "b").returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_output_that_finds_no_room_is_one_message() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*MOESIM, "list", "policies"], stdout=full, stderr=subprocess.PIPE, text=True,
            check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        1, "error: cannot write the output: No space left on device\n"
    )  # fmt: skip


@pytest.mark.skipif(os.name != "posix", reason="a POSIX shell closes the stream")
def test_a_closed_stream_is_no_error_and_changes_no_exit_code() -> None:
    for line, code, text in (
        ("list policies >&-", 0, ""),
        ("list nothing 2>&-", 2, ""),
        ("list nothing >&-", 2, "error: there is no list of 'nothing'"),
    ):
        done = subprocess.run(
            ["sh", "-c", f"{shlex.join(MOESIM)} {line}"], capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == code
        assert done.stderr.startswith(text)
        assert "Traceback" not in done.stderr


def test_a_signal_that_the_parent_ignores_stays_ignored() -> None:
    code = (
        "import os, signal; from moesim import cli; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "cli.app = lambda: os.kill(os.getpid(), signal.SIGHUP); cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_smaller_commands_work(home: Path, tmp_path: Path) -> None:
    assert "adjacent_token_overlap" in moesim("trace", "info", home / "trace").stdout
    assert "lru" in json.loads(moesim("policies", "--json").stdout)["eviction"]
    assert json.loads(moesim("schema").stdout)["title"] == "moesim scenario"
    done = moesim("trace", "synth", tmp_path / "s", "--requests", "2", "--layers", "2")
    assert done.returncode == 0
    assert moesim("trace", "validate", tmp_path / "s").returncode == 0
    again = moesim("trace", "synth", tmp_path / "s")
    assert (again.returncode, "--force" in again.stderr) == (1, True)


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['moesim', '--help']\n"
        "import moesim.cli\n"
        "try: moesim.cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'pandas', 'matplotlib', 'scipy', 'transformers', 'numpy', 'pyarrow'}\n"
        "heavy |= {'psutil', 'pynvml'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(
    "hit",
    [
        "exec('raise KeyboardInterrupt')",  # as in the making of a dataclass
        "fail_of_it()",
    ],
)
def test_an_interrupt_that_hits_an_import_is_exit_130(hit: str, tmp_path: Path) -> None:
    """Python may end by the signal itself, or turn the interrupt into another error."""
    code = f"""
import os, signal
from moesim import cli

def fail_of_it():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt as error:
        raise ImportError("initialization failed") from error

cli.app = lambda: {hit}
cli.main()
"""
    (tmp_path / "console.py").write_text(code)
    command = [sys.executable, "-m", "console"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def ended_by(app: str) -> subprocess.CompletedProcess[str]:
    """The command line, with `app` in the place of its commands."""
    code = f"import os, signal, time\nfrom moesim import cli\n{app}\ncli.app = app\ncli.main()"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_an_interrupt_that_a_library_drops_ends_the_command_all_the_same() -> None:
    done = ended_by("""
def app():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except BaseException:
        pass
    time.sleep(100)
    print("the interrupt is lost")
""")
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "terminated\n")


def test_an_interrupt_that_python_drops_is_not_shown_and_ends_the_command_all_the_same() -> None:
    done = ended_by("""
class Freed:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)

def app():
    Freed()
    time.sleep(100)
    print("the interrupt is lost")
""")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_another_error_that_python_drops_is_shown() -> None:
    done = ended_by("""
class Freed:
    def __del__(self):
        raise ValueError("freed too late")

def app():
    Freed()
""")
    assert "ValueError: freed too late" in done.stderr


def test_what_an_interrupt_unwinds_is_not_interrupted_again() -> None:
    done = ended_by("""
def app():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)
        print("cleaned up")
""")
    assert (done.returncode, done.stdout, done.stderr) == (130, "cleaned up\n", "interrupted\n")


@pytest.mark.parametrize(
    "command",
    [
        ["record", "--model", "none", "--prompts", "none", "--out", "."],
        ["models", "train", "--out", "."],
    ],
)
def test_a_missing_extra_is_said_before_any_other_mistake(
    monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setattr("moesim.record.extra.find_spec", lambda name: None)
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, MissingExtra), result.output
