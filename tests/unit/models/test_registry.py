"""Every network by name: parameter counts of the paper's table, shapes, and names that do not exist."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from histofed.base.errors import BadData
from histofed.models.registry import build_discriminator, build_generator
from histofed.models.trunk_weights import LocalWeights


def _parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("size", "count"), [(64, 3_533_827), (128, 13_464_067), (224, 40_772_227), (256, 53_185_027)])
def test_the_papers_generator_has_the_papers_size(size: int, count: int) -> None:
    with torch.device("meta"):
        assert _parameters(build_generator("paper-cnn", size, 2, 100)) == count


@pytest.mark.parametrize(
    ("name", "size", "count"),
    [
        ("cnn", 128, 122_467),
        ("cnn", 224, 173_155),
        ("resnet18", 64, 11_178_051),
        ("resnet50", 64, 23_514_179),
        ("swin_tiny_patch4_window7_224", 64, 27_521_661),
    ],
)
def test_discriminators_have_the_papers_size(name: str, size: int, count: int) -> None:
    assert _parameters(build_discriminator(name, size, 2)) == count


@pytest.mark.parametrize("size", [32, 36, 64])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_generator_draws_in_the_model_range(size: int, classes: int) -> None:
    generator = build_generator("paper-cnn", size, classes, 7)
    images = generator(torch.randn(classes, 7), torch.arange(classes))
    assert images.shape == (classes, 3, size, size)
    assert images.abs().max() <= 1


@pytest.mark.parametrize("name", ["cnn", "vit-mini", "resnet18"])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_discriminator_answers_with_two_kinds_of_logits(name: str, classes: int) -> None:
    validity, kinds, _ = build_discriminator(name, 32, classes)(torch.zeros(4, 3, 32, 32))
    assert validity.shape == (4,)
    assert kinds.shape == (4, classes)


@pytest.mark.parametrize("name", ["cnn", "vit-mini"])
def test_the_seed_decides_the_start(name: str) -> None:
    starts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        starts.append(torch.cat([tensor.flatten() for tensor in build_discriminator(name, 32, 2).parameters()]))
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_names_that_do_not_exist_are_refused_with_the_nearest() -> None:
    with pytest.raises(BadData, match="did you mean 'vit_base_patch16_224'"):
        build_discriminator("vit_base_patch16_242", 64, 2)
    with pytest.raises(BadData, match="use one of 'paper-cnn'"):
        build_generator("stylegan9", 64, 2, 100)


def test_the_custom_cnn_takes_no_weights_file() -> None:
    with pytest.raises(BadData, match="starts from scratch"):
        build_discriminator("cnn", 64, 2, LocalWeights(Path("x"), "0" * 64))
