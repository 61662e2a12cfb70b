"""Forms of the grammar that say where weights are."""

from __future__ import annotations

import re
from typing import Any, Final

from moesim.measured.forms import CPU, DEVICES, GPU, NUMBER, OF, Form, Reading, skip
from moesim.measured.places import Choice, Layers, Rule, pattern_fault, tensors_on_cpu
from moesim.measured.setting import ALL_LAYERS, Placement

__all__ = ["PLACEMENT_FORMS"]


def _of(reading: Reading, match: re.Match[str]) -> None:
    if match["m"]:
        reading.put("model_layers", int(match["m"]))


def _first_experts(reading: Reading, match: re.Match[str]) -> None:
    """`ncmoe=N`: experts of the layers 0 to N-1, of which some may be dense."""
    _of(reading, match)
    count = int(match["n"])
    reading.place("experts" if count else "gpu", *([Rule(Layers("first", count))] if count else []))


def _all_experts(reading: Reading, match: re.Match[str]) -> None:
    reading.place("experts", Rule())


def _end_experts(reading: Reading, match: re.Match[str]) -> None:
    """`experts of the last 14 of 48 layers on CPU`, or on the GPU with the rest on the CPU."""
    _of(reading, match)
    end, count = match["e"].lower(), int(match["n"])
    kind: Choice = "first" if end == "first" else "last"
    if match["moe"]:
        kind = "first_moe" if end == "first" else "last_moe"
    tensors = _tensors(match["what"] or match["moe"])
    _ends(reading, Layers(kind, count), tensors, on_cpu=not match["where"])


def _ends(reading: Reading, layers: Layers, tensors: Any, *, on_cpu: bool) -> None:
    placement: Placement = "layers" if tensors == "all" else "experts"
    if on_cpu:
        reading.place(placement, Rule(layers, tensors))
    else:
        reading.place(placement, Rule(layers, tensors, cpu=False), Rule(Layers(), tensors))


def _tensors(what: str | None) -> Any:
    if not what:
        return "all"
    return "ffn" if what.lower().startswith("ffn") else "experts"


def _some_experts(reading: Reading, match: re.Match[str]) -> None:
    """`experts of 20 of 48 layers on CPU`: which 20 is not said."""
    _of(reading, match)
    reading.notes.append(f"{match.group().strip()}: taken as the first {match['n']} layers")
    reading.place("experts", Rule(Layers("first", int(match["n"])), _tensors(match["what"])))


def _experts_on_gpu(reading: Reading, match: re.Match[str]) -> None:
    """`12 of 48 MoE layers on GPU`: the last 12, because engines move the first to the CPU."""
    _of(reading, match)
    reading.notes.append(f"{match.group().strip()}: taken as the last {match['n']} MoE layers")
    _ends(reading, Layers("last_moe", int(match["n"])), "experts", on_cpu=False)


def _range(reading: Reading, match: re.Match[str]) -> None:
    """`FFN of layers 12-93 of 94 on CPU`, `layers 0-9 experts on GPU, rest CPU`."""
    _of(reading, match)
    if match["about"]:
        reading.notes.append(f"{match.group().strip()}: the first layer is approximate")
    what = _tensors(match["what"] or match["what2"])
    layers = Layers("range", low=int(match["n"]), high=int(match["high"]))
    _ends(reading, layers, what, on_cpu=not match["where"])


def _gpu_layers(reading: Reading, match: re.Match[str]) -> None:
    _of(reading, match)
    given = match["n"].lower()
    count = int(given) if given.isdigit() else ALL_LAYERS
    reading.put("gpu_layers", min(count, ALL_LAYERS))
    # 99 is the usual way to say "all"; models with as many layers need a larger number.
    reading.place("gpu" if count >= int(match["m"] or 90) else "layers")


def _cpu_layers(reading: Reading, match: re.Match[str]) -> None:
    _of(reading, match)
    reading.notes.append(f"{match.group().strip()}: taken as the first {match['n']} whole layers")
    reading.place("layers", Rule(Layers("first", int(match["n"])), "all"))


