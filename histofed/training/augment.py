"""DiffAugment: what the discriminator sees of reals and fakes alike, differentiable, on whatever device the images are.

Zhao et al., arXiv 2006.10738, plus the eight orientations of a square. The generator learns through the changes and not
from them, because its own tiles undergo the same ones. Random numbers come from torch's CPU generator (its state is part of
a checkpoint) in one draw per batch.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from histofed.models.orientation import oriented
from histofed.training.moving import onto
from histofed.training.rules import Augmentation

_DRAWS: Final = 10


def augment(images_BCHW: Tensor, how: Augmentation | None) -> Tensor:
    """Each image changed in its own way; without `how` the images themselves, and no random number is drawn.

    Square images in [-1, 1]; what moves in from outside or is cut out is 0, the middle of the range.
    """
    if how is None:
        return images_BCHW
    draws = onto(images_BCHW.device, torch.rand(_DRAWS, len(images_BCHW)))
    x_BCHW = _turned(images_BCHW, how, draws[:3])
    if how.colour:
        x_BCHW = _coloured(x_BCHW, how.colour, draws[3:6])
    if how.translation:
        x_BCHW = _moved(x_BCHW, how.translation, draws[6:8])
    if how.cutout:
        x_BCHW = _cut(x_BCHW, how.cutout, draws[8:10])
    return x_BCHW


def _turned(x_BCHW: Tensor, how: Augmentation, draws: Tensor) -> Tensor:
    """Left-right, upside-down, and across the diagonal: together the eight orientations of a square."""
    mirrored_B, fallen_B, across_B = draws < 0.5
    if how.flips and not how.rotations:
        across_B = torch.zeros_like(across_B)
    if how.rotations and not how.flips:
        # an even number of the three is a turn
        fallen_B = mirrored_B ^ across_B
    if how.flips or how.rotations:
        x_BCHW = oriented(x_BCHW, mirrored_B, fallen_B, across_B)
    return x_BCHW


def _coloured(x_BCHW: Tensor, strength: float, draws: Tensor) -> Tensor:
    brightness, saturation, contrast = (draw.view(-1, 1, 1, 1) for draw in (2 * draws - 1) * strength)
    x_BCHW = x_BCHW + brightness / 2
    grey_B1HW = x_BCHW.mean(1, keepdim=True)
    x_BCHW = grey_B1HW + (x_BCHW - grey_B1HW) * (1 + saturation)
    mean_B111 = x_BCHW.mean((1, 2, 3), keepdim=True)
    out: Tensor = mean_B111 + (x_BCHW - mean_B111) * (1 + contrast)
    return out


def _moved(x_BCHW: Tensor, share: float, draws: Tensor) -> Tensor:
    size = x_BCHW.shape[-1]
    most = round(size * share)
    down_B, right_B = (draws * (2 * most + 1)).floor().long() - most
    place = torch.arange(size, device=x_BCHW.device)
    rows_BH, columns_BW = place - down_B[:, None], place - right_B[:, None]
    batch_B11 = torch.arange(len(x_BCHW), device=x_BCHW.device).view(-1, 1, 1)
    # one gather; advanced indices around the channel put it last
    moved_BHWC = x_BCHW[batch_B11, :, rows_BH.clamp(0, size - 1)[:, :, None], columns_BW.clamp(0, size - 1)[:, None]]
    inside_BHW = _within(rows_BH, size)[:, :, None] & _within(columns_BW, size)[:, None]
    return moved_BHWC.permute(0, 3, 1, 2) * inside_BHW[:, None]


def _cut(x_BCHW: Tensor, share: float, draws: Tensor) -> Tensor:
    size = x_BCHW.shape[-1]
    edge = round(size * share)
    top_B, left_B = (draws * (size + 1)).floor().long() - edge // 2
    place = torch.arange(size, device=x_BCHW.device)
    cut_BHW = _within(place - top_B[:, None], edge)[:, :, None] & _within(place - left_B[:, None], edge)[:, None]
    return x_BCHW * ~cut_BHW[:, None]


def _within(place: Tensor, size: int) -> Tensor:
    return (place >= 0) & (place < size)
