"""The contract between a recipe and everything else; torch-free, so that both daemons may import it.

A recipe is an installed pair of pieces: a *description* (this module's `Recipe`, light, used by daemons and CLI to check
an experiment and to ask a site's consent) and a *workshop* (`Workshop`, heavy, imported only in a child process).

Three kinds of tensors (`docs/architecture.md`, "Recipes"):

- **shared** travel: the site downloads them, trains, uploads them; the aggregator averages them. Floating point only.
- **private** never leave the site (moments, a local discriminator). They advance only when the round commits: the
  workshop writes them beside its update, and the agent adopts them when the aggregator says that the round was committed
  with this update in it.
- **server** tensors live at the aggregator (the EMA generator): after each aggregation they follow the shared tensors by
  `ServerRule`s, which are data, so that the aggregator needs no code of the recipe.

Determinism: what a workshop writes depends only on its arguments. Its seed comes from (experiment, round, site), never
from the attempt, so that a repeated attempt on a CPU gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from histofed.base.ids import Json

if TYPE_CHECKING:  # an aggregating child reads `ServerRule` and has no use for pydantic (0.1 s)
    from histofed.recipes.sections import Section


@dataclass(frozen=True)
class Demands:
    """What an experiment asks of a site, in the words of the site's consent file."""

    models: tuple[str, ...]
    """Every network that would be built, for example `generator:paper-cnn`, `discriminator:vit_tiny`."""
    image_size: int | None
    """Edge of the tiles in pixels; None where no image is read."""
    classes: tuple[str, ...]
    """Classes whose tiles are read, in the order of their index; empty where none is."""
    steps: int
    """Optimiser steps in one task."""


@dataclass(frozen=True)
class ServerRule:
    """`target` follows shared tensor `source`: target = decay * target + (1 - decay) * source, in float64.

    The decay of the r-th committed round is min(decay, (r - 1) / (r + 4)), so that early ones do not remember the random
    start.
    """

    target: str
    source: str
    decay: float


@dataclass(frozen=True)
class Counts:
    """What a site trained on, for weighting; never more than these two numbers leaves the site."""

    tiles: int
    patients: int


@dataclass(frozen=True)
class Progress:
    """A line of a running task, for the live view."""

    step: int
    steps: int
    losses: Mapping[str, float] = field(default_factory=dict)
    images_per_second: float = 0.0
    device: str = ""
    """What the networks run on, as `cpu` or `cuda:0`; empty where a recipe has none."""


@dataclass(frozen=True)
class TrainTask:
    """Everything a workshop needs to train one task. Paths are inside the site and never leave it."""

    config: Mapping[str, Json]
    """The experiment's `[config]` table."""
    shared: Path
    """The round's global tensors, safetensors, read only."""
    private: Path | None
    """This site's committed private tensors; None at the start."""
    data: Path | None
    """Root of the site's tiles; None for recipes that read none."""
    minimum_patients: int
    """Fewer patients than this in any class is refused (`BadData`): the site's own policy."""
    seed: int
    """63 bits from (experiment, round, site)."""
    output: Path
    """Folder to write `shared.safetensors`, `private.safetensors` and checkpoints to; survives a restart of the task."""
    threads: int
    """CPU threads; 0 leaves the choice to the library."""
    device: str
    """`auto`, `cpu`, `cuda`, `cuda:1` ..."""
    devices: int = 1
    """How many of them play each step together; with `cpu`, processes."""
    cache: Path | None = None
    """Folder for decoded tiles, shared by all tasks; None decodes them into memory every time."""
    cache_bytes: int = 0
    """How large that folder may become."""
    round: int = 1
    """Its place among the rounds that are committed, from 1: what follows a schedule counts by it."""


@dataclass(frozen=True)
class TrainResult:
    """What a finished task reports besides the two files in its output folder."""

    counts: Counts
    steps: int
    metrics: Mapping[str, float]
    notes: tuple[str, ...] = ()
    """Counts and reasons in words, for example `3 tiles unreadable: truncated`; never a name or a path."""


class Stop(Protocol):
    """Asks whether the task should checkpoint and end now."""

    def __call__(self) -> bool: ...


class Workshop(Protocol):
    """The heavy half of a recipe; lives only in child processes."""

    def initialise(self, config: Mapping[str, Json], seed: int, target: Path) -> None:
        """Write the first shared tensors (safetensors) to `target`; the same bytes for the same seed.

        Raises `BadData` for a configuration that cannot be built.
        """
        ...

    def train(self, task: TrainTask, report: Callable[[Progress], None], stop: Stop) -> TrainResult:
        """Train one task and write its two files. When `stop()` turns true: checkpoint, then raise `Cancelled`.

        A checkpoint in `task.output` is resumed, bit for bit on a CPU, and stays there: who takes the two files removes it
        once they are kept. It is of the same round; one of other tiles, or of another kind of device, is the workshop's to
        drop. Raises `BadData` for tiles or weights that cannot be used and `TrainingFailed` when it diverges.
        """
        ...

    def sample_sheet(self, config: Mapping[str, Json], tensors: Path, seed: int, target: Path) -> bool:
        """Draw a PNG of what the model makes, rows by class, to `target`; False where a recipe has nothing to draw.

        `tensors` is the recipe's release part (`Recipe.release`).
        """
        ...


class Recipe(Protocol):
    """The light half of a recipe: pure, quick to import, no torch."""

    @property
    def name(self) -> str:
        """The word in the experiment's `recipe = "..."`."""
        ...

    @property
    def release(self) -> str:
        """Which part is the finished product: `server` or `shared`."""
        ...

    def parse(self, section: Mapping[str, Json]) -> Section:
        """The experiment's `[config]` table, checked; unknown keys are errors. Raises `BadData`.

        What must not be begun any more and may go on is refused by the table's `check_can_begin`.
        """
        ...

    def demands(self, section: Mapping[str, Json]) -> Demands:
        """What a site is asked for."""
        ...

    def shared_names(self, section: Mapping[str, Json]) -> tuple[str, ...]:
        """How the names of the tensors that sites share begin; there is one at least for each."""
        ...

    def server_rules(self, section: Mapping[str, Json], shared: tuple[str, ...]) -> tuple[ServerRule, ...]:
        """How server tensors follow the shared ones, whose names are given; empty where there are none."""
        ...

    def workshop(self) -> Workshop:
        """Import the heavy half. Call it in a child process only."""
        ...
