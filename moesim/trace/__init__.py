"""Traces: the format, reading, writing, health checks, importers, synthetic ones."""

from moesim.trace.decoupled import DecoupledKnobs, synthesize_decoupled
from moesim.trace.importers import FORMATS, IMPORTERS, from_esft, from_npz, import_trace
from moesim.trace.meta import TraceMeta
from moesim.trace.reader import load_trace, validate_trace
from moesim.trace.synthetic import SyntheticKnobs, synthesize, write_synthetic
from moesim.trace.trace import Trace
from moesim.trace.writer import TraceWriter

__all__ = [
    "FORMATS",
    "IMPORTERS",
    "DecoupledKnobs",
    "SyntheticKnobs",
    "Trace",
    "TraceMeta",
    "TraceWriter",
    "from_esft",
    "from_npz",
    "import_trace",
    "load_trace",
    "synthesize",
    "synthesize_decoupled",
    "validate_trace",
    "write_synthetic",
]
