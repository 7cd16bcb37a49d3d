"""Where the work on a task lies: what a life of the agent leaves there for the next one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agent.rooms import LIVES, Rooms
from histofed.base.errors import TrainingFailed
from tests.support.agent_site import task


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
