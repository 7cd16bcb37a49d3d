"""The deep generator: from 4 x 4 up by residual blocks, so that far pixels share more than one linear map (`paper.md` §9).

    1  Linear z → C·4²
    2  x class map, Embedding K → 4² (starts around 1)
    3  per doubling: [norm, LeakyReLU, conv, norm, LeakyReLU, nearest x2, conv] + [conv 1x1, bilinear x2], over √2;
       at 16 x 16 a second linear map of z joins, 32 channels
    4  norm, LeakyReLU, conv → 3, tanh
    5  in evaluation mode: one of the eight orientations, told by the signs of the first three numbers of z

The second map gives every place noise of its own: nuclei do not follow from a plan of 4 x 4. Convolutions replicate the
border, because zeros there tell each pixel where it is, and the generator then draws one picture for all noise; the shortcut
is doubled smoothly, because copied pixels show through as squares and streaks; and groups of the norms have at least
eight channels, because a channel by itself loses its contrast (`docs/results/README.md`). Tissue has no up and no left, but
what convolutions draw has: streaks and a relief that fall in one direction in every image; hence the last step. In training
augmentation turns what the discriminator sees, and textures are compared as drawn: turned ones were learned more slowly.

Each norm is a group norm whose scale and shift come from class and noise (FiLM, Perez et al., arXiv 1709.07871). There is no
batch norm: its running statistics are what averaging over hospitals spoils first. Channels double towards the start, from
16 at full size to 512 at most; an edge that is no power of two starts at 5 to 7 instead of 4.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from histofed.base.errors import BadData
from histofed.models.doubling import DoublingConv2d
from histofed.models.film import modulated_group_norm
from histofed.models.networks import Generator
from histofed.models.orientation import oriented
from histofed.models.resampling import BorderedConv2d, resized

LAST_WIDTH: Final = 16
MOST_WIDTH: Final = 512
CLASS_VECTOR: Final = 32
DETAIL: Final = 32
"""Channels of the second map of the noise."""
_DETAIL_AFTER: Final = 2
"""Doublings; 4 x 4 is 16 x 16 then."""
_CHANNELS_OF_GROUP: Final = 8
_SLOPE: Final = 0.2


class DeepGenerator(Generator):
    """1.3 M parameters at 32 px, 2.1 M at 64, 4.6 M at 128 (latent 100, two classes)."""

    def __init__(self, image_size: int, classes: int, latent: int = 100) -> None:
        super().__init__()
        self.latent, self.classes = latent, classes
        self.start_size, doublings = _start(image_size)
        widths = [min(MOST_WIDTH, LAST_WIDTH * 2 ** (doublings - k)) for k in range(doublings + 1)]
        self.class_vector = nn.Embedding(classes, CLASS_VECTOR)
        self.linear = nn.Linear(latent, widths[0] * self.start_size**2)
        self.class_map = nn.Embedding(classes, self.start_size**2)
        self.detail_size = self.start_size * 2**_DETAIL_AFTER
        self.detail = nn.Linear(latent, DETAIL * self.detail_size**2)
        given = latent + CLASS_VECTOR
        self.blocks = nn.ModuleList(
            _UpBlock(a + DETAIL * (k == _DETAIL_AFTER), b, given) for k, (a, b) in enumerate(pairwise(widths))
        )
        self.norm = _Film(widths[-1], latent + CLASS_VECTOR)
        self.to_rgb = BorderedConv2d(widths[-1], 3)
        self.apply(_start_weights)
        nn.init.normal_(self.class_map.weight, 1.0, 0.2)

    def forward(self, z_BZ: Tensor, labels_B: Tensor) -> Tensor:
        """z ~ N(0, 1) and class indices → images in [-1, 1], shape (B, 3, W, W)."""
        i = self.start_size
        given_BZ = torch.cat([z_BZ, self.class_vector(labels_B)], 1)
        x_BCHW = self.linear(z_BZ).view(len(z_BZ), -1, i, i) * self.class_map(labels_B).view(-1, 1, i, i)
        for k, block in enumerate(self.blocks):
            if k == _DETAIL_AFTER:
                detail_BCHW = self.detail(z_BZ).view(-1, DETAIL, self.detail_size, self.detail_size)
                x_BCHW = torch.cat([x_BCHW, detail_BCHW], 1)
            x_BCHW = block(x_BCHW, given_BZ)
        out: Tensor = self.to_rgb(leaky_relu(self.norm(x_BCHW, given_BZ), _SLOPE, inplace=True)).tanh()
        return out if self.training else _turned(out, z_BZ)


def _turned(images_BCHW: Tensor, z_BZ: Tensor) -> Tensor:
    """Oriented by the signs of the noise, as many of them as there are."""
    signs_3B = z_BZ[:, [k % z_BZ.shape[1] for k in range(3)]].T > 0
    return oriented(images_BCHW, *signs_3B)


class _Film(nn.Module):
    """A group norm with scale 1 + g(given) and shift b(given)."""

    def __init__(self, channels: int, given: int) -> None:
        super().__init__()
        self.groups = max(1, channels // _CHANNELS_OF_GROUP)
        self.scale_shift = nn.Linear(given, 2 * channels)

    def forward(self, x_BCHW: Tensor, given_BZ: Tensor) -> Tensor:
        scale_BC, shift_BC = self.scale_shift(given_BZ).chunk(2, 1)
        return modulated_group_norm(x_BCHW, 1 + scale_BC, shift_BC, self.groups)


class _UpBlock(nn.Module):
    """Twice the edge."""

    def __init__(self, channels_in: int, channels_out: int, given: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _Film(channels_in, given), _Film(channels_out, given)
        self.conv1 = BorderedConv2d(channels_in, channels_out)
        self.conv2 = DoublingConv2d(channels_out, channels_out, "replicate")
        self.skip = nn.Conv2d(channels_in, channels_out, 1, bias=False)

    def forward(self, x_BCHW: Tensor, given_BZ: Tensor) -> Tensor:
        # what narrows the channels works before the doubling, for a quarter of the work; `conv2` then shapes the new pixels.
        # In place wherever the gradient needs the result alone: these are memory's work, not arithmetic's
        h_BCHW = self.conv1(leaky_relu(self.norm1(x_BCHW, given_BZ), _SLOPE, inplace=True))
        h_BCHW = self.conv2(leaky_relu(self.norm2(h_BCHW, given_BZ), _SLOPE, inplace=True))
        out: Tensor = h_BCHW.add_(resized(self.skip(x_BCHW), 2 * x_BCHW.shape[-1])).mul_(math.sqrt(0.5))
        return out


def _start(image_size: int) -> tuple[int, int]:
    """Start edge, 4 to 7 pixels, and how often it is doubled. Raises `BadData` when the size cannot be reached so."""
    for doublings in range(3, 7):
        start, rest = divmod(image_size, 2**doublings)
        if 4 <= start <= 7 and not rest:
            return start, doublings
    raise BadData(
        f"generator 'deep' cannot draw {image_size} pixels; use 4, 5, 6 or 7 times a power of two from 32 to 256: "
        "32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224 or 256"
    )


def _start_weights(module: nn.Module) -> None:
    """He et al., arXiv 1502.01852, for what LeakyReLU follows; the modulation starts small, near the plain norm."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, _SLOPE)
    elif isinstance(module, _Film):
        nn.init.normal_(module.scale_shift.weight, 0.0, 0.02)
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
