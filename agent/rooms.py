"""Where the work on a task lies: one folder for each, with its assignment, its checkpoints and what it made.

    work/TASK/assignment.json        what the trainer was told; checkpoints and results count for this training alone
    work/TASK/output/...             checkpoints, then private tensors, the update and the result
    work/TASK/begun                  while a trainer runs: the attempt, and how many lives of the agent began to train it

A folder outlives the agent, which is how a task goes on after a restart. An experiment has one at most, which goes with the
task's end, the experiment's next task or its end. The callers are `agent/work.py`, `agent/epochs.py` and `agent/tensors.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agent.assignment import (
    ASSIGNMENT_FILE,
    RESULT_FILE,
    UPDATE_FILE,
    Assignment,
    Result,
    read_assignment,
    read_result,
    same_work,
)
from agent.outbox import Entry, folder_name
from histofed.base import durable
from histofed.base.errors import BadData, TrainingFailed
from histofed.base.ids import ExperimentId, TaskKey

BEGUN_FILE: Final = "begun"
LIVES: Final = 3
"""Lives of the agent in a row that may end in the middle of one attempt's training before it counts as failed."""


class Rooms:
    """The folders of tasks below one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = durable.make_directory(folder)

    def room(self, task: TaskKey) -> Path:
        """The task's folder, whether it is there or not."""
        return self._folder / folder_name(task)

    def output(self, task: TaskKey) -> Path:
        """The folder of what the task's training makes; it is there from now on."""
        return durable.make_directory(durable.make_directory(self.room(task)) / "output")

    def place_of(self, entry: Entry) -> Path | None:
        """Where an update belongs while the result of the training that made it is here; None when it is not."""
        output = self.room(entry.task) / "output"
        with contextlib.suppress(BadData):
            if read_result(output / RESULT_FILE).weights.sha256 == entry.sha256:
                return output / UPDATE_FILE
        return None

    def minimum_patients(self, task: TaskKey) -> int | None:
        """How many patients the training in the task's folder was told to ask for; None when none is there."""
        told = self._told(task)
        return None if told is None else told.minimum_patients

    def finished(self, task: TaskKey, assignment: Assignment) -> Result | None:
        """The result of this very training under a policy no laxer than today's, if its update is still here."""
        result, update = assignment.output / RESULT_FILE, assignment.output / UPDATE_FILE
        told = self._told(task)
        if told is None or not same_work(told, assignment) or told.minimum_patients < assignment.minimum_patients:
            return None
        return read_result(result) if result.exists() and update.exists() else None

    def begin(self, task: TaskKey, assignment: Assignment) -> None:
        """Make room for a training that is not finished: checkpoints of other work are removed, and so is any result."""
        output, result = assignment.output, assignment.output / RESULT_FILE
        told = self._told(task)
        if (self.room(task) / ASSIGNMENT_FILE).exists() and (told is None or not same_work(told, assignment)):
            durable.remove(output)
            durable.make_directory(output)
        elif result.exists():
            # it would pass for this one's as soon as the trainer is told
            durable.remove(result)

    @contextlib.contextmanager
    def training(self, task: TaskKey, attempt: int) -> Iterator[None]:
        """Around the attempt's training, however that ends. Raises `TrainingFailed` when `LIVES` lives died in it."""
        mark = self.room(task) / BEGUN_FILE
        told, _, lives = (mark.read_text() if mark.exists() else "").partition(" ")
        begun = int(lives) if told == str(attempt) else 0
        if begun >= LIVES:
            durable.remove(mark)
            raise TrainingFailed(
                f"this site's agent ended {begun} times in the middle of this training without a word (out of memory?): "
                "the log of its machine says why; more memory, or a smaller batch, may help"
            )
        durable.replace(mark, f"{attempt} {begun + 1}".encode())
        try:
            yield
        finally:
            # not worth an error in the place of what happened: one that stays counts a life too many
            with contextlib.suppress(OSError):
                mark.unlink(missing_ok=True)

    def clear(self, task: TaskKey) -> None:
        """Remove what the task left."""
        durable.remove(self.room(task))

    def keep_only(self, task: TaskKey) -> None:
        """Remove what other rounds of the experiment left: they will not be asked for again. Other experiments wait.

        Raises `CannotWriteState`.
        """
        for room in self._rooms_of(task.round.experiment):
            if room != self.room(task):
                durable.remove(room)

    def experiments(self) -> tuple[ExperimentId, ...]:
        """Experiments on which work was begun, by name. Raises `CannotWriteState`."""
        return tuple(sorted({ExperimentId(room.name.partition(".")[0]) for room in durable.listing(self._folder)}))

    def forget(self, experiment: ExperimentId) -> None:
        """The experiment has ended. Raises `CannotWriteState`."""
        for room in self._rooms_of(experiment):
            durable.remove(room)

    def _rooms_of(self, experiment: ExperimentId) -> list[Path]:
        return durable.listing(self._folder, f"{experiment}.*")

    def _told(self, task: TaskKey) -> Assignment | None:
        """What the task's trainer was told last; None also where that cannot be read."""
        with contextlib.suppress(BadData):
            return read_assignment(self.room(task) / ASSIGNMENT_FILE)
        return None
