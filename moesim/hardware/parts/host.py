"""The figures of the processor and of host memory.

- Peak of memory: channels x millions of transfers/s x 8 bytes.
- Reads reach a share of it (shares.yaml), or what the text measured. STREAM counts fewer bytes than
  memory moves where stores read their line first, so its rates are raised by the ratio.
- Dies read at most FCLK x 32 bytes each (`Cpu.fabric_bytes_per_s`). This limits the CPU only, and
  not the copies to the GPU.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from moesim.errors import UsageError
from moesim.hardware.parts.cpu_text import CpuText
from moesim.hardware.parts.figures import Figures, Notes
from moesim.hardware.parts.gpu_text import GpuText
from moesim.hardware.parts.memory_text import MOST_CHANNELS, MemoryText, memory_named
from moesim.hardware.parts.scan import Measured
from moesim.hardware.parts.tables import Cpu, shares, simd_source, soldered

__all__ = ["cpu_figures", "fitting_memory", "memory_figures"]

_UNNAMED = "unnamed"
_CHANNEL_BYTES = 8


def cpu_figures(figures: Figures, text: CpuText, notes: Notes) -> dict[str, int]:
    """Add the figures of the processor; return its threads as an override, if fewer than cores."""
    cpu, share = text.cpu, shares()
    if cpu is None:
        return {}
    cores, scale = cpu.all_cores * text.used_sockets, Fraction(text.used_sockets)
    threads = text.threads
    if text.cores is not None and cpu.name == _UNNAMED:
        cores, scale = text.cores, Fraction(text.cores, cpu.all_cores)
    elif text.cores is not None and text.cores != cores:
        threads = threads or text.cores
    rule = f"{cores} cores, {cpu.simd} ({simd_source()}). {cpu.source}"
    figures.add("cpu_cores", cores, cpu.source)
    figures.add("cpu_flops", round(cpu.ops_per_s("fp32") * scale), rule)
    figures.add("cpu_int8_ops", round(cpu.ops_per_s("int8") * scale), rule)
    figures.share("cpu_efficiency", share.cpu_compute)
    figures.add("cpu_sockets", text.used_sockets, "The number in the text; 1 without any")
    figures.add(
        "core_memory_bandwidth",
        round(cpu.core * 10**9),
        f"One core's reads under way at once, of this architecture. {cpu.source}",
    )
    fabric = cpu.fabric_bytes_per_s(text.fclk_mhz, int(share.ccd_bytes.value))
    if fabric is not None:
        clock = text.fclk_mhz or cpu.fclk
        source = f"{cpu.ccds} dies at a fabric of {clock} MHz. {share.ccd_bytes.source}"
        figures.add("cpu_memory_bandwidth", fabric * text.used_sockets, source)
    if text.used_sockets > 1:
        notes.supposed.append(
            f"the memory of all {text.used_sockets} sockets is read at its full rate, as an engine "
            "that knows them would"
        )
    if threads is not None and threads > cores:
        notes.supposed.append(f"{threads} threads are two a core; {cores} cores compute")
    return {"cpu_threads": threads} if threads is not None and threads < cores else {}


def fitting_memory(text: MemoryText, named: CpuText, notes: Notes) -> MemoryText:
    """Return the memory of a text as the processor can have it, and note what does not fit.

    Soldered memory keeps its own channels. Modules beside it are no figures of it.

    Raises:
        UsageError: a socket has more channels than any processor.
    """
    if text.channels is not None and text.channels > MOST_CHANNELS * named.sockets:
        raise UsageError(
            f"{text.understood.strip()!r}: {text.channels} channels for {named.sockets} sockets; "
            f"a socket has at most {MOST_CHANNELS}"
        )
    cpu = named.cpu
    if cpu is None or cpu.name == _UNNAMED:
        return text
    own = memory_named(cpu.memory)
    if cpu.name not in soldered():
        if text.kind and _generation(text.kind) not in map(_generation, _types(cpu)):
            notes.supposed.append(
                f"{cpu.name} takes {' or '.join(_types(cpu))}, and the text says {text.kind}: "
                "the figures are those of the text"
            )
        return text
    its = f"{cpu.name} has {own.kind}-{own.mts} that is a part of it"
    if text.kind is not None and not text.kind.startswith("LP"):
        notes.supposed.append(f"{its}: {text.kind} of the text is left out")
        return replace(text, kind=None, mts=None, channels=None)
    if text.channels not in (None, own.channels):
        notes.supposed.append(f"{its}: its channels are {own.channels}, not {text.channels}")
        text = replace(text, channels=None)
    if text.kind is not None and text.mts is None:
        return replace(text, kind=own.kind)
    if text.mts not in (None, own.mts):
        kind = text.kind or "memory"
        notes.supposed.append(f"{its}: the text says {kind}-{text.mts}, which is taken")
    return text


def _types(cpu: Cpu) -> tuple[str, ...]:
    kinds = (memory_named(cpu.memory).kind, cpu.other_memory)
    return tuple(kind for kind in kinds if kind)


def _generation(kind: str) -> str:
    """Return "DDR5" for LPDDR5X: the controllers of a generation take both."""
    return kind.removeprefix("LP").removesuffix("X")


def memory_figures(
    figures: Figures, card: GpuText, cpu: CpuText, text: MemoryText, notes: Notes
) -> None:
    """Add the figures of host memory, as far as the texts give them."""
    size = text.seen_bytes or text.nbytes
    if size is None and card.card is not None and card.card.unified:
        size = card.size_bytes
    if size is not None:
        figures.add("host_memory", size, "The text of the memory")
    stated = [rate for rate in (*text.measured, *cpu.measured) if rate.of == "host"]
    peak = _peak(card, cpu, text, stated, notes)
    reached = next((rate for rate in stated if rate.kind != "peak"), None)
    if reached is not None:
        _measured_reads(figures, reached, peak, cpu, text)
    elif peak is not None:
        bytes_per_s, channels, source = peak
        figures.add("host_memory_bandwidth", bytes_per_s, source)
        share = shares().reads_two_channels if channels <= 2 else shares().reads_more_channels
        figures.share("host_memory_efficiency", share)


def _measured_reads(
    figures: Figures,
    rate: Measured,
    peak: tuple[int, int, str] | None,
    cpu: CpuText,
    text: MemoryText,
) -> None:
    """Add what reads reach, from a measured rate of reads or of STREAM."""
    share = shares()
    if rate.kind == "read":
        source = f"Measured, as the text says: {rate.text}"
        figures.add("host_memory_bandwidth", rate.bytes_per_s, source, kind="measured")
    else:
        factor = share.triad_to_reads if rate.kind == "triad" else share.copy_to_reads
        reads = round(rate.bytes_per_s * Fraction(str(factor.value)))
        # The peak is known only where a text names the platform.
        if peak is not None and ((cpu.cpu and cpu.cpu.name != _UNNAMED) or text.channels):
            reads = min(reads, peak[0])
        source = f"{rate.text} x {factor.value}, and at most the peak. {factor.source}"
        figures.add("host_memory_bandwidth", reads, source)
    figures.add("host_memory_efficiency", "100%", "The bandwidth is that of reads already")


def _peak(
    card: GpuText, cpu: CpuText, text: MemoryText, stated: list[Measured], notes: Notes
) -> tuple[int, int, str] | None:
    """Return the peak in bytes/s, its channels and its source; None where no text gives them."""
    platform = memory_named(cpu.cpu.memory) if cpu.cpu is not None else MemoryText()
    kind = text.kind or platform.kind
    nominal = next((rate for rate in stated if rate.kind == "peak"), None)
    if kind is None and text.mts is None and nominal is None:
        if not text.empty and not stated:
            notes.supposed.append("the speed of host memory is unknown: no text names it")
        return None
    # A processor with unified memory is sold with one kind of it.
    quiet = bool(stated) or (card.card is not None and card.card.unified)
    channels = _channels(cpu, text, platform, notes, quiet=quiet)
    if nominal is not None and (text.mts is None or text.channels is None):
        return nominal.bytes_per_s, channels, f"As the text says: {nominal.text}"
    mts = text.mts or _usual_speed(kind, cpu, platform, notes, quiet=quiet)
    if mts is None:
        return None
    source = f"{channels} channels of {kind or 'memory'} at {mts} MT/s, 8 bytes each"
    return channels * mts * 10**6 * _CHANNEL_BYTES, channels, source


def _usual_speed(
    kind: str | None, cpu: CpuText, platform: MemoryText, notes: Notes, *, quiet: bool
) -> int | None:
    """Return the speed that the platform usually has; of memory of another type, the common one."""
    if kind is None:
        return None
    if kind == platform.kind and platform.mts is not None:
        named = cpu.cpu.name if cpu.cpu and cpu.cpu.name != _UNNAMED else "such processors"
        mts, why = platform.mts, f"the usual speed of {named}"
    else:
        usual = shares().usual_memory.get(kind)
        if not isinstance(usual, int):
            return None
        mts, why = usual, "a common speed"
    if not quiet:
        notes.supposed.append(f"host memory is {kind}-{mts}, {why}, because no text has its speed")
    return mts


def _channels(
    cpu: CpuText, text: MemoryText, platform: MemoryText, notes: Notes, *, quiet: bool
) -> int:
    """Return the channels of the sockets that compute."""
    used = cpu.used_sockets
    if text.channels is None:
        each = platform.channels or 2
        if not quiet:
            notes.supposed.append(f"host memory has {each} channels a socket, all that there are")
        return each * used
    if text.per_socket:
        return text.channels * used
    if cpu.sockets > 1 and text.channels == platform.channels:
        notes.supposed.append(f"{text.channels} channels are those of one of {cpu.sockets} sockets")
        return text.channels * used
    return max(1, text.channels * used // cpu.sockets)
