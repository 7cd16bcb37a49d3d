"""What a configuration costs: its networks are built and its training step is run, without contents, under a meter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import nn

from histofed.models.networks import Discriminator, Generator, floating_state
from histofed.models.options import DiscriminatorOptions
from histofed.models.registry import build_discriminator, build_generator
from histofed.recipes.gan.building import generator_optimiser
from histofed.recipes.gan.config import GanConfig
from histofed.training.contest import Contest
from histofed.training.deal import deal
from histofed.training.rules import Rules
from histofed.training.step import play

from .meter import Meter, metered

_CPU: Final = torch.device("cpu")


@dataclass(frozen=True)
class Cost:
    """Of one preset. FLOPs are per tile of the batch."""

    generator: int
    """Parameters."""
    discriminator: int
    bytes_up: int
    """What a site sends in a round, float32: the shared tensors without the file's header."""
    discriminator_step: float
    """A lazy penalty is spread over the steps without it."""
    generator_step: float
    step: float
    """Both as often as each is taken, and what drawing the fakes costs where the generator does not move."""
    peak_bytes: int
    """Weights, gradients, the optimisers' moments, the batch and all that backward needs, at the preset's batch."""


def cost(config: GanConfig) -> Cost:
    """Build the networks, play steps of every kind, count."""
    rules = config.rules()
    with torch.device("meta"):
        generator, discriminator = networks(config)
    with metered() as meter:
        for network in (generator, discriminator):
            network.to_empty(device=_CPU)
        contest = Contest(
            generator,
            discriminator,
            generator_optimiser(generator, config),
            torch.optim.Adam([one for one in discriminator.parameters() if one.requires_grad], fused=True),
            _CPU,
        )
        draw = _drawing(meter, generator, config) / config.batch
        # the penalty at steps 0, 3, ..., the generator's move at steps 1, 3, ...: all four kinds of step
        kinds = replace(rules, objective=replace(rules.objective, critic_steps=2), penalty_every=3)
        penalised, both, plain, _ = (_play(meter, contest, config, kinds, step) / config.batch for step in range(4))
    d_plain, lazy = plain - draw, (penalised - plain) / rules.penalty_every
    g_step, turns = both - d_plain, rules.objective.critic_steps
    return Cost(
        generator=_parameters(generator),
        discriminator=_parameters(discriminator),
        bytes_up=sent(config, generator, discriminator),
        discriminator_step=d_plain + lazy,
        generator_step=g_step,
        step=d_plain + lazy + (g_step + (turns - 1) * draw) / turns,
        peak_bytes=meter.peak,
    )


def networks(config: GanConfig) -> tuple[Generator, Discriminator]:
    """Both players of a configuration, without a weights file."""
    chosen, size, classes = config.discriminator, config.image_size, len(config.classes)
    options = DiscriminatorOptions(
        heads=config.rules().heads,
        norm=chosen.norm,
        spectral_norm=chosen.spectral_norm,
        dropout=chosen.dropout,
        batch_deviation=chosen.batch_deviation,
    )
    return (
        build_generator(config.generator, size, classes, config.latent),
        build_discriminator(chosen.name, size, classes, None, options),
    )


def sent(config: GanConfig, generator: Generator, discriminator: Discriminator) -> int:
    """Bytes of the shared tensors as float32; batch norm's statistics are among them."""
    players = (generator, discriminator) if config.share == "generator+discriminator" else (generator,)
    return 4 * sum(tensor.numel() for network in players for tensor in floating_state(network).values())


def _drawing(meter: Meter, generator: Generator, config: GanConfig) -> int:
    before = meter.flops
    with torch.no_grad():
        generator(torch.zeros(config.batch, config.latent), torch.zeros(config.batch, dtype=torch.long))
    return meter.flops - before


def _play(meter: Meter, contest: Contest, config: GanConfig, rules: Rules, step: int) -> int:
    before, size = meter.flops, config.image_size
    tiles, labels = torch.zeros(config.batch, 3, size, size), torch.zeros(config.batch, dtype=torch.long)
    play(contest, rules, deal(tiles, labels, config.latent, len(config.classes), rules), step)
    return meter.flops - before


def _parameters(network: nn.Module) -> int:
    return sum(one.numel() for one in network.parameters())
