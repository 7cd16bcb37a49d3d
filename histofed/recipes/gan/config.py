"""The `[config]` table of a `gan` experiment; defaults are the paper's where `paper.md` §1 and §9 know them.

Everything beyond the paper is an option that is off unless named. What cannot work together is refused here, in words, as
far as it shows without building the networks; the rest (has this timm model batch norm?) is refused when they are built.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Final, Literal

from pydantic import Field, field_validator, model_validator

from histofed.base.errors import BadData
from histofed.recipes.sections import Section
from histofed.training.objectives import OBJECTIVES, FakeLabels, Heads, Objective
from histofed.training.rules import Augmentation, Decay, LeCam, Precision, Returns, Rules

Rate = Annotated[float, Field(gt=0, le=0.1, allow_inf_nan=False)]
Beta = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, le=1e4, allow_inf_nan=False)]
ClassName = Annotated[str, Field(pattern=r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,39}\z")]
_TRANSFORMER: Final = re.compile(
    r"(?:^|_)(?:vit|swin|swinv2|deit|deit3|beit|beitv2|xcit|cait|eva|eva02|maxvit|coatnet)(?:[-_]|$)"
)
"""timm's names of networks with attention; what this misses is found when the network is built."""
_MIXES: Final = "mixes the tiles that a penalty of gradients (WGAN-GP's, R1, R2) looks at one by one"


class WeightsConfig(Section):
    """Where a discriminator starts from: a file that lies on the machine that builds it (`models/trunk_weights.py`)."""

    path: str = Field(min_length=1, max_length=1000)
    sha256: str = Field(pattern=r"\A[0-9a-f]{64}\z")


class DiscriminatorConfig(Section):
    """Which network judges tiles."""

    name: str = Field(pattern=r"\A[a-z0-9][a-z0-9_.-]{0,79}\z")
    """`cnn`, `vit-mini`, or any model of timm by name (`vit_base_patch16_224`, `swin_tiny_patch4_window7_224`, ...)."""
    weights: WeightsConfig | None = None
    trunk: Literal["trained", "frozen"] = "trained"
    """`frozen` trains the heads alone; the trunk then neither travels nor changes, and every site needs its file."""
    heads: Heads | None = None
    """`class`, `projection` or `reacgan`; without it those of the objective."""
    norm: Literal["own", "group", "none"] = "own"
    """`own` is batch norm in `cnn` and ResNets; `none` only for `cnn`."""
    spectral_norm: bool = False
    dropout: float = Field(default=0.25, ge=0, lt=1, allow_inf_nan=False)
    """Of `cnn`."""
    batch_deviation: bool = False
    """Show the heads how much the batch varies."""


class ObjectiveConfig(Section):
    """What the two players want; numbers that are left out are those of `training/objectives.py`."""

    name: Literal["acgan", "cgan", "wgan-gp", "hinge", "relativistic"] = "acgan"
    critic_steps: int | None = Field(default=None, ge=1, le=100)
    """The discriminator's steps for each of the generator's."""
    gradient_penalty: Weight | None = None
    r1: Weight | None = None
    r2: Weight | None = None
    penalty_every: int = Field(default=1, ge=1, le=1000)
    """Lazy penalties: computed each so many steps, with as much more weight."""
    class_weight: Weight = 1.0
    class_ramp: int = Field(default=0, ge=0, le=1_000_000)
    """Steps over which the generator's class term grows to its weight, in each task anew."""
    fake_labels: FakeLabels | None = None
    """Classes that fakes are asked for: `uniform`, `even` in each batch, or those of the `real` batch."""
    real_target: float = Field(default=1.0, gt=0.5, le=1, allow_inf_nan=False)
    """0.9 is the one-sided label smoothing of HistoGAN."""
    fake_target: float = Field(default=0.0, ge=0, lt=0.5, allow_inf_nan=False)
    flip_real: float = Field(default=0.0, ge=0, le=0.5, allow_inf_nan=False)
    """Share of reals that the discriminator is told are fakes; HistoGAN's is 0.5."""


class AugmentConfig(Section):
    """DiffAugment on reals and fakes; `{}` takes the defaults, which are tested."""

    flips: bool = True
    rotations: bool = True
    colour: Share = 0.2
    translation: float = Field(default=0.125, ge=0, le=0.5, allow_inf_nan=False)
    cutout: Share = 0.25


