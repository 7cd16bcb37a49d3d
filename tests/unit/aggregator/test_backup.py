"""`histofed-aggregator backup` and `restore`, command by command, on a small state that no daemon runs on."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from aggregator import backup, restore, setup
from aggregator.config import AggregatorConfig
from aggregator.database import Database
from aggregator.events import Accepted, Admitted, Announced, Event, Opened, Received
from aggregator.members import Members
from aggregator.rounds import Round, plan, step
from aggregator.rows import ModelRow
from aggregator.store import Store
from histofed.audit.journal import Journal
from histofed.audit.verify import Head, by_hand, records, verify
from histofed.backup import snapshot, swap
from histofed.base import durable, failpoints
from histofed.base.clock import SystemClock
from histofed.base.errors import (
    AlreadyThere,
    BadData,
    CannotWriteState,
    ConfigError,
    NotEnrolled,
    NotFound,
    TryLater,
    UsageError,
    VersionMismatch,
)
from histofed.base.ids import Digest, ExperimentId, RoundKey, SiteId, sha256
from histofed.pki.signing import Envelope
from histofed.statements import MODEL_TYPE, UPDATE_TYPE, File, ModelStatement, encode
from histofed.transport.store import owner_of
from tests.support.commands import Done, run_here

DEMO, NORTH = ExperimentId("demo"), SiteId("north")
UPDATE = b"an update"


class Centre:
    """An aggregator's state directory and its rows."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.state = folder / "state"
        self.toml = folder / "aggregator.toml"
        self.toml.write_text(f'federation = "test"\nstate_dir = "{self.state}"\n[retention]\nreserve_bytes = 0\n')
        self.config = AggregatorConfig(federation="test", state_dir=self.state)
        self.clock = SystemClock()

    def cli(self, *arguments: str, code: int = 0) -> str:
        done: Done = run_here("aggregator.cli", *arguments, "--config", str(self.toml))
        assert done.code == code, done.error
        return done.out if code == 0 else done.error

    def journal(self, *actions: str) -> Head:
        journal = Journal(self.state / "journal", self.clock, "test")
        for action in actions:
            journal.append(action, subject={})
        head = journal.head
        journal.close()
        return head

    def blob(self, data: bytes) -> File:
        durable.make_directory(self.state / "blobs")
        (self.state / "blobs" / sha256(data)).write_bytes(data)
        return File(sha256(data), len(data))

    def model(self, number: int) -> ModelRow:
        parts = {"shared": self.blob(b"shared %d" % number)}
        statement = ModelStatement("test", "demo", "1" * 64, "mean", number, "", parts, "shared", "fedavg", [])
        envelope = Envelope(MODEL_TYPE, encode(statement), b"s", b"c")
        return ModelRow(sha256(envelope.payload), DEMO, number, "candidate", envelope, self.clock.now())

    def populate(self) -> None:
        """An experiment with its first model, and round 1 open with north's update in it."""
        self.journal("aggregator.started", "experiment.submitted")
        self.database = Database(self.state / "state.db")
        store = self.store = Store(self.database, self.clock)
        store.add_experiment(DEMO, "", Digest("1" * 64), "admin")
        model = self.model(0)
        store.add_first_model(model)
        state = plan(RoundKey(DEMO, 1), model.digest, (NORTH, SiteId("south")), (NORTH, SiteId("south")), 1, 3, 3600)
        store.add_round(state)
        update = self.blob(UPDATE)
        received = Received(NORTH, 1, sha256(b"payload"), Digest(update.sha256), update.bytes)
        opened = self.clock.now() - timedelta(seconds=3000)
        for event in (Opened(opened), Accepted(NORTH, 1), Announced(NORTH, Digest(update.sha256), update.bytes), received):
            state = self.advance(state, event)
        self.advance(state, Admitted(NORTH))
        (self.state / "blobs" / f"{update.sha256}.{owner_of('demo/1/train/north')}.received").touch()
        (self.state / "blobs" / f"{'7' * 64}.{'a' * 16}.part").write_bytes(b"an upload that is not complete")
        self.database.close()

    def advance(self, state: Round, event: Event) -> Round:
        after, _ = step(state, event)
        update = Envelope(UPDATE_TYPE, b"payload", b"s", b"c") if isinstance(event, Received) else None
        self.store.save_round(state, after, event, update)
        return after

    def sql(self, query: str, *values: object) -> list[tuple[object, ...]]:
        connection = sqlite3.connect(self.state / "state.db")
        with connection:
            found = connection.execute(query, values).fetchall()
        connection.close()
        return found

    def files(self) -> set[str]:
        return {path.name for path in (self.state / "blobs").iterdir()}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Centre:
    """A populated state; tests copy its backup."""
    centre = Centre(tmp_path_factory.mktemp("template"))
    centre.cli("init")
    centre.populate()
    return centre


