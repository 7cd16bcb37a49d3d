"""The distance in textures: tiles that differ from each other are wanted, each class its own, and it teaches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from histofed.training.textures import Textures, _Values

CPU = torch.device("cpu")


def _tissue(count: int, seed: int, edge: int = 32, unlike: float = 0.2) -> Tensor:
    """Coloured blobs with grain, (N, 3, S, S) in [-1, 1]; tiles are `unlike` each other in brightness and in grain."""
    numbers = torch.Generator().manual_seed(seed)
    blobs = interpolate(torch.randn(count, 1, edge // 4, edge // 4, generator=numbers), (edge, edge), mode="bilinear")
    grain = torch.randn(count, 3, edge, edge, generator=numbers)
    own = unlike * torch.randn(count, 2, 1, 1, 1, generator=numbers)
    tiles = blobs * torch.tensor([0.3, 0.5, 0.2]).view(1, 3, 1, 1) + (0.1 + own[:, 0].abs() / 2) * grain + own[:, 1]
    return tiles.clamp(-1, 1)


def _bytes(tiles: Tensor) -> Tensor:
    return ((tiles + 1) * 127.5).round().to(torch.uint8)


def _described(tiles: Tensor, labels: Tensor | None = None, classes: int = 2) -> Textures:
    labels = torch.arange(len(tiles)) % classes if labels is None else labels
    return Textures(_bytes(tiles), labels, classes, CPU)


def _distance(textures: Textures, fake: Tensor, asked: Tensor | None = None) -> float:
    torch.manual_seed(0)
    return float(textures.distance(fake, torch.arange(len(fake)) % 2 if asked is None else asked))


@pytest.mark.parametrize("edge", [32, 36, 40, 64])
def test_other_tiles_of_the_kind_are_nearer_than_spoilt_ones(edge: int) -> None:
    textures = _described(_tissue(200, 1, edge))
    other = _tissue(16, 2, edge)
    near = _distance(textures, other)
    blurred = interpolate(avg_pool2d(other, 2), scale_factor=2.0)
    hued = other + torch.tensor([0.0, 0.2, -0.2]).view(1, 3, 1, 1)
    for spoilt in (blurred, hued, torch.zeros_like(other)):
        assert _distance(textures, spoilt) > 1.3 * near


def test_tiles_that_are_all_alike_are_farther_than_those_that_differ_as_the_reals_do() -> None:
    textures = _described(_tissue(200, 1))
    one = _tissue(200, 1).sort(0).values[100:101]
    alike = _tissue(16, 2, unlike=0.0) + one.mean()
    assert _distance(textures, alike) > 1.3 * _distance(textures, _tissue(16, 2))


def test_a_class_is_compared_with_its_own_tiles() -> None:
    labels = torch.arange(200) % 2
    reals = (_tissue(200, 1) * 0.5 + (labels - 0.5).view(-1, 1, 1, 1)).clamp(-1, 1)
    textures = _described(reals, labels)
    assert _distance(textures, reals[:16], labels[:16]) < 0.5 * _distance(textures, reals[:16], 1 - labels[:16])


def test_too_few_fakes_of_a_class_are_compared_with_all_tiles() -> None:
    labels = torch.arange(200) % 2
    textures = _described(_tissue(200, 1), labels)
    fakes = _tissue(6, 2)
    assert _distance(textures, fakes, torch.tensor([0, 0, 0, 1, 1, 1])) == _distance(
        textures, fakes, torch.tensor([1, 1, 1, 0, 0, 0])
    )


@pytest.mark.parametrize("count", [4, 8, 16])
def test_fakes_that_vary_as_the_reals_do_are_the_nearest(count: int) -> None:
    numbers = torch.Generator().manual_seed(0)
    values = _Values(torch.randn(2000, 1, generator=numbers))
    drawn = torch.randn(4000, count, generator=numbers).sort(1).values
    scales = torch.linspace(0.7, 1.3, 61)
    errors = [float((scale * drawn - values.targets(count)).square().mean()) for scale in scales]
    assert scales[errors.index(min(errors))] == pytest.approx(1, abs=0.05)


def test_one_fake_is_drawn_to_the_mean() -> None:
    numbers = torch.randn(12, 5)
    assert torch.allclose(_Values(numbers).targets(1), numbers.mean(0)[:, None], atol=1e-5)


@pytest.mark.parametrize(("tiles", "fakes"), [(1, 1), (1, 8), (2, 2), (30, 5)])
def test_flat_tiles_few_tiles_and_a_class_without_tiles_are_no_division_by_zero(tiles: int, fakes: int) -> None:
    textures = _described(torch.ones(tiles, 3, 32, 32), torch.zeros(tiles, dtype=torch.int64), classes=3)
    fake = (0.1 * torch.randn(fakes, 3, 32, 32)).requires_grad_()
    distance = textures.distance(fake, torch.arange(fakes) % 3)
    torch.autograd.backward(distance)
    assert distance.isfinite()
    assert fake.grad is not None
    assert fake.grad.isfinite().all()


def test_describing_leaves_the_runs_random_numbers_alone_and_repeats() -> None:
    reals, fakes = _tissue(40, 1), _tissue(16, 2)
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    textures = _described(reals)
    assert torch.equal(torch.randn(2), expected)
    assert _distance(textures, fakes) == _distance(_described(reals), fakes)


def test_descending_it_finds_the_colour() -> None:
    reals = _tissue(100, 1)
    textures = _described(reals)
    torch.manual_seed(0)
    fake = (0.1 * torch.randn(16, 3, 32, 32)).requires_grad_()
    before = _distance(textures, fake.detach())
    adam = torch.optim.Adam([fake], 0.02)
    for _ in range(60):
        adam.zero_grad()
        torch.autograd.backward(textures.distance(fake, torch.arange(16) % 2))
        adam.step()
    assert (fake.detach().mean((0, 2, 3)) - reals.mean((0, 2, 3))).abs().max() < 0.1
    assert _distance(textures, fake.detach()) < 0.5 * before
