"""A run directory is whole or absent, the same bytes each time, and says what it was made of."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from costed_traces import costed_trace
from workloads import tiny_scenario, tiny_trace

from moesim.errors import OutputError, ScenarioError, TraceError
from moesim.simulate import run, rundir

FILES = {
    "scenario.yaml",
    "summary.json",
    "requests.parquet",
    "steps.parquet",
    "layers.parquet",
    "timeline.parquet",
    "manifest.json",
}
COLUMNS = {
    "requests": "request domain arrival_ns scheduled_ns first_token_ns finish_ns queue_ns "
    "service_ns prompt_tokens output_tokens preemptions wait_steps pause_steps pause_ns tiled_rows "
    "status token_ns",
    "steps": "step start_ns finish_ns tokens prefill_tokens decode_tokens sequences accesses hits "
    "late_hits misses h2d_bytes stall_ns waves kv_blocks residents",
    "layers": "layer model_layer events accesses hits late_hits misses tokens token_hits "
    "unique_experts_mean stall_demand_ns stall_late_ns stall_readback_ns stall_other_ns "
    "stall_cpu_ns stall_disk_ns stall_host_ns elsewhere demand_bytes prefetch_bytes",
    "timeline": "lane kind start_ns finish_ns step layer expert",
}
LATENCIES = [
    f"{name}_{point}_ms"
    for name in ("ttft", "ttft_queue", "ttft_service", "tpot", "itl", "e2e", "normalised")
    for point in ("mean", "p50", "p90", "p95", "p99")
]
PROMISED = {"expert_hit_rate", "ttft_p95_ms", "tpot_mean_ms", "e2e_p95_ms"} | {
    "output_tokens_per_s",
    *(f"decode_{part}_tokens_per_s" for part in ("mean", "p50", "p10", "p5", "p1")),
    "h2d_bytes",
    "stall_share",
}
REPORTED = """
    name trace model hardware cache_policy cache_scope cache_slots cache_slots_per_layer num_experts
    num_layers prefetch_policy batching_policy seed requests finished rejected running queued
    preemptions output_tokens steps layer_events makespan_s tokens_per_s requests_per_s
    late_hit_rate token_hit_rate accesses hits late_hits misses demand_bytes prefetch_bytes
    prefetch_useful_bytes prefetch_late_bytes prefetch_wasted_bytes prefetch_unused_bytes load_bytes
    d2h_bytes gpu_busy_share h2d_busy_share d2h_busy_share stall_s stall_demand_s stall_late_s
    stall_readback_s stall_other_s stall_cpu_s stall_disk_s stall_host_s elsewhere states_bytes
    disk_bytes cpu_busy_share disk_busy_share
    busy_s idle_s peak_vram_bytes vram_bytes fixed_bytes kv_bytes
    slots_bytes staging_bytes activations_bytes peak_kv_blocks waves_max waves_mean
    unique_experts_per_event_mean tiled_share min_hit_rate infinite_cache_hit_rate
    infinite_cache_makespan_s infinite_cache_e2e_p95_ms infinite_link_makespan_s
    infinite_link_e2e_p95_ms min_time_in_steps_s infinite_cache_time_in_steps_s
    infinite_link_time_in_steps_s verdict verdict_reason cost_kind caveats notes
    wait_max_ms wait_max_steps pause_max_ms pause_max_steps
    window_from_s window_to_s window_s window_requests
    placement_policy host_memory_bytes host_weights_bytes host_kv_bytes host_experts_bytes
    pinned_bytes
