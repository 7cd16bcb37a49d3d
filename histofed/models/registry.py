"""Networks by name. The names an experiment may use are data; what they build is here, and only here."""

from __future__ import annotations

from histofed.base.errors import BadData
from histofed.models import timm_discriminator
from histofed.models.cnn_discriminator import CnnDiscriminator
from histofed.models.networks import Discriminator, Generator
from histofed.models.paper_generator import PaperGenerator
from histofed.models.timm_discriminator import LocalWeights


def build_generator(name: str, image_size: int, classes: int, latent: int) -> Generator:
    """A generator with fresh weights from torch's global generator of random numbers. Raises `BadData`."""
    if name == "paper-cnn":
        return PaperGenerator(image_size, classes, latent)
    raise BadData(f"generator {name!r} is not known; use 'paper-cnn'")


def build_discriminator(name: str, image_size: int, classes: int, weights: LocalWeights | None = None) -> Discriminator:
    """A discriminator: `cnn`, `vit-mini`, or any timm model by name, optionally started from a local file.

    Fresh weights come from torch's global generator of random numbers. Raises `BadData`.
    """
    if name != "cnn":
        return timm_discriminator.build(name, image_size, classes, weights)
    if weights is not None:
        raise BadData("discriminator 'cnn' starts from scratch; remove its weights from the experiment")
    return CnnDiscriminator(image_size, classes)
