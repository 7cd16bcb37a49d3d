"""The transposed convolution is the doubling and the convolution that it stands for, there and back."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, interpolate, pad

from histofed.models.doubling import SMALL_EDGE, Border, DoublingConv2d


@pytest.mark.parametrize(("border", "mode"), [("zeros", "constant"), ("replicate", "replicate")])
@pytest.mark.parametrize("edge", [SMALL_EDGE // 2, SMALL_EDGE, 13])
def test_images_and_gradients_are_those_of_the_two_layers(edge: int, border: Border, mode: str) -> None:
    torch.manual_seed(edge)
    layer = DoublingConv2d(5, 7, border).double()
    images = torch.randn(2, 5, edge, edge, dtype=torch.float64, requires_grad=True)
    bordered = pad(interpolate(images, scale_factor=2.0, mode="nearest"), (1, 1, 1, 1), mode=mode)
    plain = conv2d(bordered, layer.weight, layer.bias)
    short = layer(images)
    assert short.shape == (2, 7, 2 * edge, 2 * edge)
    torch.testing.assert_close(short, plain, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(plain)
    sought = (images, *layer.parameters())
    for one, other in zip(
        torch.autograd.grad(short, sought, direction), torch.autograd.grad(plain, sought, direction), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_its_tensors_are_those_of_a_plain_convolution() -> None:
    plain = nn.Conv2d(5, 7, 3, padding=1)
    DoublingConv2d(5, 7).load_state_dict(plain.state_dict())