class LeCamConfig(Section):
    """LeCam's regularisation of the discriminator."""

    weight: Weight = 0.1
    decay: Beta = 0.99


class ReturnsConfig(Section):
    """What happens when training diverges: back to the last good state, at most so often; without it the task fails."""

    most: int = Field(default=2, ge=1, le=20)
    every: int = Field(default=200, ge=1, le=100_000)
    limit: float = Field(default=1e4, gt=0, le=1e12, allow_inf_nan=False)


class DecayConfig(Section):
    """How both players' rates fall, by steps of the whole training, over all rounds."""

    after: int = Field(ge=0, le=1_000_000)
    """Steps at the full rates."""
    half_life: int = Field(ge=1, le=1_000_000)
    """Steps in which they halve from then on."""


class GanConfig(Section):
    """One GAN experiment, as far as training goes."""

    image_size: int = Field(ge=32, le=256, multiple_of=4)
    """Edge of the tiles that are learned and drawn, pixels."""
    classes: tuple[ClassName, ...] = Field(default=("MSIH", "nonMSIH"), min_length=2, max_length=50)
    """In the order of their index; the first is the positive one."""
    latent: int = Field(default=100, ge=1, le=1024)
    batch: int = Field(default=32, ge=2, le=1024)
    accumulate: int = Field(default=1, ge=1, le=64)
    """Parts in which a batch passes through the networks: less memory, the same step."""
    steps: int = Field(ge=1, le=1_000_000)
    """Optimiser steps of one task: the discriminator's; the generator takes as many unless `critic_steps` says otherwise."""
    generator: Literal["paper-cnn", "paper-cnn-concat", "deep"] = "paper-cnn"
    discriminator: DiscriminatorConfig
    objective: ObjectiveConfig = ObjectiveConfig()
    augment: AugmentConfig | None = None
    lecam: LeCamConfig | None = None
    textures: Weight = 0.0
    """Weight of the distance of the fakes' textures, image by image, to those of all tiles (`training/textures.py`)."""
    clip_gradient: float | None = Field(default=None, gt=0, le=1e6, allow_inf_nan=False)
    """Largest L2 norm of a player's gradient; the length of Muon's steps does not depend on it."""
    returns: ReturnsConfig | None = None
    generator_rate: Rate = 2e-4
    discriminator_rate: Rate = 2e-4
    """Two to four times the generator's is TTUR (arXiv 1706.08500)."""
    betas: tuple[Beta, Beta] = (0.5, 0.999)
    muon_rate: Rate | None = None
    """Muon moves the generator's matrices at this rate, Adam the rest (`training/muon.py`); without it all is Adam's."""
    decay: DecayConfig | None = None
    precision: Precision = "fp32"
    """`bf16` and `fp16` compute in 16 bits where that is safe; weights and losses stay in 32."""
    compile: bool = False
    """`torch.compile` where it works; where it does not the networks run as written, and the result says so."""
    share: Literal["generator+discriminator", "generator"] = "generator+discriminator"
    """What travels. With `generator` each site keeps its own discriminator, the network that has seen patients' tiles."""
    ema_decay: float = Field(default=0.999, ge=0, lt=1, allow_inf_nan=False)
    """How slowly the released generator follows the rounds; 0 releases the last round's."""
    persist_moments: bool = False
    """Keep the optimisers' moments from round to round; the paper starts them afresh."""
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

    @model_validator(mode="after")
    def _goes_together(self) -> GanConfig:
        if conflicts := [*_conflicts(self)]:
            raise ValueError("; ".join(conflicts))
        return self

    def check_can_begin(self) -> None:
        """No option is without effect that an older release took in silence. Raises `BadData`."""
        objective = self.objective
        if self.rules().heads == "projection" and (objective.class_weight, objective.class_ramp) != (1.0, 0):
            raise BadData(
                "objective: class_weight and class_ramp are of a class term, and projection heads have none; remove them"
            )

    def rules(self) -> Rules:
        """What the loop reads, with the objective's numbers filled in."""
        wanted = self.objective
        given = {
            name: value
            for name in ("critic_steps", "gradient_penalty", "r1", "r2", "fake_labels")
            if (value := getattr(wanted, name)) is not None
        }
        objective: Objective = replace(OBJECTIVES[wanted.name], **given)
        return Rules(
            objective,
            heads=self.discriminator.heads or objective.heads,
            class_weight=wanted.class_weight,
            class_ramp=wanted.class_ramp,
            penalty_every=wanted.penalty_every,
            real_target=wanted.real_target,
            fake_target=wanted.fake_target,
            flip_real=wanted.flip_real,
            lecam=LeCam(**self.lecam.model_dump()) if self.lecam else None,
            augmentation=Augmentation(**self.augment.model_dump()) if self.augment else None,
            textures=self.textures,
            clip_gradient=self.clip_gradient,
            accumulate=self.accumulate,
            precision=self.precision,
            returns=Returns(**self.returns.model_dump()) if self.returns else None,
            decay=Decay(**self.decay.model_dump()) if self.decay else None,
        )


