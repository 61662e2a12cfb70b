"""One small language model with each gate: its loss, and its cost of serving.

    python studies/dselect/language.py OUT [--rows dselect_k top_k ...] [--seeds 3]

Text, windows, layers, experts and their first weights are the same for every row. Only the gate and
its input differ. Each row tries four settings: one trial at each of the same four learning rates,
with the same factors and with options of its own. Each setting is trained briefly on a seed that no
table shows. The one with the least validation loss is kept, and all seeds are trained with it. The
tables use the same validation windows. Losses are those of the served model, with at most k experts
a token (`k` is 2 of 8; 1 for Switch).

Then the standard recorder records every model on the same prompts, cut from held-out text. All
models generate the same number of tokens for a prompt, and end tokens do not end a text. The texts
differ. The simulator serves each trace. Routing and losses are measured. Serving is simulated, with
assumed sizes and hardware: four of Mixtral-8x7B's layers on the profile rtx-3060-12gb.

The text is the one that every machine with Python has, or that of `--text DOMAIN=PATH`. Each
finished model is kept in OUT, and a killed study resumes there. It takes about forty minutes on one
core.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import language_served
import numpy as np
import recovery
import torch
from recovery import spread

from moesim.cli.ending import run_to_its_end
from moesim.cli.text import corpus_of, spell_text
from moesim.errors import MoesimError, OutputError, UsageError
from moesim.record import load_model, record
from moesim.report.statistics import difference
from moesim.report.tabular import Table, markdown
from moesim.streams import stream
from moesim.trace import load_trace
from moesim.training import PRESETS, Corpus, GatedPreset, cut_prompts, train
from moesim.training.gates import DSelectK

TUNING_SEED = recovery.TUNING_SEED
RATES = (1.5e-3, 1.5e-2)  # log-uniform, divided into one part a trial, with one draw in each
GATE_FACTORS = (1.0, 3.0, 10.0)  # of the rate, for gates
BALANCE = (0.0, 0.01, 0.1)


@dataclass(frozen=True, slots=True)
class Row:
    """A gate, its input, and the options that may be tuned."""

    gate: str
    routed_by: str = "hidden"
    space: Mapping[str, Sequence[Any]] = field(default_factory=dict)


DSELECT: Mapping[str, Sequence[Any]] = {
    "gamma": (0.3, 1.0, 3.0),
    "entropy": (0.0, 1e-3, 1e-2, 1e-1),
    "over_rows": ("mean",),
}
ROWS: Mapping[str, Row] = {
    "dselect_k": Row("dselect_k", space=DSELECT),
    "top_k": Row("top_k", space={"balance": BALANCE}),
    "noisy_top_k": Row("noisy_top_k", space={"balance": BALANCE}),
    "softmax": Row("softmax"),
    "gumbel": Row(
        "gumbel", space={"temperature": (0.3, 1.0, 3.0), "straight_through": (False, True)}
    ),
    "switch": Row("switch", space={"balance": BALANCE}),
    "hash, by token": Row("hash", "tokens"),
    "top_k, ahead": Row("top_k", "prefix", {"balance": BALANCE}),
    "dselect_k, ahead": Row("dselect_k", "prefix", DSELECT),
    "dselect_k, by task": Row("dselect_k", "tasks", DSELECT),
    "top_k, by task": Row("top_k", "tasks", {"balance": (0.0,)}),
}
Setting = dict[str, Any]
Story = dict[str, Any]  # a model's training.json
Results = dict[str, list[Story]]


def slug(name: str) -> str:
    """Return a row's name as a folder, which names its model and trace."""
    return "gates-" + name.replace(", ", "-").replace(" ", "-").replace("_", "-")


def draw_settings(name: str, count: int) -> list[Setting]:
    """Draw `count` settings of a row.

    All rows share rates and factors. Each row has its own options; no combination of them repeats
    before all were drawn.
    """
    shared, own = stream(0, "rates of all rows"), stream(0, f"options of {name}")
    edges = np.linspace(math.log(RATES[0]), math.log(RATES[1]), num=count + 1)
    space = ROWS[name].space
    combinations = [dict(zip(space, values, strict=True)) for values in product(*space.values())]
    order = own.permutation(len(combinations))
    return [
        {
            "learning_rate": float(math.exp(shared.uniform(edges[number], edges[number + 1]))),
            "gate_factor": GATE_FACTORS[shared.integers(len(GATE_FACTORS))],
            "gate_options": combinations[order[number % len(order)]],
        }
        for number in range(count)
    ]


