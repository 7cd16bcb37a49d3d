"""Where the work on a task lies: one folder for each, with its assignment, its checkpoints and what it made.

    work/TASK/assignment.json        what the trainer was told; checkpoints and results count for exactly this one
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

from agent.assignment import ASSIGNMENT_FILE, RESULT_FILE, UPDATE_FILE, Assignment, Result, encode, read_result
from agent.outbox import folder_name
from histofed.base import durable
from histofed.base.errors import TrainingFailed
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

    def update_of_finished(self, task: TaskKey) -> Path | None:
        """Where the update belongs of a training that came to its end; None when it did not."""
        output = self.room(task) / "output"
        return output / UPDATE_FILE if (output / RESULT_FILE).exists() else None

    def finished(self, task: TaskKey, assignment: Assignment) -> Result | None:
        """The result of exactly this assignment, if its update is still here."""
        result, update = assignment.output / RESULT_FILE, assignment.output / UPDATE_FILE
        if self._told(task) != encode(assignment) or not (result.exists() and update.exists()):
            return None
        return read_result(result)

    def begin(self, task: TaskKey, assignment: Assignment) -> None:
        """Checkpoints count only for the assignment that they were made for: those of another one are removed."""
        told = self._told(task)
        if told is not None and told != encode(assignment):
            durable.remove(assignment.output)
            durable.make_directory(assignment.output)

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
        """Remove what other rounds of the experiment left: they will not be asked for again. Other experiments wait."""
        for room in self._rooms_of(task.round.experiment):
            if room != self.room(task):
                durable.remove(room)

    def experiments(self) -> tuple[ExperimentId, ...]:
        """Experiments on which work was begun, by name."""
        return tuple(sorted({ExperimentId(room.name.partition(".")[0]) for room in self._folder.iterdir()}))

    def forget(self, experiment: ExperimentId) -> None:
        """The experiment has ended. Raises `CannotWriteState`."""
        for room in self._rooms_of(experiment):
            durable.remove(room)

    def _rooms_of(self, experiment: ExperimentId) -> list[Path]:
        return sorted(self._folder.glob(f"{experiment}.*"))

    def _told(self, task: TaskKey) -> bytes | None:
        stored = self.room(task) / ASSIGNMENT_FILE
        return stored.read_bytes() if stored.exists() else None
