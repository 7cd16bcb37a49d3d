"""How far a batch of fakes is from a batch of reals in the distribution of their small patches: colours, edges, texture.

A discriminator that starts from random weights tells a generator little for its first thousands of steps. This distance
needs no learning: patches of both batches, on a pyramid of sizes, are projected onto random directions, and the sorted
projections are compared, which is a sliced Wasserstein distance (Rabin et al. 2011; on patches of a pyramid as in Karras et
al., arXiv 1710.10196, §5, and as a loss as in Heitz et al., arXiv 2006.07229). It knows only which patches there are, not
where: what belongs together stays the discriminator's work. No tile can be learned by heart from it, because each batch's
patches are one heap.

Directions are drawn where the reals' patches vary equally in each of them. In plain pixels nearly all of it is brightness;
whitened, a hue that stains do not have, or a pixel-wise pattern, weighs as much.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, normalize, unfold

from histofed.training.moving import onto

EDGE: Final = 5
"""Of a patch, pixels of its level."""
SMALLEST: Final = 8
"""Edge of the pyramid's top, pixels: patches of it span most of the tile."""
DIRECTIONS: Final = 32
"""Of each level and step."""
_GRID: Final = 16
"""Patches along an edge, about; a larger level is read in steps of several pixels, from a random pixel on."""
_FLOOR: Final = 2e-3
"""Added to the variances, as a share of the largest: sensor noise is not told apart from none."""


def patch_distance(fake_BCHW: Tensor, real_BCHW: Tensor) -> Tensor:
    """Mean over levels of the sliced Wasserstein distance, in standard deviations of the reals' patches; a scalar.

    Both batches in [-1, 1] and of one shape; the gradient goes to the fakes. Draws from torch's random numbers.
    """
    levels = _edges(fake_BCHW.shape[-1])
    fake_BCHW, real_BCHW = fake_BCHW.float(), real_BCHW.float()
    total = fake_BCHW.new_zeros(())
    for edge in levels:
        ratio = fake_BCHW.shape[-1] // edge
        total = total + _level_distance(_smaller(fake_BCHW, ratio), _smaller(real_BCHW, ratio))
    return total / len(levels)


def _level_distance(fake_BCHW: Tensor, real_BCHW: Tensor) -> Tensor:
    stride = max(1, fake_BCHW.shape[-1] // _GRID)
    directions_DCEE = _directions(real_BCHW, stride)
    top, left = torch.randint(stride, (2,)).tolist()
    fake_DN, real_DN = (
        conv2d(images_BCHW[:, :, top:, left:], directions_DCEE, stride=stride).transpose(0, 1).flatten(1).sort(1).values
        for images_BCHW in (fake_BCHW, real_BCHW)
    )
    return (fake_DN - real_DN).abs().mean()


def _directions(real_BCHW: Tensor, stride: int) -> Tensor:
    """Random directions in which the reals' patches have variance 1, about; filters (D, C, E, E)."""
    with torch.no_grad():
        patches_NP = unfold(real_BCHW, EDGE, stride=stride).transpose(1, 2).flatten(0, 1)
        patches_NP = patches_NP - patches_NP.mean(0)
        covariance_PP = patches_NP.T @ patches_NP / len(patches_NP)
        # the largest eigenvalue is at most the trace, and of patches, whose pixels go together, most of it
        floor = _FLOOR * covariance_PP.trace()
        covariance_PP.diagonal().add_(floor + torch.finfo(covariance_PP.dtype).eps)
        drawn_DP = normalize(torch.randn(DIRECTIONS, len(covariance_PP)), dim=1)
        lower_PP = torch.linalg.cholesky(covariance_PP)
        whitened_DP = torch.linalg.solve_triangular(lower_PP, onto(real_BCHW.device, drawn_DP), upper=False, left=False)
    filters_DCEE: Tensor = whitened_DP.view(DIRECTIONS, -1, EDGE, EDGE)
    return filters_DCEE


def _smaller(images_BCHW: Tensor, ratio: int) -> Tensor:
    return avg_pool2d(images_BCHW, ratio) if ratio > 1 else images_BCHW


def _edges(edge: int) -> list[int]:
    """Halved until the top of the pyramid, largest first."""
    edges = [edge]
    while edges[-1] // 2 >= SMALLEST and edges[-1] % 2 == 0:
        edges.append(edges[-1] // 2)
    return edges
