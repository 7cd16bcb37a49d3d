"""The paper's generator: three convolutions and a class map multiplied in (`paper.md` §2, a reconstruction).

    1  Linear 100 → 128·i²  (i = W / 4)        5  nearest x2, conv 128 → 64, norm, LeakyReLU, dropout
    2  x class map, Embedding K → i²           6  conv 64 → 3, tanh
    3  batch norm
    4  nearest x2, conv 128 → 128, norm, LeakyReLU, dropout

The variant `paper-cnn-concat` leaves step 2 out and appends a class vector to the noise instead.

The epsilon of .8 is a slip of the public code it goes back to (meant as momentum) and is kept, because this network is the
paper's and is compared with the paper's numbers. 93 % to 99 % of its parameters are the one linear layer.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from histofed.models.doubling import DoublingConv2d
from histofed.models.networks import Generator, start_as_dcgan

CHANNELS: Final = 128
PAPER_EPS: Final = 0.8
CLASS_VECTOR: Final = 50
"""Length of the appended class vector: HistoGAN's, on the same tiles (`paper.md` §2)."""


class PaperGenerator(Generator):
    """3,533,827 parameters at 64 px, 13,464,067 at 128, 40,772,227 at 224 (latent 100, two classes)."""

    def __init__(self, image_size: int, classes: int, latent: int = 100) -> None:
        super().__init__()
        self.latent, self.classes = latent, classes
        self.start_size = image_size // 4
        self.linear = nn.Linear(latent, CHANNELS * self.start_size**2)
        self.class_map = nn.Embedding(classes, self.start_size**2)
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.up1 = _up(CHANNELS, CHANNELS)
        self.up2 = _up(CHANNELS, CHANNELS // 2)
        self.to_rgb = nn.Conv2d(CHANNELS // 2, 3, 3, padding=1)
        self.apply(start_as_dcgan)

    def forward(self, z_BZ: Tensor, labels_B: Tensor) -> Tensor:
        """z ~ N(0, 1) and class indices → images in [-1, 1], shape (B, 3, W, W)."""
        i = self.start_size
        x_BCHW = self.linear(z_BZ).view(-1, CHANNELS, i, i)
        x_BCHW = self.norm(x_BCHW * self.class_map(labels_B).view(-1, 1, i, i))
        out: Tensor = self.to_rgb(self.up2(self.up1(x_BCHW))).tanh()
        return out


class PaperConcatGenerator(Generator):
    """The variant whose class enters beside the noise; the class reaches the image through the linear layer alone."""

    def __init__(self, image_size: int, classes: int, latent: int = 100) -> None:
        super().__init__()
        self.latent, self.classes = latent, classes
        self.start_size = image_size // 4
        self.class_vector = nn.Embedding(classes, CLASS_VECTOR)
        self.linear = nn.Linear(latent + CLASS_VECTOR, CHANNELS * self.start_size**2)
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.up1 = _up(CHANNELS, CHANNELS)
        self.up2 = _up(CHANNELS, CHANNELS // 2)
        self.to_rgb = nn.Conv2d(CHANNELS // 2, 3, 3, padding=1)
        self.apply(start_as_dcgan)

    def forward(self, z_BZ: Tensor, labels_B: Tensor) -> Tensor:
        """z ~ N(0, 1) and class indices → images in [-1, 1], shape (B, 3, W, W)."""
        given_BZ = torch.cat([z_BZ, self.class_vector(labels_B)], 1)
        x_BCHW = self.norm(self.linear(given_BZ).view(-1, CHANNELS, self.start_size, self.start_size))
        out: Tensor = self.to_rgb(self.up2(self.up1(x_BCHW))).tanh()
        return out


def _up(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        # where others keep their doubling, so that the tensors' names stay those of the public code
        nn.Identity(),
        DoublingConv2d(channels_in, channels_out),
        nn.BatchNorm2d(channels_out, eps=PAPER_EPS),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Dropout2d(0.25),
    )
