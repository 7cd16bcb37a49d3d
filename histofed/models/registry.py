"""Networks by name. The names an experiment may use are data; what they build is here, and only here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from histofed.base.errors import BadData
from histofed.models import timm_discriminator
from histofed.models.cnn_discriminator import CnnDiscriminator
from histofed.models.deep_generator import DeepGenerator
from histofed.models.networks import Discriminator, Generator
from histofed.models.norms import add_spectral_norm
from histofed.models.options import DiscriminatorOptions
from histofed.models.paper_generator import PaperConcatGenerator, PaperGenerator
from histofed.models.trunk_weights import LocalWeights

GENERATORS: Final[Mapping[str, Callable[[int, int, int], Generator]]] = {
    "paper-cnn": PaperGenerator,
    "paper-cnn-concat": PaperConcatGenerator,
    "deep": DeepGenerator,
}
_PAPER: Final = DiscriminatorOptions()


def build_generator(name: str, image_size: int, classes: int, latent: int) -> Generator:
    """A generator with fresh weights from torch's global generator of random numbers. Raises `BadData`."""
    if name not in GENERATORS:
        known = ", ".join(map(repr, GENERATORS))
        raise BadData(f"generator {name!r} is not known; use one of {known}")
    return GENERATORS[name](image_size, classes, latent)


def build_discriminator(
    name: str,
    image_size: int,
    classes: int,
    weights: LocalWeights | None = None,
    options: DiscriminatorOptions = _PAPER,
) -> Discriminator:
    """A discriminator: `cnn`, `vit-mini`, or any timm model by name, optionally started from a local file.

    Fresh weights come from torch's global generator of random numbers. Raises `BadData`.
    """
    if name != "cnn":
        network: Discriminator = timm_discriminator.build(name, image_size, classes, weights, options)
    elif weights is not None or options.frozen_trunk:
        raise BadData("discriminator 'cnn' starts from scratch; remove its weights from the experiment and train its trunk")
    else:
        network = CnnDiscriminator(
            image_size, classes, options.heads, options.norm, options.dropout, options.batch_deviation
        )
    if options.spectral_norm:
        add_spectral_norm(network, name)
    return network
