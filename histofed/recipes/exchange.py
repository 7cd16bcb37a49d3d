"""A recipe that trains nothing: every site adds a constant to every weight. For the links and machines of a federation.

An operator who wants to know what a round costs before anyone trains submits an experiment of it with as many weights as
the network to come; `bench/rounds` does the same. All sites send the same bytes, so the model after round r is the first
one plus r times the step, and a mistake of transfer or average shows. Torch-free; no tiles, no private tensors that count.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import Field

from histofed import weights
from histofed.base.errors import BadData, Cancelled
from histofed.base.ids import Json
from histofed.recipes.contract import Counts, Demands, Progress, ServerRule, Stop, TrainResult, TrainTask, Workshop
from histofed.recipes.sections import Section, parse_section
from histofed.weights import Array, TensorFile

STEP: Final = 1.0 / 1024
"""What a round adds: a power of two, so that sums of it are exact."""
_ROUNDS: Final = "exchange.rounds"


class ExchangeConfig(Section):
    """The experiment's `[config]` table."""

    weights: int = Field(ge=1, le=1_000_000_000)
    """float32 values in all."""
    tensors: int = Field(default=1, ge=1, le=10_000)
    """Tensors that they are divided into; all but the last are of the same length."""
    delay_s: float = Field(default=0.0, ge=0, le=600, allow_inf_nan=False)
    """Seconds that a task lasts beside the work."""


class ExchangeRecipe:
    """The light half."""

    name = "exchange"
    release = "shared"

    def parse(self, section: Mapping[str, Json]) -> ExchangeConfig:
        """The table, checked. Raises `BadData`."""
        found = parse_section(ExchangeConfig, section)
        if found.tensors > found.weights:
            raise BadData(f"config.tensors = {found.tensors} is more than there are weights ({found.weights})")
        return found

    def demands(self, section: Mapping[str, Json]) -> Demands:
        """No image is read and no network built."""
        self.parse(section)
        return Demands(models=("exchange",), image_size=None, classes=(), steps=1)

    def shared_names(self, section: Mapping[str, Json]) -> tuple[str, ...]:
        """All weights."""
        return ("exchange.",)

    def server_rules(self, section: Mapping[str, Json], shared: tuple[str, ...]) -> tuple[ServerRule, ...]:
        """Nothing follows the weights."""
        return ()

    def workshop(self) -> Workshop:
        """The half that works."""
        return ExchangeWorkshop()


class ExchangeWorkshop:
    """The heavy half: as many bytes as asked for, and one addition each."""

    def initialise(self, config: Mapping[str, Json], seed: int, target: Path) -> None:
        """Multiples of the step between -1/2 and 1/2, in a random order."""
        wanted = ExchangeRecipe().parse(config)
        draw = np.random.default_rng(seed)
        block = (draw.integers(-512, 512, weights.PIECE) * STEP).astype(np.float32)
        specs = _specs(wanted)
        data = (block[: min(weights.PIECE, left)] for left in _lefts(specs))
        weights.store_stream(target, specs, data)

    def train(self, task: TrainTask, report: Callable[[Progress], None], stop: Stop) -> TrainResult:
        """Add the step. Raises `BadData` for weights of another form, `Cancelled` on request."""
        config = ExchangeRecipe().parse(task.config)
        with TensorFile(task.shared) as shared:
            specs = [spec.meaning for spec in shared.specs.values()]
            if specs != _specs(config):
                raise BadData(
                    "the global weights have another form than this experiment's [config]; they belong to other work"
                )
            _wait(config.delay_s, stop)
            weights.store_stream(task.output / "shared.safetensors", specs, _moved(shared))
        before = float(weights.read(task.private)[_ROUNDS][0]) if task.private else 0.0
        weights.store(task.output / "private.safetensors", {_ROUNDS: np.array([before + 1], np.float32)})
        report(Progress(1, 1))
        return TrainResult(Counts(1, 1), 1, {})

    def sample_sheet(self, config: Mapping[str, Json], tensors: Path, seed: int, target: Path) -> bool:
        """There is nothing to look at."""
        return False


def _specs(config: ExchangeConfig) -> list[tuple[str, str, tuple[int, ...]]]:
    """Names, types and shapes, sorted by name."""
    each = config.weights // config.tensors
    sizes = [each] * (config.tensors - 1) + [config.weights - each * (config.tensors - 1)]
    return [(f"exchange.{index:05}", "F32", (size,)) for index, size in enumerate(sizes)]


def _lefts(specs: list[tuple[str, str, tuple[int, ...]]]) -> Iterator[int]:
    """How many values of its tensor are still to come, for every piece."""
    for _, _, (size,) in specs:
        yield from range(size, 0, -weights.PIECE)


def _moved(shared: TensorFile) -> Iterator[Array]:
    """Every tensor with the step added, in pieces."""
    for name in shared.names:
        for piece in shared.pieces(name):
            yield piece + np.float32(STEP)


def _wait(seconds: float, stop: Stop) -> None:
    """Let the time pass in small parts. Raises `Cancelled` on request."""
    pause, part = threading.Event(), 0.05
    for _ in range(math.ceil(seconds / part)):
        if stop():
            raise Cancelled("stopped on request; it begins again from the start")
        pause.wait(part)