def preset_of(name: str, setting: Setting, base: GatedPreset, steps: int) -> GatedPreset:
    """Return the preset of a row's model with a setting."""
    row, options = ROWS[name], dict(setting["gate_options"])
    if row.gate == "noisy_top_k":
        # One option for both losses, so that the gate has no larger space than others.
        options["importance"] = options["load"] = options.pop("balance")
    return replace(
        base,
        gate=row.gate,
        routed_by=row.routed_by,
        gate_options=options,
        gate_factor=setting["gate_factor"],
        learning_rate=setting["learning_rate"],
        top_k=1 if row.gate == "switch" else base.top_k,
        steps=steps,
    )


class Study:
    """Models kept in a folder: trial or seed / row. Models with other settings are refused."""

    def __init__(self, out: Path, corpus: Corpus, options: argparse.Namespace) -> None:
        for name in ("trials", "seeds", "steps", "trial_steps", "per_domain"):
            if getattr(options, name) < 1:
                raise UsageError(f"{name} ({getattr(options, name)}) must be at least 1")
        self.out, self.corpus, self.options = out, corpus, options
        base = PRESETS["gated"]
        assert isinstance(base, GatedPreset)
        self.base = base

    def models_of(self, name: str) -> list[Story]:
        """Tune, then return the chosen setting's model of every seed, with its trace."""
        settings = draw_settings(name, self.options.trials)
        losses = [self._tried(name, *numbered) for numbered in enumerate(settings)]
        best = losses.index(min(losses))
        return [
            self._recorded(name, f"seed-{seed}", settings[best], seed)
            for seed in range(self.options.seeds)
        ]

    def _tried(self, name: str, number: int, setting: Setting) -> float:
        """Return the loss of a trial; infinite if its training failed."""
        steps = self.options.trial_steps
        try:
            return final_loss(self._trained(name, f"trial-{number}", setting, TUNING_SEED, steps))
        except (UsageError, OutputError):
            raise
        except MoesimError as error:
            print(f"\n{name}, trial {number}: {error}", file=sys.stderr)
            return math.inf

    def folder(self, name: str, run: str) -> Path:
        """Return the folder of a row's model in a run; its trace is beside it."""
        return self.out / run / slug(name)

    def _trained(self, name: str, run: str, setting: Setting, seed: int, steps: int) -> Story:
        folder = self.folder(name, run)
        preset = preset_of(name, setting, self.base, steps)
        if not folder.exists():
            train(
                preset,
                self.corpus,
                folder,
                seed=seed,
                evaluate_every=50,
                checkpoint=folder.with_suffix(".checkpoint"),
                on_step=lambda done, of: say(f"{name}: {run}, step {done}/{of}", done % 10 == 0),
                provenance={"command": command(self.options), "row": name, "setting": setting},
            )
        story: Story = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        shape = json.loads(json.dumps(asdict(preset)))
        wanted = {"shape": shape, "setting": setting, "seed": seed, "text": self.corpus.describe()}
        if any(story[key] != value for key, value in wanted.items()):
            raise UsageError(f"{folder} was made with other settings; choose another folder")
        return story

    def _recorded(self, name: str, run: str, setting: Setting, seed: int) -> Story:
        story = self._trained(name, run, setting, seed, self.options.steps)
        model, tokenizer = load_model(self.folder(name, run))
        folder = self.folder(f"{name}-trace", run)
        if not folder.exists():
            prompts = cut_prompts(self.corpus, per_domain=self.options.per_domain)
            record(
                model,
                tokenizer,
                prompts,
                folder,
                temperature=0.8,
                ignore_end=True,
                prediction_depth=1 if ROWS[name].routed_by == "hidden" else 0,
                provenance={"command": command(self.options)},
                progress=lambda done, of: say(f"{name}: {run}, recorded {done}/{of}"),
            )
        wanted = self.options.per_domain * len(self.corpus.domains)
        if load_trace(folder).num_requests != wanted:
            raise UsageError(f"{folder} was made with other settings; choose another folder")
        return {**story, "trace": folder, **look(model, tokenizer, self.corpus)}


