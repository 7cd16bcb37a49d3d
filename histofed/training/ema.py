"""An average of the generator over its steps, for training in one place; in a federation the aggregator keeps it instead.

target = d · target + (1 - d) · generator after each of the generator's steps, d = min(decay, (1 + n) / (10 + n)) at step n,
so that a short run does not remember its random start. Batch norm's statistics follow in the same way.
"""

from __future__ import annotations

import copy

import torch

from histofed.models.networks import Generator, floating_state


class Ema:
    """`generator` is a network of its own, in evaluation mode: draw samples from it, and release it."""

    def __init__(self, follows: Generator, decay: float) -> None:
        self.decay = decay
        self.generator = copy.deepcopy(follows).requires_grad_(False).eval()

    def follow(self, generator: Generator, step: int) -> None:
        """Move towards the generator after its step number `step`, from 0 on."""
        own, other = floating_state(self.generator), floating_state(generator)
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(own.values()), [other[name] for name in own], share)