"""
KEYS = {*PROMISED, *LATENCIES, *REPORTED.split()}


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    folder = tmp_path / "trace"
    tiny_trace(requests=5, prompt_tokens=4, output_tokens=5, stickiness=0.3).save(folder)
    return folder


def scenario_of(trace: Path, **changes: Any) -> dict[str, Any]:
    """Return a scenario in which every part that can draws random numbers."""
    return {
        **tiny_scenario(
            trace=str(trace),
            cache={"policy": "random", "slots": 13},
            prefetch={"policy": "predicted"},
            workload={
                "requests": 9,
                "order": "resampled",
                "prefill": "resample",
                "arrivals": {"kind": "gamma", "rate_per_s": 900.0, "burstiness": 2.0},
            },
            bounds=True,
            seed=5,
        ),
        **changes,
    }


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of all files, without the manifest's wall time."""
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    manifest = json.loads(found["manifest.json"])
    assert manifest.pop("wall_s") >= 0
    found["manifest.json"] = json.dumps(manifest).encode()
    return found


# --- what is in it --------------------------------------------------------------------------------


def test_a_run_directory_has_its_files_and_columns(tmp_path: Path, trace: Path) -> None:
    result = run(scenario_of(trace), out=tmp_path / "out")
    assert result.path == tmp_path / "out"
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    for name, columns in COLUMNS.items():
        table = pq.read_table(tmp_path / "out" / f"{name}.parquet")
        assert set(table.column_names) == set(columns.split())
        assert table.num_rows > 0
        assert result.table(name).columns.tolist() == table.column_names


def test_the_summary_has_its_fixed_keys_and_only_plain_values(tmp_path: Path, trace: Path) -> None:
    run(scenario_of(trace), out=tmp_path / "out")
    text = (tmp_path / "out" / "summary.json").read_text(encoding="utf-8")
    summary = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert summary.keys() >= KEYS, KEYS - summary.keys()
    for key in PROMISED:
        assert isinstance(summary[key], int | float), key
    assert all(
        value is None or isinstance(value, str | int | float) or key in ("caveats", "notes")
        for key, value in summary.items()
    )


def test_what_is_undefined_is_null(tmp_path: Path) -> None:
    """Requests of one output token have no time per output token and no gaps."""
    one = costed_trace(np.zeros((3, 1, 1), int), seq_len=[2, 1])
    one.save(tmp_path / "trace")
    summary = run(tiny_scenario(trace=str(tmp_path / "trace")), out=tmp_path / "out").summary
    undefined = {key for key in LATENCIES if key.startswith(("tpot", "itl"))}
    assert {key for key in LATENCIES if summary[key] is None} == undefined
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["tpot_mean_ms"] is None
    columns = pq.read_table(tmp_path / "out" / "requests.parquet").to_pydict()
    assert columns["first_token_ns"] == columns["finish_ns"]


def test_a_hit_rate_of_no_accesses_is_null(tmp_path: Path) -> None:
    """A router may leave every place unused: then there is nothing to hit."""
    costed_trace(np.full((2, 3, 2), -1)).save(tmp_path / "trace")
    summary = run(tiny_scenario(trace=str(tmp_path / "trace"), bounds=True)).summary
    assert summary["accesses"] == summary["h2d_bytes"] == 0
    rates = ("expert_hit_rate", "late_hit_rate", "token_hit_rate", "min_hit_rate")
    assert [summary[key] for key in (*rates, "infinite_cache_hit_rate")] == [None] * 5
    assert summary["finished"] == 1