@torch.no_grad()
def look(model: Any, tokenizer: Any, corpus: Corpus) -> dict[str, float]:
    """Return how sparse a gate is in training mode, where it is not cut to k."""
    seen: list[torch.Tensor] = []
    hooks = []
    binary: list[float] = []
    for router in model.routers:
        # In evaluation a gate is cut to k; its own sparsity shows in training mode only.
        router.train()
        hooks.append(router.register_forward_hook(lambda _, __, output: seen.append(output[1])))
        if isinstance(router.gate, DSelectK):
            hooks.append(router.gate.register_forward_pre_hook(_note_bits(binary)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for domain in corpus.domains:
            text = corpus.validation[domain][0].text[:2000]
            ids = tokenizer(text, return_tensors="pt")["input_ids"][:, :256]
            model(input_ids=ids, **model.inputs_of([domain]))
    for hook in hooks:
        hook.remove()
    model.eval()
    counts = [float((weights != 0).sum(dim=1).double().mean()) for weights in seen]
    return {
        "non_zeros": sum(counts) / len(counts),
        "binary": sum(binary) / len(binary) if binary else math.nan,
    }


def _note_bits(binary: list[float]) -> Any:
    def note(gate: DSelectK, inputs: tuple[torch.Tensor, ...]) -> None:
        binary.append(gate.binary_share(*inputs))

    return note


def by_quality(results: Results) -> Table:
    """Return the models' losses."""
    table = Table(
        "Validation loss as served (nats a token), 95 % intervals over seeds",
        ["row", "routing", "parameters", "loss", "DSelect-k less this", "reading",
         "experts a token in training", "binary bits"],
    )  # fmt: skip
    ours = results.get("dselect_k")
    for name, stories in results.items():
        losses = [final_loss(story) for story in stories]
        less = reading = ""
        if ours is not None and name != "dselect_k":
            gap = difference([final_loss(s) for s in ours], losses, relative=False)
            less, reading = recovery.written(gap, 3, sign=True), recovery.reading(gap, -1)
        bits = [story["binary"] for story in stories]
        table.add(
            name,
            language_served.routing_of(stories[0]["trace"]),
            f"{stories[0]['parameters']:,}",
            spread(losses, 3),
            less,
            reading,
            spread([story["non_zeros"] for story in stories], 2),
            "" if math.isnan(bits[0]) else spread(bits, 2),
        )
    return table


def by_setting(results: Results) -> Table:
    """Return the settings that tuning chose."""
    table = Table("Chosen settings", ["row", "learning rate", "gates' factor", "options"])
    for name, stories in results.items():
        setting = stories[0]["setting"]
        options = ", ".join(f"{key} {value}" for key, value in setting["gate_options"].items())
        table.add(
            name, f"{setting['learning_rate']:.2g}", f"{setting['gate_factor']:g}", options or "-"
        )
    return table


def final_loss(story: Story) -> float:
    """Return the validation loss at the end of training."""
    return float(story["validation_loss"][-1]["loss"])


def say(what: str, now: bool = True) -> None:
    """Show progress in one line of stderr, if `now`."""
    if now:
        print(f"\r{what:<70}", end="", file=sys.stderr, flush=True)


def command(options: argparse.Namespace) -> str:
    """Return the command that repeats the study, without folders of this machine."""
    text = "".join(f" --text {pair}" for pair in spell_text(options.text))
    sizes = [f"--{key.replace('_', '-')} {getattr(options, key)}" for key in _SIZES]
    return f"python studies/dselect/language.py OUT {' '.join(sizes)}{text}"


_SIZES: Mapping[str, int] = {
    "trials": 4,
    "trial_steps": 100,
    "seeds": 3,
    "steps": 500,
    "per_domain": 24,
    "characters": 1_000_000,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study from a command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--text", action="append", metavar="DOMAIN=PATH")
    parser.add_argument("--plot", type=Path, help="folder for the plot (default: OUT/plots)")
    for name, value in _SIZES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    corpus = corpus_of(options.text, options.characters)
    study = Study(options.out, corpus, options)
    results = {name: study.models_of(name) for name in options.rows}
    print(file=sys.stderr)
    losses = {name: [final_loss(s) for s in stories] for name, stories in results.items()}
    traces = {name: [s["trace"] for s in stories] for name, stories in results.items()}
    tables = [by_quality(results), by_setting(results)]
    tables += language_served.tables(traces, losses, options.plot or options.out / "plots")
    for table in tables:
        print(markdown(table), end="\n\n")


if __name__ == "__main__":
    run_to_its_end(main)
