"""What the trainer does between the end of training and its result."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from agent import trainer
from agent.assignment import RESULT_FILE, Assignment
from histofed.base.errors import Cancelled
from histofed.recipes.contract import Progress
from tests.unit.agent.conftest import MakeAssignment


class Steps(trainer.Reporter):
    """Remembers the steps."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def progress(self, progress: Progress) -> None:
        self.seen.append(progress.step)


class Killed(BaseException):
    """In place of a signal that nobody can catch."""


def _steps_of(assignment: Assignment, stop: Callable[[], bool] = lambda: False) -> list[int]:
    steps = Steps()
    trainer.run(assignment, steps, stop)
    return steps.seen


@pytest.mark.parametrize("place", ["clip_file", "encode_file", "write"])
def test_a_kill_before_the_result_is_kept_costs_no_training(
    make_assignment: MakeAssignment, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    assignment = dataclasses.replace(make_assignment(steps=5), encoding="bfloat16-delta")
    answers = iter([False, False, False, True])
    with pytest.raises(Cancelled):
        _steps_of(assignment, lambda: next(answers))

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as context, pytest.raises(Killed):
        context.setattr(trainer, place, killed)
        _steps_of(assignment)
    assert _steps_of(assignment) == [4, 5]
    assert (assignment.output / RESULT_FILE).exists()
    assert not [*assignment.output.glob("checkpoint*")], "nobody needs it any more"
