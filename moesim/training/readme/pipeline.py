"""From a dense model to mixtures of experts: all steps in order; each result is stored when done.

    out/run.json             base, settings and text of the run
    out/scores.safetensors   channel scores by domain
    out/masks.safetensors    the experts' channels
    out/untuned.json         losses of the dense model, and of each expert alone, before tuning
    out/<kind>/              a finished model that transformers loads, with training.json
    out/<kind>.safetensors   a checkpoint, while its tuning lasts

Kinds: `decoupled` has one router for all layers, which reads tokens. `layerwise`, the comparator,
has the same experts with a router in each layer. `dense` is the dense model cut to the size of one
expert by the mean of all domains' scores. `oracle` has the experts of `decoupled`, but every text
is computed by its own domain's expert, in tuning and in measuring. It shows what a router that
always finds the domain would reach. No router learns, so its folder has training.json alone. All
are tuned on the same windows in the same order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moesim.errors import OutputError, UsageError
from moesim.files import sha256, whole_file, whole_folder, write_json
from moesim.record.header import TRAINING_RECORD, versions
from moesim.training.dense import load_base
from moesim.training.readme.distill import teacher
from moesim.training.readme.ffn import find_ffns
from moesim.training.readme.masks import (
    Masks,
    check_masks,
    pooled_mask,
    random_masks,
    top_masks,
)
from moesim.training.readme.model import ReadMeForCausalLM, materialise, refactor
from moesim.training.readme.scores import channel_scores
from moesim.training.readme.settings import KINDS, PipelineSettings
from moesim.training.readme.tuning import Measured, TuningText, evaluate, tune
from moesim.training.text import Corpus
from moesim.training.tokens import WindowStream, draw_windows, shuffle_domains, token_streams

__all__ = ["Untuned", "run"]

Show = Callable[[str, int, int], None]
Windows = Mapping[str, Tensor]

_STORY = "run.json"
_PARTIAL_STORY = f".{_STORY}.partial"


@dataclass(frozen=True, slots=True)
class Untuned:
    """Losses before any tuning, nats a token, by domain.

    `dense` is the dense model; `experts[mask][domain]` is each expert alone, without any router.
    """

    dense: Mapping[str, float]
    experts: Mapping[str, Mapping[str, float]]
    masks: Mapping[str, Any]


def run(
    base: str | Path,
    corpus: Corpus,
    out: str | Path,
    settings: PipelineSettings,
    *,
    kinds: Sequence[str] = KINDS[:2],
    show: Show | None = None,
    on_untuned: Callable[[Untuned], None] | None = None,
    on_stage: Callable[[str, Measured], None] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> dict[str, Path]:
    """Refactor, tune and write models of `kinds`; return their folders.

    Results of the same run that `out` already holds are reused, so a killed run resumes.
    `show(what, done, of)` reports progress; `on_untuned` and `on_stage` report results.

    Raise `UsageError`, before any long work, for a base, a text or settings that cannot be
    refactored. Raise `OutputError` if `out` holds something else.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(f"unknown kind {kind!r}: choose among {', '.join(KINDS)}")
    out = Path(out)
    identity = _identity(base, corpus, settings)
    _check_folder(out, identity)
    dense, tokenizer = load_base(base)
    check_masks(corpus.domains, find_ffns(dense)[0].width, settings.share, settings.variant)
    work = _Work(out, settings, corpus, dense, tokenizer, show)
    _claim(out, identity)  # only now, so that a refused run does not block the folder for others
    untuned = work.untuned()
    if on_untuned is not None:
        on_untuned(untuned)
    for kind in kinds:
        if (out / kind).exists():
            work.checkpoint(kind).unlink(missing_ok=True)  # left by a kill right before its removal
            continue
        model, history = work.tuned(kind, on_stage)
        story = {
            **(provenance or {}),
            **identity,
            "kind": kind,
            "masks": dict(untuned.masks),
            "untuned": {"dense": untuned.dense, "experts": untuned.experts},
            "history": [asdict(measured) for measured in history],
            "versions": versions(),
        }
        with whole_folder(out / kind) as folder:
            if model is not None:
                model.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
            write_json(folder / TRAINING_RECORD, story)
        work.checkpoint(kind).unlink(missing_ok=True)
    return {kind: out / kind for kind in kinds}


