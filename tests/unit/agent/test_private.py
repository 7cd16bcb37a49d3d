"""Private tensors advance with the round and with nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.private import PrivateTensors
from agent.state import State
from histofed.base.clock import FakeClock
from histofed.base.errors import CannotWriteState
from histofed.base.ids import ExperimentId, RoundKey
from tests.support.failing_disk import hide
from tests.support.failpoints import armed

PILOT = ExperimentId("pilot")


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    state = State(tmp_path / "state.db", FakeClock())
    yield state
    state.close()


@pytest.fixture
def private(tmp_path: Path, state: State) -> PrivateTensors:
    return PrivateTensors(tmp_path / "private", state)


def trained(private: PrivateTensors, folder: Path, number: int) -> None:
    """Training on round `number` wrote its private tensors."""
    (folder / "written").write_bytes(b"round %d" % number)
    private.add_pending(RoundKey(PILOT, number), folder / "written")


def content(private: PrivateTensors) -> bytes | None:
    path = private.committed(PILOT)
    return None if path is None else path.read_bytes()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "private" / PILOT).iterdir())


def test_the_first_round_starts_fresh(private: PrivateTensors) -> None:
    assert private.settle(RoundKey(PILOT, 1), 0) == 0
    assert content(private) is None


def test_a_committed_round_is_adopted(private: PrivateTensors, tmp_path: Path) -> None:
    private.settle(RoundKey(PILOT, 1), 0)
    trained(private, tmp_path, 1)
    assert content(private) is None
    assert private.settle(RoundKey(PILOT, 2), 1) == 1
    assert content(private) == b"round 1"


def test_a_round_that_was_lost_leaves_no_trace(private: PrivateTensors, tmp_path: Path) -> None:
    trained(private, tmp_path, 1)
    private.settle(RoundKey(PILOT, 2), 1)
    trained(private, tmp_path, 2)
    assert private.settle(RoundKey(PILOT, 3), 1) == 1
    assert content(private) == b"round 1"
    assert files(tmp_path) == ["1.safetensors"]


def test_the_same_offer_again_keeps_what_is_on_its_way(private: PrivateTensors, tmp_path: Path) -> None:
    trained(private, tmp_path, 1)
    private.settle(RoundKey(PILOT, 2), 1)
    trained(private, tmp_path, 2)
    assert private.settle(RoundKey(PILOT, 2), 1) == 1
    assert files(tmp_path) == ["1.safetensors", "2.safetensors"]
    assert private.settle(RoundKey(PILOT, 3), 2) == 2
    assert content(private) == b"round 2"


def test_lost_tensors_mean_a_fresh_start_and_are_told(
    private: PrivateTensors, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained(private, tmp_path, 1)
    private.settle(RoundKey(PILOT, 2), 1)
    (tmp_path / "private" / PILOT / "1.safetensors").unlink()
    assert private.settle(RoundKey(PILOT, 3), 1) == 0
    assert content(private) is None
    assert "not here any more" in caplog.text


def test_a_recipe_without_private_tensors_is_no_trouble(
    private: PrivateTensors, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    private.add_pending(RoundKey(PILOT, 1), tmp_path / "nothing was written")
    assert private.settle(RoundKey(PILOT, 2), 1) == 0
    assert caplog.text == ""


def test_the_committed_round_survives_a_restart(private: PrivateTensors, tmp_path: Path, state: State) -> None:
    trained(private, tmp_path, 1)
    private.settle(RoundKey(PILOT, 2), 1)
    again = PrivateTensors(tmp_path / "private", state)
    assert content(again) == b"round 1"


def test_an_experiment_that_has_ended_leaves_nothing(private: PrivateTensors, tmp_path: Path, state: State) -> None:
    trained(private, tmp_path, 1)
    private.settle(RoundKey(PILOT, 2), 1)
    assert private.experiments() == (PILOT,)
    for _ in range(2):
        private.forget(PILOT)
    assert private.experiments() == ()
    assert (private.committed(PILOT), state.private_round(PILOT)) == (None, 0)
    assert not (tmp_path / "private" / PILOT).exists()


def test_a_death_while_it_is_forgotten_leaves_no_row_without_its_files(
    private: PrivateTensors, tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(private, tmp_path, 1)
    private.settle(RoundKey(PILOT, 2), 1)
    with armed(monkeypatch, "agent.rows_committed=EIO"), pytest.raises(CannotWriteState):
        private.forget(PILOT)
    assert (state.private_round(PILOT), files(tmp_path)) == (0, ["1.safetensors"])
    private.forget(PILOT)
    assert private.experiments() == ()


def test_what_a_restored_aggregator_may_ask_for_stays(private: PrivateTensors, tmp_path: Path) -> None:
    """The backup was made in round 2 with this site's update in it: once restored the aggregator commits round 2 with it."""
    for number in (1, 2, 3, 4):
        private.settle(RoundKey(PILOT, number), number - 1, backup_rounds=(1,) if number > 2 else ())
        trained(private, tmp_path, number)
    assert files(tmp_path) == [f"{number}.safetensors" for number in (1, 2, 3, 4)]
    assert private.settle(RoundKey(PILOT, 3), 2, backup_rounds=(1,)) == 2
    assert content(private) == b"round 2"
    private.settle(RoundKey(PILOT, 4), 3, backup_rounds=(3,))
    assert files(tmp_path) == ["3.safetensors"], "a newer backup lets go of what the older one needed"


def test_so_it_does_where_the_folder_cannot_be_listed_for_a_moment(
    private: PrivateTensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2, 3):
        trained(private, tmp_path, number)
    hide(monkeypatch, tmp_path / "private" / PILOT, looks=1)
    with pytest.raises(CannotWriteState):
        private.settle(RoundKey(PILOT, 4), 3, backup_rounds=(1,))
    assert private.settle(RoundKey(PILOT, 4), 3, backup_rounds=(1,)) == 3
    assert files(tmp_path) == ["1.safetensors", "2.safetensors", "3.safetensors"]


def test_so_it_does_where_the_first_round_was_open_in_the_backup(private: PrivateTensors, tmp_path: Path) -> None:
    """In the history that is lost the first round was abandoned and the next one begun; restored, it is committed."""
    trained(private, tmp_path, 1)
    private.settle(RoundKey(PILOT, 2), 0, backup_rounds=(0,))
    trained(private, tmp_path, 2)
    assert private.settle(RoundKey(PILOT, 2), 1, backup_rounds=(0,)) == 1
    assert content(private) == b"round 1"


def test_a_backup_that_is_being_written_takes_nothing_of_the_one_before(private: PrivateTensors, tmp_path: Path) -> None:
    """It may fail, and then the aggregator goes back to the one before."""
    for number in (10, 11, 12, 40):
        trained(private, tmp_path, number)
    private.settle(RoundKey(PILOT, 41), 40, backup_rounds=(40, 10))
    assert files(tmp_path) == ["10.safetensors", "11.safetensors", "40.safetensors"]
    assert private.settle(RoundKey(PILOT, 11), 10, backup_rounds=(10,)) == 10
    assert content(private) == b"round 10"


def test_without_a_backup_of_the_experiment_what_was_abandoned_goes(private: PrivateTensors, tmp_path: Path) -> None:
    trained(private, tmp_path, 1)
    private.settle(RoundKey(PILOT, 2), 0)
    assert files(tmp_path) == []
