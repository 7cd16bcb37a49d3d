"""The distance in patches: what it sees, what it does not, and that it teaches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from histofed.training.patches import patch_distance


def _tissue(count: int, seed: int, edge: int = 32) -> Tensor:
    """Smooth coloured blobs with a little grain, (N, 3, S, S): each channel is another share of the same."""
    numbers = torch.Generator().manual_seed(seed)
    blobs = interpolate(torch.randn(count, 1, edge // 4, edge // 4, generator=numbers), (edge, edge), mode="bilinear")
    grain = torch.randn(count, 3, edge, edge, generator=numbers)
    return (blobs * torch.tensor([0.3, 0.5, 0.2]).view(1, 3, 1, 1) + 0.05 * grain + 0.2).clamp(-1, 1)


def _distance(fake: Tensor, real: Tensor) -> float:
    torch.manual_seed(0)
    return float(patch_distance(fake, real))


@pytest.mark.parametrize("edge", [32, 40, 64])
def test_the_same_batch_is_at_no_distance_and_another_of_its_kind_is_near(edge: int) -> None:
    real = _tissue(16, 1, edge)
    assert _distance(real, real) == 0
    assert _distance(real[torch.randperm(16)], real) == pytest.approx(0, abs=1e-6)
    assert _distance(_tissue(16, 2, edge), real) < 0.3 * _distance(torch.zeros_like(real), real)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda x: interpolate(avg_pool2d(x, 2), scale_factor=2.0), id="blurred"),
        pytest.param(lambda x: x + torch.tensor([0.0, 0.1, -0.1]).view(1, 3, 1, 1), id="another hue"),
        pytest.param(lambda x: x + 0.1 * (torch.arange(x.shape[-1]) % 2), id="stripes of one pixel"),
        pytest.param(lambda x: 0.5 * x, id="pale"),
    ],
)
def test_what_a_pathologist_would_see_is_far(spoil: object) -> None:
    assert callable(spoil)
    real, other = _tissue(16, 1), _tissue(16, 2)
    assert _distance(spoil(other), real) > 1.5 * _distance(other, real)


def test_flat_tiles_and_one_tile_are_no_division_by_zero() -> None:
    flat = torch.ones(1, 3, 32, 32)
    fake = torch.zeros(1, 3, 32, 32, requires_grad=True)
    distance = patch_distance(fake, flat)
    torch.autograd.backward(distance)
    assert distance.isfinite()
    assert fake.grad is not None
    assert fake.grad.isfinite().all()


def test_descending_it_finds_the_reals_colour() -> None:
    torch.manual_seed(0)
    real = _tissue(8, 1)
    fake = torch.zeros(8, 3, 32, 32, requires_grad=True)
    adam = torch.optim.Adam([fake], 0.05)
    for _ in range(60):
        adam.zero_grad()
        torch.autograd.backward(patch_distance(fake, real))
        adam.step()
    assert (fake.mean((0, 2, 3)) - real.mean((0, 2, 3))).abs().max() < 0.05


def test_the_reals_need_no_gradient_and_get_none() -> None:
    fake, real = _tissue(4, 1).requires_grad_(), _tissue(4, 2).requires_grad_()
    torch.autograd.backward(patch_distance(fake, real.detach()))
    assert real.grad is None