class _Work:
    """The inputs of all steps: a dense model, its text as windows, and the folder of results."""

    def __init__(
        self,
        out: Path,
        settings: PipelineSettings,
        corpus: Corpus,
        dense: Any,
        tokenizer: Any,
        show: Show | None,
    ) -> None:
        self.out = out
        self.settings = settings
        self.dense = dense
        self._show = show
        streams = token_streams(tokenizer, corpus.train)
        unseen = token_streams(tokenizer, corpus.validation)
        length, seed = settings.context, settings.seed

        def draw(of: Any, count: int, purpose: str) -> dict[str, Tensor]:
            return draw_windows(of, count, length, seed, purpose)

        self.held_out = draw(unseen, settings.held_out_windows, "held out")
        self._to_score = draw(streams, settings.score_windows, "scoring")
        self.text = TuningText(WindowStream.of(streams, length, seed), self.held_out)

    def scores(self) -> Tensor:
        """Return channel scores `[N, L, D]`."""

        def make() -> dict[str, Tensor]:
            windows: Windows = self._to_score
            if self.settings.control == "shuffled":
                windows = shuffle_domains(windows, self.settings.seed)
            variant = self.settings.variant
            scored = channel_scores(
                self.dense, windows, variant, on_window=self._showing("scoring channels")
            )
            return {"scores": scored}

        return self._kept("scores", ("scores",), make)["scores"]

    @cached_property
    def masks(self) -> Masks:
        settings = self.settings
        masks = top_masks(self.scores(), tuple(self.held_out), settings.share, settings.variant)
        if settings.control == "random":
            masks = random_masks(masks, settings.seed)
        # For readers of the folder; a resumed run computes masks from the scores again.
        masks.save(self.out / "masks.safetensors")
        return masks

    def untuned(self) -> Untuned:
        path = self.out / "untuned.json"
        if not path.exists():
            measured = asdict(self._measure_untuned())
            with whole_file(path) as partial:
                write_json(partial, measured)
        with _damage(path):
            return Untuned(**json.loads(path.read_text(encoding="utf-8")))

    def _measure_untuned(self) -> Untuned:
        masks = self.masks
        done, of = 0, 1 + len(masks.domains)
        autocast = self.settings.autocast

        def look(model: Any) -> dict[str, float]:
            nonlocal done
            losses = evaluate(model, self.held_out, autocast=autocast)
            done += 1
            if self._show is not None:
                self._show("measuring before tuning", done, of)
            return losses

        before = look(self.dense)
        alone = {
            domain: look(refactor(self.dense, masks.chosen[n : n + 1], router=_TINY_ROUTER))
            for n, domain in enumerate(masks.domains)
        }
        return Untuned(before, alone, masks.describe())

    def tuned(
        self, kind: str, on_stage: Callable[[str, Measured], None] | None
    ) -> tuple[ReadMeForCausalLM | None, Sequence[Measured]]:
        """Return a finished model of one kind, its experts cut out, and its history.

        `oracle` has no model, because its router never learns.
        """
        settings = self.settings
        model = self._masked(kind)
        routed = kind in ("decoupled", "layerwise")
        tuned = tune(
            model,
            self.text,
            settings.schedule,
            teacher(model, self.dense, self.masks, settings.variant) if routed else None,
            variant=settings.variant,
            by_domain=kind == "oracle",
            autocast=settings.autocast,
            checkpoint=self.checkpoint(kind),
            on_step=None if self._show is None else _prefixed(self._show, kind),
            on_stage=None if on_stage is None else lambda measured: on_stage(kind, measured),
        )
        return None if kind == "oracle" else materialise(model), tuned.history

    def checkpoint(self, kind: str) -> Path:
        return self.out / f"{kind}.safetensors"

    def _masked(self, kind: str) -> ReadMeForCausalLM:
        settings = self.settings
        # All kinds draw their routers from the same state.
        torch.manual_seed(settings.seed)
        if kind == "dense":
            mask_LD = pooled_mask(self.scores(), settings.share, settings.variant)
            return refactor(self.dense, mask_LD[None], router=_TINY_ROUTER)
        if kind == "oracle":
            return refactor(self.dense, self.masks.chosen, router=_TINY_ROUTER)
        return refactor(
            self.dense,
            self.masks.chosen,
            routing=kind,
            scaled=settings.variant == "paper",
            router=settings.router_options,
        )

    def _kept(
        self, name: str, parts: Sequence[str], make: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return the tensors `parts` of a file of this run; make and save them if there is none."""
        from safetensors.torch import load_file, save_file

        path = self.out / f"{name}.safetensors"
        if not path.exists():
            tensors = make()
            with whole_file(path) as partial:
                save_file(tensors, partial)
        with _damage(path):
            stored = load_file(path)
            return {part: stored[part] for part in parts}

    def _showing(self, what: str) -> Callable[[int, int], None] | None:
        show = self._show
        return None if show is None else lambda done, of: show(what, done, of)


# Where no router chooses, the model needs one all the same: the smallest possible.
_TINY_ROUTER = {"hidden": 2, "heads": 1, "ffn": 1}


def _prefixed(show: Show, kind: str) -> Show:
    return lambda what, done, of: show(f"{kind}, {what}", done, of)


def _identity(base: str | Path, corpus: Corpus, settings: PipelineSettings) -> dict[str, Any]:
    """Return what two runs have in common if they are the same run, as plain JSON."""
    return json.loads(  # type: ignore[no-any-return]
        json.dumps(
            {
                "base": Path(base).name,
                "weights": _weights_of(base),
                "settings": asdict(settings),
                "text": corpus.describe(),
            }
        )
    )


def _weights_of(base: str | Path) -> dict[str, str] | None:
    """Return hashes of a folder's weights; None for a model given by name."""
    files = sorted(Path(base).glob("*.safetensors")) if Path(base).is_dir() else []
    return {file.name: sha256(file) for file in files} or None


def _check_folder(out: Path, identity: dict[str, Any]) -> None:
    """Raise `OutputError` unless `out` is empty, or holds this very run."""
    path = out / _STORY
    if out.exists() and not out.is_dir():
        raise OutputError(out, "is a file; choose a folder")
    if path.exists():
        with _damage(path, "choose another folder"):
            stored = json.loads(path.read_text(encoding="utf-8"))
        # As text, because the order of domains counts: it numbers the experts.
        if json.dumps(stored) != json.dumps(identity):
            raise OutputError(
                out, f"holds another run (see its {_STORY}); choose another folder or delete it"
            )
    elif out.exists() and {each.name for each in out.iterdir()} - {_PARTIAL_STORY}:
        raise OutputError(out, "exists and is not empty; choose another folder")


def _claim(out: Path, identity: dict[str, Any]) -> None:
    """Write the run's identity into the folder, unless it is there."""
    if (out / _STORY).exists():
        return
    with whole_file(out / _STORY) as partial:
        write_json(partial, identity)


@contextmanager
def _damage(path: Path, remedy: str = "delete it to have it made again") -> Iterator[None]:
    """Turn any fault in reading a file of this run into a `UsageError`."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is damaged ({error}); {remedy}") from error
