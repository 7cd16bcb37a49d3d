"""The training loop of a round: one function, read top to bottom. Called by the `gan` recipe's workshop.

Determinism: batches are a function of (seed, step); noise, labels of fakes and dropout come from torch's generators, whose
state is part of a checkpoint. On a CPU a run that was stopped and resumed any number of times ends in the same bytes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch

from histofed.base.clock import Clock
from histofed.base.errors import BadData, Cancelled, TrainingFailed
from histofed.models.networks import Discriminator, Generator, floating_state, load_floating_state
from histofed.models.ranges import to_model_range
from histofed.training.batches import Batches
from histofed.training.checkpoint import Checkpoint, CheckpointStore
from histofed.training.losses import discriminator_loss, generator_loss
from histofed.training.optimiser_state import adam_state, load_adam_state
from histofed.training.tensors import to_arrays, with_prefix
from histofed.weights import Array

REPORT_SECONDS: Final = 0.5
CHECKPOINT_SECONDS: Final = 60.0
"""A killed trainer repeats at most this much work."""


@dataclass(frozen=True)
class Contest:
    """The two players and their optimisers; changed in place by training."""

    generator: Generator
    discriminator: Discriminator
    generator_adam: torch.optim.Adam
    discriminator_adam: torch.optim.Adam
    device: torch.device

    def state(self) -> dict[str, Array]:
        """Everything that a step changes, by name, without the random number generators."""
        return {
            **to_arrays(floating_state(self.generator), "generator."),
            **to_arrays(floating_state(self.discriminator), "discriminator."),
            **to_arrays(adam_state(self.generator, self.generator_adam), "adam.generator."),
            **to_arrays(adam_state(self.discriminator, self.discriminator_adam), "adam.discriminator."),
        }

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Take over what is there: each of the four groups of `state` may be missing as a whole. Raises `BadData`."""
        for name, network, adam in (
            ("generator", self.generator, self.generator_adam),
            ("discriminator", self.discriminator, self.discriminator_adam),
        ):
            if found := with_prefix(arrays, f"{name}."):
                try:
                    load_floating_state(network, found)
                except (KeyError, ValueError) as error:
                    raise BadData(f"the weights are not those of this {name}: {error}") from error
            if moments := with_prefix(arrays, f"adam.{name}."):
                load_adam_state(network, adam, moments)


@dataclass(frozen=True)
class Step:
    """What a step reports."""

    number: int
    losses: Mapping[str, float]
    images_per_second: float


def train(
    contest: Contest,  #                          the players, with the round's weights
    batches: Batches,  #                          the site's tiles
    steps: int,  #                                optimiser steps of each player
    classes: int,  #                              fakes are drawn for these, evenly
    store: CheckpointStore,  #                    where an interrupted run goes on
    clock: Clock,
    report: Callable[[Step], None],  #            a line of progress, at most two per second
    stop: Callable[[], bool],  #                  asked before every step
) -> Mapping[str, float]:
    """Train both players; returns the mean of each loss over all steps.

    Raises `Cancelled` after writing a checkpoint when `stop()` turns true, and `TrainingFailed` when a loss is not finite.
    """
    generator, discriminator, device = contest.generator, contest.discriminator, contest.device
    generator.train()
    discriminator.train()

    # Go on where an earlier attempt stopped.
    first, sums = 0, Counter[str]()
    if (checkpoint := store.load()) is not None:
        contest.load(checkpoint.tensors)
        _restore_random_state(checkpoint.tensors, device)
        first, sums = checkpoint.step, Counter(checkpoint.sums)

    def save(step: int) -> None:
        store.save(Checkpoint(step, sums, {**contest.state(), **_random_state(device)}))

    started = reported = saved = clock.monotonic()
    images = 0
    for step in range(first, steps):
        # Stop when asked, and keep what was done now and then.
        if stop():
            save(step)
            raise Cancelled(f"training stopped on request after {step} of {steps} steps; it goes on from there")
        if clock.monotonic() - saved > CHECKPOINT_SECONDS:
            save(step)
            saved = clock.monotonic()

        # A batch of real tiles, and as many fakes of evenly drawn classes.
        pixels_BCHW, labels_B = batches.at(step)
        real_BCHW = to_model_range(pixels_BCHW.to(device))
        labels_B = labels_B.to(device)
        z_BZ = torch.randn(len(labels_B), generator.latent).to(device)
        asked_B = torch.randint(classes, (len(labels_B),)).to(device)
        fake_BCHW = generator(z_BZ, asked_B)

        # The generator's step; the discriminator's weights need no gradient for it, which saves a quarter of the work.
        discriminator.requires_grad_(False)
        fake_B, fake_classes_BK = discriminator(fake_BCHW)
        g_loss = generator_loss(fake_B, fake_classes_BK, asked_B)
        contest.generator_adam.zero_grad()
        torch.autograd.backward(g_loss)
        contest.generator_adam.step()
        discriminator.requires_grad_(True)

        # The discriminator's step, on the same fakes.
        real_B, real_classes_BK = discriminator(real_BCHW)
        fake_B, _ = discriminator(fake_BCHW.detach())
        d_loss = discriminator_loss(real_B, real_classes_BK, labels_B, fake_B)
        contest.discriminator_adam.zero_grad()
        torch.autograd.backward(d_loss)
        contest.discriminator_adam.step()

        # A loss that is not finite has spoilt the weights already: nothing of this task may leave the site.
        losses = {"generator_loss": g_loss.item(), "discriminator_loss": d_loss.item()}
        for name, value in losses.items():
            if not math.isfinite(value):
                raise TrainingFailed(
                    f"training diverged: {name.replace('_', ' ')} is {value} at step {step + 1} of {steps}; "
                    "lower the learning rates of the experiment, or look for broken tiles at this site"
                )
        sums.update(losses)

        # Tell how it goes.
        images += len(labels_B)
        now = clock.monotonic()
        if step + 1 == steps or now - reported >= REPORT_SECONDS:
            reported = now
            report(Step(step + 1, losses, images / max(now - started, 1e-9)))
    return {name: total / steps for name, total in sums.items()}


def _random_state(device: torch.device) -> dict[str, Array]:
    states = {"random.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["random.cuda"] = torch.cuda.get_rng_state(device)
    return to_arrays(states)


def _restore_random_state(arrays: Mapping[str, Array], device: torch.device) -> None:
    states = with_prefix(arrays, "random.")
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
