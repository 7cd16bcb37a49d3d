"""`histofed-aggregator restore`, command by command, on a small state that no daemon runs on."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from aggregator import backup, doctor, restore, setup
from aggregator.amendments import next_epoch
from aggregator.database import Database
from aggregator.members import Members
from aggregator.store import Store
from histofed import weights
from histofed.audit.history import FARTHEST, LAST
from histofed.audit.journal import Journal
from histofed.audit.verify import DAMAGED, by_hand, records, verify
from histofed.backup import snapshot, swap
from histofed.base import durable, failpoints
from histofed.base.errors import (
    AlreadyThere,
    BadData,
    CannotWriteState,
    ConfigError,
    DigestMismatch,
    UsageError,
    WentBack,
)
from histofed.base.ids import Digest, ExperimentId, SiteId, sha256
from histofed.transport.store import owner_of
from tests.support.centre import UPDATE, Centre
from tests.support.failing_disk import hide


def test_restored_on_an_empty_disk(centre: Centre, backup_file: Path) -> None:
    assert "would restore" in centre.cli("restore", str(backup_file), "--dry-run")
    assert not centre.state.exists(), "a dry run writes nothing"
    words = centre.cli("restore", str(backup_file))
    assert "epoch 1 -> 2" in words
    assert "nobody knows which certificates were revoked" in words
    assert "experiments submitted and first weights given after 20" in words
    assert "rounds and models made since are made again" in words
    assert "sites' journals tell" in words
    assert not list(centre.state.glob("before-restore-*"))
    assert (centre.state / "identity/ca.key").stat().st_mode & 0o777 == 0o600
    assert centre.sql("SELECT max(number) FROM epochs") == [(2,)]
    assert verify(centre.state / "journal").restores[0].subject["epoch"] == 2
    assert f"{sha256(UPDATE)}.{owner_of('demo/1/train/north')}.received" in centre.files()
    ((deadline,),) = centre.sql("SELECT deadline FROM rounds")
    assert str(deadline) > (centre.clock.now() + timedelta(seconds=3500)).isoformat()[:19], (
        "the round has its whole time again"
    )


def test_the_present_state_is_replaced_only_on_request_and_kept_aside(
    populated: Centre, centre: Centre, backup_file: Path
) -> None:
    centre.cli("restore", str(backup_file))
    centre.journal("lost.history")
    assert "add --replace" in centre.cli("restore", str(backup_file), code=65)
    words = centre.cli("restore", str(backup_file), "--replace")
    assert "epoch 1 -> 3" in words, "the next epoch after the one that is here, not after the backup's"
    (aside,) = centre.state.glob("before-restore-*")
    assert (aside / "state.db").exists()
    told = [record.action for record in records(centre.state / "journal")]
    assert told[-3:] == ["state.restored", "lost.history", "state.restored"], "the longer journal goes on"


def test_a_restore_whose_plan_was_damaged_is_run_again(
    populated: Centre, centre: Centre, backup_file: Path, tmp_path: Path
) -> None:
    """The power went in the middle of its renames, and took the plan along."""
    centre.cli("restore", str(backup_file))
    for lost in ("state.db", "journal"):
        durable.adopt(centre.state / lost, durable.make_directory(centre.state / "before-restore-x") / lost)
    (centre.state / swap.PLAN).write_bytes(b"\0" * 80)
    assert "run the restore again with --replace" in centre.cli("restore", str(backup_file), code=65)
    assert "run the restore again with --replace" in centre.cli("restore", "--in-place", code=65)
    words = centre.cli("restore", str(backup_file), "--replace")
    assert "its database is gone" in words
    setup.load(centre.config, centre.clock)
    assert centre.sql("SELECT max(number) FROM epochs") == [(2,)]
    assert (centre.state / "before-restore-x/state.db").exists(), "what lay aside is a person's to remove"
    assert not (centre.state / swap.PLAN).exists()


def test_a_lost_database_costs_no_epoch_its_number(populated: Centre, centre: Centre, backup_file: Path) -> None:
    """Sites that heard of epoch 2 would not hear of another one of that number."""
    centre.cli("restore", str(backup_file))
    for left in centre.state.glob("state.db*"):
        left.unlink()
    assert centre.cli("restore", str(backup_file), "--replace", "--dry-run").count("epoch 1 -> 3") == 1
    assert "epoch 1 -> 3" in centre.cli("restore", str(backup_file), "--replace")
    assert centre.sql("SELECT max(number) FROM epochs") == [(3,)]
    assert [record.subject["epoch"] for record in verify(centre.state / "journal").restores] == [2, 3]


def give_first(centre: Centre, name: str, value: float) -> bytes:
    """An operator brings weights; the bytes of the copy that is kept."""
    file = centre.folder / f"drawn-{value}"
    weights.save(file, {"mean.value": np.full(3, value, dtype=np.float32)})
    centre.cli("first", name, str(file))
    return file.read_bytes()


def first(centre: Centre) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in setup.first_weights(centre.state).glob("*")}


def test_first_weights_that_an_experiment_waits_for_come_back(centre: Centre, backup_file: Path, tmp_path: Path) -> None:
    centre.cli("restore", str(backup_file))
    given = give_first(centre, "to-come", 1.0)
    # given before its model was made, which has just been committed: it needs them no more
    (setup.first_weights(centre.state) / "demo.safetensors").write_bytes(given)
    file = tmp_path / "backup"
    centre.cli("backup", str(file))
    other = Centre(tmp_path / "other")
    other.cli("restore", str(file))
    assert first(other) == {"to-come.safetensors": given}


def test_first_weights_that_were_given_since_are_kept(centre: Centre, backup_file: Path, tmp_path: Path) -> None:
    centre.cli("restore", str(backup_file))
    old, untouched = give_first(centre, "changed", 1.0), give_first(centre, "untouched", 2.0)
    file = tmp_path / "backup"
    centre.cli("backup", str(file))
    (setup.first_weights(centre.state) / "changed.safetensors").unlink()
    changed, later = give_first(centre, "changed", 3.0), give_first(centre, "later", 4.0)
    assert changed != old
    centre.cli("restore", str(file), "--replace")
    everything = {"changed": changed, "untouched": untouched, "later": later}
    assert first(centre) == {f"{name}.safetensors": data for name, data in everything.items()}
    centre.cli("restore", str(backup_file), "--replace")
    assert len(first(centre)) == 3, "a backup without any, as older ones are"


def test_first_weights_that_cannot_be_listed_are_neither_left_out_nor_left_behind(
    centre: Centre, backup_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    centre.cli("restore", str(backup_file))
    given = give_first(centre, "to-come", 1.0)
    with monkeypatch.context() as machine:
        hide(machine, setup.first_weights(centre.state))
        assert "Too many open files" in centre.cli("backup", str(tmp_path / "backup"), code=73)
        assert not (tmp_path / "backup").exists()
        assert "Too many open files" in centre.cli("restore", str(backup_file), "--replace", code=73)
    assert first(centre) == {"to-come.safetensors": given}
    centre.cli("restore", str(backup_file), "--replace")
    assert first(centre) == {"to-come.safetensors": given}


def test_experiments_that_the_backup_does_not_have_are_named(centre: Centre, backup_file: Path, tmp_path: Path) -> None:
    centre.cli("restore", str(backup_file))
    assert "submitted after the backup" not in centre.cli("restore", str(backup_file), "--replace"), "nothing is lost"
    database = Database(centre.state / "state.db")
    store = Store(database, centre.clock)
    for name in ("lost", "another"):
        store.add_experiment(ExperimentId(name), "", Digest("2" * 64), "admin")
    database.close()
    words = centre.cli("restore", str(backup_file), "--replace")
    assert "experiments submitted after the backup are not in it: another, lost; " in words
    assert "submit again" in words
    assert "nobody knows" not in words


def test_what_was_used_issued_or_revoked_since_stays_so(centre: Centre, backup_file: Path, tmp_path: Path) -> None:
    centre.cli("restore", str(backup_file))
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
    assert members.revoked("known")
    assert members.revoked("new")
    assert [site.name for site in members.sites()] == ["east"]
    database.close()


def test_a_journal_that_went_another_way_lies_aside(centre: Centre, backup_file: Path) -> None:
    centre.cli("restore", str(backup_file))
    for segment in (centre.state / "journal").glob("*.jsonl"):
        segment.unlink()
    centre.journal(*["another.history"] * 50)
    centre.cli("restore", str(backup_file), "--replace")
    told = [record.action for record in records(centre.state / "journal")]
    assert "another.history" not in told
    (restored,) = verify(centre.state / "journal").restores
    assert str(restored.subject["old_head"]).startswith("50:")
    assert len(list(records(centre.state / str(restored.subject["kept"]) / "journal"))) == 50


def test_a_state_that_was_put_back_by_hand(centre: Centre, backup_file: Path) -> None:
    centre.cli("restore", str(backup_file))
    words = centre.cli("restore", "--in-place")
    assert "epoch 2 -> 3" in words
    assert "experiments submitted and first weights given after the copy was made must be given again" in words
    assert "epoch 3 -> 8" in centre.cli("restore", "--in-place", "--epoch", "8")
    assert "does not lie ahead" in centre.cli("restore", "--in-place", "--epoch", "8", code=2)
    assert f"or by more than {FARTHEST}; leave --epoch out for 9" in centre.cli(
        "restore", "--in-place", "--epoch", f"{2**31}", code=2
    )
    restores = verify(centre.state / "journal").restores
    assert [record.subject["epoch"] for record in restores] == [2, 3, 8]
    assert [by_hand(record) for record in restores] == [False, True, True]
    assert restores[1].reason == "the state was put back by hand; no backup was used"


def test_an_older_database_costs_no_epoch_its_number_either(centre: Centre, backup_file: Path, tmp_path: Path) -> None:
    """Sites that work in epoch 3 must hear of what was put back into its place."""
    centre.cli("restore", str(backup_file))
    older = tmp_path / "state.db"
    snapshot.copy_database(centre.state / "state.db", older)
    centre.cli("restore", "--in-place")
    for left in centre.state.glob("state.db*"):
        left.unlink()
    shutil.copy(older, centre.state / "state.db")
    assert "does not lie ahead of 3" in centre.cli("restore", "--in-place", "--epoch", "3", code=2)
    assert "epoch 2 -> 4" in centre.cli("restore", "--in-place")
    assert centre.sql("SELECT max(number) FROM epochs") == [(4,)]
    assert [record.subject["epoch"] for record in verify(centre.state / "journal").restores] == [2, 3, 4]


def test_a_journal_that_cannot_be_read_is_told_before_an_epoch_is_given(centre: Centre, backup_file: Path) -> None:
    centre.cli("restore", str(backup_file))
    (centre.state / "journal" / "000000000000.jsonl").symlink_to("/proc/self/mem")
    for arguments in (("--in-place",), (str(backup_file), "--replace"), (str(backup_file), "--replace", "--dry-run")):
        words = centre.cli("restore", *arguments, code=BadData.exit_code)
        assert "cannot be read (Input/output error)" in words and "move its folder aside" in words
    (centre.state / "journal").rename(centre.folder / "evidence")
    assert "epoch 2 -> 3" in centre.cli("restore", "--in-place")


@pytest.mark.parametrize("arguments", [(), ("--in-place", "file"), ("--in-place", "--dry-run"), ("--in-place", "--replace")])
def test_a_restore_is_told_what_to_restore(centre: Centre, arguments: tuple[str, ...]) -> None:
    assert "--in-place" in centre.cli("restore", *arguments, code=2)


def test_a_daemon_that_runs_is_not_replaced(centre: Centre, backup_file: Path) -> None:
    centre.cli("restore", str(backup_file))
    with durable.lock(centre.state / "lock", "the daemon"):
        for arguments in ((str(backup_file), "--replace"), ("--in-place",)):
            assert "another process uses" in centre.cli("restore", *arguments, code=65)
        # a backup beside it works; the daemon journals it
        centre.cli("backup", str(centre.folder / "beside"))
    assert centre.sql("SELECT count(*) FROM backups WHERE digest IS NOT NULL AND noted_at IS NULL") == [(1,)]


@pytest.mark.parametrize(
    ("first", "step", "second"),
    [("backup", "_sources", "restore"), ("backup", "_journal", "restore"), ("restore", "_prove", "backup")],
)
def test_a_backup_and_a_restore_exclude_each_other(
    centre: Centre, backup_file: Path, monkeypatch: pytest.MonkeyPatch, first: str, step: str, second: str
) -> None:
    centre.cli("restore", str(backup_file))
    commands = {"restore": (str(backup_file), "--replace"), "backup": (str(centre.folder / "beside"),)}
    module = importlib.import_module(f"aggregator.{first}")
    real, refusals = getattr(module, step), []

    def meanwhile(*arguments: object) -> object:
        refusals.append(centre.cli(second, *commands[second], code=AlreadyThere.exit_code))
        return real(*arguments)

    monkeypatch.setattr(module, step, meanwhile)
    centre.cli(first, *commands[first])
    (refused,) = refusals
    assert "another process uses" in refused
    assert {"restore": "histofed-aggregator restore", "backup": "a backup"}[first] in refused


def test_a_state_that_is_backed_up_does_not_begin_an_epoch_meanwhile(centre: Centre, backup_file: Path) -> None:
    centre.cli("restore", str(backup_file))
    with snapshot.room(centre.state):
        assert "(a backup, process" in centre.cli("restore", "--in-place", code=AlreadyThere.exit_code)


def test_a_restore_that_was_interrupted_is_not_backed_up(centre: Centre, backup_file: Path) -> None:
    centre.cli("restore", str(backup_file))
    (centre.state / "restore.json").write_text("{}")
    assert "a restore was interrupted" in centre.cli("backup", str(centre.folder / "beside"), code=AlreadyThere.exit_code)


def test_a_journal_that_was_emptied_begins_again_with_a_restore(centre: Centre, backup_file: Path) -> None:
    centre.cli("restore", str(backup_file))
    for segment in (centre.state / "journal").glob("*.jsonl"):
        segment.write_bytes(b"")
    assert "epoch 2 -> 3" in centre.cli("restore", "--in-place")
    (record,) = records(centre.state / "journal")
    assert (record.sequence, record.action) == (1, "state.restored")


@pytest.fixture
def damaged(centre: Centre, backup_file: Path) -> Centre:
    """With a journal in which a byte has changed."""
    centre.cli("restore", str(backup_file))
    (segment,) = (centre.state / "journal").glob("*.jsonl")
    lines = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(b"".join([lines[0], lines[1].replace(b"system", b"sisten"), *lines[2:]]))
    return centre


def test_whoever_finds_a_damaged_journal_gives_the_same_advice(damaged: Centre, tmp_path: Path) -> None:
    journal = damaged.state / "journal"
    with pytest.raises(DigestMismatch) as started:
        Journal(journal, damaged.clock, "the daemon")
    with pytest.raises(DigestMismatch) as looked:
        doctor.journal(damaged.state)
    told = [str(started.value), str(looked.value), damaged.cli("restore", "--in-place", code=65)]
    told.append(damaged.cli("backup", str(tmp_path / "backup"), code=65))
    assert {words.strip().partition("; ")[2] for words in told} == {DAMAGED}
    assert not (tmp_path / "backup").exists(), "it could not be restored"


def test_with_a_backup_the_advice_ends_well(damaged: Centre, backup_file: Path) -> None:
    damaged.cli("restore", str(backup_file), "--replace")
    assert doctor.journal(damaged.state).endswith("the chain is whole")  # type: ignore[union-attr]  # words, no doubt
    (aside,) = damaged.state.glob("before-restore-*/journal")
    assert not verify(aside).ok, "the evidence is kept"


@pytest.mark.parametrize("started", [False, True])
def test_without_a_backup_the_advice_ends_well(damaged: Centre, started: bool) -> None:
    (damaged.state / "journal").rename(damaged.folder / "evidence")
    if started:  # in vain, but it made the folder
        durable.make_directory(damaged.state / "journal")
    with pytest.raises(WentBack, match=r"holds no record, but this state knows .*restore --in-place`$"):
        doctor.journal(damaged.state)
    damaged.cli("restore", "--in-place")
    assert doctor.journal(damaged.state) == "1 records, the chain is whole"


def test_a_backup_of_another_federation_is_refused(centre: Centre, backup_file: Path) -> None:
    with pytest.raises(ConfigError, match="the configuration says 'other'"):
        restore.restore(centre.config.model_copy(update={"federation": "other"}), backup_file, centre.clock)
    centre.cli("init")
    for replace in (False, True):  # without --replace it must not be told to add it, which helps nobody
        with pytest.raises(BadData, match=r"their CAs differ; .* move that folder aside and restore again"):
            restore.restore(centre.config, backup_file, centre.clock, replace=replace)
    assert not (centre.state / "restore.json").exists()
    centre.state.rename(centre.folder / "aside")
    assert "epoch 1 -> 2" in centre.cli("restore", str(backup_file))


def test_a_disk_without_room_is_told_before_the_first_byte(
    centre: Centre, backup_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "free_bytes", lambda _: 10)
    with pytest.raises(CannotWriteState, match="make room"):
        restore.restore(centre.config, backup_file, centre.clock)


def test_an_epoch_must_lie_ahead(centre: Centre, backup_file: Path) -> None:
    with pytest.raises(UsageError, match="does not lie ahead"):
        restore.dry_run(centre.config, backup_file, epoch=1)
    assert restore.dry_run(centre.config, backup_file, epoch=5).epoch == 5
    assert restore.dry_run(centre.config, backup_file, epoch=1 + FARTHEST).epoch == 1 + FARTHEST
    with pytest.raises(UsageError, match=f"does not lie ahead of 1, .*, or by more than {FARTHEST};"):
        restore.dry_run(centre.config, backup_file, epoch=2 + FARTHEST)


def test_after_the_last_epoch_comes_none() -> None:
    assert next_epoch(LAST - 1, None) == LAST
    for wanted in (None, LAST, LAST + 1):
        with pytest.raises(UsageError, match=f"epoch {LAST} is the last that there is"):
            next_epoch(LAST, wanted)
    with pytest.raises(UsageError, match="does not lie ahead"):
        next_epoch(LAST - 1, LAST + 1)


def test_no_new_federation_in_the_middle_of_a_restore(centre: Centre) -> None:
    centre.state.mkdir()
    (centre.state / "restore.json").write_text("{}")
    assert "a restore was interrupted" in centre.cli("init", code=65)


@pytest.mark.slow
@pytest.mark.parametrize(
    "point", sorted(point for point in failpoints.FAILPOINTS if point.startswith(("backup.", "restore.")))
)
def test_killed_at_any_instant(centre: Centre, backup_file: Path, point: str) -> None:
    """A real SIGKILL: afterwards there is the old state or the new one, and the same command works again. A second each."""
    centre.cli("restore", str(backup_file))
    one = centre.folder / "one"
    making = point.startswith("backup.")
    command = ["backup", str(one)] if making else ["restore", str(backup_file), "--replace"]
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