def _override(reading: Reading, match: re.Match[str]) -> None:
    """`-ot "pattern=CPU,pattern=CUDA0"`; without -ot, a pattern and a device."""
    text = match["q"] or match["p"]
    if re.fullmatch(r"[A-Za-z]+=\w+", text):  # a word for tensors, not a pattern: FFN=CPU
        text = text.partition("=")[0].lower() + "=" + text.partition("=")[2]
    pairs = _PAIR.findall(text)
    if not pairs or _PAIR.sub("", text).strip(", "):
        reading.unknown.append(match.group())
        return
    for pattern, device in pairs:
        if fault := pattern_fault(pattern):
            reading.faults.append(fault)
            continue
        on_cpu = device.upper() == "CPU"
        if device[-1].isdigit() and int(re.sub(r"\D", "", device)) > 0:
            reading.decline("several-gpus")
        reading.rules.append(Rule(pattern=pattern, cpu=on_cpu))
        if on_cpu and _in_layers(pattern):  # a pattern like token_embd places no tensor of a layer
            reading.place("experts")


def _in_layers(pattern: str) -> bool:
    """Return whether a pattern takes any tensor of a layer of a large model."""
    both = range(1, _LARGE, 2), range(_LARGE)  # layers may be dense or have experts
    return any(any(tensors_on_cpu([Rule(pattern=pattern)], _LARGE, moe)) for moe in both)


