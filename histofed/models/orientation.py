"""The eight orientations of a square: tissue has no up and no left."""

from __future__ import annotations

import torch
from torch import Tensor


def oriented(x_BCHW: Tensor, mirrored_B: Tensor, fallen_B: Tensor, across_B: Tensor) -> Tensor:
    """Each square image left-right, upside-down and across its diagonal, in this order, where its flag says so."""
    x_BCHW = _where(mirrored_B, x_BCHW.flip(3), x_BCHW)
    x_BCHW = _where(fallen_B, x_BCHW.flip(2), x_BCHW)
    return _where(across_B, x_BCHW.transpose(2, 3), x_BCHW)


def _where(chosen_B: Tensor, changed_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    return torch.where(chosen_B.view(-1, 1, 1, 1), changed_BCHW, x_BCHW)
