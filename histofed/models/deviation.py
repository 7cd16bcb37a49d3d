"""How much a batch varies, shown to a discriminator: it tells a generator that draws one tile for all noise.

Karras et al., arXiv 1710.10196, §3. A tile's judgement then depends on the others of its batch, so nothing that looks at
tiles one by one (WGAN-GP's penalty) goes together with it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MapDeviation(nn.Module):
    """One more channel."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C + 1, H, W)."""
        return torch.cat([x_BCHW, _deviation(x_BCHW).expand(len(x_BCHW), 1, *x_BCHW.shape[2:])], 1)


class VectorDeviation(nn.Module):
    """One more feature."""

    def forward(self, features_BF: Tensor) -> Tensor:
        """(B, F) → (B, F + 1)."""
        return torch.cat([features_BF, _deviation(features_BF).expand(len(features_BF), 1)], 1)


def _deviation(x: Tensor) -> Tensor:
    """The standard deviation over the batch, averaged over everything else."""
    # in float32: fp16 rounds 1e-8 to nothing, and the root has no finite gradient where a place does not vary
    return (x.float().var(0, correction=0) + 1e-8).sqrt().mean().to(x.dtype)
