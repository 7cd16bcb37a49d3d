"""Weights files of both libraries: torchvision's names give timm's outputs, and what does not fit is refused in words."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from histofed.base.errors import BadData
from histofed.models.networks import floating_state
from histofed.models.options import DiscriminatorOptions
from histofed.models.registry import build_discriminator
from histofed.models.torchvision_compat import ensure_torchvision
from histofed.models.trunk_weights import LocalWeights, load_trunk


def _saved(path: Path, document: object, legacy: bool = False) -> LocalWeights:
    torch.save(document, path, _use_new_zipfile_serialization=not legacy)
    return LocalWeights(path, hashlib.sha256(path.read_bytes()).hexdigest())


def _pair(kind: str) -> tuple[nn.Module, nn.Module]:
    """Small networks of one architecture: torchvision's with a classifier, timm's without."""
    ensure_torchvision()
    import timm
    from timm.models.swin_transformer import SwinTransformer
    from timm.models.vision_transformer import VisionTransformer
    from torchvision import models

    torch.manual_seed(0)
    match kind:
        case "vit":
            theirs: nn.Module = models.VisionTransformer(32, 8, 2, 2, 24, 48, num_classes=5)
            ours: nn.Module = VisionTransformer(32, 8, embed_dim=24, depth=2, num_heads=2, mlp_ratio=2.0, num_classes=0)
        case "swin":
            theirs = models.SwinTransformer(
                [4, 4], 12, [1, 2, 1, 1], [1, 2, 4, 4], [4, 4], stochastic_depth_prob=0.0, num_classes=5
            )
            ours = SwinTransformer(
                128, 4, embed_dim=12, depths=(1, 2, 1, 1), num_heads=(1, 2, 4, 4), window_size=4, num_classes=0
            )
        case _:
            theirs, ours = models.resnet18(num_classes=5), timm.create_model("resnet18", num_classes=0)
    return theirs.eval(), ours.eval()


def _randomised(network: nn.Module) -> None:
    """No zero and no one left by initialisation, so that a swapped tensor shows."""
    with torch.no_grad():
        for tensor in floating_state(network).values():
            tensor.uniform_(0.01, 0.2)


@pytest.mark.parametrize("kind", ["vit", "swin", "resnet18"])
def test_a_file_of_torchvision_gives_its_features(kind: str, tmp_path: Path) -> None:
    theirs, ours = _pair(kind)
    _randomised(theirs)
    load_trunk(ours, _saved(tmp_path / "model.pth", theirs.state_dict()))
    head = {"vit": "heads", "swin": "head", "resnet18": "fc"}[kind]
    setattr(theirs, head, nn.Identity())
    images = torch.randn(2, 3, *(128 if kind == "swin" else 32,) * 2)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


def test_the_names_before_torchvision_0_13_are_known(tmp_path: Path) -> None:
    theirs, ours = _pair("vit")
    old = {
        name.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): tensor
        for name, tensor in theirs.state_dict().items()
    }
    load_trunk(ours, _saved(tmp_path / "model.pth", old))
    assert torch.equal(
        ours.get_parameter("blocks.1.mlp.fc2.weight"), old["encoder.layers.encoder_layer_1.mlp.linear_2.weight"]
    )


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_torch_state_dict_is_read(tmp_path: Path, wrapper: str | None, legacy: bool) -> None:
    torch.manual_seed(1)
    trunk = build_discriminator("vit-mini", 32, 2).get_submodule("trunk").state_dict()
    file = _saved(tmp_path / "a.pth", {wrapper: trunk} if wrapper else trunk, legacy)
    loaded = build_discriminator("vit-mini", 32, 2, file).get_submodule("trunk").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in trunk.items())


class _Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("the file ran code",)


@pytest.mark.parametrize("document", [_Code(), {"a": _Code()}, [torch.zeros(1)], {"a": 3}])
def test_anything_but_tensors_by_name_is_refused(
    tmp_path: Path, document: object, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BadData, match=r"not a (plain )?state dict"):
        build_discriminator("vit-mini", 32, 2, _saved(tmp_path / "a.pth", document))
    (tmp_path / "b.pkl").write_bytes(pickle.dumps(document))
    digest = hashlib.sha256((tmp_path / "b.pkl").read_bytes()).hexdigest()
    with pytest.raises(BadData, match=r"not a (plain )?state dict"):
        build_discriminator("vit-mini", 32, 2, LocalWeights(tmp_path / "b.pkl", digest))
    assert "ran code" not in capsys.readouterr().out


def test_a_deeper_network_of_the_same_family_is_refused(tmp_path: Path) -> None:
    """A ResNet 34 holds every tensor of a ResNet 18, and more."""
    ensure_torchvision()
    import timm

    bigger = timm.create_model("resnet34", num_classes=7).state_dict()
    with pytest.raises(BadData, match=r"'layer1\.2\.\S+' is unknown to it; use the file that belongs to this model"):
        build_discriminator("resnet18", 32, 2, _saved(tmp_path / "a.pth", bigger))


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    _saved(tmp_path / "a.pth", {"a": torch.zeros(1000)})
    data = (tmp_path / "a.pth").read_bytes()[:2000]
    (tmp_path / "a.pth").write_bytes(data)
    with pytest.raises(BadData, match="the file is damaged"):
        build_discriminator("vit-mini", 32, 2, LocalWeights(tmp_path / "a.pth", hashlib.sha256(data).hexdigest()))


def _frozen(tmp_path: Path, name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    trunk = build_discriminator(name, 32, 2).get_submodule("trunk").state_dict()
    file = _saved(tmp_path / "a.pth", trunk)
    return build_discriminator(name, 32, 2, file, DiscriminatorOptions(frozen_trunk=True)), trunk


def test_a_file_of_neither_kind_is_named(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<html>not found</html>")
    weights = LocalWeights(page, hashlib.sha256(page.read_bytes()).hexdigest())
    with pytest.raises(BadData, match=rf"discriminator weights '{page}': not a safetensors file"):
        build_discriminator("vit-mini", 32, 2, weights)


@pytest.mark.parametrize("name", ["vit-mini", "test_resnet"])
def test_a_frozen_trunk_stays_as_its_file_has_it(tmp_path: Path, name: str) -> None:
    network, trunk = _frozen(tmp_path, name)
    assert floating_state(network).keys() == {
        "heads.validity.weight",
        "heads.validity.bias",
        "heads.classes.weight",
        "heads.classes.bias",
    }
    network.train()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    adam = torch.optim.Adam(trained, 0.1)
    images = torch.randn(4, 3, 32, 32, requires_grad=True)
    torch.autograd.backward(network(images).classes_BK.sum())
    adam.step()
    after = network.get_submodule("trunk").state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in trunk.items())
    assert images.grad is not None
    assert images.grad.abs().sum() > 0, "the generator still learns through it"
