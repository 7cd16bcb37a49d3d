"""`histofed-aggregator backup`: what is in the file, and when none is made. No daemon runs on the state."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from aggregator import backup, restore
from aggregator.database import Database
from aggregator.history import Chronicle
from aggregator.store import Store
from histofed.audit.journal import Journal
from histofed.audit.verify import records
from histofed.backup import archive, snapshot
from histofed.base import durable
from histofed.base.errors import (
    AlreadyThere,
    BadData,
    CannotWriteState,
    NotEnrolled,
    NotFound,
    TryLater,
    UsageError,
    VersionMismatch,
    WentBack,
)
from histofed.base.health import Health
from histofed.base.ids import Digest, ExperimentId, sha256
from histofed.transport.store import owner_of
from tests.support.centre import UPDATE, Centre
from tests.support.commands import run_here
from tests.support.daemons import KILLED

BROUGHT = ExperimentId("brought")


def test_a_backup_holds_what_the_rows_name_and_nothing_else(populated: Centre, backup_file: Path) -> None:
    manifest = backup.check(backup_file)
    names = {member.name for member in manifest.members}
    receipt = f"blobs/{sha256(UPDATE)}.{owner_of('demo/1/train/north')}.received"
    assert {f"blobs/{sha256(UPDATE)}", receipt, f"blobs/{sha256(b'shared 0')}"} == {
        name for name in names if name.startswith("blobs/")
    }
    assert {"identity/ca.pem", "identity/ca.key", "identity/token.key", "instance", "state.db"} <= names
    assert "identity/aggregator.pem" not in names, "the daemon's own key is made anew"
    assert (manifest.epoch, manifest.rounds, manifest.open_rounds) == (1, {"demo": 0}, ["demo/1"])
    made = [record for record in records(populated.state / "journal") if record.action == "backup.made"]
    assert made[-1].subject["backup"] == manifest.digest
    assert not (populated.state / "backup.tmp").exists()
    assert b"PRIVATE KEY" in backup_file.read_bytes(), "which is why it is to be kept like a key"


def test_one_backup_at_a_time(centre: Centre, backup_file: Path) -> None:
    centre.cli("restore", str(backup_file))
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


@pytest.mark.parametrize("place", ["state/nightly", "state/scratch/nightly", "state/issued", "link/nightly"])
def test_a_backup_into_the_state_itself_is_refused(centre: Centre, backup_file: Path, place: str) -> None:
    """The daemon empties `scratch` and needs `issued` to be a folder; and the state's disk is what a backup is for."""
    centre.cli("restore", str(backup_file))
    durable.make_directory(centre.state / "scratch")
    (centre.folder / "link").symlink_to(centre.state / "scratch")
    file = centre.folder / place
    assert "name a file outside" in centre.cli("backup", str(file), code=UsageError.exit_code)
    assert not file.exists()


def test_an_emptied_journal_is_not_hidden_by_a_backups_own_record(centre: Centre, backup_file: Path, tmp_path: Path) -> None:
    centre.cli("restore", str(backup_file))
    for segment in (centre.state / "journal").iterdir():
        segment.write_bytes(b"")
    refused = centre.cli("backup", str(tmp_path / "backup"), code=WentBack.exit_code)
    assert "the audit journal holds no record, but this state knows 0 sites and 1 experiments" in refused
    assert not (tmp_path / "backup").exists()
    assert not list(records(centre.state / "journal"))


def test_files_that_are_missing_for_good_are_told(centre: Centre, backup_file: Path, tmp_path: Path) -> None:
    centre.cli("restore", str(backup_file))
    (centre.state / "blobs" / sha256(b"shared 0")).unlink()
    with pytest.raises(BadData, match="1 files that the database names are missing"):
        backup.back_up(centre.config, tmp_path / "backup", centre.clock)


