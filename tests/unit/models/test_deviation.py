"""The deviation of a batch has a gradient wherever the batch is alike, whatever is computed in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from histofed.models.deviation import MapDeviation, VectorDeviation


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("layer", "shape"), [(MapDeviation(), (2, 3, 4, 4)), (VectorDeviation(), (2, 8))])
def test_a_place_where_all_tiles_are_alike_has_a_finite_gradient(
    layer: nn.Module, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    torch.manual_seed(1)
    x = torch.randn(shape)
    x[:, 0] = 0  # as ReLU and dropout leave it in parts of few tiles
    low = x.to(dtype).requires_grad_()
    seen: Tensor = layer(low)
    torch.autograd.backward(seen.float().sum())
    assert low.grad is not None
    assert low.grad.isfinite().all()
    assert seen.dtype == dtype
    assert seen[0, -1].mean().item() == pytest.approx(layer(x)[0, -1].mean().item(), rel=1e-2)
