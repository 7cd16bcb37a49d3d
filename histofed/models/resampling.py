"""Bilinear resizing and a replicated border that a GPU repeats bit for bit without giving up its speed.

Asked for deterministic kernels (`training/runtime.py`), torch takes both of its own apart on a GPU
(`torch/_decomp/decompositions.py`): they gather each pixel's neighbours, the resizing in float32, and their gradients sort
the indices of the gathering; the border gives up channels-last besides. Here resizing is two products with a constant
matrix, and the border is joined of slices: kernels that are deterministic as they are, in the images' own type and layout.
On a CPU torch's own are deterministic and quicker. Which way is quicker on a GPU has not been measured (`make bench-gpu`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, pad


class BorderedConv2d(nn.Conv2d):
    """(B, C, H, W) → (B, C', H, W): a 3 x 3 convolution over images whose border is replicated."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 3)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """As `nn.Conv2d(…, 3, padding=1, padding_mode="replicate")`, whose parameters these are by name and shape."""
        return conv2d(bordered(x_BCHW), self.weight, self.bias)


def bordered(x_BCHW: Tensor) -> Tensor:
    """One more pixel on each side, a copy of the nearest one."""
    return joined(x_BCHW) if _taken_apart(x_BCHW) else pad(x_BCHW, (1, 1, 1, 1), mode="replicate")


def resized(x_BCHW: Tensor, edge: int) -> Tensor:
    """Square images → (B, C, edge, edge), bilinear, corners not aligned."""
    if _taken_apart(x_BCHW):
        return multiplied(x_BCHW, edge)
    return interpolate(x_BCHW, (edge, edge), mode="bilinear", align_corners=False)


def joined(x_BCHW: Tensor) -> Tensor:
    """The border by slices; on any device."""
    for axis in (2, 3):
        x_BCHW = torch.cat([x_BCHW.narrow(axis, 0, 1), x_BCHW, x_BCHW.narrow(axis, -1, 1)], axis)
    return x_BCHW


def multiplied(x_BCHW: Tensor, edge: int) -> Tensor:
    """The resizing by products, along the columns and then along the rows; on any device."""
    batch, channels, old, _ = x_BCHW.shape
    # with autocast the products would round images to its type, which nothing else here does
    with torch.autocast(x_BCHW.device.type, enabled=False):
        shares_EO = _shares(old, edge, x_BCHW.device).to(x_BCHW.dtype)
        x_BOP = x_BCHW.permute(0, 2, 3, 1).reshape(batch, old, old * channels)
        x_BOP = torch.bmm(shares_EO.expand(batch, edge, old), x_BOP)
        x_ROC = x_BOP.reshape(batch * edge, old, channels)
        x_REC = torch.bmm(shares_EO.expand(batch * edge, edge, old), x_ROC)
    return x_REC.view(batch, edge, edge, channels).permute(0, 3, 1, 2)


def _taken_apart(x_BCHW: Tensor) -> bool:
    """Whether torch would not use its own kernels."""
    return x_BCHW.device.type == "cuda" and torch.are_deterministic_algorithms_enabled()


def _shares(old: int, new: int, device: torch.device) -> Tensor:
    """What each old pixel gives to each new one, (new, old): the nearer of two, the more."""
    place_E = ((torch.arange(new, device=device) + 0.5) * (old / new) - 0.5).clamp(0, old - 1)
    distance_EO = (place_E.unsqueeze(1) - torch.arange(old, device=device)).abs()
    return (1 - distance_EO).clamp(min=0)
