"""`histofed-agent restore`: what comes back, and what never goes down."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from agent import backup, restore
from agent.layout import Layout
from agent.outbox import Outbox
from agent.private import PrivateTensors
from agent.state import State
from histofed.audit.history import History
from histofed.audit.verify import Head, verify
from histofed.base.errors import AlreadyThere, BadData
from histofed.base.ids import RoundKey
from histofed.pki.credentials import Credentials
from tests.support.pki import Federation
from tests.support.used_state import CLOCK, PILOT, instance, journal, seen, told, trained, used_state


@pytest.fixture(scope="module")
def credentials() -> Credentials:
    return Federation().site("north-clinic")


@pytest.fixture
def layout(tmp_path: Path, credentials: Credentials) -> Layout:
    return used_state(tmp_path / "state", credentials)


def test_on_an_empty_machine_the_site_has_to_enrol(layout: Layout, credentials: Credentials, tmp_path: Path) -> None:
    before = instance(layout)
    backup.back_up(layout, tmp_path / "backup", CLOCK)
    other = Layout(tmp_path / "other")
    done = restore.restore(other, tmp_path / "backup", CLOCK)
    assert any("enroll" in note for note in done.notes)
    assert any("training starts anew" in note for note in done.notes)
    assert not other.identity.exists()
    assert other.aggregator.read_text() == "aggregator.example:8443\n"
    assert len(Outbox(other.outbox)) == 1
    assert (other.private / "pilot/2.safetensors").read_bytes() == b"private 2"
    assert seen(other, credentials) == History(1, Head(10, "1" * 64))
    with contextlib.closing(State(other.state, CLOCK)) as state:
        assert state.task_in_hand() is None, "it is offered again where it is wanted"
        assert state.private_round(PILOT) == 2
    assert instance(other) != before, "another agent than the one that may still run"
    (record,) = verify(other.journal).restores
    assert (record.subject["epoch_from"], record.subject["epoch"]) == (1, 1)


def test_with_its_key_it_needs_no_enrolment(layout: Layout, tmp_path: Path, credentials: Credentials) -> None:
    backup.back_up(layout, tmp_path / "backup", CLOCK, with_identity=True)
    other = Layout(tmp_path / "other")
    restore.restore(other, tmp_path / "backup", CLOCK)
    assert Credentials.load(other.identity).serial == credentials.serial


def test_what_only_grows_is_not_lowered(layout: Layout, tmp_path: Path, credentials: Credentials) -> None:
    backup.back_up(layout, tmp_path / "backup", CLOCK)
    with contextlib.closing(State(layout.state, CLOCK)) as state:
        private = PrivateTensors(layout.private, state)
        trained(layout, private, 3, b"private 3, later")
        assert private.settle(RoundKey(PILOT, 4), 3, backup_rounds=(2,)) == 3
        state.note_history(credentials.ca_sha256, History(4, Head(2, "2" * 64)))
    journal(layout, "consent.denied")
    with pytest.raises(AlreadyThere, match="add --replace"):
        restore.restore(layout, tmp_path / "backup", CLOCK)
    done = restore.restore(layout, tmp_path / "backup", CLOCK, replace=True)
    assert done.aside is not None
    assert seen(layout, credentials) == History(4, Head(2, "2" * 64))
    with contextlib.closing(State(layout.state, CLOCK)) as state:
        assert state.private_round(PILOT) == 3
    assert (layout.private / "pilot/3.safetensors").read_bytes() == b"private 3, later"
    assert (layout.private / "pilot/2.safetensors").exists()
    assert told(layout)[-2:] == ["consent.denied", "state.restored"], "no decision of the hospital is forgotten"
    assert verify(layout.root / done.aside / "journal").ok


@pytest.mark.parametrize(("left", "said"), [(None, "no state file"), (b"", "an empty one"), (b"x" * 8192, "not a database")])
def test_without_its_state_file_a_site_keeps_its_later_private_tensors(
    layout: Layout, tmp_path: Path, credentials: Credentials, left: bytes | None, said: str
) -> None:
    backup.back_up(layout, tmp_path / "backup", CLOCK)
    with contextlib.closing(State(layout.state, CLOCK)) as state:
        private = PrivateTensors(layout.private, state)
        private.settle(RoundKey(PILOT, 4), 3)
        trained(layout, private, 4)
    for path in layout.root.glob("state.db*"):
        path.unlink()
    if left is not None:
        layout.state.write_bytes(left)
    done = restore.restore(layout, tmp_path / "backup", CLOCK, replace=True)
    (note,) = done.notes
    assert said in note
    assert "tensors" not in note, "none is gone"
    assert seen(layout, credentials) == History(1, Head(10, "1" * 64))
    with contextlib.closing(State(layout.state, CLOCK)) as state:
        assert PrivateTensors(layout.private, state).settle(RoundKey(PILOT, 5), 4) == 4
    assert (layout.private / "pilot/4.safetensors").read_bytes() == b"private 4"


def test_a_backup_of_another_site_is_refused(layout: Layout, tmp_path: Path) -> None:
    backup.back_up(layout, tmp_path / "backup", CLOCK)
    Federation().site("north-clinic").save(layout.identity)
    for write in (True, False):
        with pytest.raises(BadData, match="another name or another federation"):
            if write:
                restore.restore(layout, tmp_path / "backup", CLOCK, replace=True)
            else:
                restore.dry_run(layout, tmp_path / "backup")
    assert not (layout.root / "restore.json").exists()


@pytest.mark.parametrize("state_file", [True, False])
def test_private_tensors_of_another_federation_are_not_taken_over(layout: Layout, tmp_path: Path, state_file: bool) -> None:
    """Its certificate is gone; an experiment has the same name, and a round the same number."""
    backup.back_up(layout, tmp_path / "backup", CLOCK)
    theirs = used_state(tmp_path / "theirs", Federation().site("north-clinic"))
    theirs.identity.unlink()
    (theirs.private / "pilot/2.safetensors").write_bytes(b"theirs")
    with contextlib.closing(State(theirs.state, CLOCK)) as state:
        state.set_private_round(PILOT, 3)
    if not state_file:
        for path in theirs.root.glob("state.db*"):
            path.unlink()
    done = restore.restore(theirs, tmp_path / "backup", CLOCK, replace=True)
    assert restore.UNPROVEN in done.notes
    assert (theirs.private / "pilot/2.safetensors").read_bytes() == b"private 2"
    assert (theirs.root / str(done.aside) / "private/pilot/2.safetensors").read_bytes() == b"theirs"
    with contextlib.closing(State(theirs.state, CLOCK)) as state:
        assert state.private_round(PILOT) == 2


def test_a_site_without_its_certificate_keeps_its_later_private_tensors(layout: Layout, tmp_path: Path) -> None:
    """Its journal says whose they are."""
    backup.back_up(layout, tmp_path / "backup", CLOCK)
    with contextlib.closing(State(layout.state, CLOCK)) as state:
        private = PrivateTensors(layout.private, state)
        trained(layout, private, 3, b"private 3, later")
        assert private.settle(RoundKey(PILOT, 4), 3, backup_rounds=(2,)) == 3
    journal(layout, "consent.denied")
    layout.identity.unlink()
    done = restore.restore(layout, tmp_path / "backup", CLOCK, replace=True)
    assert done.notes == (restore.ENROLL,)
    assert (layout.private / "pilot/3.safetensors").read_bytes() == b"private 3, later"
    with contextlib.closing(State(layout.state, CLOCK)) as state:
        assert state.private_round(PILOT) == 3