def test_the_summary_is_what_the_raw_rows_say(tmp_path: Path, trace: Path) -> None:
    summary = run(scenario_of(trace), out=tmp_path / "out").summary
    tables = {
        name: pq.read_table(tmp_path / "out" / f"{name}.parquet").to_pandas() for name in COLUMNS
    }
    requests, steps, layers = tables["requests"], tables["steps"], tables["layers"]
    first = requests["first_token_ns"].to_numpy()
    e2e = (requests["finish_ns"] - requests["arrival_ns"]).to_numpy()
    gaps = np.concatenate([np.diff(tokens) for tokens in requests["token_ns"]])
    samples = {
        "ttft": first - requests["arrival_ns"].to_numpy(),
        "tpot": (requests["finish_ns"].to_numpy() - first) / (requests["output_tokens"] - 1),
        "itl": gaps,
        "e2e": e2e,
    }
    for name, values in samples.items():
        assert summary[f"{name}_mean_ms"] == pytest.approx(np.mean(values) / 1e6)
        for point in (50, 90, 95, 99):
            expected = np.percentile(values, point) / 1e6
            assert summary[f"{name}_p{point}_ms"] == pytest.approx(expected), (name, point)
    assert [len(tokens) for tokens in requests["token_ns"]] == requests["output_tokens"].tolist()
    assert all(
        tokens[0] == start for tokens, start in zip(requests["token_ns"], first, strict=True)
    )
    makespan = int(steps["finish_ns"].max())
    assert summary["makespan_s"] == makespan / 1e9
    output = int(requests["output_tokens"].sum())
    assert summary["output_tokens"] == output
    assert summary["output_tokens_per_s"] == pytest.approx(output / makespan * 1e9)
    assert summary["requests_per_s"] == pytest.approx(len(requests) / makespan * 1e9)
    for column in ("accesses", "hits", "late_hits", "misses"):
        assert summary[column] == steps[column].sum() == layers[column].sum(), column
    hits = summary["hits"] + summary["late_hits"]
    assert summary["expert_hit_rate"] == pytest.approx(hits / summary["accesses"])
    assert summary["late_hit_rate"] == pytest.approx(summary["late_hits"] / summary["accesses"])
    assert summary["token_hit_rate"] == pytest.approx(
        layers["token_hits"].sum() / layers["tokens"].sum()
    )
    assert layers["tokens"].sum() == steps["tokens"].sum() * 4 * 2
    assert summary["demand_bytes"] == layers["demand_bytes"].sum()
    assert steps["h2d_bytes"].sum() == layers[["demand_bytes", "prefetch_bytes"]].sum().sum()
    assert summary["steps"] == len(steps)
    assert summary["layer_events"] == layers["events"].sum() == 4 * len(steps)
    in_steps = (steps["finish_ns"] - steps["start_ns"]).sum()
    assert summary["stall_s"] == pytest.approx(steps["stall_ns"].sum() / 1e9)
    assert summary["stall_share"] == pytest.approx(steps["stall_ns"].sum() / in_steps)
    assert summary["busy_s"] + summary["stall_s"] == pytest.approx(in_steps / 1e9)
    assert summary["idle_s"] == pytest.approx((makespan - in_steps) / 1e9)
    causes = sum(summary[f"stall_{cause}_s"] for cause in ("demand", "late", "readback", "other"))
    assert causes == pytest.approx(summary["stall_s"])
    timeline = tables["timeline"]
    assert summary["steps"] <= 20, "the window shows the whole run"
    for lane in ("gpu", "d2h"):
        rows = timeline[timeline["lane"] == lane]
        busy = (rows["finish_ns"] - rows["start_ns"]).sum()
        assert summary[f"{lane}_busy_share"] == pytest.approx(busy / makespan), lane
    copies = timeline[timeline["kind"].isin(["demand", "prefetch"])]
    sizes = summary["demand_bytes"] // summary["misses"]
    assert len(copies) * sizes == summary["h2d_bytes"]


