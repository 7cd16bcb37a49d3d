"""The custom CNN discriminator of the paper (`paper.md` §2, a reconstruction): four strided convolutions, two heads.

Its options turn it into the default's (`paper.md` §9): no batch norm, spectral norm, the deviation within the batch.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from torch import Tensor, nn

from histofed.models.deviation import MapDeviation
from histofed.models.heads import build_heads
from histofed.models.networks import Discriminator, Judgement, start_as_dcgan
from histofed.models.norms import group_norm

WIDTHS: Final = (3, 16, 32, 64, 128)


class CnnDiscriminator(Discriminator):
    """Reads tiles at their own size; 122,467 parameters at 128 px, 173,155 at 224 (two classes)."""

    def __init__(
        self,
        image_size: int,
        classes: int,
        heads: str = "class",
        norm: str = "own",  #           `own` is the paper's batch norm; `group`, `none`
        dropout: float = 0.25,
        batch_deviation: bool = False,
    ) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*(_block(a, b, norm, dropout) for a, b in pairwise(WIDTHS)))
        if batch_deviation:
            self.trunk.append(MapDeviation())
        self.trunk.append(nn.Flatten())
        edge = image_size
        for _ in WIDTHS[1:]:
            edge = (edge + 1) // 2
        self.heads = build_heads(heads, (WIDTHS[-1] + batch_deviation) * edge**2, classes)
        self.apply(start_as_dcgan)

    def forward(self, images_BCHW: Tensor) -> Judgement:
        """Images in [-1, 1] → a judgement of each."""
        out: Judgement = self.heads(self.trunk(images_BCHW))
        return out


def _block(channels_in: int, channels_out: int, norm: str, dropout: float) -> nn.Sequential:
    """Halve the edge. No norm on the first block: it would erase the tile's overall colour."""
    layers: list[nn.Module] = [nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1), nn.LeakyReLU(0.2)]
    if dropout:
        layers.append(nn.Dropout2d(dropout))
    if channels_in != WIDTHS[0] and norm != "none":
        layers.append(nn.BatchNorm2d(channels_out) if norm == "own" else group_norm(channels_out))
    return nn.Sequential(*layers)
