"""A deal: what one step is played with, drawn before either player moves and cut into the parts that a step plays.

Noise and classes are drawn on the CPU and moved then, so that they are the same on any device. Every process of a team
draws the whole deal and plays its own parts of it. Called by `loop.train`; `step.play` plays what is dealt here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from histofed.training.moving import onto
from histofed.training.rules import Rules


@dataclass(frozen=True)
class Deal:
    """What a step is played with: reals with labels, and noise with the classes that fakes are asked for."""

    real_BCHW: Tensor
    labels_B: Tensor
    z_BZ: Tensor
    asked_B: Tensor

    def parts(self, count: int) -> list[Deal]:
        """Equal parts, each a deal."""
        split = (tensor.chunk(count) for tensor in (self.real_BCHW, self.labels_B, self.z_BZ, self.asked_B))
        return [Deal(*part) for part in zip(*split, strict=True)]


def deal(real_BCHW: Tensor, labels_B: Tensor, latent: int, classes: int, rules: Rules) -> Deal:
    """Draw noise and classes for as many fakes as there are reals; all tensors on the reals' device."""
    count, device = len(labels_B), real_BCHW.device
    z_BZ = onto(device, torch.randn(count, latent))
    match rules.objective.fake_labels:
        case "uniform":
            asked_B = onto(device, torch.randint(classes, (count,)))
        case "even":
            # from a random class on, so that where the batch is no multiple none is favoured
            asked_B = onto(device, (torch.arange(count) + torch.randint(classes, (1,))) % classes)
        case "real":
            asked_B = labels_B
    return Deal(real_BCHW, labels_B, z_BZ, asked_B)
