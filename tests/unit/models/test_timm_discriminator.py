"""Trunks by timm's names: local weights files, the paper's ViT-B/16, and the input normalisation inside."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from histofed import weights
from histofed.base.errors import BadData
from histofed.models.networks import floating_state
from histofed.models.registry import build_discriminator
from histofed.models.timm_discriminator import TimmDiscriminator
from histofed.models.torchvision_compat import ensure_torchvision
from histofed.models.trunk_weights import LocalWeights
from histofed.training.losses import discriminator_loss
from histofed.training.rules import Rules
from histofed.weights import Array


def _file(path: Path, tensors: dict[str, Array]) -> LocalWeights:
    weights.save(path, tensors)
    return LocalWeights(path, hashlib.sha256(path.read_bytes()).hexdigest())


def _trunk(name: str) -> dict[str, Array]:
    state = floating_state(build_discriminator(name, 32, 2))
    return {key.removeprefix("trunk."): tensor.numpy() for key, tensor in state.items() if key.startswith("trunk.")}


@pytest.mark.slow
def test_vit_base_builds_loads_a_local_file_and_trains_one_step(tmp_path: Path) -> None:
    with torch.device("meta"):  # names and shapes alone: filling 86 million weights takes seconds
        shapes = floating_state(build_discriminator("vit_base_patch16_224", 32, 2))
    generator = np.random.default_rng(0)
    trunk = {
        name.removeprefix("trunk."): generator.standard_normal(tensor.shape, np.float32) * np.float32(0.02)
        for name, tensor in shapes.items()
        if name.startswith("trunk.")
    }
    # published files carry a classifier; it is left out
    start = _file(tmp_path / "vit.safetensors", trunk | {"head.bias": trunk["norm.bias"][:3]})
    network = build_discriminator("vit_base_patch16_224", 32, 2, start)
    assert sum(parameter.numel() for parameter in network.parameters()) == 85_800_963
    loaded = floating_state(network)
    assert all((loaded[f"trunk.{name}"].numpy() == array).all() for name, array in trunk.items())

    adam = torch.optim.Adam(network.parameters(), 2e-4, (0.5, 0.999))
    before = loaded["trunk.patch_embed.proj.weight"].clone()
    real, fake = network(torch.rand(1, 3, 32, 32) * 2 - 1), network(torch.zeros(1, 3, 32, 32))
    label = torch.tensor([1])
    torch.autograd.backward(discriminator_loss(real, label, fake, label, Rules()))
    adam.step()
    after = floating_state(network)["trunk.patch_embed.proj.weight"]
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after)


def test_a_file_with_another_digest_or_no_file_is_refused_in_the_same_words(tmp_path: Path) -> None:
    good = _file(tmp_path / "vit.safetensors", _trunk("vit-mini"))
    sentences = []
    for wrong in (
        LocalWeights(good.path, "0" * 64),
        LocalWeights(tmp_path / "gone", "0" * 64),
        LocalWeights(tmp_path, "0" * 64),
        LocalWeights(tmp_path / ("x" * 300), "0" * 64),  # looking for it is refused, as in a folder that is closed
        LocalWeights(Path("/proc/self/mem"), "0" * 64),  # reading it is, as of a file of somebody else's
    ):
        with pytest.raises(BadData, match="there is no such file with SHA-256") as caught:
            build_discriminator("vit-mini", 32, 2, wrong)
        sentences.append(str(caught.value).replace(str(wrong.path), "PATH"))
    assert len(set(sentences)) == 1, "an experiment must not be able to ask which files a site has"


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    trunk = _trunk("vit-mini")
    with pytest.raises(BadData, match="'cls_token' is of another shape"):
        build_discriminator("vit-mini", 32, 2, _file(tmp_path / "a", trunk | {"cls_token": trunk["cls_token"][..., :5]}))
    del trunk["norm.bias"]
    with pytest.raises(BadData, match=r"'norm\.bias' is missing"):
        build_discriminator("vit-mini", 32, 2, _file(tmp_path / "b", trunk))


def test_vit_mini_needs_a_size_that_its_grid_divides() -> None:
    with pytest.raises(BadData, match="multiple of 8, not 36"):
        build_discriminator("vit-mini", 36, 2)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "vit_base_patch16_224"])
def test_images_are_resized_and_normalised_inside(name: str) -> None:
    """As ImageNet's, also where timm's own weights of the network were trained otherwise."""
    network = build_discriminator(name, 32, 2)
    assert isinstance(network, TimmDiscriminator)
    seen: list[torch.Tensor] = []
    network.trunk.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        network(torch.ones(1, 3, 32, 32))
    assert seen[0].shape == (1, 3, 224, 224)
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(seen[0].mean((0, 2, 3)), expected)


def test_weights_of_timm_see_images_as_timm_trained_them(tmp_path: Path) -> None:
    ensure_torchvision()
    import timm

    theirs = timm.create_model("test_vit", num_classes=0)
    described: Any = theirs  # torch knows tensors and modules alone as attributes
    path = tmp_path / "trunk.pth"
    torch.save(theirs.state_dict(), path)
    weights = LocalWeights(path, hashlib.sha256(path.read_bytes()).hexdigest())
    network = build_discriminator("test_vit", 32, 2, weights)
    assert isinstance(network, TimmDiscriminator)
    assert tuple(network.mean.flatten().tolist()) == pytest.approx(described.pretrained_cfg["mean"])
