"""The literal recipe of a research script: what `bench.training` and `bench.gpu` compare the engine with.

ACGAN as the public code writes it: a folder of JPEGs decoded anew in each epoch by torch's `DataLoader`, float32, eager,
Adam as it comes, three passes through the discriminator (its gradients computed in the generator's step too), and noise
drawn again for the discriminator's step. `one_fake` leaves the last of these out, as the better scripts do. Nothing of
`histofed.training` is used here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from histofed.models.doubling import DoublingConv2d
from histofed.tiles.tileset import Tile

RATE = 2e-4
BETAS = (0.5, 0.999)


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """`torchvision.datasets.ImageFolder` with `Resize`, `ToTensor` and `Normalize(0.5, 0.5)`."""

    def __init__(self, tiles: Sequence[Tile], size: int) -> None:
        self._tiles, self._size = tiles, size

    def __len__(self) -> int:
        return len(self._tiles)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        tile = self._tiles[index]
        with tile.path.open("rb") as file, Image.open(file) as image:
            resized = image.convert("RGB").resize((self._size, self._size), Image.Resampling.BILINEAR)
        pixels_HWC = torch.from_numpy(np.array(resized))
        return (pixels_HWC.permute(2, 0, 1).float() / 255 - 0.5) / 0.5, tile.class_index


def batches(tiles: Sequence[Tile], size: int, batch: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Epoch after epoch."""
    folder = ImageFolder(tiles, size)
    for _ in itertools.count():
        yield from DataLoader(folder, batch, shuffle=True, drop_last=True, num_workers=workers)


def written_plainly(generator: nn.Module) -> nn.Module:
    """The same generator with doubling and convolution as two layers, as every script has them; in place."""
    for parent in list(generator.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, DoublingConv2d):
                plain = nn.Conv2d(child.in_channels, child.out_channels, 3, padding=1)
                plain.load_state_dict(child.state_dict())
                parent.register_module(name, nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), plain))
    return generator


@dataclass
class Script:
    """The loop's body and what it needs."""

    generator: nn.Module
    discriminator: nn.Module
    data: Iterator[tuple[Tensor, Tensor]]
    latent: int
    classes: int
    device: torch.device
    one_fake: bool = False

    def __post_init__(self) -> None:
        self.generator.to(self.device)
        self.discriminator.to(self.device)
        self._adams = [torch.optim.Adam(net.parameters(), RATE, BETAS) for net in (self.generator, self.discriminator)]
        self._validity, self._class = nn.BCEWithLogitsLoss(), nn.CrossEntropyLoss()

    def step(self) -> tuple[float, float]:
        """Both players move once; their losses."""
        real_BCHW, labels_B = (tensor.to(self.device) for tensor in next(self.data))
        valid_B = torch.ones(len(labels_B), device=self.device)

        # generator
        self._adams[0].zero_grad()
        fake_BCHW, asked_B = self._fakes(len(labels_B))
        of_generator = self._loss(fake_BCHW, asked_B, valid_B)
        of_generator.backward()
        self._adams[0].step()

        # discriminator
        self._adams[1].zero_grad()
        if not self.one_fake:
            fake_BCHW, asked_B = self._fakes(len(labels_B))
        on_real = self._loss(real_BCHW, labels_B, valid_B)
        on_fake = self._loss(fake_BCHW.detach(), asked_B, torch.zeros_like(valid_B))
        of_discriminator = (on_real + on_fake) / 2
        of_discriminator.backward()
        self._adams[1].step()
        return of_generator.item(), of_discriminator.item()

    def _fakes(self, count: int) -> tuple[Tensor, Tensor]:
        z_BZ = torch.randn(count, self.latent, device=self.device)
        asked_B = torch.randint(self.classes, (count,), device=self.device)
        return self.generator(z_BZ, asked_B), asked_B

    def _loss(self, images_BCHW: Tensor, labels_B: Tensor, target_B: Tensor) -> Tensor:
        judged = self.discriminator(images_BCHW)
        total: Tensor = (self._validity(judged.validity_B, target_B) + self._class(judged.classes_BK, labels_B)) / 2
        return total
