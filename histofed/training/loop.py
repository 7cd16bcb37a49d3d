"""The training loop, one function, read top to bottom: of a round at a site, and of a whole run in one place.

Determinism: batches are a function of (seed, step); noise, labels of fakes, augmentation and dropout come from torch's
generators, whose state is part of a checkpoint. On a CPU a run that was stopped and resumed any number of times ends in the
same bytes, also when it diverged and returned in between.
"""

from __future__ import annotations

import logging
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
from histofed.training.deal import deal
from histofed.training.ledger import GPU_STEPS, Fault, Ledger
from histofed.training.rates import Rates
from histofed.training.rules import Rules
from histofed.training.step import play
from histofed.training.team import ALONE, Team
from histofed.training.tensors import to_arrays, with_prefix
from histofed.training.textures import MOST_TILES, Textures
from histofed.weights import Array

REPORT_SECONDS: Final = 0.5
CHECKPOINT_SECONDS: Final = 60.0
"""A killed trainer repeats at most this much work."""
_PAPER: Final = Rules()
_GO, _KEEP, _STOP = range(3)
"""What the first process of a team decides before a step."""
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
    team: Team = ALONE,  #                        the processes that play each step together; one of them keeps and tells
    read_every: int | None = None,  #             steps between two looks at the losses; None: each on a CPU, fewer on a GPU
) -> Mapping[str, float]:
    """Train both players; returns the mean of each loss over the steps that had it.

    Raises `Cancelled` after writing a checkpoint when `stop()` turns true, `TrainingFailed` when it diverges more often than
    the rules allow it to return, and `TryLater` when the processes of a team would not begin with the same.
    """
    run = _Run(contest, store, rules, steps, team)
    read_every = read_every or (GPU_STEPS if contest.device.type == "cuda" else 1)
    contest.generator.train()
    contest.discriminator.train()
    textures = Textures(*batches.some(MOST_TILES), classes, contest.device) if rules.textures else None

    # Go on where an earlier attempt stopped.
    run.resume()
    started = reported = saved = clock.monotonic()
    images = 0
    while run.step < steps:
        # One process decides for all: stop when asked, and keep what was done now and then.
        choice = _GO
        if team.leads:
            choice = _STOP if stop() else _KEEP if clock.monotonic() - saved > checkpoint_seconds else _GO
        choice = team.decided(choice)
        good_is_due = rules.returns is not None and run.step % rules.returns.every == 0
        if (choice != _GO or good_is_due) and run.diverged():
            continue
        if good_is_due:
            run.keep_good()
        if choice != _GO:
            run.keep()
            saved = clock.monotonic()
        if choice == _STOP:
            raise Cancelled(f"training stopped on request after {run.step} of {steps} steps; it goes on from there")

        # A batch of real tiles, as many fakes, and both players' moves.
        pixels_BCHW, labels_B = batches.at(run.step)
        dealt = deal(to_model_range(pixels_BCHW), labels_B, contest.generator.latent, classes, rules)
        run.rates.set(run.step, run.returns)
        losses = play(contest, rules, dealt, run.step, team, textures)
        run.ledger.note(run.step, losses, contest.scales())
        run.step += 1

        # A loss that is not finite has spoilt the weights already, and a scale that fell to nothing has kept them from
        # moving: return, or let nothing of this task leave the site.
        read = run.step % read_every == 0 or run.step == steps
        if read and run.diverged():
            continue

        # Tell how it goes.
        images += len(labels_B)
        now = clock.monotonic()
        if team.leads and read and (run.step == steps or now - reported >= REPORT_SECONDS):
            reported = now
            report(Step(run.step, dict(run.ledger.latest), images / max(now - started, 1e-9)))
        after(run.step)
    run.finish(keep_end)
    return run.ledger.means()


class _Run:
    """Where a run stands, and how it goes back. Every process of a team has one; the leader's alone writes."""

    def __init__(self, contest: Contest, store: CheckpointStore, rules: Rules, steps: int, team: Team) -> None:
        self._contest, self._store, self._good = contest, store, store.good()
        self._rules, self._steps, self._team = rules, steps, team
        self.ledger = Ledger(rules)
        self.rates = Rates(contest, rules)
        self.step = self.returns = 0

    def resume(self) -> None:
        """From the store's checkpoint, where there is one. Raises `TryLater` when another process stands elsewhere."""
        if (found := self._store.load()) is not None:
            self._contest.load(found.tensors)
            _restore_random_state(found.tensors, self._contest.device)
            self.step, self.returns = found.step, found.returns
            self.ledger.start_from(found)
        self._team.require_alike({"work": self._store.fingerprint, "step": self.step, "returns": self.returns})

    def keep(self) -> None:
        """A checkpoint of now, durable."""
        if self._team.leads:
            self._store.save(self._now())

    def keep_good(self) -> None:
        """A state to return to, unless a number in it is not finite: then the next loss will say so."""
        if self._team.leads:
            now = self._now()
            if all(np.isfinite(array).all() for array in now.tensors.values()):
                self._good.save(now)

    def diverged(self) -> bool:
        """Whether a loss says so; then the run stands at an earlier state again. Raises `TrainingFailed` without one."""
        if (fault := self.ledger.read()) is None:
            return False
        if (back := self._way_back(fault.step)) is None:
            if self._team.leads:
                self._good.clear()
            raise TrainingFailed(_failure(fault, self._rules, self._steps, self.returns))
        _logger.warning(
            "training diverged (%s at step %d) and returns to step %d", fault.sentence, fault.step + 1, back.step
        )
        self.step = back.step
        self.returns += 1
        self.ledger.start_from(back)
        _return(self._contest, back, self.returns)
        self.keep()
        return True

    def finish(self, keep_end: bool) -> None:
        """The work is done."""
        if keep_end:
            self.keep()
        if self._team.leads:
            self._good.clear()

    def _now(self) -> Checkpoint:
        tensors = {**self._contest.state(), **_random_state(self._contest.device)}
        return Checkpoint(self.step, self.ledger.sums, tensors, self.ledger.counts, self.returns)

    def _way_back(self, step: int) -> Checkpoint | None:
        """The state to return to; None when that was done as often as it may be, or there is no such state."""
        if self._rules.returns is None or self.returns >= self._rules.returns.most:
            return None
        found = self._good.load()
        # a state of a later step was left by an attempt that went on from an older checkpoint than this one
        return found if found is not None and found.step <= step else None


def _failure(fault: Fault, rules: Rules, steps: int, returns: int) -> str:
    tried = f" (after {returns} returns to an earlier state, each with half the rates)" if returns else ""
    wider = ' or set its precision = "bf16",' if rules.precision == "fp16" else ","
    return (
        f"training diverged: {fault.sentence} at step {fault.step + 1} of {steps}; "
        f"lower the learning rates of the experiment{wider} or look for broken tiles at this site{tried}"
    )


def _return(contest: Contest, back: Checkpoint, returns: int) -> None:
    """Take the state over, with other noise, and half the rates from now on: with the same the same would happen again."""
    contest.restart(back.tensors)
    _restore_random_state(back.tensors, contest.device)
    torch.manual_seed(seed_of("return", returns, int(torch.randint(2**62, ()))))


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
