"""Any timm model as a discriminator: its trunk without classifier, two heads, its own input normalisation inside.

timm is never asked for pretrained weights (sites are offline, and a download would be an unpinned input): they come from a
local file whose SHA-256 is part of the experiment (`trunk_weights.py`). A trunk is trained, from there or from scratch, or
frozen: then it stays in evaluation mode as the file has it, only the heads are trained, and only they are stored and shared.

`vit-mini` is a vision transformer small enough for two CPU cores; it exists for demos and tests.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, Final, Self

import torch
from torch import Tensor, nn

from histofed.base.errors import BadData
from histofed.models.deviation import VectorDeviation
from histofed.models.heads import build_heads
from histofed.models.networks import Discriminator, Judgement
from histofed.models.norms import replace_batch_norm
from histofed.models.options import DiscriminatorOptions
from histofed.models.resampling import resized
from histofed.models.torchvision_compat import ensure_torchvision
from histofed.models.trunk_weights import LocalWeights, load_trunk

VIT_MINI: Final = "vit-mini"
_GRID: Final = 8
"""`vit-mini` reads an 8 x 8 grid of patches, whatever the image size."""
_HALF: Final = (0.5, 0.5, 0.5)
_IMAGENET: Final = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Means and deviations that torchvision's networks were trained with; timm's own files may have others."""


class TimmDiscriminator(Discriminator):
    """`trunk` (features F) and two heads; ViT-B/16 with two classes has 85,800,963 parameters.

    Images are brought to the trunk's input size where that is fixed (transformers), else read as they are.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        trunk: nn.Module,
        features: int,
        classes: int,
        read: Reading,
        heads: str = "class",
        frozen_trunk: bool = False,
        batch_deviation: bool = False,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.deviation = VectorDeviation() if batch_deviation else nn.Identity()
        self.heads = build_heads(heads, features + batch_deviation, classes)
        self.edge = read.edge
        # constants of the architecture, not weights: never stored, never averaged
        self.register_buffer("mean", torch.tensor(read.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(read.std).view(1, 3, 1, 1), persistent=False)
        if frozen_trunk:
            self.frozen = ("trunk.",)
            self.trunk.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """As every module does it, except that a frozen trunk stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.trunk.eval()
        return self

    def forward(self, images_BCHW: Tensor) -> Judgement:
        """Images in [-1, 1] → a judgement of each."""
        x_BCHW = images_BCHW.add(1.0).mul(0.5)
        if self.edge is not None and x_BCHW.shape[-1] != self.edge:
            x_BCHW = resized(x_BCHW, self.edge)
        out: Judgement = self.heads(self.deviation(self.trunk((x_BCHW - self.mean) / self.std)))
        return out


@dataclass(frozen=True)
class Reading:
    """How a trunk reads images: edge in pixels (None: any), channel means and deviations of the range [0, 1]."""

    edge: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]


def build(
    name: str, image_size: int, classes: int, weights: LocalWeights | None, options: DiscriminatorOptions
) -> TimmDiscriminator:
    """A discriminator on timm's model `name`, or `vit-mini`.

    Raises `BadData` for a name, a file or an option that cannot be used, and for images that are too small for the model.
    """
    _check_options(name, weights, options)
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
        if edge is None:
            _check_reads(trunk, name, image_size)
    if options.norm == "group":
        replace_batch_norm(trunk, name)
    from_timm = weights is not None and not load_trunk(trunk, weights)
    if name != VIT_MINI and not from_timm:
        read = Reading(read.edge, *_IMAGENET)
    return TimmDiscriminator(trunk, features, classes, read, options.heads, options.frozen_trunk, options.batch_deviation)


def _check_options(name: str, weights: LocalWeights | None, options: DiscriminatorOptions) -> None:
    if options.frozen_trunk and weights is None:
        raise BadData(f"a frozen trunk of {name!r} knows only what its weights file holds; name one, or train the trunk")
    if options.norm == "none":
        raise BadData(f"discriminator {name!r} needs its norms; norm = \"none\" is for 'cnn'")
    if options.norm == "group" and weights is not None:
        raise BadData(f'the weights of {name!r} were trained with its own norms; leave norm = "own" or start from scratch')


def _check_reads(trunk: nn.Module, name: str, image_size: int) -> None:
    """Show the trunk one empty image. Raises `BadData` when it is too small for it."""
    device = next(trunk.parameters()).device
    trunk.eval()
    try:
        with torch.inference_mode():
            trunk(torch.zeros(1, 3, image_size, image_size, device=device))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise BadData(
            f"discriminator {name!r} cannot read images of {image_size} pixels; use a larger image_size, or another model"
        ) from error
    trunk.train()


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
