"""Whose a checkpoint is: what two calls of `histofed train` must have in common to be one run.

A run's work lies in its checkpoint, so that a folder which holds other work is refused in words that say what differs. A
site's task asks nothing of the kind: it drops a checkpoint of other work. Called by `central.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Final

import torch

from histofed.base.errors import AlreadyThere, BadData
from histofed.base.ids import Json
from histofed.recipes.gan.config import GanConfig
from histofed.recipes.gan.record import public_recipe
from histofed.training.checkpoint import CheckpointStore, Found

_YOUNGER: Final = ("muon_rate", "decay")
"""Options that an older release did not write down; its runs, which do without them, go on."""
_logger = logging.getLogger(__name__)


def work_of(config: GanConfig, seed: int, tiles: str, device: torch.device, devices: int) -> dict[str, Json]:
    """What two runs must have in common to be one. Not the number of steps: a run may be made longer."""
    recipe = public_recipe(config)
    del recipe["steps"]
    for name in _YOUNGER:
        if recipe[name] is None:
            del recipe[name]
    return {"recipe": recipe, "seed": seed, "tiles": tiles, "device": device.type, "devices": devices}


def own_checkpoint(store: CheckpointStore, work: Mapping[str, Json], config: GanConfig) -> Found | None:
    """The checkpoint to go on from. Raises `AlreadyThere` for one of other work, `BadData` for one that cannot be read."""
    found = store.peek()
    if found is None:
        if store.path.exists():
            raise BadData(
                f"{store.path} is damaged or of another version; go on elsewhere with another --out, or begin again with "
                "--restart"
            )
        return None
    if found.work != dict(work):
        told = "; ".join(_differences(found.work, work)) or "it was made by other means"
        raise AlreadyThere(
            f"{store.path.parent} holds another run ({told}); go on with its settings, choose another --out, or begin again "
            "with --restart"
        )
    if found.state.step > config.steps:
        raise AlreadyThere(
            f"{store.path.parent} holds a run of {found.state.step} steps already, more than {config.steps}; choose another "
            "--out, or begin again with --restart"
        )
    _logger.info("going on after step %d", found.state.step)
    return found


def _differences(before: Mapping[str, Json], now: Mapping[str, Json]) -> list[str]:
    """What differs, in words: `batch was 32 and is 16`."""
    old, new = dict(_flat(before)), dict(_flat(now))
    names = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    told = [
        "its tiles were others"
        if name == "tiles"
        else f"{name.removeprefix('recipe.')} was {old.get(name)} and is {new.get(name)}"
        for name in names
    ]
    return [*told[:5], *([f"and {len(told) - 5} more"] if len(told) > 5 else [])]


def _flat(table: Mapping[str, Json], prefix: str = "") -> Iterator[tuple[str, Json]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
