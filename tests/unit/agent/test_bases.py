"""The bases a site keeps: one for each experiment, whatever a crash left."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.bases import Bases
from histofed.base.errors import CannotWriteState
from histofed.base.ids import ExperimentId, sha256
from histofed.transport.held import Held
from tests.support.failing_disk import hide

PILOT, OTHER = ExperimentId("pilot"), ExperimentId("other")
FIRST, SECOND, THIRD = (sha256(text) for text in (b"1", b"2", b"3"))


@pytest.fixture
def bases(tmp_path: Path) -> Bases:
    return Bases(tmp_path / "bases")


def test_a_new_base_takes_the_place_of_what_is_left_of_older_ones(bases: Bases) -> None:
    for base in (FIRST, SECOND, THIRD):
        bases.place(PILOT, base).write_bytes(b"weights")
    (half := bases.place(PILOT, SECOND).with_name(f"{SECOND}.safetensors.part")).write_bytes(b"wei")
    bases.place(OTHER, FIRST).write_bytes(b"weights")
    bases.keep_only(PILOT, THIRD)
    assert not half.exists()
    assert bases.get(PILOT, FIRST) is bases.get(PILOT, SECOND) is None
    assert bases.get(PILOT, THIRD) == Held(THIRD, bases.place(PILOT, THIRD))
    assert bases.get(OTHER, FIRST) is not None


def test_an_earlier_base_is_a_complete_one_of_the_same_experiment(bases: Bases) -> None:
    assert bases.earlier(PILOT, SECOND) is None
    bases.place(OTHER, FIRST).write_bytes(b"weights")
    bases.place(PILOT, SECOND).write_bytes(b"weights")
    (bases.place(PILOT, THIRD).with_name(f"{THIRD}.safetensors.part")).write_bytes(b"wei")
    assert bases.earlier(PILOT, SECOND) is None
    bases.place(PILOT, FIRST).write_bytes(b"weights")
    assert bases.earlier(PILOT, SECOND) == Held(FIRST, bases.place(PILOT, FIRST))


def test_nothing_is_left_of_a_forgotten_experiment(bases: Bases) -> None:
    bases.place(PILOT, FIRST).write_bytes(b"weights")
    bases.place(OTHER, FIRST).write_bytes(b"weights")
    assert bases.experiments() == (OTHER, PILOT)
    bases.forget(PILOT)
    assert bases.experiments() == (OTHER,)
    assert bases.get(PILOT, FIRST) is None


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(
    bases: Bases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task that asks is tried again, by the class of the error."""
    bases.place(PILOT, FIRST).write_bytes(b"weights")
    hide(monkeypatch, tmp_path / "bases" / PILOT)
    for look in (bases.earlier, bases.keep_only):
        with pytest.raises(CannotWriteState):
            look(PILOT, SECOND)
