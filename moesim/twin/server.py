"""Logs of `llama-server` and `llama-cli`: timing lines of requests, and what was loaded.

A log says what it runs when the model is loaded, and prints two lines for each request. Where the
experts are is in the command, if the log has it, or in the lines of overridden tensors; else the
user has to say it. Requests that overlap in time, or that draft tokens, are left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from moesim.measured.rows import Row
from moesim.twin.bench import format_of_type
from moesim.twin.command import used_options
from moesim.twin.devices import Devices
from moesim.twin.log import MOST_LINE, Entry, Log

__all__ = ["UNPLACED", "is_server_log", "server_entries"]

_NUMBER: Final = r"(\d{1,12}(?:\.\d{1,9})?)"
_TIMING: Final = re.compile(
    rf"(?P<prompt>prompt )?eval time\s*=\s*{_NUMBER} ms /\s*(\d{{1,9}}) (?:tokens|runs)\s*"
    rf"\(\s*{_NUMBER} ms per token,\s*{_NUMBER} tokens per second\)"
)
_TASK: Final = re.compile(r"\bid\s+(-?\d{1,9}) \| task (-?\d{1,12}) \|")
_LAUNCH: Final = re.compile(r"\bslot\s+launch_slot_")
_RELEASE: Final = re.compile(r"\bslot\s+release\b.{0,200}?\bn_(?:tokens|past) = (\d{1,9})")
_DRAFT: Final = re.compile(r"draft acceptance")
_COMMAND: Final = re.compile(r"(?:^|[\s/\\])(?:llama-server|llama-cli|server)(?:\.exe)?\s+(-.*)")
UNPLACED: Final = (
    "the log does not say where the experts are: put the line of the command into it, or give "
    "--setting ncmoe=N"
)
_FEWEST: Final = {"decode_tok_s": 16, "prefill_tok_s": 65}
"""Tokens of the shortest answer and prompt that are used; shorter times hold mostly other work."""


@dataclass(slots=True)
class _Loaded:
    """What a log says about what is loaded, as far as it is read."""

    devices: Devices = field(default_factory=Devices)
    arch: str = ""
    size_label: str = ""
    quant: str = ""
    nbytes: str = ""
    layers: str = ""
    ubatch: str = ""
    keys: str = ""
    values: str = ""
    threads: str = ""
    attention: str = ""
    build: str = ""
    backend: str = ""
    command: str = ""
    ik: bool = False
    on_cpu: list[str] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    mib: dict[bool, float] = field(default_factory=dict)
    """MiB of weights, in host memory (True) and on the GPU (False)."""

    @property
    def placed(self) -> bool:
        """Whether the log says where the experts are: nearly all weights in one memory do too."""
        if self.on_cpu or _PLACES.search(self.command) or self.layers != _ALL:
            return True
        return self.mib.get(True, 0.0) <= _LITTLE * self.mib.get(False, 0.0) > 0

    def row(self) -> Row:
        """Return the row of a measurement without its metric."""
        engine = "ik_llama.cpp" if self.ik else "llama.cpp"
        parts = (engine, f"b{self.build}" if self.build else "", self.backend)
        size = f" ({self.nbytes})" if self.nbytes and self.quant else ""
        return Row(
            model=f"{self.arch} {self.size_label}".strip(),
            quant=self.quant + size,
            gpu=self.devices.text,
            engine=" ".join(filter(None, parts)),
            setting=self.setting(),
        )

    def setting(self) -> str:
        """Return the options, those of the command first."""
        parts = [self.command] if self.command else []
        named = self.command.split()
        for text, value, flags in (
            ("ngl={}", self.layers, ("-ngl", "--n-gpu-layers", "--gpu-layers")),
            ("ub={}", self.ubatch, ("-ub", "--ubatch-size")),
            ("ctk={}", self.keys, ("-ctk", "--cache-type-k")),
            ("ctv={}", self.values, ("-ctv", "--cache-type-v")),
            ("fa={}", self.attention, ("-fa", "--flash-attn")),
            ("t={}", self.threads, ("-t", "--threads")),
        ):
            if value and not any(flag in named for flag in flags):
                parts.append(text.format(value))
        if self.on_cpu and not _PLACES.search(self.command):
            parts.append(_override(self.on_cpu))
        return " ".join(parts)


_ALL: Final = "99"
_LITTLE: Final = 0.15  # the share of a table of embeddings, at most
_PLACES: Final = re.compile(
    r"(?:^|\s)(?:-ot|--override-tensor|-ncmoe|--n-cpu-moe|-cmoe|--cpu-moe)\b"
)
_EXPERTS: Final = re.compile(r"^blk\.(\d{1,5})\.ffn_(?:gate|up|down|gate_up)_exps(?:\.weight)?$")


def _override(tensors: list[str]) -> str:
    """Return the option that moves tensors of experts to the CPU, by their layers."""
    layers = sorted({int(match[1]) for name in tensors if (match := _EXPERTS.match(name))})
    if not layers:
        return ""
    if layers == list(range(len(layers))):
        return f"ncmoe={len(layers)}"
    return rf'-ot "blk\.({"|".join(map(str, layers))})\.ffn_.*_exps=CPU"'


def _put(name: str, change: Callable[[str], str] = str) -> Callable[[_Loaded, re.Match[str]], None]:
    return lambda loaded, match: setattr(loaded, name, change(match[1].strip()))


def _cache(loaded: _Loaded, match: re.Match[str]) -> None:
    loaded.keys, loaded.values = match[1].lower(), match[2].lower()


def _moved(loaded: _Loaded, match: re.Match[str]) -> None:
    if match[2].upper() == "CPU":
        loaded.on_cpu.append(match[1])


def _buffer(loaded: _Loaded, match: re.Match[str]) -> None:
    """Take the size of a buffer with weights; other buffers have another name."""
    if "model buffer" in match[0]:
        on_cpu = match[1].upper().startswith("CPU") or match[1].endswith("_Host")
        loaded.mib[on_cpu] = loaded.mib.get(on_cpu, 0.0) + float(match[2])


def _new_model(loaded: _Loaded, match: re.Match[str]) -> None:
    """A file is loaded: what was said of an earlier one is over, but the cards and the command."""
    loaded.on_cpu.clear()
    loaded.mib.clear()


def _offloaded(loaded: _Loaded, match: re.Match[str]) -> None:
    count, most = int(match[1]), int(match[2])
    loaded.layers = _ALL if count >= most else str(count)


def _attention(text: str) -> str:
    return {"enabled": "1", "1": "1", "disabled": "0", "0": "0"}.get(text.lower(), "")


_FACTS: Final = tuple(
    (re.compile(form), put)
    for form, put in (
        (r"llama_model_loader: loaded meta data with", _new_model),
        (r"print_info: arch\s*= (\S{1,80})", _put("arch")),
        (r"(?:print_info|llm_load_print_meta): model type\s*= (\S.{0,80})", _put("size_label")),
        (r"llm_load_print_meta: arch\s*= (\S{1,80})", _put("arch")),
        (r"print_info: file type\s*= (.{1,80})", _put("quant", format_of_type)),
        (r"llm_load_print_meta: model ftype\s*= (.{1,80})", _put("quant", format_of_type)),
        (r"print_info: file size\s*= (\d{1,6}\.\d{1,4} [MGT]iB)", _put("nbytes")),
        (r"llm_load_print_meta: model size\s*= (\d{1,6}\.\d{1,4} [MGT]iB)", _put("nbytes")),
        (r"offloaded (\d{1,5})/(\d{1,5}) layers to GPU", _offloaded),
        (r"\bn_ubatch\s*= (\d{1,6})", _put("ubatch")),
        (r"\bK \((\w{1,12})\):.{1,60}\bV \((\w{1,12})\):", _cache),
        (r"\bflash_attn\s*= (\w{1,10})", _put("attention", _attention)),
        (r"system_info: n_threads = (\d{1,4})", _put("threads")),
        (r"\bbuild(?: =|:) (\d{1,6})\b", _put("build")),
        (r"ensor (blk\.\S{1,80}) (?:\(.{1,80}\) )?buffer type overridd?en to (\S{1,40})", _moved),
        (r"\b(\w{1,40}) (?:model )?buffer size =\s*(\d{1,9}(?:\.\d{1,3})?) MiB", _buffer),
    )
)  # fmt: skip
_BACKENDS: Final = (
    ("ggml_cuda_init", "CUDA"),
    ("ggml_vulkan:", "Vulkan"),
    ("ggml_sycl", "SYCL"),
    ("ggml_metal", "Metal"),
    ("using device ROCm", "ROCm"),
    ("using device CUDA", "CUDA"),
)


def is_server_log(log: Log) -> bool:
    """Return whether a log has timing lines of requests."""
    return any("eval time" in line and " ms / " in line for line in log.lines)


def server_entries(log: Log) -> list[Entry]:
    """Return the entries of a log of `llama-server` or `llama-cli`.

    Raises:
        UsageError: a timing line is not understood.
    """
    loaded, requests = _Loaded(), _Requests()
    for index, line in enumerate(log.lines):
        if len(line) > MOST_LINE:
            continue
        if "eval time" in line:
            match = _TIMING.search(line)
            if match is None:
                raise log.refused(index, "the timing line is not understood")
            requests.timed(line, match, log.place(index), loaded)
        elif not requests.see(line):
            _see(loaded, line)
    return requests.entries()


def _see(loaded: _Loaded, line: str) -> None:
    """Take what a line says about what is loaded."""
    loaded.devices.see(line)
    if command := _COMMAND.search(line):
        loaded.command, loaded.notes = used_options(command[1])
    if "fused_moe" in line:
        loaded.ik = True
    loaded.backend = next((name for sign, name in _BACKENDS if sign in line), loaded.backend)
    for form, put in _FACTS:
        if match := form.search(line):
            put(loaded, match)


@dataclass(slots=True)
class _Request:
    """A request: its entries, and the tokens in the cache at its end."""

    made: list[Entry] = field(default_factory=list)
    prompt: int = 0
    output: int = 0
    end: int | None = None
    left_out: str = ""


@dataclass(slots=True)
class _Requests:
    """The requests of a log; a task that starts before another has ended overlaps with it."""

    done: list[_Request] = field(default_factory=list)
    latest: dict[str, _Request] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    task: str = ""

    def see(self, line: str) -> bool:
        """Take a line about a task, and return whether it was one."""
        found = _TASK.search(line)
        if found is not None:
            self.task = found[2]
        if _DRAFT.search(line):
            self._request().left_out = "tokens were drafted, at an acceptance of this request"
            return True
        if _LAUNCH.search(line):
            self.running.add(self.task)
            self._request(new=True)
            if len(self.running) > 1:
                for task in self.running:
                    self.latest[task].left_out = "requests overlap in time"
            return True
        if release := _RELEASE.search(line):
            self.running.discard(self.task)
            if self.task in self.latest:  # older servers print the times after this line
                self.latest[self.task].end = int(release[1])
            return True
        return False

    def timed(self, line: str, match: re.Match[str], place: str, loaded: _Loaded) -> None:
        """Take a timing line."""
        if found := _TASK.search(line):
            self.task = found[2]
        request = self._request()
        tokens, rate = int(match[3]), float(match[5])
        metric = "prefill_tok_s" if match["prompt"] else "decode_tok_s"
        if any(entry.row.metric == metric for entry in request.made):  # logs without tasks
            request = self._request(new=True)
        if match["prompt"]:
            request.prompt = tokens
        else:
            request.output = tokens
        left_out = ""
        if tokens < _FEWEST[metric]:
            left_out = f"only {tokens} tokens were timed"
        elif not rate:
            left_out = "no speed was measured"
        elif not loaded.placed:
            left_out = UNPLACED
        row = replace(loaded.row(), metric=metric, prompt=tokens if match["prompt"] else None)
        request.made.append(Entry(row, rate, None, place, left_out, loaded.notes))

    def entries(self) -> list[Entry]:
        """Return the entries of all requests, in the order of the log."""
        return [self._placed(request, entry) for request in self.done for entry in request.made]

    def _request(self, *, new: bool = False) -> _Request:
        if new or self.task not in self.latest:
            self.latest[self.task] = _Request()
            self.done.append(self.latest[self.task])
        return self.latest[self.task]

    @staticmethod
    def _placed(request: _Request, entry: Entry) -> Entry:
        """Return an entry with the mean depth of its tokens."""
        notes = entry.notes
        end = request.end
        if end is None:
            end = request.prompt + request.output
            notes = (*notes, "how long a conversation was is taken as the length of its request")
        if entry.row.metric == "decode_tok_s":
            depth = max(0, end - request.output // 2)
        else:
            depth = max(0, end - request.output - request.prompt)
        left_out = entry.left_out or request.left_out
        return replace(entry, row=replace(entry.row, depth=depth), left_out=left_out, notes=notes)