def _conflicts(config: GanConfig) -> Iterator[str]:
    """Every pair of options that cannot work together, in words."""
    rules = config.rules()
    yield from _of_objective(config.objective, rules)
    yield from _of_discriminator(config.discriminator, rules)
    if config.batch % config.accumulate or config.batch // config.accumulate < 2:
        yield f"accumulate: {config.accumulate} parts of at least two tiles each do not make a batch of {config.batch}"
    if config.steps < rules.objective.critic_steps:
        yield (
            f"steps: the generator moves once in {rules.objective.critic_steps} steps, so never in {config.steps}; "
            "raise steps or lower objective.critic_steps"
        )
    if config.lecam is not None and not rules.objective.has_level:
        yield f"lecam: the logits of {config.objective.name!r} have no level of their own to be held near; remove it"


def _of_objective(wanted: ObjectiveConfig, rules: Rules) -> Iterator[str]:
    objective = rules.objective
    smoothed = (wanted.real_target, wanted.fake_target, wanted.flip_real) != (1.0, 0.0, 0.0)
    if smoothed and objective.loss != "bce":
        yield f"objective: label smoothing and flipping are for 'acgan' and 'cgan'; {wanted.name!r} has no label targets"
    if objective.gradient_penalty and objective.loss != "wasserstein":
        yield f"objective.gradient_penalty is WGAN-GP's; use r1 with {wanted.name!r}"
    if objective.loss == "wasserstein" and not objective.gradient_penalty:
        yield "objective.gradient_penalty: without it nothing bounds a Wasserstein critic; 10 is usual"
    if wanted.penalty_every > 1 and not objective.has_penalty:
        yield "objective.penalty_every: there is no penalty to be lazy about; set r1, or remove it"


def _of_discriminator(wanted: DiscriminatorConfig, rules: Rules) -> Iterator[str]:
    objective, cnn = rules.objective, wanted.name == "cnn"
    if objective.fixed_heads and rules.heads != OBJECTIVES[objective.name].heads:
        yield f"discriminator.heads: {objective.name!r} is defined by heads {OBJECTIVES[objective.name].heads!r}"
    if cnn and wanted.weights is not None:
        yield "discriminator.weights: 'cnn' starts from scratch; remove them"
    if wanted.trunk == "frozen" and wanted.weights is None:
        yield "discriminator.trunk: a frozen trunk needs weights; name a file, or train the trunk"
    if wanted.trunk == "frozen" and wanted.spectral_norm:
        yield "discriminator.spectral_norm would change a frozen trunk; switch it off"
    if wanted.spectral_norm and _TRANSFORMER.search(wanted.name):
        yield f"discriminator.spectral_norm fails on transformers such as {wanted.name!r}; switch it off"
    if wanted.norm == "none" and not cnn:
        yield f"discriminator.norm: \"none\" is for 'cnn', and discriminator.name is {wanted.name!r}; change one of the two"
    if wanted.norm == "group" and wanted.weights is not None:
        yield 'discriminator.norm: the weights were trained with the network\'s own norms; use "own"'
    if not cnn and wanted.dropout != DiscriminatorConfig.model_fields["dropout"].default:
        yield "discriminator.dropout is an option of 'cnn'; remove it"
    if objective.has_penalty and cnn and wanted.norm == "own":
        yield f'discriminator.norm: batch norm {_MIXES}; use "group" or "none"'
    if objective.gradient_penalty and wanted.batch_deviation:
        yield f"discriminator.batch_deviation {_MIXES}; switch it off"
