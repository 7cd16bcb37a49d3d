"""Training in one place: the same networks, batches and loop as a site's task, with an EMA of its own, sheets and a record.

Called by `histofed train`. The same task with the same folder goes on where it stopped, however it stopped; a folder that
holds other work is refused in words. Nothing that is watched (sheets, the log, progress) touches a random number: on a CPU
the weights are the same with and without.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch

from histofed import weights
from histofed.base import durable
from histofed.base.clock import Clock, SystemClock, iso
from histofed.base.errors import Cancelled, CannotWriteState, HistofedError, NotFound, TrainingFailed, UsageError
from histofed.base.ids import Json, canonical, sha256
from histofed.base.seeds import seed as seed_of
from histofed.models.networks import floating_state
from histofed.recipes.contract import Progress, Stop
from histofed.recipes.gan import record
from histofed.recipes.gan.budget import Budget
from histofed.recipes.gan.building import (
    SHEET_COLUMNS,
    batches_of,
    check_team,
    compile_networks,
    contest_of,
    load_tiles,
    rules_of,
)
from histofed.recipes.gan.outputs import Outputs
from histofed.recipes.gan.record import About, Progressed, State, Stretch
from histofed.recipes.gan.settings import Settings
from histofed.recipes.gan.show import Show, Span
from histofed.recipes.gan.work import own_checkpoint, work_of
from histofed.tiles.store import TileStore
from histofed.training.checkpoint import CheckpointStore
from histofed.training.event_log import EventLog
from histofed.training.loop import CHECKPOINT_SECONDS, Step, train
from histofed.training.rates import rates_of
from histofed.training.runtime import prepare
from histofed.training.sheet import render_sheet
from histofed.training.shortage import memory_explained
from histofed.training.team import Team
from histofed.training.teamwork import device_of, team_of
from histofed.training.tensors import to_arrays

MINIMUM_PATIENTS: Final = 2
"""Per class; what one patient looks like is not what a class looks like."""
_NO_LOG: Final = "no TensorBoard log: the package tensorboard is not installed (histofed[tensorboard])"


@dataclass(frozen=True)
class CentralTask:
    """One run."""

    settings: Settings
    data: Path
    """The tiles' root."""
    out: Path
    seed: int = 0
    device: str = "auto"
    devices: int = 1
    """How many play each step together; with device `cpu`, processes."""
    threads: int = 0
    """CPU threads; 0 leaves the choice to torch."""
    max_steps: int | None = None
    """At most so many steps now; the plan stays."""
    sheet_every: int = 200
    """Steps; 0 draws one at the end only."""
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    store: TileStore | None = None
    """Where decoded tiles are kept; None decodes them into memory every time."""
    restart: bool = False
    """Forget what the folder holds."""


def train_centrally(task: CentralTask, show: Show, stop: Stop, clock: Clock) -> Mapping[str, Json]:
    """Train, or go on; the record as it lies in the folder.

    Raises `Cancelled` when `stop()` turned true and everything is kept; `BadData` for settings, tiles or weights that cannot
    be used, `AlreadyThere` for a folder with other work, `TryLater` for tiles that change while several devices start,
    `TrainingFailed`, `OutOfMemory`, `CannotWriteState`, `ConfigError`.
    """
    draft = task.settings.draft()
    if task.max_steps is not None and task.max_steps < 1:
        raise UsageError("--max-steps is at least 1")
    if task.devices < 1:
        raise UsageError("--devices is at least 1")
    if not task.data.is_dir():
        raise NotFound(f"--data {task.data}: there is no such folder")
    if task.out.resolve().is_relative_to(task.data.resolve()):
        raise UsageError(f"--out {task.out} lies in --data {task.data}, among the tiles: name a folder outside of it")
    outputs = Outputs(task.out)
    durable.make_directory(task.out, mode=0o755)
    with (
        durable.lock(task.out / "lock", "histofed train"),
        memory_explained(draft.batch, draft.accumulate, draft.precision, draft.image_size),
    ):
        outputs.require_own()
        return _Run(task, outputs, show, stop, clock).train()


