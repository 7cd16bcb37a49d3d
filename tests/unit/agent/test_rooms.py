"""Where the work on a task lies: what a life of the agent leaves there for the next one."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.assignment import ASSIGNMENT_FILE, RESULT_FILE, UPDATE_FILE, Assignment, Result, write
from agent.rooms import LIVES, Rooms
from histofed.base.errors import CannotWriteState, TrainingFailed
from histofed.base.ids import sha256
from histofed.statements import File
from tests.support.agent_site import task
from tests.support.failing_disk import hide
from tests.unit.agent.conftest import MakeAssignment


@pytest.mark.parametrize("reason", [errno.EMFILE, errno.EACCES])
def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    """The task that asks is tried again, by the class of the error."""
    rooms = Rooms(tmp_path / "work")
    rooms.output(task())
    with monkeypatch.context() as machine:
        hide(machine, tmp_path / "work", reason=reason)
        for look in (lambda: rooms.keep_only(task(2)), lambda: rooms.forget(task().round.experiment), rooms.experiments):
            with pytest.raises(CannotWriteState):
                look()
    assert rooms.experiments() == (task().round.experiment,)
    rooms.keep_only(task(2))
    assert rooms.experiments() == ()


class Site:
    """Lives of an agent, one after the other, on the same folder."""

    def __init__(self, folder: Path) -> None:
        self._rooms = Rooms(folder)
        self._rooms.output(task())
        self._dead: list[object] = []

    def die(self, attempt: int = 1) -> None:
        """A life that begins the training, and has no chance to say that it ends."""
        training = self._rooms.training(task(), attempt)
        training.__enter__()
        self._dead.append(training)

    def stop(self) -> None:
        """One that was told to stop, and ends its trainer with a checkpoint."""
        with pytest.raises(KeyboardInterrupt), self._rooms.training(task(), 1):
            raise KeyboardInterrupt

    def train(self, attempt: int = 1) -> None:
        """One that trains to the end."""
        with self._rooms.training(task(), attempt):
            pass


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "work")


def test_an_attempt_in_which_every_life_ended_is_not_begun_again(site: Site) -> None:
    for _ in range(LIVES):
        site.die()
    with pytest.raises(TrainingFailed, match=f"ended {LIVES} times in the middle"):
        site.train()
    site.train(attempt=2)


@pytest.mark.parametrize("other", [Site.stop, Site.train, lambda site: site.die(attempt=2)])
def test_only_lives_in_a_row_of_one_attempt_count(site: Site, other: Callable[[Site], None]) -> None:
    for _ in range(LIVES):
        for _ in range(LIVES - 1):
            site.die()
        other(site)
    site.train()


# -- what another attempt finds ----------------------------------------------------------------------------------------

CHECKPOINT = "checkpoint.safetensors"
SETTINGS: list[dict[str, Any]] = [
    {"data": Path("/mnt/tiles")},
    {"cache": Path("/scratch/tiles"), "cache_bytes": 1_000_000_000},
    {"threads": 4, "nice": 19},
    {"device": "cuda:1", "devices": 2},
]
"""What an administrator may change between two attempts; whether tiles or device are others the checkpoint says itself."""


@pytest.fixture
def rooms(tmp_path: Path) -> Rooms:
    return Rooms(tmp_path / "work")


@pytest.fixture
def assignment(rooms: Rooms, make_assignment: MakeAssignment) -> Assignment:
    """One at which a trainer was at work: its checkpoint is here."""
    told = replace(make_assignment(), output=rooms.output(task()))
    write(rooms.room(task()) / ASSIGNMENT_FILE, told)
    (told.output / CHECKPOINT).write_bytes(b"hours of work")
    return told


def finish(assignment: Assignment) -> Result:
    """What the trainer leaves at its end."""
    (assignment.output / UPDATE_FILE).write_bytes(b"update")
    weights = File(sha256(b"update"), 6)
    result = Result(weights, norm_before=1, norm=1, clipped=False, tiles=9, patients=3, steps=5, metrics={}, notes=())
    write(assignment.output / RESULT_FILE, result)
    return result


@pytest.mark.parametrize("change", [{}, *SETTINGS, {"minimum_patients": 3}, {"minimum_patients": 1}])
def test_a_setting_of_the_site_leaves_the_checkpoint_to_the_next_attempt(
    rooms: Rooms, assignment: Assignment, change: dict[str, Any]
) -> None:
    rooms.begin(task(), replace(assignment, **change))
    assert (assignment.output / CHECKPOINT).read_bytes() == b"hours of work"


@pytest.mark.parametrize("change", [{}, *SETTINGS, {"minimum_patients": 1}])
def test_a_setting_of_the_site_leaves_a_finished_training_finished(
    rooms: Rooms, assignment: Assignment, change: dict[str, Any]
) -> None:
    result = finish(assignment)
    assert rooms.finished(task(), replace(assignment, **change)) == result


@pytest.mark.parametrize(
    "change",
    [{"base_sha256": sha256(b"another")}, {"config": {"steps": 6}}, {"private_round": 3}, {"round": 2}, {"max_norm": 1.0}],
)
def test_other_work_begins_at_its_beginning(rooms: Rooms, assignment: Assignment, change: dict[str, Any]) -> None:
    finish(assignment)
    other = replace(assignment, **change)
    assert rooms.finished(task(), other) is None
    rooms.begin(task(), other)
    assert not list(assignment.output.iterdir())


def test_what_was_trained_under_a_laxer_policy_does_not_leave_the_site(rooms: Rooms, assignment: Assignment) -> None:
    """Nor where the training that the stricter policy would refuse is killed before it can refuse it."""
    finish(assignment)
    stricter = replace(assignment, minimum_patients=assignment.minimum_patients + 1)
    assert rooms.finished(task(), stricter) is None
    rooms.begin(task(), stricter)
    write(rooms.room(task()) / ASSIGNMENT_FILE, stricter)
    assert rooms.finished(task(), stricter) is None


def test_an_assignment_that_the_disk_has_damaged_vouches_for_nothing(rooms: Rooms, assignment: Assignment) -> None:
    finish(assignment)
    (rooms.room(task()) / ASSIGNMENT_FILE).write_bytes(b'{"recipe": "me')
    assert rooms.finished(task(), assignment) is None
    rooms.begin(task(), assignment)
    assert not list(assignment.output.iterdir())