def test_rounds_that_end_faster_than_a_snapshot(
    centre: Centre, backup_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    centre.cli("restore", str(backup_file))
    asked: list[Path] = []

    def gone(source: Path, target: Path) -> bool:
        asked.append(target)
        return False

    monkeypatch.setattr(snapshot, "link", gone)
    with pytest.raises(TryLater, match="try again in a moment"):
        backup.back_up(centre.config, tmp_path / "backup", centre.clock)
    assert len(asked) == backup.ATTEMPTS * 3


def test_a_round_that_is_committed_during_the_snapshot_means_another_snapshot(
    centre: Centre, backup_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise sites would drop the private tensors that the backup's round needs before they hear of it."""
    centre.cli("restore", str(backup_file))
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


def test_an_experiment_that_begins_during_the_snapshot_means_another_snapshot(
    centre: Centre, backup_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first weights go when its model comes: one of the two has to be in the backup."""
    centre.cli("restore", str(backup_file))
    database = Database(centre.state / "state.db")
    store, once, link = Store(database, centre.clock), [True], snapshot.link
    store.add_experiment(BROUGHT, "", Digest("2" * 64), "admin")
    model = replace(centre.model(7), experiment=BROUGHT, round=0)

    def begin_first(source: Path, target: Path) -> bool:
        if once and once.pop():
            store.add_first_model(model)
        return link(source, target)

    monkeypatch.setattr(snapshot, "link", begin_first)
    manifest = backup.back_up(centre.config, tmp_path / "backup", centre.clock)
    assert f"blobs/{sha256(b'shared 7')}" in {member.name for member in manifest.members}
    database.close()


def test_so_does_one_that_is_cancelled_before_it_begins(
    centre: Centre, backup_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first weights go too: a backup in which it is still to begin would begin it with others."""
    centre.cli("restore", str(backup_file))
    database = Database(centre.state / "state.db")
    store, copies, copy = Store(database, centre.clock), list[Path](), snapshot.copy_database
    store.add_experiment(BROUGHT, "", Digest("2" * 64), "admin")

    def cancel_then(source: Path, target: Path) -> None:
        copy(source, target)
        if not copies:
            store.set_experiment(BROUGHT, "cancelled")
        copies.append(target)

    monkeypatch.setattr(snapshot, "copy_database", cancel_then)
    backup.back_up(centre.config, tmp_path / "backup", centre.clock)
    assert len(copies) == 2
    database.close()


def test_what_sites_keep_for_the_last_good_backup_is_not_taken_by_one_that_fails(
    centre: Centre, backup_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    centre.cli("restore", str(backup_file))
    good = backup.back_up(centre.config, tmp_path / "good", centre.clock)
    centre.sql("UPDATE rounds SET state = 'committed'")

    def full(*_: object) -> None:
        assert centre.sql("SELECT count(*) FROM backups WHERE digest IS NULL") == [(1,)], "sites keep what is being written"
        raise CannotWriteState("cannot write the backup: No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(archive, "write", full)
        with pytest.raises(CannotWriteState, match="No space left"):
            backup.back_up(centre.config, tmp_path / "bad", centre.clock)
    assert centre.sql("SELECT id FROM backups ORDER BY made_at DESC LIMIT 1") == [(good.id,)]


def test_a_backup_that_was_killed_leaves_its_claim_to_the_next(centre: Centre, backup_file: Path, tmp_path: Path) -> None:
    centre.cli("restore", str(backup_file))
    centre.sql("INSERT INTO backups (id, made_at, rounds) VALUES ('killed', '2999', '{}')")
    made = backup.back_up(centre.config, tmp_path / "backup", centre.clock)
    assert centre.sql("SELECT id, digest FROM backups ORDER BY made_at DESC LIMIT 1") == [(made.id, made.digest)]


def killed(centre: Centre, point: str, target: Path) -> None:
    """A backup of the state is killed at a failpoint."""
    starter = "import sys; from aggregator.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", starter, "backup", str(target), "--config", str(centre.toml)],
        env={**os.environ, "HISTOFED_FAILPOINTS": f"{point}=kill"},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == KILLED, done.stderr.decode()


def beat(centre: Centre) -> None:
    """A daemon looks for what backups left."""
    database = Database(centre.state / "state.db")
    journal = Journal(centre.state / "journal", centre.clock, "test")
    Chronicle(database, journal, centre.clock, Health(centre.clock, required=())).note_backups()
    journal.close()
    database.close()


def journalled(centre: Centre) -> list[object]:
    """Backups that the journal knows, in its order."""
    return [one.subject["backup"] for one in records(centre.state / "journal") if one.action == "backup.made"]


def test_a_backup_that_was_killed_when_its_file_was_whole_counts(centre: Centre, backup_file: Path, tmp_path: Path) -> None:
    """The daemon cannot see the file from where it runs; the next backup can."""
    centre.cli("restore", str(backup_file))
    killed(centre, "backup.written", tmp_path / "one")
    one = backup.check(tmp_path / "one")
    beat(centre)
    assert centre.sql("SELECT id FROM backups ORDER BY made_at DESC LIMIT 1") == [(one.id,)], "sites keep what it needs"
    two = backup.back_up(centre.config, tmp_path / "two", centre.clock)
    made = centre.sql("SELECT id, digest FROM backups ORDER BY made_at DESC LIMIT 2")
    assert made == [(two.id, two.digest), (one.id, one.digest)]
    beat(centre)
    assert sorted(map(str, journalled(centre)[-2:])) == sorted((one.digest, two.digest))


def test_so_does_one_whose_disk_was_taken_away_meanwhile(centre: Centre, backup_file: Path, tmp_path: Path) -> None:
    centre.cli("restore", str(backup_file))
    disk, away = durable.make_directory(tmp_path / "disk"), tmp_path / "away"
    killed(centre, "backup.written", disk / "one")
    one = backup.check(disk / "one")
    disk.rename(away)
    two = backup.back_up(centre.config, tmp_path / "two", centre.clock)
    made = centre.sql("SELECT id, digest FROM backups ORDER BY made_at DESC LIMIT 2")
    assert made == [(two.id, two.digest), (one.id, None)], "nobody can tell whether its file is whole"
    away.rename(disk)
    backup.back_up(centre.config, tmp_path / "three", centre.clock)
    beat(centre)
    assert one.digest in journalled(centre)


def test_one_whose_folder_is_there_again_without_it_is_forgotten(centre: Centre, backup_file: Path, tmp_path: Path) -> None:
    centre.cli("restore", str(backup_file))
    disk = durable.make_directory(tmp_path / "disk")
    killed(centre, "backup.written", disk / "one")
    disk.rename(tmp_path / "away")
    backup.back_up(centre.config, tmp_path / "two", centre.clock)
    disk.mkdir()
    backup.back_up(centre.config, tmp_path / "three", centre.clock)
    assert centre.sql("SELECT count(*) FROM backups WHERE digest IS NULL") == [(0,)]


@pytest.mark.parametrize("left", [None, b"of something else"])
def test_a_backup_that_was_killed_before_its_file_had_its_name_is_forgotten_by_the_next(
    centre: Centre, backup_file: Path, tmp_path: Path, left: bytes | None
) -> None:
    centre.cli("restore", str(backup_file))
    killed(centre, "replace.before_rename", tmp_path / "one")
    assert not (tmp_path / "one").exists()
    if left is not None:
        (tmp_path / "one").write_bytes(left)
    assert centre.sql("SELECT target FROM backups WHERE digest IS NULL") == [(os.fsencode(tmp_path / "one"),)]
    backup.back_up(centre.config, tmp_path / "two", centre.clock)
    assert centre.sql("SELECT count(*) FROM backups WHERE digest IS NULL") == [(0,)]
    assert left is None or (tmp_path / "one").read_bytes() == left


def test_a_backup_that_cannot_be_written_down_leaves_no_file(centre: Centre, backup_file: Path, tmp_path: Path) -> None:
    centre.cli("restore", str(backup_file))
    rows = "SELECT id, digest FROM backups"
    before = centre.sql(rows)
    centre.sql("CREATE TRIGGER full BEFORE UPDATE OF digest ON backups BEGIN SELECT RAISE(FAIL, 'disk is full'); END")
    refused = centre.cli("backup", str(tmp_path / "backup"), code=CannotWriteState.exit_code)
    assert "disk is full" in refused
    assert not (tmp_path / "backup").exists()
    assert centre.sql(rows) == before


def test_a_database_of_another_release_is_not_backed_up_half_understood(
    centre: Centre, backup_file: Path, tmp_path: Path
) -> None:
    centre.cli("restore", str(backup_file))
    centre.sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(VersionMismatch, match="schema 9999"):
        backup.back_up(centre.config, tmp_path / "backup", centre.clock)


def test_help_says_what_the_file_is_worth() -> None:
    done = run_here("aggregator.cli", "backup", "--help")
    assert "keep it like that key" in done.out.replace("\n ", "")
    assert "Exit codes" in run_here("aggregator.cli", "restore", "--help").out
