"""The two recipes that are compared, each a preset with what the comparison fixes for both. No torch.

Fixed for both: 64 px, random weights, the same small ViT as discriminator, fp32 (a CPU without bf16 units). What `default`
says of a CNN (spectral norm, no norm) does not apply to a ViT and is left out. Its batch, rates and average are made for
24,000 steps; here there are some 5,900, and its rates fall after two thirds of them, as there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from histofed.base.ids import Json
from histofed.recipes.gan.settings import Changes, Settings, from_preset
from histofed.recipes.presets import load

CLASSES: Final = ("MSIH", "nonMSIH")
EDGE: Final = 64
"""Pixels."""
_PRESETS: Final = {"paper": "paper/acgan-vit-b-16", "default": "default"}
NAMES: Final = tuple(_PRESETS)
_BOTH: Final[Mapping[str, Json]] = {"image_size": EDGE, "precision": "fp32", "discriminator.name": "vit-mini"}
_OWN: Final[Mapping[str, Mapping[str, Json]]] = {
    "paper": {},
    "default": {
        "discriminator.norm": "own",
        "discriminator.spectral_norm": False,
        "discriminator.dropout": "off",
        "batch": 16,
        "generator_rate": 1e-3,
        "discriminator_rate": 5e-4,
        "betas": [0.5, 0.99],
        "muon_rate": 8e-3,
        "decay.after": 4100,
        "decay.half_life": 500,
        "ema_decay": 0.99,
        "objective.r1": 0.0,
        "objective.penalty_every": 1,
    },
}
_ENDLESS: Final = 1_000_000
"""Steps: the budget of time ends a run."""


def settings_of(name: str, values: Mapping[str, Json]) -> Settings:
    """The settings of one side; `values` changes more of it, by dotted key."""
    changes: dict[str, Any] = {**_BOTH, **_OWN[name], **values}
    return from_preset(load(_PRESETS[name]), Changes(steps=_ENDLESS, values=changes, random_start=True))
