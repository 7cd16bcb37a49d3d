"""DiffAugment: each change by itself, differentiable, in the model's range of shapes, by torch's own seed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from histofed.training.augment import augment
from histofed.training.rules import Augmentation

NOTHING = Augmentation(flips=False, rotations=False, colour=0, translation=0, cutout=0)


def _eight() -> tuple[Tensor, list[Tensor]]:
    tile = torch.arange(3 * 4 * 4, dtype=torch.float32).view(3, 4, 4)
    return tile, [turned for k in range(4) for turned in (tile.rot90(k, (1, 2)), tile.flip(2).rot90(k, (1, 2)))]


@pytest.mark.parametrize(
    ("flips", "rotations", "places"),
    [(True, True, set(range(8))), (False, True, {0, 2, 4, 6}), (True, False, {0, 1, 4, 5}), (False, False, {0})],
)
def test_orientations(flips: bool, rotations: bool, places: set[int]) -> None:
    torch.manual_seed(0)
    tile, eight = _eight()
    how = Augmentation(flips=flips, rotations=rotations, colour=0, translation=0, cutout=0)
    seen = augment(tile.repeat(200, 1, 1, 1), how)
    found = [next(k for k, one in enumerate(eight) if torch.equal(one, image)) for image in seen]
    assert set(found) == places
    assert min(found.count(k) for k in places) > 200 / len(places) / 3


def test_a_translation_moves_every_channel_alike_and_fills_with_the_middle() -> None:
    torch.manual_seed(0)
    tile = torch.arange(1, 65, dtype=torch.float32).view(1, 8, 8).repeat(3, 1, 1)
    for image in augment(tile.repeat(50, 1, 1, 1), Augmentation(False, False, 0, 0.25, 0)):
        assert torch.equal(image[0], image[1])
        rows, columns = torch.nonzero(image[0], as_tuple=True)
        offsets = {
            (int(r) - (int(image[0, r, c]) - 1) // 8, int(c) - (int(image[0, r, c]) - 1) % 8)
            for r, c in zip(rows, columns, strict=True)
        }
        assert len(offsets) == 1, "one offset for the whole tile"
        down, right = offsets.pop()
        assert max(abs(down), abs(right)) <= 2
        assert len(rows) == (8 - abs(down)) * (8 - abs(right))


def test_a_cutout_blanks_a_square() -> None:
    torch.manual_seed(0)
    seen = augment(torch.ones(100, 3, 16, 16), Augmentation(False, False, 0, 0, 0.25))
    blank = (seen == 0).sum((1, 2, 3)) // 3
    assert int(blank.max()) == 16
    assert (seen[:, 0] == seen[:, 2]).all()


def test_colour_moves_brightness_within_its_strength() -> None:
    torch.manual_seed(0)
    seen = augment(torch.zeros(100, 3, 4, 4), Augmentation(False, False, 0.2, 0, 0))
    means = seen.mean((1, 2, 3))
    assert means.abs().max() <= 0.1 + 1e-6
    assert means.min() < -0.05 < 0.05 < means.max()


def test_nothing_changes_nothing() -> None:
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(augment(images, NOTHING), images)
    before = torch.get_rng_state()
    assert augment(images, None) is images
    assert torch.equal(torch.get_rng_state(), before), "and draws no random number"


def test_the_seed_decides_and_gradients_pass_twice() -> None:
    images = torch.randn(4, 3, 16, 16, requires_grad=True)
    seen = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        seen.append(augment(images, Augmentation()))
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    (first,) = torch.autograd.grad(seen[0].pow(3).sum(), images, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), images)
    assert second.abs().sum() > 0
