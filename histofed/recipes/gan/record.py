"""`run.json`: what was trained in one place, on what, how, and how far; for people, for papers, and for the next step.

Counts and digests of the data, never a path, a file name or a patient: the record may be published with the model. Numbers
that a run chose itself (threads, seconds) stand under `stretches`, one for each time that the command ran.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from histofed import __version__
from histofed.base import durable
from histofed.base.errors import CannotWriteState, HistofedError
from histofed.base.ids import Json
from histofed.recipes.gan.config import GanConfig
from histofed.recipes.gan.settings import Settings
from histofed.tiles.tileset import TileSet

FORMAT: Final = "histofed.run/v1"
State = Literal["running", "stopped", "finished", "failed"]
_PLACE: Final = re.compile(r"(?<![\w.])~?/\w")
"""An absolute path."""
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stretch:
    """One time that the command ran."""

    began: str
    """RFC 3339, UTC."""
    from_step: int
    to_step: int
    """The last step that is in the checkpoint; `from_step` while it runs."""
    seconds: float
    """In the loop: sheets and checkpoints count, reading tiles and building networks do not."""
    device: str
    threads: int
    torch: str
    """Its version."""


@dataclass(frozen=True)
class Progressed:
    """How far the run is."""

    state: State
    step: int
    losses: Mapping[str, float]
    """The mean of each over the run so far."""
    returns: int
    """How often it diverged and went back."""
    reason: str = ""
    """Why it failed."""


@dataclass(frozen=True)
class About:
    """What does not change while it runs."""

    settings: Settings
    config: GanConfig
    seed: int
    tiles: TileSet
    tiles_sha256: str
    notes: tuple[str, ...]
    earlier: tuple[Mapping[str, Json], ...]
    """Stretches before this one, as they were written."""


def document(about: About, stretch: Stretch, progressed: Progressed) -> dict[str, Json]:
    """The whole record."""
    config, done = about.config, progressed.step >= about.config.steps
    against = about.settings.not_the_papers()
    if not done:
        against = (*against, f"it has taken {progressed.step} of {config.steps} steps")
    stretches: list[Json] = [*about.earlier, dataclasses.asdict(stretch)]
    return {
        "format": FORMAT,
        "histofed": __version__,
        "python": platform.python_version(),
        "state": progressed.state,
        **({"reason": progressed.reason} if progressed.reason else {}),
        "settings": about.settings.name,
        "preset": about.settings.preset,
        "paper": not against,
        "not_the_papers": list(against),
        "departures": list(about.settings.departures),
        "provenance": _counted(about.settings.provenance),
        "recipe": public_recipe(config),
        "rules": json.loads(json.dumps(dataclasses.asdict(config.rules()))),
        "seed": about.seed,
        "start": "weights file" if config.discriminator.weights else "random",
        "data": _data(about.tiles, about.tiles_sha256),
        "step": progressed.step,
        "steps": config.steps,
        "images": progressed.step * config.batch,
        "seconds": round(stretch.seconds + sum(_seconds(one) for one in about.earlier), 3),
        "losses": dict(progressed.losses),
        "returns": progressed.returns,
        "stretches": stretches,
        "notes": [*about.notes, *_returned(progressed.returns), *_moved(about.earlier, stretch)],
    }


def write(path: Path, found: Mapping[str, Json]) -> None:
    """Durable. Raises `CannotWriteState`."""
    durable.replace(path, json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n", mode=0o644)


def reason_of(error: HistofedError) -> str:
    """Why a run failed, as the record may say it: the class's words where the error's own name a place on this machine."""
    sentence = str(error)
    if not isinstance(error, CannotWriteState) and not _PLACE.search(sentence):
        return sentence
    cause = error.__cause__
    why = f" ({os.strerror(cause.errno)})" if isinstance(cause, OSError) and cause.errno else ""
    return f"{(type(error).__doc__ or type(error).__name__).strip()} The command said where{why}."


def earlier_stretches(path: Path) -> tuple[Mapping[str, Json], ...]:
    """The stretches of the record that lies there; none where it cannot be read, which costs only their history."""
    try:
        found = json.loads(path.read_bytes())["stretches"]
        return tuple(dict(one) for one in found)
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, KeyError, TypeError) as error:
        _logger.warning("the record of the run so far cannot be read (%s); a new one begins", type(error).__name__)
        return ()


def public_recipe(config: GanConfig) -> dict[str, Json]:
    """Every effective value of the recipe's table; a weights file by its digest, without the place where it lies."""
    table: dict[str, Json] = config.model_dump(mode="json")
    if config.discriminator.weights is not None:
        discriminator = table["discriminator"]
        assert isinstance(discriminator, dict)
        table["discriminator"] = {**discriminator, "weights": {"sha256": config.discriminator.weights.sha256}}
    return table


def _data(tiles: TileSet, sha256: str) -> dict[str, Json]:
    everybody = sorted((tile.class_index, tile.patient) for tile in set(tiles.tiles))
    patients = "".join(f"{index} {patient}\n" for index, patient in dict.fromkeys(everybody))
    return {
        "tiles_sha256": sha256,
        "patients_sha256": hashlib.sha256(patients.encode()).hexdigest(),
        "tiles": len(tiles.tiles),
        "patients": len(tiles.patients()),
        "hospitals": len({tile.hospital for tile in tiles.tiles if tile.hospital}),
        "classes": [
            {"name": name, "tiles": tiles.count(index), "patients": len(tiles.patients(index))}
            for index, name in enumerate(tiles.classes)
        ],
        "refused": dict(tiles.refused),
    }


def _counted(provenance: Mapping[str, Mapping[str, Json]]) -> dict[str, Json]:
    """How many of the preset's values the paper states, and so on."""
    kinds = [str(found["kind"]) for found in provenance.values()]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def _seconds(stretch: Mapping[str, Json]) -> float:
    found = stretch.get("seconds")
    return float(found) if isinstance(found, int | float) else 0.0


def _moved(earlier: Sequence[Mapping[str, Json]], now: Stretch) -> Sequence[str]:
    """Whether the run went on elsewhere: the same numbers then come in another order of additions."""
    own = dataclasses.asdict(now)
    moved = [key for key in ("device", "threads", "torch") if any(one.get(key) != own[key] for one in earlier)]
    if not moved:
        return ()
    return (f"went on with other {' and '.join(moved)}: not bit for bit the run that was never stopped",)


def _returned(returns: int) -> Sequence[str]:
    if not returns:
        return ()
    times = "once" if returns == 1 else f"{returns} times"
    return (f"training diverged {times} and went on from the last good state with half the rates",)
