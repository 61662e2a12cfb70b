"""Systems: presets of scenario keys that state an offloading system as data."""

from moesim.systems.preset import Preset, Setting, load_preset, system_names

__all__ = ["Preset", "Setting", "load_preset", "system_names"]
