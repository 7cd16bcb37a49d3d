"""Presets: complete settings of a GAN experiment by name, one TOML file each, every value with where it comes from.

`paper/*` are reconstructions of the paper's runs: the paper leaves most values unsaid, and each that it does not state says
why it was chosen. `default` is ours. Light (no torch, no pydantic): `histofed presets` lists them, `histofed train` and the
table of costs read them. A new preset is a new file; see `files.py` for its form.
"""

from histofed.recipes.presets.files import load, names
from histofed.recipes.presets.preset import Kind, Preset, Provenance, WantedWeights

__all__ = ["Kind", "Preset", "Provenance", "WantedWeights", "load", "names"]
