"""A group norm whose scale and shift belong to the image (FiLM, Perez et al., arXiv 1709.07871), in few passes over it.

With mean m and deviation s of a group of channels of one image: y = (x - m) / s · scale + shift. That is x · a + b with two
numbers for each image and channel, and the gradient is grad · a + x · c + d with three. Written so, activations are read
and written half as often as by a norm with a modulation behind it, whose time is that of memory.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

EPS: Final = 1e-5
"""Added to the variance, as in torch's group norm."""


def modulated_group_norm(x_BCHW: Tensor, scale_BC: Tensor, shift_BC: Tensor, groups: int) -> Tensor:
    """`group_norm(x) * scale + shift` in float32. Differentiable once, which is what a generator needs."""
    apply: Any = _Modulated.apply  # untyped in torch
    out: Tensor = apply(x_BCHW.float(), scale_BC.float(), shift_BC.float(), groups)
    return out


class _Modulated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, scale_BC: Tensor, shift_BC: Tensor, groups: int) -> Tensor:
        variance_BC, mean_BC = torch.var_mean(x_BCHW, (2, 3), correction=0)
        # of a group: the mean of its channels' variances and the variance of their means
        mean_BG1 = _grouped(mean_BC, groups).mean(2, keepdim=True)
        apart_BGC = _grouped(mean_BC, groups) - mean_BG1
        variance_BG1 = (_grouped(variance_BC, groups) + apart_BGC.square()).mean(2, keepdim=True)
        mean_BC = mean_BG1.expand_as(apart_BGC).flatten(1)
        inverse_BC = (variance_BG1 + EPS).rsqrt().expand_as(apart_BGC).flatten(1)
        ctx.save_for_backward(x_BCHW, scale_BC, mean_BC, inverse_BC)
        ctx.groups = groups
        factor_BC = inverse_BC * scale_BC
        return torch.addcmul(_over(shift_BC - mean_BC * factor_BC), x_BCHW, _over(factor_BC))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x_BCHW, scale_BC, mean_BC, inverse_BC = ctx.saved_tensors
        plain_BC = grad_BCHW.sum((2, 3))
        # the gradient along the normed image, summed over pixels
        along_BC = ((grad_BCHW * x_BCHW).sum((2, 3)) - mean_BC * plain_BC) * inverse_BC
        pixels = x_BCHW.shape[2] * x_BCHW.shape[3]
        slope_BC = inverse_BC.square() * _of_group(scale_BC * along_BC, ctx.groups) / pixels
        level_BC = inverse_BC * _of_group(scale_BC * plain_BC, ctx.groups) / pixels
        rest_BCHW = torch.addcmul(_over(mean_BC * slope_BC - level_BC), x_BCHW, _over(-slope_BC))
        return rest_BCHW.addcmul_(grad_BCHW, _over(inverse_BC * scale_BC)), along_BC, plain_BC, None


def _of_group(sums_BC: Tensor, groups: int) -> Tensor:
    """The mean over the channels of a group, for each of them."""
    grouped_BGC = _grouped(sums_BC, groups)
    return grouped_BGC.mean(2, keepdim=True).expand_as(grouped_BGC).flatten(1)


def _grouped(numbers_BC: Tensor, groups: int) -> Tensor:
    return numbers_BC.reshape(len(numbers_BC), groups, -1)


def _over(numbers_BC: Tensor) -> Tensor:
    return numbers_BC[..., None, None]
