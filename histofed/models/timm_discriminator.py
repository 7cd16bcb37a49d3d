"""Any timm model as a discriminator: its trunk without classifier, two heads, its own input normalisation inside.

timm is never asked for pretrained weights (sites are offline, and a download would be an unpinned input): they come from a
local safetensors file whose SHA-256 is part of the experiment. Pickled checkpoints are refused, they can run code.

`vit-mini` is a vision transformer small enough for two CPU cores; it exists for demos and tests.
"""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from histofed import weights as tensor_files
from histofed.base.errors import BadData
from histofed.models.networks import Discriminator, Heads
from histofed.models.torchvision_compat import ensure_torchvision

VIT_MINI: Final = "vit-mini"
_GRID: Final = 8
"""`vit-mini` reads an 8 x 8 grid of patches, whatever the image size."""
_HALF: Final = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class LocalWeights:
    """A trunk's start: a safetensors file on this machine and the SHA-256 it must have."""

    path: Path
    sha256: str


class TimmDiscriminator(Discriminator):
    """`trunk` (features F) and two heads; ViT-B/16 with two classes has 85,800,963 parameters.

    Images are brought to the trunk's input size where that is fixed (transformers), else read as they are.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, trunk: nn.Module, features: int, classes: int, read: Reading) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = Heads(features, classes)
        self.edge = read.edge
        # constants of the architecture, not weights: never stored, never averaged
        self.register_buffer("mean", torch.tensor(read.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(read.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Images in [-1, 1] → validity logits (B,) and class logits (B, K)."""
        x_BCHW = images_BCHW.add(1.0).mul(0.5)
        if self.edge is not None and x_BCHW.shape[-1] != self.edge:
            size = (self.edge, self.edge)
            x_BCHW = functional.interpolate(x_BCHW, size, mode="bilinear", align_corners=False)
        out: tuple[Tensor, Tensor] = self.heads(self.trunk((x_BCHW - self.mean) / self.std))
        return out


@dataclass(frozen=True)
class Reading:
    """How a trunk reads images: edge in pixels (None: any), channel means and deviations of the range [0, 1]."""

    edge: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]


def build(name: str, image_size: int, classes: int, weights: LocalWeights | None) -> TimmDiscriminator:
    """A discriminator on timm's model `name`, or `vit-mini`. Raises `BadData` for a name or file that cannot be used."""
    ensure_torchvision()
    import timm

    if name == VIT_MINI:
        trunk, features, read = _vit_mini(image_size)
    elif not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise BadData(f"discriminator {name!r} is neither 'cnn', 'vit-mini' nor a model of timm {timm.__version__}{hint}")
    else:
        trunk = timm.create_model(name, pretrained=False, num_classes=0)
        described: Any = trunk
        config: dict[str, Any] = described.pretrained_cfg
        features = int(getattr(described, "head_hidden_size", None) or described.num_features)
        edge = int(config["input_size"][1]) if config.get("fixed_input_size") else None
        read = Reading(edge, tuple(config["mean"]), tuple(config["std"]))
    if weights is not None:
        _load_trunk(trunk, weights)
    return TimmDiscriminator(trunk, features, classes, read)


def _vit_mini(image_size: int) -> tuple[nn.Module, int, Reading]:
    from timm.models.vision_transformer import VisionTransformer

    if image_size % _GRID:
        raise BadData(f"discriminator 'vit-mini' needs an image size that is a multiple of {_GRID}, not {image_size}")
    features = 96
    trunk: nn.Module = VisionTransformer(
        img_size=image_size,
        patch_size=image_size // _GRID,
        embed_dim=features,
        depth=3,
        num_heads=3,
        mlp_ratio=2.0,
        num_classes=0,
    )
    return trunk, features, Reading(None, _HALF, _HALF)


def _load_trunk(trunk: nn.Module, weights: LocalWeights) -> None:
    """Fill the trunk from a local file; a classifier in it is left out, anything else must fit. Raises `BadData`."""
    # one sentence for both: an experiment must not be able to ask which files a site has
    if not weights.path.is_file() or _sha256(weights.path) != weights.sha256:
        raise BadData(
            f"discriminator weights {str(weights.path)!r}: there is no such file with SHA-256 {weights.sha256}; "
            "copy it to this machine or correct the experiment"
        )
    found = tensor_files.read(weights.path)
    own = trunk.state_dict()
    wanted = {name for name, tensor in own.items() if tensor.is_floating_point()}
    missing = sorted(wanted - found.keys())
    wrong = [name for name in sorted(wanted & found.keys()) if own[name].shape != found[name].shape]
    if missing or wrong:
        name = (missing or wrong)[0]
        how = "missing" if missing else "of another shape"
        raise BadData(
            f"discriminator weights do not fit the model: tensor {name!r} is {how}; "
            "use the file that belongs to this timm model"
        )
    with torch.no_grad():
        for name in wanted:
            own[name].copy_(torch.from_numpy(found[name]))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
