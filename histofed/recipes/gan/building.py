"""From a `GanConfig` to what the loop takes: tiles, networks, optimisers, batches. Shared by `workshop.py` and `central.py`.

One place builds, so that a site's task and a run in one place differ only in what surrounds them.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from torch.amp import GradScaler

from histofed.base.errors import BadData, ConfigError
from histofed.models.networks import Discriminator, Generator
from histofed.models.norms import has_batch_norm
from histofed.models.options import DiscriminatorOptions
from histofed.models.registry import build_discriminator, build_generator
from histofed.models.trunk_weights import LocalWeights
from histofed.recipes.gan.config import GanConfig
from histofed.tiles import cache, folder
from histofed.tiles.cache import TileCache
from histofed.tiles.store import TileStore
from histofed.tiles.tileset import check_patients
from histofed.training.batches import Batches, BatchPlan
from histofed.training.compiling import compile_players
from histofed.training.contest import Contest
from histofed.training.deal import Deal
from histofed.training.ema import Ema
from histofed.training.muon import MuonAdam
from histofed.training.rules import Rules

SHEET_COLUMNS: Final = 8
"""Samples per class on a sheet."""


def load_tiles(config: GanConfig, root: Path, minimum_patients: int, store: TileStore | None) -> TileCache:
    """Every tile under `root` that may be trained on, decoded at the model's size.

    Raises `BadData` for held-out tiles or a class without a usable tile, `TooFewPatients` for fewer than `minimum_patients`
    in one, `CannotWriteState` when the store's disk refuses.
    """
    # a tile that is smaller than the model would teach it the blur of enlarging
    tiles = cache.load(folder.scan(root, config.classes), config.image_size, config.image_size, store)
    check_patients(tiles.tileset, minimum_patients)
    return tiles


def batches_of(config: GanConfig, tiles: TileCache, seed: int, device: torch.device) -> Batches:
    """The batches of a task, on its device."""
    plan = BatchPlan(config.batch, seed, config.balanced, config.flips)
    return Batches(tiles.pixels, tiles.labels, len(config.classes), plan, device)


def rules_of(config: GanConfig, devices: int) -> Rules:
    """The experiment's rules; several devices play each batch in as many parts, or a multiple of what it is dealt in anyway.

    Raises `ConfigError` for a batch that cannot be dealt so.
    """
    rules = config.rules()
    parts = math.lcm(config.accumulate, devices)
    if config.batch % parts or config.batch // parts < 2:
        raise ConfigError(
            f"a batch of {config.batch} cannot be dealt to {devices} devices in {parts} parts of at least two tiles; "
            "lower devices"
        )
    return replace(rules, accumulate=parts)


def check_team(config: GanConfig, devices: int) -> None:
    """Raises `ConfigError` for networks that several devices cannot train as one."""
    if devices == 1:
        return
    rules_of(config, devices)
    players = {"generator": generator_of(config), "discriminator": discriminator_of(config)}
    if mixing := [name for name, network in players.items() if has_batch_norm(network.train())]:
        raise ConfigError(
            f"the {' and the '.join(mixing)} of this experiment has batch norm, whose running statistics would differ from "
            "device to device; train on one (devices = 1)"
        )


def generator_of(config: GanConfig) -> Generator:
    """A generator with fresh weights from torch's global random numbers."""
    return build_generator(config.generator, config.image_size, len(config.classes), config.latent)


def discriminator_of(config: GanConfig) -> Discriminator:
    """A discriminator with fresh weights, or those of its file. Raises `BadData` for what cannot be built."""
    chosen, rules = config.discriminator, config.rules()
    start = LocalWeights(Path(chosen.weights.path), chosen.weights.sha256) if chosen.weights else None
    options = DiscriminatorOptions(
        rules.heads,
        chosen.trunk == "frozen",
        chosen.norm,
        chosen.spectral_norm,
        chosen.dropout,
        chosen.batch_deviation,
    )
    network = build_discriminator(chosen.name, config.image_size, len(config.classes), start, options)
    if rules.objective.has_penalty and has_batch_norm(network):
        raise BadData(
            f"discriminator {chosen.name!r} has batch norm, which mixes the tiles that a penalty of gradients looks at one "
            'by one; use norm = "group", a frozen trunk, or a network without batch norm'
        )
    return network


def contest_of(config: GanConfig, device: torch.device, *, averaged: bool = False) -> Contest:
    """The two players with fresh weights on `device`, and their optimisers.

    `averaged` adds the average of the generator over its steps: in one place there is no aggregator to keep it.
    """
    generator, discriminator = generator_of(config), discriminator_of(config)
    for network in (generator, discriminator):
        # channels-last: a third faster, and the same numbers in another order in memory
        network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    trained = [parameter for parameter in discriminator.parameters() if parameter.requires_grad]
    return Contest(
        generator,
        discriminator,
        generator_optimiser(generator, config),
        torch.optim.Adam(trained, config.discriminator_rate, config.betas, fused=True),
        device,
        ema=Ema(generator, config.ema_decay) if averaged else None,
        scalers=(GradScaler(device.type), GradScaler(device.type)) if config.precision == "fp16" else None,
    )


def generator_optimiser(generator: Generator, config: GanConfig) -> torch.optim.Adam:
    """Adam, or Muon beside it, as the experiment says."""
    if config.muon_rate is None:
        return torch.optim.Adam(generator.parameters(), config.generator_rate, config.betas, fused=True)
    return MuonAdam(generator, config.generator_rate, config.betas, config.muon_rate)


def compile_networks(config: GanConfig, contest: Contest, devices: int) -> tuple[str, ...]:
    """Compile both networks, each apart, where the experiment wants it; what did not work, in words, for the notes."""
    if not config.compile:
        return ()
    rules = rules_of(config, devices)
    size, count, device = config.image_size, config.batch // rules.accumulate, contest.device
    labels = torch.arange(count, device=device) % len(config.classes)
    images, noise = (torch.zeros(count, *shape, device=device) for shape in ((3, size, size), (config.latent,)))
    return compile_players(contest, rules, Deal(images, labels, noise, labels))
