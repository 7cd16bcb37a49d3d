"""A recipe without torch, tiles or patients: sites agree on the mean of their vectors. For tests of everything around it.

Each site owns one vector, drawn from its task's seed. A step moves the shared value by a tenth of the way towards it. The
private tensor counts the steps whose rounds were committed, so that a test can see private state advance, or not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import Field

from histofed import weights
from histofed.base.errors import BadData, Cancelled
from histofed.base.ids import Json, canonical, sha256
from histofed.recipes.contract import Counts, Demands, Progress, ServerRule, Stop, TrainResult, TrainTask, Workshop
from histofed.recipes.sections import Section, parse_section
from histofed.training.checkpoint import Checkpoint, CheckpointStore
from histofed.weights import Array

SHARED: Final = "mean.value"
FROZEN: Final = "mean.frozen"
PRIVATE: Final = "mean.steps"
SERVER: Final = "ema.value"
_RATE: Final = 0.1


class MeanConfig(Section):
    """The experiment's `[config]` table."""

    dimension: int = Field(ge=1, le=100_000_000)
    steps: int = Field(ge=1, le=1_000_000)
    scale: float = Field(default=1.0, gt=0, le=1e6, allow_inf_nan=False)
    """Deviation of the sites' vectors, for tests of the norm bound."""
    delay_s: float = Field(default=0.0, ge=0, le=10, allow_inf_nan=False)
    """Seconds that a step lasts, so that there is time to interrupt it."""
    tiles: int = Field(default=100, ge=1, le=1_000_000_000)
    patients: int = Field(default=10, ge=1, le=1_000_000)
    """What every site reports to have trained on."""
    frozen: int = Field(default=0, ge=0, le=100_000_000)
    """Length of a second shared tensor that no training changes, for tests of transfers."""
    ema_decay: float = Field(default=0.9, ge=0, lt=1, allow_inf_nan=False)


class MeanRecipe:
    """The light half."""

    name = "mean"
    release = "server"

    def parse(self, section: Mapping[str, Json]) -> MeanConfig:
        """The table, checked. Raises `BadData`."""
        return parse_section(MeanConfig, section)

    def demands(self, section: Mapping[str, Json]) -> Demands:
        """No image is read and no network built; only steps are asked for."""
        return Demands(models=("mean",), image_size=None, classes=(), steps=self.parse(section).steps)

    def shared_names(self, section: Mapping[str, Json]) -> tuple[str, ...]:
        """The value, and what stands still beside it."""
        return (SHARED, FROZEN) if self.parse(section).frozen else (SHARED,)

    def server_rules(self, section: Mapping[str, Json], shared: tuple[str, ...]) -> tuple[ServerRule, ...]:
        """`ema.value` follows `mean.value`."""
        return (ServerRule(SERVER, SHARED, self.parse(section).ema_decay),)

    def workshop(self) -> Workshop:
        """The half that works; here it costs no import."""
        return MeanWorkshop()


class MeanWorkshop:
    """The heavy half, which is not heavy."""

    def initialise(self, config: Mapping[str, Json], seed: int, target: Path) -> None:
        """A random value of the configured dimension."""
        wanted = parse_section(MeanConfig, config)
        weights.store(target, {SHARED: _vector(wanted, seed), **_frozen(wanted, seed)})

    def train(self, task: TrainTask, report: Callable[[Progress], None], stop: Stop) -> TrainResult:
        """Move towards this site's vector. Raises `BadData` for weights of another dimension, `Cancelled` on request."""
        config = parse_section(MeanConfig, task.config)
        value, goal = _start(task.shared, config), _vector(config, task.seed)
        before = float(weights.read(task.private)[PRIVATE][0]) if task.private else 0.0
        store = CheckpointStore(task.output, sha256(canonical({"config": task.config, "seed": task.seed})))
        first = 0
        if (checkpoint := store.load()) is not None:
            first, value = checkpoint.step, checkpoint.tensors[SHARED]
        pause = threading.Event()
        for step in range(first, config.steps):
            if stop():
                store.save(Checkpoint(step, {}, {SHARED: value}))
                raise Cancelled(f"stopped on request after {step} of {config.steps} steps; it goes on from there")
            value = (value + np.float32(_RATE) * (goal - value)).astype(np.float32)
            pause.wait(config.delay_s)
            report(Progress(step + 1, config.steps, {"distance": _distance(value, goal)}))
        weights.store(task.output / "private.safetensors", {PRIVATE: np.array([before + config.steps], np.float32)})
        unchanged = {name: tensor for name, tensor in weights.read(task.shared).items() if name == FROZEN}
        weights.store(task.output / "shared.safetensors", {SHARED: value, **unchanged})
        return TrainResult(Counts(config.tiles, config.patients), config.steps, {"distance": _distance(value, goal)})

    def sample_sheet(self, config: Mapping[str, Json], tensors: Path, seed: int, target: Path) -> bool:
        """A vector is nothing to look at."""
        return False


def _vector(config: MeanConfig, seed: int) -> Array:
    return (np.random.default_rng(seed).standard_normal(config.dimension) * config.scale).astype(np.float32)


def _frozen(config: MeanConfig, seed: int) -> dict[str, Array]:
    if not config.frozen:
        return {}
    return {FROZEN: np.random.default_rng(seed + 1).standard_normal(config.frozen).astype(np.float32)}


def _start(shared: Path, config: MeanConfig) -> Array:
    value = weights.read(shared).get(SHARED)
    if value is None or value.shape != (config.dimension,) or value.dtype != np.float32:
        raise BadData(f"the global weights do not hold {SHARED!r}, float32[{config.dimension}]; they belong to other work")
    return value


def _distance(value: Array, goal: Array) -> float:
    return float(np.linalg.norm(value.astype(np.float64) - goal))