@pytest.fixture(scope="module")
def file(template: Centre, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "backup"
    template.cli("backup", str(path))
    return path


@pytest.fixture
def centre(tmp_path: Path) -> Centre:
    """An empty state directory with the same configuration."""
    return Centre(tmp_path / "centre")


def test_a_backup_holds_what_the_rows_name_and_nothing_else(template: Centre, file: Path) -> None:
    manifest = backup.check(file)
    names = {member.name for member in manifest.members}
    receipt = f"blobs/{sha256(UPDATE)}.{owner_of('demo/1/train/north')}.received"
    assert {f"blobs/{sha256(UPDATE)}", receipt, f"blobs/{sha256(b'shared 0')}"} == {
        name for name in names if name.startswith("blobs/")
    }
    assert {"identity/ca.pem", "identity/ca.key", "identity/token.key", "instance", "state.db"} <= names
    assert "identity/aggregator.pem" not in names, "the daemon's own key is made anew"
    assert (manifest.epoch, manifest.rounds, manifest.open_rounds) == (1, {"demo": 0}, ["demo/1"])
    made = [record for record in records(template.state / "journal") if record.action == "backup.made"]
    assert made[-1].subject["backup"] == manifest.digest
    assert not (template.state / "backup.tmp").exists()
    assert b"PRIVATE KEY" in file.read_bytes(), "which is why it is to be kept like a key"


def test_restored_on_an_empty_disk(centre: Centre, file: Path) -> None:
    assert "would restore" in centre.cli("restore", str(file), "--dry-run")
    assert not centre.state.exists(), "a dry run writes nothing"
    words = centre.cli("restore", str(file))
    assert "epoch 1 -> 2" in words
    assert "nobody knows which certificates were revoked" in words
    assert not list(centre.state.glob("before-restore-*"))
    assert (centre.state / "identity/ca.key").stat().st_mode & 0o777 == 0o600
    assert centre.sql("SELECT max(number) FROM epochs") == [(2,)]
    assert verify(centre.state / "journal").restores[0].subject["epoch"] == 2
    assert f"{sha256(UPDATE)}.{owner_of('demo/1/train/north')}.received" in centre.files()
    ((deadline,),) = centre.sql("SELECT deadline FROM rounds")
    assert str(deadline) > (centre.clock.now() + timedelta(seconds=3500)).isoformat()[:19], (
        "the round has its whole time again"
    )


def test_the_present_state_is_replaced_only_on_request_and_kept_aside(template: Centre, centre: Centre, file: Path) -> None:
    centre.cli("restore", str(file))
    centre.journal("lost.history")
    assert "add --replace" in centre.cli("restore", str(file), code=65)
    words = centre.cli("restore", str(file), "--replace")
    assert "epoch 1 -> 3" in words, "the next epoch after the one that is here, not after the backup's"
    (aside,) = centre.state.glob("before-restore-*")
    assert (aside / "state.db").exists()
    told = [record.action for record in records(centre.state / "journal")]
    assert told[-3:] == ["state.restored", "lost.history", "state.restored"], "the longer journal goes on"


def test_what_was_used_issued_or_revoked_since_stays_so(centre: Centre, file: Path, tmp_path: Path) -> None:
    centre.cli("restore", str(file))
    database = Database(centre.state / "state.db")
    members, soon = Members(database, centre.clock), centre.clock.now() + timedelta(hours=1)
    members.create_token("unused", SiteId("west"), soon)
    members.create_token("used-later", SiteId("east"), soon)
    members.add_certificate("spiffe://test/site/north", "known", soon)
    database.close()
    second = tmp_path / "second"
    centre.cli("backup", str(second))
    database = Database(centre.state / "state.db")
    members = Members(database, centre.clock)
    members.enrol("used-later", SiteId("east"), "spiffe://test/site/east", "new", soon)
    database.close()
    centre.sql("UPDATE certificates SET revoked_at = '2026-01-01T00:00:00.000000Z'")
    words = centre.cli("restore", str(second), "--replace")
    assert "2 join tokens" in words
    assert "2 certificates that were revoked after the backup stay revoked" in words
    assert "1 sites that joined after the backup" in words
    assert "nobody knows" not in words
    database = Database(centre.state / "state.db")
    members = Members(database, centre.clock)
    assert members.token_site("unused") is None
    assert members.token_site("used-later") is None, "a join line is never good twice"
    assert members.revoked_serials() == {"known", "new"}
    assert [site.name for site in members.sites()] == ["east"]
    database.close()


def test_a_journal_that_went_another_way_lies_aside(centre: Centre, file: Path) -> None:
    centre.cli("restore", str(file))
    for segment in (centre.state / "journal").glob("*.jsonl"):
        segment.unlink()
    centre.journal(*["another.history"] * 50)
    centre.cli("restore", str(file), "--replace")
    told = [record.action for record in records(centre.state / "journal")]
    assert "another.history" not in told
    (restored,) = verify(centre.state / "journal").restores
    assert str(restored.subject["old_head"]).startswith("50:")
    assert len(list(records(centre.state / str(restored.subject["kept"]) / "journal"))) == 50


def test_a_state_that_was_put_back_by_hand(centre: Centre, file: Path) -> None:
    centre.cli("restore", str(file))
    assert "epoch 2 -> 3" in centre.cli("restore", "--in-place")
    assert "epoch 3 -> 8" in centre.cli("restore", "--in-place", "--epoch", "8")
    assert "does not lie ahead" in centre.cli("restore", "--in-place", "--epoch", "8", code=2)
    restores = verify(centre.state / "journal").restores
    assert [record.subject["epoch"] for record in restores] == [2, 3, 8]
    assert [by_hand(record) for record in restores] == [False, True, True]
    assert restores[1].reason == "the state was put back by hand; no backup was used"


@pytest.mark.parametrize("arguments", [(), ("--in-place", "file"), ("--in-place", "--dry-run"), ("--in-place", "--replace")])
def test_a_restore_is_told_what_to_restore(centre: Centre, arguments: tuple[str, ...]) -> None:
    assert "--in-place" in centre.cli("restore", *arguments, code=2)


def test_a_daemon_that_runs_is_not_replaced(centre: Centre, file: Path) -> None:
    centre.cli("restore", str(file))
    with durable.lock(centre.state / "lock", "the daemon"):
        for arguments in ((str(file), "--replace"), ("--in-place",)):
            assert "another process uses" in centre.cli("restore", *arguments, code=65)
        # a backup beside it works; the daemon journals it
        centre.cli("backup", str(centre.folder / "beside"))
    assert centre.sql("SELECT count(*) FROM backups WHERE digest IS NOT NULL AND noted_at IS NULL") == [(1,)]


def test_one_backup_at_a_time(centre: Centre, file: Path) -> None:
    centre.cli("restore", str(file))
    with durable.lock(centre.state / "backup.lock", "a backup"), pytest.raises(AlreadyThere):
        backup.back_up(centre.config, centre.folder / "second", centre.clock)


def test_nothing_to_back_up(centre: Centre, tmp_path: Path) -> None:
    with pytest.raises(NotEnrolled, match="holds no federation"):
        backup.back_up(centre.config, tmp_path / "backup", centre.clock)
    with pytest.raises(NotEnrolled):
        restore.in_place(centre.config, centre.clock)
    centre.cli("init")
    with pytest.raises(NotFound, match="nothing has run here yet"):
        backup.back_up(centre.config, tmp_path / "backup", centre.clock)
    assert not (tmp_path / "backup").exists()


def test_a_journal_that_was_emptied_begins_again_with_a_restore(centre: Centre, file: Path) -> None:
    centre.cli("restore", str(file))
    for segment in (centre.state / "journal").glob("*.jsonl"):
        segment.write_bytes(b"")
    assert "epoch 2 -> 3" in centre.cli("restore", "--in-place")
    (record,) = records(centre.state / "journal")
    assert (record.sequence, record.action) == (1, "state.restored")


def test_files_that_are_missing_for_good_are_told(centre: Centre, file: Path, tmp_path: Path) -> None:
    centre.cli("restore", str(file))
    (centre.state / "blobs" / sha256(b"shared 0")).unlink()
    with pytest.raises(BadData, match="1 files that the database names are missing"):
        backup.back_up(centre.config, tmp_path / "backup", centre.clock)


def test_rounds_that_end_faster_than_a_snapshot(
    centre: Centre, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    centre.cli("restore", str(file))
    asked: list[Path] = []

    def gone(source: Path, target: Path) -> bool:
        asked.append(target)
        return False

    monkeypatch.setattr(snapshot, "link", gone)
    with pytest.raises(TryLater, match="try again in a moment"):
        backup.back_up(centre.config, tmp_path / "backup", centre.clock)
    assert len(asked) == backup.ATTEMPTS * 3


def test_a_round_that_is_committed_during_the_snapshot_means_another_snapshot(
    centre: Centre, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise sites would drop the private tensors that the backup's round needs before they hear of it."""
    centre.cli("restore", str(file))
    once, link = [True], snapshot.link

    def commit_first(source: Path, target: Path) -> bool:
        if once and once.pop():
            centre.sql("UPDATE rounds SET state = 'committed'")
        return link(source, target)

    monkeypatch.setattr(snapshot, "link", commit_first)
    manifest = backup.back_up(centre.config, tmp_path / "backup", centre.clock)
    assert manifest.rounds == {"demo": 1}
    ((rounds,),) = centre.sql("SELECT rounds FROM backups WHERE id = ?", manifest.id)
    assert json.loads(str(rounds)) == {"demo": 1}


def test_a_backup_of_another_federation_is_refused(centre: Centre, file: Path) -> None:
    with pytest.raises(ConfigError, match="the configuration says 'other'"):
        restore.restore(centre.config.model_copy(update={"federation": "other"}), file, centre.clock)
    centre.cli("init")
    with pytest.raises(BadData, match="their CAs differ"):
        restore.restore(centre.config, file, centre.clock, replace=True)
    assert not (centre.state / "restore.json").exists()


def test_a_disk_without_room_is_told_before_the_first_byte(
    centre: Centre, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "free_bytes", lambda _: 10)
    with pytest.raises(CannotWriteState, match="make room"):
        restore.restore(centre.config, file, centre.clock)


def test_a_database_of_another_release_is_not_backed_up_half_understood(centre: Centre, file: Path, tmp_path: Path) -> None:
    centre.cli("restore", str(file))
    centre.sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(VersionMismatch, match="schema 9999"):
        backup.back_up(centre.config, tmp_path / "backup", centre.clock)


def test_an_epoch_must_lie_ahead(centre: Centre, file: Path) -> None:
    with pytest.raises(UsageError, match="does not lie ahead"):
        restore.dry_run(centre.config, file, epoch=1)
    assert restore.dry_run(centre.config, file, epoch=5).epoch == 5


def test_no_new_federation_in_the_middle_of_a_restore(centre: Centre) -> None:
    centre.state.mkdir()
    (centre.state / "restore.json").write_text("{}")
    assert "a restore was interrupted" in centre.cli("init", code=65)


@pytest.mark.slow
@pytest.mark.parametrize(
    "point", sorted(point for point in failpoints.FAILPOINTS if point.startswith(("backup.", "restore.")))
)
def test_killed_at_any_instant(centre: Centre, file: Path, point: str) -> None:
    """A real SIGKILL: afterwards there is the old state or the new one, and the same command works again. A second each."""
    centre.cli("restore", str(file))
    one = centre.folder / "one"
    making = point.startswith("backup.")
    command = ["backup", str(one)] if making else ["restore", str(file), "--replace"]
    starter = "import sys; from aggregator.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", starter, *command, "--config", str(centre.toml)],
        env={**os.environ, "HISTOFED_FAILPOINTS": f"{point}=kill"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    decided = point in {"restore.swap_decided", "restore.old_set_aside", "restore.swapped"}
    with durable.lock(centre.state / "lock", "the daemon's next start"):
        swap.settle(centre.state)
    setup.load(centre.config, centre.clock)
    assert centre.sql("SELECT max(number) FROM epochs") == [(3 if decided else 2,)]
    assert [record.subject["epoch"] for record in verify(centre.state / "journal").restores] == [2, 3][: 1 + decided]
    assert len(list(centre.state.glob("before-restore-*"))) == decided
    assert one.exists() == (point == "backup.written")
    if one.exists():
        assert backup.check(one).epoch == 2
        one.unlink()
    centre.cli(*command)
    assert not list(centre.state.glob("restore.*")), "nothing is left behind"
    assert not (centre.state / "backup.tmp").exists()


def test_help_says_what_the_file_is_worth() -> None:
    done = run_here("aggregator.cli", "backup", "--help")
    assert "keep it like that key" in done.out.replace("\n ", "")
    assert "Exit codes" in run_here("aggregator.cli", "restore", "--help").out
