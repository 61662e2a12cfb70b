"""Parts: a catalogue of graphics cards and processors, and machines assembled from their texts."""

from moesim.hardware.parts.assemble import Machine, assemble
from moesim.hardware.parts.cpu_text import CpuText, cpu_named
from moesim.hardware.parts.gpu_text import GpuText, gpu_named
from moesim.hardware.parts.memory_text import MemoryText, memory_named
from moesim.hardware.parts.pcie_text import PcieText, pcie_named
from moesim.hardware.parts.tables import Cpu, Gpu, cpus, gpus

__all__ = [
    "Cpu",
    "CpuText",
    "Gpu",
    "GpuText",
    "Machine",
    "MemoryText",
    "PcieText",
    "assemble",
    "cpu_named",
    "cpus",
    "gpu_named",
    "gpus",
    "memory_named",
    "pcie_named",
]
