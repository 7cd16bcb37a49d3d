"""The one model range, [-1, 1], for real and generated tiles alike.

A generator ends in tanh. Were real tiles normalised differently (ImageNet statistics reach 2.64), the discriminator would
tell the two apart by range alone and teach the generator nothing (`paper.md` §2, "Range trap"). So there is one pair of
functions, and a pretrained discriminator applies its own statistics *inside* itself.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_model_range(pixels_BCHW: Tensor) -> Tensor:
    """uint8 0..255 → float32 in [-1, 1]."""
    return pixels_BCHW.to(torch.float32).div_(127.5).sub_(1.0)


def to_uint8(images_BCHW: Tensor) -> Tensor:
    """Float in [-1, 1] → uint8 0..255, rounded; what lies outside the range is clipped."""
    return images_BCHW.add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
