"""Training in one place: the same networks, batches and loop as a site's task, with an EMA of its own, sheets and a record.

Called by `histofed train`. The same task with the same folder goes on where it stopped, however it stopped; a folder that
holds other work is refused in words. Nothing that is watched (sheets, the log, progress) touches a random number: on a CPU
the weights are the same with and without.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

import numpy as np
import torch

from histofed import weights
from histofed.base import durable
from histofed.base.clock import Clock, SystemClock, iso
from histofed.base.errors import Cancelled, CannotWriteState, HistofedError, TrainingFailed
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
from histofed.recipes.gan.central_task import CentralTask
from histofed.recipes.gan.outputs import Outputs
from histofed.recipes.gan.record import About, Progressed, State, Stretch
from histofed.recipes.gan.show import Show, Span
from histofed.recipes.gan.work import own_checkpoint, work_of
from histofed.training.checkpoint import CheckpointStore
from histofed.training.event_log import EventLog
from histofed.training.loop import Step, train
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
_BEGUN: Final = 0
"""What the first process of a team tells the others once the folder is this run's."""


def train_centrally(task: CentralTask, show: Show, stop: Stop, clock: Clock) -> Mapping[str, Json]:
    """Train, or go on; the record as it lies in the folder.

    Raises `Cancelled` when `stop()` turned true and everything is kept; `BadData` for settings, tiles or weights that cannot
    be used, `AlreadyThere` for a folder with other work, `TryLater` for tiles that change while several devices start,
    `TrainingFailed`, `OutOfMemory`, `CannotWriteState`, `ConfigError`.
    """
    draft = task.settings.draft()
    task.check()
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
        if task.restart or not outputs.checkpoint.exists():
            task.settings.draft().check_can_begin()
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
        self._budget = Budget(stop, task.max_steps)
        self._drawn = -1
        self._log: EventLog | None = None
        self._about = About(
            task.settings,
            config,
            task.seed,
            tiles.tileset,
            fingerprint,
            (*tiles.tileset.notes(), *compiled, *_missing()),
            record.earlier_stretches(outputs.record) if found else (),
        )
        self._stretch = Stretch(
            iso(clock.now()), self._first, self._first, 0.0, _name(device), torch.get_num_threads(), torch.__version__
        )

    def train(self) -> Mapping[str, Json]:
        """The loop, and what it leaves behind."""
        config = self._config
        with contextlib.ExitStack() as begun:
            try:
                with (
                    memory_explained(config.batch, config.accumulate, config.precision, config.image_size),
                    team_of(self._task.devices, self._task.device, _assist, self._task) as team,
                ):
                    team.require_alike({"work": self._checkpoints.fingerprint})
                    self._begin(begun)
                    team.decided(_BEGUN)
                    self._loop(team)
            except Cancelled:
                if not self._budget.spent:
                    self._write("stopped")
                    raise
            return self._finish()

    def _begin(self, begun: contextlib.ExitStack) -> None:
        """Make the folder this run's, and not before all is ready: what cannot begin takes nothing away."""
        if self._task.restart:
            self._outputs.clear()
        self._outputs.prepare()
        # first of all that lies there: what no record belongs to is taken for another's
        self._write("running")
        begun.enter_context(self._written_behind())
        begun.enter_context(self._failure_recorded())
        if not _missing():
            self._log = EventLog(self._outputs.events, self._first)
        steps, most = self._config.steps, self._task.max_steps
        last = steps if most is None else min(steps, self._first + most)
        self._show.begin(Span(self._first, last, steps, self._config.batch))

    def _loop(self, team: Team) -> None:
        began = self._clock.monotonic()
        try:
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
                self._write("failed", record.reason_of(error))
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
        store = _store(task, work_of(config, task.seed, tiles.fingerprint(), device, task.devices))
        team.require_alike({"work": store.fingerprint})
        team.decided(_BEGUN)  # by now the first process has removed the checkpoint of a run that is begun again
        train(
            contest,
            batches_of(config, tiles, seed_of("batches", task.seed), device),
            config.steps,
            len(config.classes),
            store,
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


def _missing() -> tuple[str, ...]:
    """What is not installed and done without."""
    try:
        import torch.utils.tensorboard  # noqa: F401  # whether it is there
    except ImportError:
        return (_NO_LOG,)
    return ()


def _name(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
