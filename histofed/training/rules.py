"""How a contest is played: every choice of an experiment that the loop reads, resolved, as data. No torch here.

The defaults are the paper's ACGAN; `recipes/gan/config.py` fills in the rest and refuses what does not go together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from histofed.training.objectives import OBJECTIVES, Heads, Objective

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Augmentation:
    """DiffAugment (Zhao et al., arXiv 2006.10738): the same kinds of change to reals and fakes; 0 leaves one out.

    Weaker in colour than the source, because stain is what separates hospitals, and free in orientation, because tissue has
    no up and no left.
    """

    flips: bool = True
    rotations: bool = True
    """Quarter turns."""
    colour: float = 0.2
    """Brightness moves by up to half of it in units of the range [-1, 1]; saturation and contrast by factors 1 ± it."""
    translation: float = 0.125
    """Share of the edge."""
    cutout: float = 0.25
    """Edge of the square that is blanked, as a share of the image's."""


@dataclass(frozen=True)
class LeCam:
    """Tseng et al., arXiv 2104.03310: the logits of one side are held near the other side's average."""

    weight: float = 0.1
    decay: float = 0.99
    """Of the averages."""


@dataclass(frozen=True)
class Returns:
    """What to do when training diverges: go back to the last state that was good, with other noise and half the rates."""

    most: int = 2
    """Before the task fails."""
    every: int = 200
    """Steps between two states that are kept."""
    limit: float = 1e4
    """A loss beyond it counts as diverged."""


@dataclass(frozen=True)
class Decay:
    """How the rates of both players fall, by steps of the whole training."""

    after: int
    """Steps at the full rates."""
    half_life: int
    """Steps in which they halve from then on."""


@dataclass(frozen=True)
class Rules:
    """The rules of one task."""

    objective: Objective = field(default_factory=lambda: OBJECTIVES["acgan"])
    """With the experiment's own numbers."""
    heads: Heads = "class"
    class_weight: float = 1.0
    """Of the class term, beside the adversarial one."""
    class_ramp: int = 0
    """Steps over which the generator's class term grows to its weight; counted in each task."""
    penalty_every: int = 1
    """Gradient penalties are computed each so many steps, and weigh as much more (lazy: Karras et al., arXiv 1912.04958)."""
    real_target: float = 1.0
    fake_target: float = 0.0
    """What the discriminator's BCE is told of reals and fakes: .9 and 0 is one-sided label smoothing."""
    flip_real: float = 0.0
    """Share of the reals that are called fakes."""
    lecam: LeCam | None = None
    augmentation: Augmentation | None = None
    textures: float = 0.0
    """Weight of the generator's distance in textures (`textures.py`), image by image; 0 leaves it out."""
    clip_gradient: float | None = None
    """Largest L2 norm of a player's gradient."""
    accumulate: int = 1
    """Parts in which a batch passes through the networks, for less memory."""
    precision: Precision = "fp32"
    returns: Returns | None = None
    decay: Decay | None = None
    steps_before: int = 0
    """Of the whole training, before this task: the rounds that went before."""
