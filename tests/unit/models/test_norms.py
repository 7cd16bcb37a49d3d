"""Norms after building: replaced, bounded, and refused where they fail."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from histofed.base.errors import BadData
from histofed.models.norms import add_spectral_norm, has_batch_norm, spectral_norm_held
from histofed.models.options import DiscriminatorOptions
from histofed.models.registry import build_discriminator


@pytest.mark.parametrize("name", ["cnn", "test_resnet", "test_byobnet"])
def test_group_norm_takes_the_place_of_batch_norm(name: str) -> None:
    assert has_batch_norm(build_discriminator(name, 32, 2))
    network = build_discriminator(name, 32, 2, options=DiscriminatorOptions(norm="group", dropout=0.0))
    assert not has_batch_norm(network)
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(network(images).validity_B[:2], network(images[:2]).validity_B, rtol=1e-3, atol=1e-4)


def test_batch_norm_that_no_group_norm_can_replace_is_refused() -> None:
    with pytest.raises(BadData, match="'levit_128s' has batch norm in places where no group norm can stand for it"):
        build_discriminator("levit_128s", 224, 2, options=DiscriminatorOptions(norm="group"))


@pytest.mark.parametrize("name", ["cnn", "test_resnet"])
def test_spectral_norm_bounds_every_weight(name: str) -> None:
    network = build_discriminator(name, 32, 2, options=DiscriminatorOptions(norm="group", spectral_norm=True))
    images = torch.randn(2, 3, 32, 32)
    for _ in range(30):
        network(images)
    head = network.get_submodule("heads.validity").weight
    assert isinstance(head, torch.Tensor)
    assert torch.linalg.matrix_norm(head, 2).item() == pytest.approx(1, abs=1e-3)
    assert any("weight" in key and "_u" in key for key in network.state_dict())


@pytest.mark.parametrize("name", ["vit-mini", "test_vit", "test_maxvit"])
def test_spectral_norm_on_a_transformer_is_refused(name: str) -> None:
    with pytest.raises(BadData, match="fails on transformers such as"):
        build_discriminator(name, 32, 2, options=DiscriminatorOptions(spectral_norm=True))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (DiscriminatorOptions(norm="none"), "needs its norms"),
        (DiscriminatorOptions(frozen_trunk=True), "knows only what its weights file holds"),
        (DiscriminatorOptions(heads="three"), "heads 'three' are not known"),
    ],
)
def test_options_of_another_network_are_refused(options: DiscriminatorOptions, sentence: str) -> None:
    with pytest.raises(BadData, match=sentence):
        build_discriminator("vit-mini", 32, 2, options=options)


def test_images_that_are_too_small_for_a_model_are_refused() -> None:
    with pytest.raises(BadData, match=r"'inception_v3' cannot read images of 32 pixels; use a larger image_size"):
        build_discriminator("inception_v3", 32, 2)


@pytest.mark.parametrize(("name", "norm"), [("cnn", "none"), ("vit-mini", "own")])
def test_the_deviation_of_a_batch_is_shown_to_the_heads(name: str, norm: str) -> None:
    options = DiscriminatorOptions(norm=norm, dropout=0.0, batch_deviation=True)
    network = build_discriminator(name, 32, 2, options=options).eval()
    alike = torch.zeros(4, 3, 32, 32)
    varied = torch.cat([alike[:1], torch.randn(3, 3, 32, 32)])
    assert network(alike).validity_B[0] != network(varied).validity_B[0], "the same tile in another company"


def test_spectral_norm_is_held_at_one_iteration_however_often_the_network_is_asked() -> None:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    add_spectral_norm(network, "cnn")
    network.train()
    before = network.state_dict()["2.parametrizations.weight.0._u"].clone()
    seen = []
    with spectral_norm_held(network):
        for _ in range(3):
            network(torch.ones(1, 3, 4, 4))
            seen.append(network.state_dict()["2.parametrizations.weight.0._u"].clone())
    assert not torch.equal(before, seen[0])
    assert torch.equal(seen[0], seen[2])
    network(torch.ones(1, 3, 4, 4))
    assert not torch.equal(seen[0], network.state_dict()["2.parametrizations.weight.0._u"])
