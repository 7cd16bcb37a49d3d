"""The norm in few passes is torch's group norm with a modulation behind it, there and back."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import group_norm

from histofed.models.film import modulated_group_norm


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("level", [0.0, 30.0])
def test_images_and_gradients_are_those_of_the_two_layers(layout: torch.memory_format, level: float) -> None:
    """Also far from zero, where a variance as a difference of squares would be lost in rounding."""
    torch.manual_seed(1)
    images = (level + torch.randn(3, 12, 6, 6)).contiguous(memory_format=layout).requires_grad_()
    scale, shift = (torch.randn(3, 12, requires_grad=True) for _ in range(2))
    plain = group_norm(images.double(), 4) * scale[..., None, None] + shift[..., None, None]
    short = modulated_group_norm(images, scale, shift, 4)
    assert short.is_contiguous(memory_format=layout)
    torch.testing.assert_close(short.double(), plain, rtol=1e-4, atol=1e-4)
    direction, sought = torch.randn_like(short), (images, scale, shift)
    ours = torch.autograd.grad(short, sought, direction)
    theirs = torch.autograd.grad(plain, sought, direction.double())
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_sixteen_bits_are_normed_in_thirty_two() -> None:
    images = torch.randn(2, 4, 5, 5, dtype=torch.bfloat16, requires_grad=True)
    out = modulated_group_norm(images, torch.ones(2, 4), torch.zeros(2, 4), 2)
    assert out.dtype == torch.float32
    (gradient,) = torch.autograd.grad(out.sum(), images)
    assert gradient.dtype == torch.bfloat16
