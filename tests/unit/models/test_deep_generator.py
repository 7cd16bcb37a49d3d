"""The deep generator: sizes, budget, no batch norm, and every class by itself."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from histofed.base.errors import BadData
from histofed.models.deep_generator import CLASS_VECTOR, DeepGenerator, _UpBlock
from histofed.models.norms import group_norm
from histofed.models.registry import build_generator


@pytest.mark.parametrize("size", [32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256])
def test_every_size_it_names_is_drawn(size: int) -> None:
    with torch.device("meta"):
        generator = build_generator("deep", size, 5, 100)
        assert generator(torch.zeros(2, 100), torch.zeros(2, dtype=torch.long)).shape == (2, 3, size, size)


@pytest.mark.parametrize("size", [36, 44, 100, 132])
def test_other_sizes_are_refused_with_those_that_are_there(size: int) -> None:
    with pytest.raises(BadData, match=f"cannot draw {size} pixels; use .*224 or 256"):
        build_generator("deep", size, 2, 100)


def test_it_stays_within_ten_million_parameters_at_128_pixels() -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in build_generator("deep", 128, 2, 100).parameters()) == 4_616_947
        assert sum(parameter.numel() for parameter in build_generator("deep", 128, 50, 100).parameters()) < 10_000_000


def test_a_tile_does_not_depend_on_its_batch() -> None:
    generator = build_generator("deep", 32, 3, 8).train()
    z, labels = torch.randn(6, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    torch.testing.assert_close(generator(z, labels)[:2], generator(z[:2], labels[:2]))
    assert not any("running" in name for name in generator.state_dict())


@pytest.mark.parametrize("name", ["deep", "paper-cnn", "paper-cnn-concat"])
def test_the_class_changes_the_tile_and_learns(name: str) -> None:
    generator = build_generator(name, 32, 5, 8)
    images = generator(torch.randn(1, 8).repeat(5, 1), torch.arange(5))
    assert len({image.detach().numpy().tobytes() for image in images}) == 5
    assert images.abs().max() <= 1
    torch.autograd.backward(images.square().mean())
    assert all(parameter.grad is not None for parameter in generator.parameters())


def test_groups_divide_every_number_of_channels() -> None:
    assert [group_norm(channels).num_groups for channels in (512, 48, 20, 7)] == [32, 16, 4, 1]


def test_no_place_of_a_tile_is_told_where_it_is() -> None:
    """Only a border could tell, and a generator that knows its places draws one picture for all noise."""
    generator = build_generator("deep", 64, 2, 8)
    assert isinstance(generator, DeepGenerator)
    given = torch.randn(1, generator.latent + CLASS_VECTOR)
    for block in generator.blocks:
        assert isinstance(block, _UpBlock)
        for bias in (block.conv1.bias, block.conv2.bias):
            assert bias is not None
            torch.nn.init.normal_(bias)
        flat = torch.randn(1, block.conv1.in_channels, 1, 1).expand(-1, -1, 8, 8)
        with torch.no_grad():
            drawn = block(flat, given)
        torch.testing.assert_close(drawn, drawn[..., :1, :1].expand_as(drawn), rtol=0, atol=1e-2)


def test_the_signs_of_the_noise_tell_one_of_eight_orientations() -> None:
    generator = build_generator("deep", 32, 2, 8)
    assert isinstance(generator, DeepGenerator)
    with torch.no_grad():
        # the rest of the picture then does not depend on the noise
        for parameter in (generator.linear.weight, generator.detail.weight):
            parameter.zero_()
        generator.linear.bias.normal_()
        for film in (m for m in generator.modules() if isinstance(m, nn.Linear) and m.in_features == 8 + CLASS_VECTOR):
            film.weight.zero_()
        z = torch.tensor([[*signs, 1.0, -1.0, 1.0, -1.0, 1.0] for signs in product((-1.0, 1.0), repeat=3)])
        labels = torch.ones(8, dtype=torch.long)
        as_drawn, drawn = generator.train()(z, labels), generator.eval()(z, labels)
    assert torch.equal(as_drawn, as_drawn[:1].expand(8, -1, -1, -1))
    picture = drawn[0]
    for image, (mirrored, fallen, across) in zip(drawn, product((False, True), repeat=3), strict=True):
        expected = picture.flip(2) if mirrored else picture
        expected = expected.flip(1) if fallen else expected
        torch.testing.assert_close(image, expected.transpose(1, 2) if across else expected)
    assert len({image.numpy().tobytes() for image in drawn}) == 8


def test_one_number_of_noise_is_enough() -> None:
    assert build_generator("deep", 32, 2, 1)(torch.randn(3, 1), torch.tensor([0, 1, 0])).shape == (3, 3, 32, 32)
