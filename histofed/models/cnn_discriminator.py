"""The custom CNN discriminator of the paper (`paper.md` §2, a reconstruction): four strided convolutions, two heads."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from torch import Tensor, nn

from histofed.models.networks import Discriminator, Heads, start_as_dcgan

WIDTHS: Final = (3, 16, 32, 64, 128)


class CnnDiscriminator(Discriminator):
    """Reads tiles at their own size; 122,467 parameters at 128 px, 173,155 at 224 (two classes)."""

    def __init__(self, image_size: int, classes: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*(_block(a, b, norm=a != 3) for a, b in pairwise(WIDTHS)), nn.Flatten())
        edge = image_size
        for _ in WIDTHS[1:]:
            edge = (edge + 1) // 2
        self.heads = Heads(WIDTHS[-1] * edge**2, classes)
        self.apply(start_as_dcgan)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Images in [-1, 1] → validity logits (B,) and class logits (B, K)."""
        out: tuple[Tensor, Tensor] = self.heads(self.trunk(images_BCHW))
        return out


def _block(channels_in: int, channels_out: int, norm: bool) -> nn.Sequential:
    """Halve the edge. No norm on the first block: it would erase the tile's overall colour."""
    layers: list[nn.Module] = [
        nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Dropout2d(0.25),
    ]
    if norm:
        layers.append(nn.BatchNorm2d(channels_out))
    return nn.Sequential(*layers)
