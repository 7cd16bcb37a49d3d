"""The training loop, one function, read top to bottom: of a round at a site, and of a whole run in one place.

Determinism: batches are a function of (seed, step); noise, labels of fakes, augmentation and dropout come from torch's
generators, whose state is part of a checkpoint. On a CPU a run that was stopped and resumed any number of times ends in the
same bytes, also when it diverged and returned in between.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from histofed.base.clock import Clock
from histofed.base.errors import Cancelled, TrainingFailed
from histofed.base.seeds import seed as seed_of
from histofed.models.ranges import to_model_range
from histofed.training.batches import Batches
from histofed.training.checkpoint import Checkpoint, CheckpointStore
from histofed.training.contest import Contest
from histofed.training.rules import Rules
from histofed.training.step import deal, play
from histofed.training.tensors import to_arrays, with_prefix
from histofed.weights import Array

REPORT_SECONDS: Final = 0.5
CHECKPOINT_SECONDS: Final = 60.0
"""A killed trainer repeats at most this much work."""
_PAPER: Final = Rules()
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """What a step reports."""

    number: int
    losses: Mapping[str, float]
    images_per_second: float


def train(
    contest: Contest,  #                          the players, with the round's weights
    batches: Batches,  #                          the site's tiles
    steps: int,  #                                optimiser steps of the discriminator
    classes: int,  #                              fakes are drawn for these
    store: CheckpointStore,  #                    where an interrupted run goes on
    clock: Clock,
    report: Callable[[Step], None],  #            a line of progress, at most two per second
    stop: Callable[[], bool],  #                  asked before every step
    rules: Rules = _PAPER,  #                     objective, stabilisers, precision
    after: Callable[[int], None] = lambda _: None,  # told the number of every step; must leave random numbers alone
    keep_end: bool = False,  #                    whether the last state is kept as a checkpoint too
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Mapping[str, float]:
    """Train both players; returns the mean of each loss over the steps that had it.

    Raises `Cancelled` after writing a checkpoint when `stop()` turns true, and `TrainingFailed` when it diverges more often
    than the rules allow it to return.
    """
    device, generator = contest.device, contest.generator
    generator.train()
    contest.discriminator.train()
    good = store.good()

    # Go on where an earlier attempt stopped.
    step, returns, sums, counts = 0, 0, Counter[str](), Counter[str]()
    if (checkpoint := store.load()) is not None:
        contest.load(checkpoint.tensors)
        _restore_random_state(checkpoint.tensors, device)
        step, sums, counts, returns = (
            checkpoint.step,
            Counter(checkpoint.sums),
            Counter(checkpoint.counts),
            checkpoint.returns,
        )
    _halve_rates(contest, returns)

    def now_as_checkpoint() -> Checkpoint:
        return Checkpoint(step, sums, {**contest.state(), **_random_state(device)}, counts, returns)

    started = reported = saved = clock.monotonic()
    images, latest = 0, dict[str, float]()
    while step < steps:
        # Keep a state to return to.
        if rules.returns is not None and step % rules.returns.every == 0:
            _keep_good(good, now_as_checkpoint())

        # Stop when asked, and keep what was done now and then.
        if stop():
            store.save(now_as_checkpoint())
            raise Cancelled(f"training stopped on request after {step} of {steps} steps; it goes on from there")
        if clock.monotonic() - saved > checkpoint_seconds:
            store.save(now_as_checkpoint())
            saved = clock.monotonic()

        # A batch of real tiles, as many fakes, and both players' moves.
        pixels_BCHW, labels_B = batches.at(step)
        real_BCHW = to_model_range(pixels_BCHW.to(device))
        dealt = deal(real_BCHW, labels_B.to(device), generator.latent, classes, rules)
        losses = {name: loss.item() for name, loss in play(contest, rules, dealt, step).items()}

        # A loss that is not finite has spoilt the weights already: return, or let nothing of this task leave the site.
        if fault := _fault(losses, rules):
            if (back := _way_back(good, rules, step, returns)) is None:
                good.clear()
                raise TrainingFailed(_failure(fault, step, steps, returns))
            _logger.warning("training diverged (%s at step %d) and returns to step %d", fault, step + 1, back.step)
            returns += 1
            step, sums, counts = back.step, Counter(back.sums), Counter(back.counts)
            _return(contest, back, returns)
            store.save(now_as_checkpoint())
            continue
        sums.update(losses)
        counts.update(losses.keys())
        latest |= losses

        # Tell how it goes.
        step += 1
        images += len(labels_B)
        now = clock.monotonic()
        if step == steps or now - reported >= REPORT_SECONDS:
            reported = now
            report(Step(step, dict(latest), images / max(now - started, 1e-9)))
        after(step)
    if keep_end:
        store.save(now_as_checkpoint())
    good.clear()
    return {name: total / counts[name] for name, total in sums.items()}


def _fault(losses: Mapping[str, float], rules: Rules) -> str:
    """Which loss shows that training diverged; empty when none does."""
    for name, value in losses.items():
        if not math.isfinite(value) or (rules.returns is not None and abs(value) > rules.returns.limit):
            return f"{name.replace('_', ' ')} is {value:.6g}"
    return ""


def _failure(fault: str, step: int, steps: int, returns: int) -> str:
    tried = f" (after {returns} returns to an earlier state, each with half the rates)" if returns else ""
    return (
        f"training diverged: {fault} at step {step + 1} of {steps}; "
        f"lower the learning rates of the experiment, or look for broken tiles at this site{tried}"
    )


def _keep_good(good: CheckpointStore, checkpoint: Checkpoint) -> None:
    """Durable, unless a number in it is not finite: then the next loss will say so."""
    if all(np.isfinite(array).all() for array in checkpoint.tensors.values()):
        good.save(checkpoint)


def _way_back(good: CheckpointStore, rules: Rules, step: int, returns: int) -> Checkpoint | None:
    """The state to return to; None when that was done as often as it may be, or there is no such state."""
    if rules.returns is None or returns >= rules.returns.most:
        return None
    found = good.load()
    # a state of a later step was left by an attempt that went on from an older checkpoint than this one
    return found if found is not None and found.step <= step else None


def _return(contest: Contest, back: Checkpoint, returns: int) -> None:
    """Take the state over, with half the rates and other noise: with the same the same would happen again."""
    contest.restart(back.tensors)
    _halve_rates(contest, 1)
    _restore_random_state(back.tensors, contest.device)
    torch.manual_seed(seed_of("return", returns, int(torch.randint(2**62, ()))))


def _halve_rates(contest: Contest, times: int) -> None:
    for adam in (contest.generator_adam, contest.discriminator_adam):
        for group in adam.param_groups:
            group["lr"] *= 0.5**times


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
