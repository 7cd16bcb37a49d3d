"""Penalties on the discriminator's gradient with respect to its images: R1, R2, and WGAN-GP's.

Each differentiates a gradient again. The fused attention kernels cannot do that, so every judgement that a penalty is
computed from is made under `twice_differentiable`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def twice_differentiable(needed: bool = True) -> Iterator[None]:
    """Attention by its formula (`SDPBackend.MATH`) inside; nothing when it is not needed."""
    if not needed:
        yield
        return
    with sdpa_kernel(SDPBackend.MATH):
        yield


def squared_gradient(judged_B: Tensor, images_BCHW: Tensor) -> Tensor:
    """|∇_x D(x)|² of each image, (B,), itself differentiable. Half its mean, weighted: R1 on reals, R2 on fakes.

    Mescheder et al., arXiv 1801.04406, eq. 9 and 10. The sum of the logits stands for each of them: image i changes logit i
    alone, as long as nothing mixes them. Batch norm does and is refused; what `batch_deviation` mixes in R1 and R2 bear, as
    StyleGAN2 has it (arXiv 1912.04958), and WGAN-GP's penalty does not.
    """
    (gradient_BCHW,) = torch.autograd.grad(judged_B.sum(), images_BCHW, create_graph=True)
    return gradient_BCHW.float().square().sum((1, 2, 3))


def away_from_one(judged_B: Tensor, images_BCHW: Tensor) -> Tensor:
    """(|∇_x D(x)| - 1)² of each image, (B,): Gulrajani et al., arXiv 1704.00028, eq. 3."""
    # the root has no slope at 0, where a dead critic would be; the offset is far below a gradient's own rounding
    return (squared_gradient(judged_B, images_BCHW).add(1e-12).sqrt() - 1).square()


def between(real_BCHW: Tensor, fake_BCHW: Tensor, share_B: Tensor) -> Tensor:
    """share · real + (1 - share) · fake for each pair, a leaf that a gradient can be taken to."""
    share_B111 = share_B.view(-1, 1, 1, 1)
    return (share_B111 * real_BCHW + (1 - share_B111) * fake_BCHW).detach().requires_grad_()