class _Run:
    """One call: what was built, and what the loop's hooks need."""

    def __init__(self, task: CentralTask, outputs: Outputs, show: Show, stop: Stop, clock: Clock) -> None:
        self._task, self._outputs, self._show, self._clock = task, outputs, show, clock
        check_team(task.settings.draft(), task.devices)
        show.phase("reading tiles")
        tiles = load_tiles(task.settings.draft(), task.data, MINIMUM_PATIENTS, task.store)
        self._config = config = task.settings.config(len(tiles.tileset.tiles))
        self._rules = rules_of(config, task.devices)
        device = _prepared(task, 0)
        fingerprint = tiles.fingerprint()
        work = work_of(config, task.seed, fingerprint, device, task.devices)
        self._checkpoints = _store(task, work)
        found = None if task.restart else own_checkpoint(self._checkpoints, work, config)
        self._first = found.state.step if found else 0

        show.phase("building networks")
        self._contest = contest_of(config, device, averaged=True)
        compiled = compile_networks(config, self._contest, task.devices)
        self._batches = batches_of(config, tiles, seed_of("batches", task.seed), device)
        if task.restart:  # not before: what cannot begin takes nothing away
            outputs.clear()
        outputs.prepare()
        self._budget = Budget(stop, task.max_steps)
        self._drawn = -1
        self._log, missing = _event_log(outputs.events, self._first)
        self._about = About(
            task.settings,
            config,
            task.seed,
            tiles.tileset,
            fingerprint,
            (*tiles.tileset.notes(), *compiled, *missing),
            record.earlier_stretches(outputs.record) if found else (),
        )
        self._stretch = Stretch(
            iso(clock.now()), self._first, self._first, 0.0, _name(device), torch.get_num_threads(), torch.__version__
        )

    def train(self) -> Mapping[str, Json]:
        """The loop, and what it leaves behind."""
        config, most = self._config, self._task.max_steps
        last = config.steps if most is None else min(config.steps, self._first + most)
        self._write("running")
        self._show.begin(Span(self._first, last, config.steps, config.batch))
        with self._written_behind(), self._failure_recorded():
            try:
                with memory_explained(config.batch, config.accumulate, config.precision, config.image_size):
                    self._loop()
            except Cancelled:
                if not self._budget.spent:
                    self._write("stopped")
                    raise
            return self._finish()

    def _loop(self) -> None:
        began = self._clock.monotonic()
        try:
            with team_of(self._task.devices, self._task.device, _assist, self._task) as team:
                train(
                    self._contest,
                    self._batches,
                    self._config.steps,
                    len(self._config.classes),
                    self._checkpoints,
                    self._clock,
                    self._report,
                    self._budget,
                    self._rules,
                    self._after,
                    keep_end=True,
                    checkpoint_seconds=self._task.checkpoint_seconds,
                    team=team,
                )
        finally:
            self._stretch = replace(self._stretch, seconds=round(self._clock.monotonic() - began, 3))

    def _report(self, step: Step) -> None:
        self._show.progress(Progress(step.number, self._config.steps, step.losses, step.images_per_second))
        if self._log is not None:
            self._log.losses(step.number, step.losses, step.images_per_second)
            self._log.rates(step.number, rates_of(self._contest))

    def _after(self, step: int) -> None:
        self._budget.taken += 1
        if self._log is not None:
            self._log.reached(step)
        every = self._task.sheet_every
        if every and step % every == 0:
            self._draw(step)

    def _draw(self, step: int) -> None:
        """A sheet of the averaged generator, always of the same noise."""
        assert self._contest.ema is not None
        png = render_sheet(
            self._contest.ema.generator, self._config.classes, SHEET_COLUMNS, seed_of("sheet", self._task.seed)
        )
        self._outputs.put_sheet(step, png)
        if self._log is not None:
            self._log.sheet(step, png)
        self._drawn = step

    def _finish(self) -> Mapping[str, Json]:
        """The run is done, or has taken the steps that it was given."""
        assert self._contest.ema is not None
        released = to_arrays(floating_state(self._contest.ema.generator), "ema.")
        if not all(np.isfinite(array).all() for array in released.values()):
            raise TrainingFailed("training diverged: a weight is not finite; lower the learning rates")
        found = self._checkpoints.peek()
        assert found is not None, "the loop keeps its end"
        if self._drawn != found.state.step:
            self._draw(found.state.step)
        weights.save(self._outputs.model, released)
        return self._write("finished" if found.state.step >= self._config.steps else "stopped")

    def _write(self, state: State, reason: str = "") -> Mapping[str, Json]:
        found = self._checkpoints.peek()
        step, means, returns = (found.state.step, found.state.means(), found.state.returns) if found else (0, {}, 0)
        self._stretch = replace(self._stretch, to_step=step)
        document = record.document(self._about, self._stretch, Progressed(state, step, means, returns, reason))
        record.write(self._outputs.record, document)
        return document

    @contextlib.contextmanager
    def _failure_recorded(self) -> Iterator[None]:
        """The record says why the run failed, unless it is the disk that does not take it."""
        try:
            yield
        except Cancelled:
            raise
        except HistofedError as error:
            with contextlib.suppress(CannotWriteState):
                self._write("failed", str(error))
            raise

    @contextlib.contextmanager
    def _written_behind(self) -> Iterator[None]:
        """The log is complete when the block is left, also by an error, which then is the one to be told."""
        try:
            yield
        except BaseException:
            if self._log is not None:
                with contextlib.suppress(HistofedError):
                    self._log.close()
            raise
        if self._log is not None:
            self._log.close()


def _assist(task: CentralTask, team: Team) -> None:
    """What each further process of a team does: the same, without writing or telling anything."""
    draft = task.settings.draft()
    with memory_explained(draft.batch, draft.accumulate, draft.precision, draft.image_size):
        tiles = load_tiles(draft, task.data, MINIMUM_PATIENTS, task.store)
        config = task.settings.config(len(tiles.tileset.tiles))
        device = _prepared(task, team.rank)
        contest = contest_of(config, device, averaged=True)
        compile_networks(config, contest, task.devices)
        train(
            contest,
            batches_of(config, tiles, seed_of("batches", task.seed), device),
            config.steps,
            len(config.classes),
            _store(task, work_of(config, task.seed, tiles.fingerprint(), device, task.devices)),
            SystemClock(),
            lambda _: None,
            lambda: False,
            rules_of(config, task.devices),
            team=team,
        )


def _prepared(task: CentralTask, rank: int) -> torch.device:
    """The device of one process, which is set up for it."""
    return prepare(device_of(task.device, task.devices, rank), task.threads, seed_of("central", task.seed))


def _store(task: CentralTask, work: Mapping[str, Json]) -> CheckpointStore:
    return CheckpointStore(task.out, sha256(canonical(work)), work=work)


def _event_log(folder: Path, step: int) -> tuple[EventLog | None, tuple[str, ...]]:
    try:
        return EventLog(folder, step), ()
    except ImportError:
        return None, (_NO_LOG,)


def _name(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