_LARGE: Final = 128
_PAIR: Final = re.compile(rf"(?:^|,)\s*([^=]{{1,2000}})=({DEVICES})(?=,|$)", re.IGNORECASE)
_WHAT: Final = r"(?P<what>experts?|exps|MoE|FFNs?)(?: (?:weights|tensors))?"
_ON: Final = r" (?:are |kept |stay |offloaded |moved |placed ){0,2}(?:on|in|to|onto) "
_REST: Final = rf"(?:\s*[,;]?\s*(?:and )?(?:the )?(?:rest|others?) (?:(?:on|in|to) )?{CPU})"
PLACEMENT_FORMS: Final[list[Form]] = [
    # Placement: experts on the CPU.
    (rf"(?:--?)?(?:n[-_]?cpu[-_]?moe|ncmoe)\s*[=:\s]?\s*{NUMBER}{OF}(?: layers)?", _first_experts),
    (r"--?(?:cpu-moe|cmoe)(?![\w-])|cpu[-_ ]moe(?:\s*=\s*1)?(?![\w-])", _all_experts),
    (r"""(?:--?(?:ot|override-tensors?)|ot)(?:\s*=\s*| )(?:"(?P<q>[^"]+)"|'(?P<p>[^']+)')""",
     _override),
    (r"(?:--?(?:ot|override-tensors?)|ot(?==))(?:\s*=\s*| )(?P<q>)(?P<p>[^\s,;]+=[^\s;]+?)"
     r"(?=[,;)]*(?:\s|$))", _override),
    (r"(?:experts?|moe)=CPU(?!\w)", _all_experts),
    # Without -ot, a pattern must name tensors: "backend=CPU" is none.
    (rf"(?P<q>)(?P<p>(?!-)(?=\S*(?:exps|ffn|blk|attn))[^\s,;=\"']{{1,400}}={DEVICES})(?![\w.])",
     _override),
    (rf"(?:all |only )?(?:of )?(?:the )?(?:routed |MoE )?(?:experts?|exps|MoE)"
     rf"(?: (?:weights|tensors|layers))?{_ON}{CPU}", _all_experts),
    (rf"{_WHAT} (?:of|in) (?:the )?(?P<e>first|last) {NUMBER}(?P<moe>)?{OF}(?: layers?)?{_ON}"
     rf"(?:(?:the )?(?P<where>GPU){_REST}|{CPU})", _end_experts),
    (rf"(?:the )?(?P<e>first|last) {NUMBER}{OF} (?:(?P<moe>experts?|MoE) )?layers?"
     rf"(?:'?s? (?P<what>experts?|FFNs?))?{_ON}"
     rf"(?:(?:the )?(?P<where>GPU){_REST}|{CPU}(?:\s*[,;]?\s*(?:the )?rest (?:on )?GPU)?)",
     _end_experts),
    (rf"(?:{_WHAT} (?:of|in) )?(?P<about>about |approx\.? |~\s*|ca\.? )?layers? "
     rf"(?P<n>\d{{1,6}})\s*(?:-|–|\.\.|to)\s*(?P<high>\d{{1,6}})(?!\w){OF}"
     rf"(?:'?s? (?P<what2>experts?|FFNs?))?{_ON}"
     rf"(?:(?:the )?(?P<where>GPU){_REST}|{CPU})", _range),
    (rf"{_WHAT} (?:of|in) {NUMBER}{OF} (?:MoE |expert )?layers?{_ON}{CPU}", _some_experts),
    (rf"{NUMBER}{OF} (?P<what>experts?|MoE) layers?{_ON}{CPU}", _some_experts),
    (rf"{NUMBER}{OF} layers? of (?P<what>experts?){_ON}{CPU}", _some_experts),
    (rf"{NUMBER}{OF} (?:experts?|MoE) layers?{_ON}{GPU}(?:{_REST})?", _experts_on_gpu),
    # Placement: whole layers, all on the GPU, all on the CPU.
    (r"(?:--?)?(?:ngl|(?:n[-_])?gpu[-_]layers|num[-_]gpu(?:[-_]layers)?)\s*[=:\s]?\s*"
     rf"(?P<n>\d{{1,9}}|all|max|-1)(?!\w){OF}(?: layers)?", _gpu_layers),
    (rf"(?:offloaded )?{NUMBER}{OF} (?:whole |full )?layers?(?: offloaded)?"
     rf"(?: (?:on|in|to|onto) {GPU}|(?<=offloaded)(?!\w))", _gpu_layers),
    (rf"(?:partial(?:ly)? offload(?:ed)?|partial {GPU} offload)(?!\w)", skip),
    (r"of (?P<m>\d{1,6})(?: layers)?(?!\w)", _of),
    (r"^CPU(?: inference)?(?=\s*(?:[,;(]|$))", lambda reading, _: reading.place("cpu")),
    (r"^GPU(?: inference)?(?=\s*(?:[,;(]|$))", lambda reading, _: reading.place("gpu")),
    (rf"{NUMBER}{OF} (?:whole |full )?layers? (?:on|in|to) {CPU}", _cpu_layers),
    (r"whole[- ]layer(?: split)?(?!\w)", skip),
    (r"(?:cpu[- _]only|only (?:the )?cpu|pure cpu|no gpu|all (?:layers )?on (?:the )?cpu"
     r"|(?:entirely|fully) on (?:the )?cpu)(?!\w)", lambda reading, _: reading.place("cpu")),
    (r"(?:(?:all|fully|entirely|completely|model|weights) )?resident(?!\w)",
     lambda reading, _: reading.place("gpu")),
    (rf"(?:all|everything|fully|entirely|completely|full|100\s?%) (?:layers? |weights |tensors "
     rf"|experts |offload(?:ed)? )*(?:on|in|to) {GPU}"
     r"|full(?:y)?[\s-]+(?:offload(?:ed)?|GPU(?:[\s-]+offload)?)(?!\w)|GPU[- ]only(?!\w)"
     r"|fits? (?:all |entirely |fully )?(?:in|on) (?:VRAM|GPU)(?!\w)|all in VRAM(?!\w)",
     lambda reading, _: reading.place("gpu")),
    (r"unified(?: memory)?(?!\w)", lambda reading, _: reading.put("unified", True)),
    # What these say follows from the forms above, whose experts leave the rest on the GPU.
    (rf"(?:(?:attention|attn|shared(?: experts?)?|dense(?: layers?)?|KV(?: cache)?|router"
     rf"|(?:the )?rest|non-expert\w*(?: \w+)?)(?:\s*(?:,|/|\+|and)\s*)?)+{_ON}{GPU}", skip),
]  # fmt: skip
