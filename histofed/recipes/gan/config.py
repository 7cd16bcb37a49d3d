"""The `[recipe]` table of a `gan` experiment; defaults are the paper's where `paper.md` §1 and §9 know them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from histofed.recipes.sections import Section

Rate = Annotated[float, Field(gt=0, le=0.1, allow_inf_nan=False)]
Beta = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
ClassName = Annotated[str, Field(pattern=r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,39}\z")]


class WeightsConfig(Section):
    """Where a discriminator starts from: a safetensors file that lies on the machine that builds it."""

    path: str = Field(min_length=1, max_length=1000)
    sha256: str = Field(pattern=r"\A[0-9a-f]{64}\z")


class DiscriminatorConfig(Section):
    """Which network judges tiles."""

    name: str = Field(pattern=r"\A[a-z0-9][a-z0-9_.-]{0,79}\z")
    """`cnn`, `vit-mini`, or any model of timm by name (`vit_base_patch16_224`, `swin_tiny_patch4_window7_224`, ...)."""
    weights: WeightsConfig | None = None


class GanConfig(Section):
    """One GAN experiment, as far as training goes."""

    image_size: int = Field(ge=32, le=256, multiple_of=4)
    """Edge of the tiles that are learned and drawn, pixels."""
    classes: tuple[ClassName, ...] = Field(default=("MSIH", "nonMSIH"), min_length=2, max_length=50)
    """In the order of their index; the first is the positive one."""
    latent: int = Field(default=100, ge=1, le=1024)
    batch: int = Field(default=32, ge=2, le=1024)
    steps: int = Field(ge=1, le=1_000_000)
    """Optimiser steps of one task."""
    generator: Literal["paper-cnn"] = "paper-cnn"
    discriminator: DiscriminatorConfig
    generator_rate: Rate = 2e-4
    discriminator_rate: Rate = 2e-4
    betas: tuple[Beta, Beta] = (0.5, 0.999)
    share: Literal["generator+discriminator", "generator"] = "generator+discriminator"
    """What travels. With `generator` each site keeps its own discriminator, the network that has seen patients' tiles."""
    ema_decay: float = Field(default=0.999, ge=0, lt=1, allow_inf_nan=False)
    """How slowly the released generator follows the rounds; 0 releases the last round's."""
    persist_moments: bool = False
    """Keep Adam's moments from round to round; the paper starts them afresh."""
    balanced: bool = True
    """Every batch holds each class equally often."""
    flips: bool = False
    """Show each tile in one of its eight orientations."""

    @field_validator("classes")
    @classmethod
    def _each_class_once(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len({name.lower() for name in classes}) != len(classes):
            raise ValueError("the same class is named twice")
        return classes