def test_the_manifest_names_hashes_seed_versions_and_point(tmp_path: Path, trace: Path) -> None:
    out = tmp_path / "out"
    run(scenario_of(trace), out=out, point={"cache.slots": 13})
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["outputs"].keys() == FILES - {"manifest.json"}
    for name, digest in manifest["outputs"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest, name
    header = hashlib.sha256((trace / "trace.json").read_bytes()).hexdigest()
    assert manifest["inputs"]["trace"] == header
    assert (manifest["seed"], manifest["point"]) == (5, {"cache.slots": 13})
    assert manifest["versions"].keys() >= {"moesim", "python", "numpy", "simpy", "pyarrow"}
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert manifest["layer_events"] == summary["layer_events"]
    assert manifest["simulated_s"] == summary["makespan_s"]


def test_the_scenario_in_a_run_directory_runs_again_to_the_same_result(
    tmp_path: Path, trace: Path
) -> None:
    first = run(scenario_of(trace, name="again"), out=tmp_path / "out")
    second = run(tmp_path / "out" / "scenario.yaml", out=tmp_path / "other")
    assert second.summary == first.summary
    for name in ("summary.json", "requests.parquet", "steps.parquet"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


# --- the same bytes -------------------------------------------------------------------------------

CHILD = """
import json, sys
from moesim.simulate import run
given = json.loads(sys.argv[1])
{before}
run(given["scenario"], out=given["out"], force=given.get("force", False))
"""


def child(
    out: Path, scenario: Any, *, before: str = "", hash_seed: str = "0", force: bool = False
) -> subprocess.CompletedProcess[str]:
    given = json.dumps({"scenario": scenario, "out": str(out), "force": force})
    return subprocess.run(
        [sys.executable, "-c", CHILD.format(before=before), given],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_same_seed_writes_the_same_bytes_whatever_the_hash_seed(
    tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hash of the code is fixed here, so that edits during the test do not change the bytes."""
    scenario = scenario_of(trace)
    same_code = "from moesim.simulate import rundir; rundir.code_hash = lambda: 'code'"
    monkeypatch.setattr(rundir, "code_hash", lambda: "code")
    for hash_seed in ("1", "77"):
        folder = tmp_path / f"seed{hash_seed}"
        assert not child(folder, scenario, before=same_code, hash_seed=hash_seed).stderr
    run(scenario, out=tmp_path / "here")
    run(scenario, out=tmp_path / "more")
    written = [contents(tmp_path / name) for name in ("seed1", "seed77", "here", "more")]
    for other in written[1:]:
        assert other.keys() == written[0].keys()
        for name, content in written[0].items():
            assert other[name] == content, name
    run({**scenario, "seed": 6}, out=tmp_path / "other")
    assert contents(tmp_path / "other")["requests.parquet"] != written[0]["requests.parquet"]


# --- again, another, by force ---------------------------------------------------------------------


def forbidden(*_: Any, **__: Any) -> Any:
    pytest.fail("simulated again")


def test_running_the_same_again_does_nothing(
    tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first = run(scenario_of(trace), out=out)
    before = {path: path.stat() for path in out.iterdir()}
    monkeypatch.setattr("moesim.simulate.simulation.simulate", forbidden)
    second = run(scenario_of(trace), out=out)
    assert {path: path.stat() for path in out.iterdir()} == before
    assert second.summary == first.summary
    assert second.path == out
    for name in COLUMNS:
        assert second.table(name).equals(first.table(name)), name


def test_a_trace_that_moved_is_the_same_run(
    tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(scenario_of(trace), out=tmp_path / "out")
    shutil.copytree(trace, tmp_path / "copied")
    monkeypatch.setattr("moesim.simulate.simulation.simulate", forbidden)
    run(scenario_of(tmp_path / "copied"), out=tmp_path / "out")


def other_trace(trace: Path) -> dict[str, Any]:
    shutil.rmtree(trace)
    tiny_trace(requests=5, prompt_tokens=4, output_tokens=5, seed=77).save(trace)
    return {}


@pytest.mark.parametrize(
    "changes",
    [
        lambda trace: {"seed": 6},
        lambda trace: {"name": "another"},
        lambda trace: {"bounds": False},
        lambda trace: {"cache": {"policy": "random", "slots": 14}},
        lambda trace: {"hardware": {"profile": "rtx-4090", "h2d": {"latency": "11us"}}},
        other_trace,
    ],
    ids=["seed", "name", "bounds", "slots", "hardware", "trace"],
)
def test_another_run_is_refused_and_replaced_only_by_force(
    tmp_path: Path, trace: Path, changes: Any
) -> None:
    out = tmp_path / "out"
    run(scenario_of(trace), out=out)
    before = contents(out)
    other = scenario_of(trace, **changes(trace))
    with pytest.raises(OutputError, match="holds another run; choose another --out") as caught:
        run(other, out=out)
    assert caught.value.path == str(out)
    assert contents(out) == before
    result = run(other, out=out, force=True)
    assert contents(out) != before
    assert json.loads((out / "summary.json").read_text(encoding="utf-8")) == result.summary
    assert {path.name for path in tmp_path.iterdir()} == {"trace", "out"}


def test_other_code_is_another_run(
    tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(scenario_of(trace), out=tmp_path / "out")
    monkeypatch.setattr(rundir, "code_hash", lambda: "changed")
    with pytest.raises(OutputError, match="another run"):
        run(scenario_of(trace), out=tmp_path / "out")


def test_all_code_that_a_run_needs_counts_as_its_code_but_for_what_draws(
    tmp_path: Path, trace: Path
) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\nfrom moesim.scenario import Scenario\nfrom moesim.simulate import run\n"
        f"run(Scenario.model_validate({tiny_scenario(trace=str(trace), bounds=True)!r}))\n"
        "print(*(name.split('.')[1] for name in sys.modules if name.startswith('moesim.')))\n",
        encoding="utf-8",
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    rooms = set(done.stdout.split())
    assert {"results", "serving", "simulate"} <= rooms
    assert rooms & set(rundir._DECIDES_NOTHING) == {"report"}


def test_a_changed_arrivals_file_is_another_run(tmp_path: Path, trace: Path) -> None:
    lengths = tmp_path / "lengths.csv"
    header = "arrival_s,prompt_tokens,output_tokens\n"
    lengths.write_text(header + "0,3,3\n", encoding="utf-8")
    workload = {"arrivals": {"kind": "csv", "path": str(lengths)}}
    run(scenario_of(trace, workload=workload), out=tmp_path / "out")
    run(scenario_of(trace, workload=workload), out=tmp_path / "out")
    lengths.write_text(header + "0,3,4\n", encoding="utf-8")
    with pytest.raises(OutputError, match="another run"):
        run(scenario_of(trace, workload=workload), out=tmp_path / "out")


@pytest.mark.parametrize("damage", ["{", "[]", "{}", None])
def test_what_is_no_run_directory_is_refused(
    tmp_path: Path, trace: Path, damage: str | None
) -> None:
    out = tmp_path / "out"
    run(scenario_of(trace), out=out)
    if damage is None:
        (out / "manifest.json").unlink()
    else:
        (out / "manifest.json").write_text(damage, encoding="utf-8")
    with pytest.raises(OutputError, match="no whole run directory; pass --force"):
        run(scenario_of(trace), out=out)
    run(scenario_of(trace), out=out, force=True)
    assert {path.name for path in out.iterdir()} == FILES


def test_a_run_directory_that_lost_a_file_is_refused(tmp_path: Path, trace: Path) -> None:
    run(scenario_of(trace), out=tmp_path / "out")
    (tmp_path / "out" / "steps.parquet").write_bytes(b"PAR1")
    with pytest.raises(OutputError, match="no whole run directory"):
        run(scenario_of(trace), out=tmp_path / "out")


def test_a_file_in_the_way_is_refused(tmp_path: Path, trace: Path) -> None:
    (tmp_path / "out").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match="no whole run directory; choose another --out"):
        run(scenario_of(trace), out=tmp_path / "out")
    with pytest.raises(OutputError) as caught:
        run(scenario_of(trace), out=tmp_path / "out" / "below")
    assert caught.value.path == str(tmp_path / "out" / "below")
    assert (tmp_path / "out").read_text(encoding="utf-8") == "mine"


# --- nothing half-written -------------------------------------------------------------------------

DIE = "import os, signal; die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
KILLED_AT = {
    "the first step": "import moesim.policies.batching as b; b.DecodeFirst.plan = die",
    "the last invariant": "import moesim.simulate.simulation as s; s.check_run = die",
    "the first file": "import yaml; yaml.dump = die",
    "the first table": "import pyarrow.parquet as p; p.write_table = die",
    "the manifest": "import moesim.simulate.rundir as r; r.sha256 = die",
    "the rename": "import pathlib; pathlib.Path.rename = die",
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", KILLED_AT)
def test_a_killed_run_leaves_nothing_under_the_final_name(
    tmp_path: Path, trace: Path, moment: str
) -> None:
    scenario = scenario_of(trace, bounds=False)
    # What comes before the run itself (fingerprints) must work: it is imported and done first.
    before = "from moesim.simulate import rundir; rundir.fingerprint = lambda scenario: 'x'\n"
    before += "rundir.trace_hash = rundir.code_hash = lambda *_: 'x'\n"
    killed = child(tmp_path / "out", scenario, before=before + DIE + KILLED_AT[moment])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "out").exists()
    if moment == "the rename":  # what was there before is still there, and whole
        run(scenario, out=tmp_path / "out")
        whole = contents(tmp_path / "out")
        again = child(
            tmp_path / "out", scenario, before=before + DIE + KILLED_AT[moment], force=True
        )
        assert again.returncode == -signal.SIGKILL, again.stderr
        assert contents(tmp_path / "out") == whole


@pytest.mark.slow
def test_a_run_after_a_killed_one_is_whole(tmp_path: Path, trace: Path) -> None:
    scenario = scenario_of(trace, bounds=False)
    killed = child(tmp_path / "out", scenario, before=DIE + KILLED_AT["the first table"])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run(scenario, out=tmp_path / "out")
    run(scenario, out=tmp_path / "undisturbed")
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), TraceError("trace", "", "is gone"), MemoryError()]
)
def test_an_interrupted_or_failed_run_leaves_nothing_at_all(
    tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("moesim.simulate.simulation.summarise", fail)
    with pytest.raises(type(error)):
        run(scenario_of(trace), out=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["trace"]


def test_a_failed_replacement_leaves_the_old_run(
    tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(scenario_of(trace), out=tmp_path / "out")
    before = contents(tmp_path / "out")
    monkeypatch.setattr("moesim.simulate.simulation.summarise", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(scenario_of(trace, seed=8), out=tmp_path / "out", force=True)
    assert contents(tmp_path / "out") == before
    assert {path.name for path in tmp_path.iterdir()} == {"trace", "out"}


def test_a_run_that_another_process_finished_meanwhile_is_used(
    tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario, out = scenario_of(trace, bounds=False), tmp_path / "out"
    first = run(scenario, out=tmp_path / "first")

    def overtaken(*_: Any) -> Any:
        shutil.copytree(tmp_path / "first", out)
        return first

    monkeypatch.setattr("moesim.simulate.simulation.result_of", overtaken)
    assert run(scenario, out=out).summary == first.summary
    shutil.rmtree(out)
    with pytest.raises(OutputError, match="written by another process meanwhile"):
        run(scenario_of(trace, bounds=False, seed=8), out=out)


def test_the_manifest_names_the_inputs_as_they_were_before_the_simulation(
    tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario, out = scenario_of(trace, bounds=False), tmp_path / "out"
    first, header = run(scenario), trace / "trace.json"
    before = hashlib.sha256(header.read_bytes()).hexdigest()

    def edited(*_: Any) -> Any:
        header.write_text("{}")
        return first

    monkeypatch.setattr("moesim.simulate.simulation.result_of", edited)
    run(scenario, out=out)
    assert json.loads((out / "manifest.json").read_text())["inputs"]["trace"] == before


# --- the file system says no ----------------------------------------------------------------------


def test_a_full_disk_names_the_run_directory(
    tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pyarrow.parquet.write_table", full)
    with pytest.raises(OutputError, match="No space left on device") as caught:
        run(scenario_of(trace), out=tmp_path / "out")
    assert caught.value.path == str(tmp_path / "out")
    assert caught.value.exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["trace"]


def test_a_file_that_cannot_grow_is_an_output_error(tmp_path: Path, trace: Path) -> None:
    """The operating system itself refuses, at 1000 bytes a file."""
    before = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from moesim.errors import OutputError\n"
        "import sys\n"
        "sys.excepthook = lambda kind, error, _: print(kind.__name__, error.path, error.reason)\n"
    )
    ended = child(tmp_path / "out", scenario_of(trace, bounds=False), before=before)
    assert ended.returncode == 1
    assert ended.stdout.startswith(f"OutputError {tmp_path / 'out'} ")
    assert [path.name for path in tmp_path.iterdir()] == ["trace"]


@pytest.fixture
def shut(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Yield a folder without write permission; root gives up its rights for the test."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(getattr(request, "param", 0o555))
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)  # the user without rights; permissions do not bind root
    try:
        yield folder
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)
        shutil.rmtree(folder)


@pytest.fixture
def open_trace() -> Iterator[Path]:
    """Yield a trace that all users may read."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    tiny_trace(requests=2, prompt_tokens=2, output_tokens=2).save(folder / "trace")
    yield folder / "trace"
    shutil.rmtree(folder)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs the permissions of a Unix")
@pytest.mark.parametrize("below", ["out", "new/out"])
def test_a_read_only_folder_names_the_run_directory(
    open_trace: Path, shut: Path, below: str
) -> None:
    with pytest.raises(OutputError, match="Permission denied") as caught:
        run(scenario_of(open_trace), out=shut / below)
    assert caught.value.path == str(shut / below)
    assert list(shut.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs the permissions of a Unix")
@pytest.mark.parametrize("shut", [0o000], indirect=True)
def test_a_folder_that_may_not_be_entered_names_the_run_directory(
    open_trace: Path, shut: Path
) -> None:
    with pytest.raises(OutputError, match="Permission denied") as caught:
        run(scenario_of(open_trace), out=shut / "out")
    assert caught.value.path == str(shut / "out")


def test_force_replaces_no_folder_that_is_not_a_run(tmp_path: Path, trace: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work", encoding="utf-8")
    (tmp_path / "file").write_text("a file", encoding="utf-8")
    for name in ("home", "file"):
        with pytest.raises(OutputError, match=name):
            run(scenario_of(trace), out=tmp_path / name, force=True)
    assert (tmp_path / "home" / "thesis.tex").read_text(encoding="utf-8") == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "home", "trace"]


def test_a_static_placement_names_the_trace_it_learnt_from(tmp_path: Path, trace: Path) -> None:
    tiny_trace(requests=3, seed=7).save(tmp_path / "other")
    shutil.copytree(trace, tmp_path / "copy")

    def notes(profile: str) -> list[str]:
        cache = {"policy": "static", "options": {"profile": profile}, "slots": 8}
        return run(scenario_of(trace, cache=cache)).summary["notes"]

    assert f"static was learnt on the trace {tmp_path / 'other'}" in notes(str(tmp_path / "other"))
    for replayed in (f"{trace}/.", str(tmp_path / "copy")):
        assert any("hindsight" in note for note in notes(replayed))
    with pytest.raises(ScenarioError, match="there is no file or folder 'nowhere'"):
        notes("nowhere")


def test_mistakes_in_plain_data_are_those_of_a_file() -> None:
    with pytest.raises(ScenarioError, match="scenario: trace: is required and missing"):
        run({"hardware": "t4"})


def test_the_code_of_every_room_that_decides_a_result_counts() -> None:
    counted = {path.relative_to(rundir._PACKAGE).as_posix() for path in rundir.deciding_files()}
    deciding = {
        "policies/eviction/lru.py", "cost/roofline.py", "machine/sim.py", "serving/server.py",
        "simulate/build.py", "workload/workload.py", "scenario/sections.py", "trace/__init__.py",
        "engines/profiles/llama.cpp.yaml", "hardware/parts/gpus.yaml", "model/shapes.yaml",
        "hardware/profiles/rtx-3060-12gb.yaml", "executor/lanes.py", "streams.py",
    }  # fmt: skip
    assert deciding <= counted
    assert not [name for name in counted if name.startswith(("report/", "cli/", "measured/"))]
