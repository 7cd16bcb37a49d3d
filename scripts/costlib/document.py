"""docs/presets.md from presets and their costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from histofed.base.ids import canonical
from histofed.recipes import presets
from histofed.recipes.gan.config import GanConfig
from histofed.recipes.presets import Preset
from histofed.recipes.sections import parse_section

from .cost import Cost, cost

TRAIN_TILES: Final = 19_557
"""Of TCGA-CRC-DX, the paper's data."""

_HEAD: Final = """\
# Presets and what they cost

Written by `make presets-table` (`scripts/preset_costs.py`). `histofed presets` lists the presets, and `histofed presets show
NAME` says of each value whether the paper states it, it is derived from the paper's numbers, reconstructed, or ours. The
paper's code is not available: every `paper/` preset is a reconstruction. Presets are TOML files: `histofed/recipes/presets`.

Counted on the training step itself, not timed, and the same on every machine: 2 FLOPs per multiply-add of matrix products,
convolutions and attention. "D step" and "G step" are one move of discriminator and generator; fakes are drawn once for both,
in the G step; a lazy penalty is spread over the steps without it; "step" is what the loop does on average, with a generator
that moves in every fifth step of WGAN-GP. "Memory" is the peak of all tensors that are alive at once at the preset's batch,
weights, gradients and moments included; the CUDA context, kernels' workspace and tiles kept on the card come on top.
"""

_OF_A_STEP: Final = """
## A step, a run

Steps are in GFLOP per tile of the batch. "Sent" is what one site sends in one round, and fetches in it too: float32, no
encoding. A "run" is the central one, over the 19,557 training tiles of TCGA-CRC-DX.

| preset | parameters G | parameters D | sent, MB | D step | G step | step | batch | memory, GB | run, PFLOP |
|---|---|---|---|---|---|---|---|---|---|
"""

_OF_A_FEDERATION: Final = """
## A federation

"All traffic" is every round's, both ways, of all sampled sites. Work is one site's.

| preset | rounds | sites sampled | steps in a round | sent in a round, MB | all traffic, GB | work in a round, PFLOP |
|---|---|---|---|---|---|---|
"""


def document(found: Sequence[tuple[Preset, Cost]]) -> str:
    """docs/presets.md."""
    steps = "".join(step_row(preset, one) for preset, one in found)
    federations = "".join(federation_row(preset, one) for preset, one in found if preset.federation)
    return f"{_HEAD}{_OF_A_STEP}{steps}{_OF_A_FEDERATION}{federations}"


def step_row(preset: Preset, found: Cost) -> str:
    """A line of the first table."""
    batch = _number(preset, "recipe.batch")
    run = preset.steps_for(TRAIN_TILES) * batch * found.step
    return _row(
        f"`{preset.name}`",
        f"{found.generator:,}",
        f"{found.discriminator:,}",
        f"{found.bytes_up / 1e6:.1f}",
        f"{found.discriminator_step / 1e9:.2f}",
        f"{found.generator_step / 1e9:.2f}",
        f"{found.step / 1e9:.2f}",
        f"{batch:.0f}",
        f"{found.peak_bytes / 1e9:.1f}",
        f"{run / 1e15:.1f}",
    )


def federation_row(preset: Preset, found: Cost) -> str:
    """A line of the second table."""
    sites, rounds = preset.value("federation.partition.sites"), _number(preset, "federation.rounds")
    steps = _number(preset, "federation.local_steps")
    # where the sites are not counted the least that a round needs
    sampled = _number(preset, "federation.sampling.minimum")
    if isinstance(sites, int):
        sampled = max(sampled, math.ceil(sites * _number(preset, "federation.sampling.fraction")))
    return _row(
        f"`{preset.name}`",
        f"{rounds:.0f}",
        f"{sampled:.0f} of {sites}" if sites else f"{sampled:.0f} or more",
        f"{steps:.0f}",
        f"{found.bytes_up / 1e6:.1f}",
        f"{2 * found.bytes_up * rounds * sampled / 1e9:.1f}" + ("" if sites else f" with {sampled:.0f}"),
        f"{steps * _number(preset, 'recipe.batch') * found.step / 1e15:.2f}",
    )


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


def _number(preset: Preset, key: str) -> float:
    value = preset.value(key)
    assert isinstance(value, int | float), f"{key} of {preset.name} is a number"
    return value


def every() -> list[tuple[Preset, Cost]]:
    """Each preset with its cost; presets of one recipe are counted once."""
    known: dict[bytes, Cost] = {}
    found = []
    for preset in map(presets.load, presets.names()):
        table = preset.recipe_table(1000)
        key = canonical({"recipe": table})
        if key not in known:
            known[key] = cost(parse_section(GanConfig, table))
        found.append((preset, known[key]))
    return found
