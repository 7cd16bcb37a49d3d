"""The heavy half of the recipe `gan`: trains a task, draws sample sheets. Only in child processes.

Which tensors go where is one line: everything that `Contest.state` names is shared when `_is_shared` says so, else private.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from histofed import weights
from histofed.base.clock import SystemClock
from histofed.base.errors import BadData, TrainingFailed
from histofed.base.ids import Json, canonical, sha256
from histofed.models.networks import floating_state, load_floating_state
from histofed.recipes.contract import Counts, Progress, Stop, TrainResult, TrainTask
from histofed.recipes.gan.building import (
    SHEET_COLUMNS,
    batches_of,
    check_team,
    compile_networks,
    contest_of,
    discriminator_of,
    generator_of,
    load_tiles,
    rules_of,
)
from histofed.recipes.gan.config import GanConfig
from histofed.recipes.sections import parse_section
from histofed.tiles.cache import TileCache
from histofed.tiles.store import TileStore
from histofed.training.checkpoint import CheckpointStore
from histofed.training.contest import Contest
from histofed.training.loop import Step, train
from histofed.training.runtime import prepare
from histofed.training.sheet import draw_sheet
from histofed.training.shortage import memory_explained
from histofed.training.team import Team
from histofed.training.teamwork import device_of, team_of
from histofed.training.tensors import to_arrays, with_prefix
from histofed.weights import Array


class GanWorkshop:
    """See `histofed.recipes.contract.Workshop`."""

    def initialise(self, config: Mapping[str, Json], seed: int, target: Path) -> None:
        """Fresh networks; a shared discriminator starts from its local weights file where one is configured."""
        wanted = parse_section(GanConfig, config)
        prepare("cpu", 0, seed)
        tensors = to_arrays(floating_state(generator_of(wanted)), "generator.")
        if _is_shared(wanted, "discriminator."):
            tensors |= to_arrays(floating_state(discriminator_of(wanted)), "discriminator.")
        weights.store(target, tensors)

    def train(self, task: TrainTask, report: Callable[[Progress], None], stop: Stop) -> TrainResult:
        """Tiles, networks, loop, two files.

        Raises `BadData`, `Cancelled`, `ConfigError`, `OutOfMemory`, `TrainingFailed`, or `TryLater` where tiles change.
        """
        config = parse_section(GanConfig, task.config)
        with memory_explained(config.batch, config.accumulate, config.precision, config.image_size):
            check_team(config, task.devices)
            # read first: the others then find the tiles in the cache
            tiles = _tiles(task, config)
            with team_of(task.devices, task.device, _assist, task) as team:
                return _train(config, task, tiles, report, stop, team)

    def sample_sheet(self, config: Mapping[str, Json], tensors: Path, seed: int, target: Path) -> bool:
        """Rows by class from the released generator (`ema.*`). Raises `BadData` when the tensors are of another model."""
        wanted = parse_section(GanConfig, config)
        prepare("cpu", 0, seed)
        generator = generator_of(wanted)
        try:
            load_floating_state(generator, with_prefix(weights.read(tensors), "ema."))
        except (KeyError, ValueError) as error:
            raise BadData(f"the tensors are not those of this experiment's generator: {error}") from error
        draw_sheet(generator, wanted.classes, SHEET_COLUMNS, seed, target)
        return True


def _assist(task: TrainTask, team: Team) -> None:
    """What each further process of a team does."""
    config = parse_section(GanConfig, task.config)
    with memory_explained(config.batch, config.accumulate, config.precision, config.image_size):
        _train(config, task, _tiles(task, config), lambda _: None, lambda: False, team)


def _train(
    config: GanConfig, task: TrainTask, tiles: TileCache, report: Callable[[Progress], None], stop: Stop, team: Team
) -> TrainResult:
    rules = replace(rules_of(config, team.size), steps_before=(task.round - 1) * config.steps)
    device = prepare(device_of(task.device, team.size, team.rank), task.threads, task.seed)
    contest = _contest(config, task, device)
    notes = compile_networks(config, contest, team.size)
    batches = batches_of(config, tiles, task.seed, device)
    work = _work(task, tiles, rules.accumulate, device)
    store = CheckpointStore(task.output, sha256(canonical(work)), work=work)

    def tell(step: Step) -> None:
        report(Progress(step.number, config.steps, step.losses, step.images_per_second, str(device)))

    clock = SystemClock()
    losses = train(contest, batches, config.steps, len(config.classes), store, clock, tell, stop, rules, team=team)
    if team.leads:
        _write(contest.state(), config, task.output)
    counts = Counts(len(tiles.tileset.tiles), len(tiles.tileset.patients()))
    return TrainResult(counts, config.steps, losses, (*tiles.tileset.notes(), *notes))


def _is_shared(config: GanConfig, name: str) -> bool:
    return name.startswith("generator.") or (name.startswith("discriminator.") and config.share == "generator+discriminator")


def _tiles(task: TrainTask, config: GanConfig) -> TileCache:
    if task.data is None:
        raise BadData("this experiment reads tiles and the site has configured no data root; set one for it")
    store = TileStore(task.cache, task.cache_bytes) if task.cache is not None else None
    return load_tiles(config, task.data, task.minimum_patients, store)


def _contest(config: GanConfig, task: TrainTask, device: torch.device) -> Contest:
    """The two players with the round's weights and this site's private state."""
    contest = contest_of(config, device)
    shared = weights.read(task.shared)
    expected = {name for name in contest.state() if _is_shared(config, name)}
    if shared.keys() != expected:
        raise BadData("the global weights are not those of this experiment's networks; they belong to other work")
    contest.load(shared)
    if task.private is not None:
        contest.load(weights.read(task.private))
    return contest


def _write(state: Mapping[str, Array], config: GanConfig, output: Path) -> None:
    """Private first: a shared file means that the work is complete. Raises `TrainingFailed` for weights that broke."""
    shared = {name: array for name, array in state.items() if _is_shared(config, name)}
    private = {
        name: array
        for name, array in state.items()
        if name not in shared and (config.persist_moments or name.startswith("discriminator."))
    }
    if not all(np.isfinite(array).all() for array in (*shared.values(), *private.values())):
        raise TrainingFailed("training diverged: a weight is not finite; lower the learning rates of the experiment")
    weights.store(output / "private.safetensors", private)
    weights.store(output / "shared.safetensors", shared)


def _work(task: TrainTask, tiles: TileCache, parts: int, device: torch.device) -> dict[str, Json]:
    """What a checkpoint must have in common with the task that resumes it."""
    return {
        "config": task.config,
        "parts": parts,
        "seed": task.seed,
        "shared": _file_digest(task.shared),
        "private": _file_digest(task.private) if task.private else None,
        "tiles": tiles.fingerprint(),
        # `auto` finds another one when a GPU comes or goes; random numbers of one kind are none of the other's
        "device": device.type,
    }


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
