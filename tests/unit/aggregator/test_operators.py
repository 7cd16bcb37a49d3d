"""`histofed-aggregator operator` beside a running daemon: it journals the issue, and before that nothing is handed out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aggregator import operators, setup
from histofed.audit.journal import Journal
from histofed.audit.verify import records
from histofed.base import durable
from histofed.base.clock import FakeClock
from histofed.base.errors import CannotWriteState, TryLater
from histofed.base.ids import Json
from histofed.cli.client import load_credentials
from histofed.cli.config import load_operator
from histofed.pki.authority import Issued
from tests.support.centre import Centre
from tests.support.failing_disk import hide


class Beating(FakeClock):
    """While a command sleeps, the daemon beats."""

    def __init__(self, beat: Callable[[], None]) -> None:
        super().__init__()
        self._beat = beat

    async def sleep(self, seconds: float) -> None:
        self._beat()
        await super().sleep(seconds)


@pytest.fixture
def journal(centre: Centre) -> Iterator[Journal]:
    """Of a daemon that holds the state."""
    centre.cli("init")
    with durable.lock(centre.state / "lock", "histofed-aggregator"):
        journal = Journal(centre.state / "journal", centre.clock, "test")
        yield journal
        journal.close()


def write(centre: Centre, clock: FakeClock) -> Issued:
    authority = setup.load_authority(centre.config, centre.clock)
    return setup.write_operator(centre.folder / "bea", "bea", centre.config, authority, clock)


def noted(centre: Centre) -> list[Json]:
    """Serials of operators in the journal, after the one that `init` made."""
    found = [record.subject["serial"] for record in records(centre.state / "journal") if record.action == operators.ACTION]
    return found[1:]


def test_a_daemon_that_runs_journals_the_issue_before_it_is_handed_out(centre: Centre, journal: Journal) -> None:
    before = (centre.state / "identity/aggregator.pem").read_bytes()

    def beat() -> None:
        assert not list((centre.folder / "bea").iterdir()), "nothing is in anybody's hands yet"
        operators.note_issued(centre.state, journal)

    issued = write(centre, Beating(beat))

    assert noted(centre) == [issued.serial]
    held = load_credentials(load_operator(centre.folder / "bea/operator.toml"))
    assert held.certificate_pem == issued.certificate_pem
    assert not list((centre.state / operators.FOLDER).iterdir())
    assert (centre.state / "identity/aggregator.pem").read_bytes() == before, "the daemon's own is the daemon's to renew"


def test_without_a_daemon_that_journals_nothing_is_handed_out(centre: Centre, journal: Journal) -> None:
    with pytest.raises(TryLater, match="none was handed out: look at the daemon's log"):
        write(centre, FakeClock())
    assert not list((centre.folder / "bea").iterdir())
    operators.note_issued(centre.state, journal)
    assert noted(centre) == [], "it was taken back"


def test_what_the_journal_s_disk_refuses_is_noted_by_a_later_beat(
    centre: Centre, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise CannotWriteState("cannot write the journal: No space left on device")

    beats: list[int] = []

    def beat() -> None:
        beats.append(len(beats))
        with monkeypatch.context() as patched:
            if len(beats) == 1:
                patched.setattr(journal, "append", full)
                with pytest.raises(CannotWriteState):
                    operators.note_issued(centre.state, journal)
                assert not list((centre.folder / "bea").iterdir())
            else:
                operators.note_issued(centre.state, journal)

    issued = write(centre, Beating(beat))
    assert (noted(centre), len(beats)) == ([issued.serial], 2)


def test_what_cannot_be_listed_is_noted_by_a_later_beat(
    centre: Centre, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = durable.make_directory(centre.state / operators.FOLDER)
    durable.replace(folder / "1f", b"spiffe://test/operator/bea")
    hide(monkeypatch, folder, looks=1)
    with pytest.raises(CannotWriteState):
        operators.note_issued(centre.state, journal)
    operators.note_issued(centre.state, journal)
    assert noted(centre) == ["1f"]


def test_what_a_killed_command_left_is_journalled_once_and_harms_nobody(centre: Centre, journal: Journal) -> None:
    """It was issued, so it is in the journal; its key died with the command."""
    folder = durable.make_directory(centre.state / operators.FOLDER)
    durable.replace(folder / "1f", b"spiffe://test/operator/bea")
    durable.replace(folder / ".2f.7.tmp", b"half a file")
    for _ in range(2):
        operators.note_issued(centre.state, journal)
    assert noted(centre) == ["1f"]


def test_the_command_says_until_when_a_certificate_is_valid(centre: Centre, tmp_path: Path) -> None:
    assert "operator.toml, valid until 20" in centre.cli("init")
    assert "operator.toml, valid until 20" in centre.cli("operator", "bea", "--out", str(tmp_path / "bea"))
