"""Files that survive crashes and full disks."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from histofed.base.durable import AppendLog, adopt, link, listing, lock, make_directory, remove, replace, sweep, writing
from histofed.base.errors import AlreadyThere, CannotWriteState
from tests.support.disk_order import disk_order
from tests.support.failing_disk import hide
from tests.support.failpoints import armed

# -- replace and writing -------------------------------------------------------------------------------------------------


def test_replace_writes_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    replace(path, b"old")
    with (
        armed(monkeypatch, "replace.before_rename=ENOSPC"),
        pytest.raises(CannotWriteState, match="No space left on device"),
    ):
        replace(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    replace(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_error_in_the_block_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    replace(path, b"old")
    with pytest.raises(KeyError), writing(path) as file:
        file.write(b"half")
        raise KeyError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("name", "content"), [("replace.before_rename", "old"), ("replace.after_rename", "new")])
def test_a_kill_leaves_the_old_or_the_new_file(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / "state"
    replace(path, b"old")
    code = f"from pathlib import Path; from histofed.base.durable import replace; replace(Path({str(path)!r}), b'new')"
    killed = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "HISTOFED_FAILPOINTS": f"{name}=kill"}, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == content


def killed_while_it_writes(path: Path) -> None:
    """A process of this name's file ends before the file has its name."""
    code = f"from pathlib import Path; from histofed.base.durable import replace; replace(Path({str(path)!r}), b'x' * 9999)"
    environment = {**os.environ, "HISTOFED_FAILPOINTS": "replace.before_rename=kill"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == -signal.SIGKILL
    assert 9999 in {left.stat().st_size for left in path.parent.glob(".*.tmp")}


def test_what_killed_processes_left_of_a_file_goes_with_the_next_that_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "state [of a site]"
    for _ in range(2):
        killed_while_it_writes(path)
        assert len(list(tmp_path.iterdir())) == 1
    replace(path, b"new")
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_left_of_other_files_stays_until_its_folder_is_swept(tmp_path: Path) -> None:
    path, other = tmp_path / "state", tmp_path / "state.key"
    killed_while_it_writes(other)
    (left,) = tmp_path.iterdir()
    replace(path, b"new")
    assert sorted(tmp_path.iterdir()) == sorted([left, path])
    theirs = [tmp_path / name for name in (".state.tmp", ".0123abcd.tmp", "state.0123abcd.tmp", ".state.0123abcd.tmp~")]
    for one in theirs:
        one.touch()
    (tmp_path / ".folder.0123abcd.tmp").mkdir()
    (tmp_path / ".link.0123abcd.tmp").symlink_to(path)
    (tmp_path / ".agent.pem.4711.tmp").touch()  # as earlier releases called theirs, and locked none
    replace(path, b"newer")
    assert (tmp_path / ".agent.pem.4711.tmp").exists()
    sweep(tmp_path)
    kept = {path, *theirs, tmp_path / ".folder.0123abcd.tmp", tmp_path / ".link.0123abcd.tmp"}
    assert set(tmp_path.iterdir()) == kept
    sweep(tmp_path / "missing")


def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.part", "a.part", "a.whole"):
        (tmp_path / name).touch()
    assert listing(tmp_path, "*.part") == [tmp_path / "a.part", tmp_path / "b.part"]
    assert listing(tmp_path / "missing") == listing(tmp_path / "a.part") == []
    hide(monkeypatch, tmp_path)
    with pytest.raises(CannotWriteState, match="Too many open files"):
        listing(tmp_path, "*.part")


def test_a_file_that_another_process_writes_stays(tmp_path: Path) -> None:
    path = tmp_path / "state"
    code = (
        "import sys; from pathlib import Path; from histofed.base.durable import writing\n"
        f"with writing(Path({str(path)!r})) as file:\n"
        "    file.write(b'theirs'); print('open', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"open\n"
    sweep(tmp_path)
    replace(path, b"ours")
    assert path.read_bytes() == b"ours"
    child.communicate()
    assert child.returncode == 0
    assert path.read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [path]


def test_a_process_of_the_same_number_writes_a_file_of_its_own(tmp_path: Path) -> None:
    """Of another container, for instance."""
    path = tmp_path / "state"
    with writing(path) as first:
        first.write(b"first")
        with writing(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("moment", ["before the lock", "while the sweeper has the lock"])
def test_a_sweep_before_a_new_file_is_locked_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    path, flock = tmp_path / "state", fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        if moment == "before the lock":
            sweep(tmp_path)
            flock(descriptor, operation)
        else:
            (new,) = tmp_path.iterdir()
            new.unlink()
            raise BlockingIOError

    monkeypatch.setattr(fcntl, "flock", late)
    replace(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_who_never_gets_a_lock_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def held(descriptor: int, operation: int) -> None:
        raise BlockingIOError

    monkeypatch.setattr(fcntl, "flock", held)
    with pytest.raises(CannotWriteState, match=r"cannot write .*state"):
        replace(tmp_path / "state", b"new")
    assert not (tmp_path / "state").exists()


def test_a_file_system_without_locks_is_written_and_not_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    path = tmp_path / "state"
    with writing(path) as file:
        file.write(b"first")
        replace(path, b"second")
        sweep(tmp_path)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(CannotWriteState, match="nothing was acknowledged"):
        replace(tmp_path / "missing" / "state", b"x")


def test_adopt_renames(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    adopt(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"x"
    with pytest.raises(CannotWriteState):
        adopt(tmp_path / "a", tmp_path / "b")


def test_remove_takes_files_folders_and_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    remove(tmp_path / "link")
    assert (tmp_path / "folder").exists()
    for name in ("folder", "file", "nothing"):
        remove(tmp_path / name)
    remove(tmp_path / "no" / "such" / "place")
    assert list(tmp_path.iterdir()) == []


def test_only_a_removal_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with armed(monkeypatch, "remove.after_unlink=EIO"):
        remove(tmp_path / "nothing")
        with pytest.raises(CannotWriteState):
            remove(tmp_path / "file")


def test_directories_are_for_their_owner(tmp_path: Path) -> None:
    made = make_directory(tmp_path / "a" / "b")
    assert make_directory(made) == made
    assert made.stat().st_mode & 0o777 == 0o700


# -- AppendLog -----------------------------------------------------------------------------------------------------------


def test_appended_lines_are_there_after_reopening(tmp_path: Path) -> None:
    log = AppendLog(tmp_path / "log")
    log.append(b"one")
    log.append(b"two")
    log.close()
    log = AppendLog(tmp_path / "log")
    assert log.size == 8
    log.append(b"three")
    log.close()
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\nthree\n"


@pytest.mark.parametrize("torn", [b"", b"hal", b"x" * 200_000])
def test_a_torn_line_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    (tmp_path / "log").write_bytes(b"one\n" + torn)
    log = AppendLog(tmp_path / "log")
    log.append(b"two")
    log.close()
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"


def test_a_file_that_is_one_torn_line_becomes_empty(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"half")
    log = AppendLog(tmp_path / "log")
    assert (log.size, (tmp_path / "log").read_bytes()) == (0, b"")
    log.close()


@pytest.mark.parametrize("name", ["journal.before_fsync", "journal.after_fsync"])
@pytest.mark.parametrize("number", ["ENOSPC", "EIO"])
def test_a_failed_append_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: str) -> None:
    log = AppendLog(tmp_path / "log")
    log.append(b"one")
    with armed(monkeypatch, f"{name}={number}"), pytest.raises(CannotWriteState):
        log.append(b"a long line that fails")
    assert (tmp_path / "log").read_bytes() == b"one\n"
    log.append(b"two")
    log.close()
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"


def test_half_a_line_that_could_not_be_taken_back_at_once_is_taken_back_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AppendLog(tmp_path / "log")
    log.append(b"one")

    def refuse(descriptor: int, length: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch, armed(monkeypatch, "journal.before_fsync=EIO"):
        patch.setattr(os, "ftruncate", refuse)
        with pytest.raises(CannotWriteState):
            log.append(b"a long line that fails and stays")
    log.append(b"2")
    log.close()
    assert (tmp_path / "log").read_bytes() == b"one\n2\n"


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, offset: write(descriptor, data[:3], offset))
    log = AppendLog(tmp_path / "log")
    log.append(b"a line of words")
    log.close()
    assert (tmp_path / "log").read_bytes() == b"a line of words\n"


# -- lock ----------------------------------------------------------------------------------------------------------------


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    other = lock(tmp_path / "lock", "other")
    with (
        lock(tmp_path / "lock", "histofed-agent"),
        pytest.raises(AlreadyThere, match=f"agent, process {os.getpid()}"),
        other,
    ):
        pytest.fail("two hold it")
    with lock(tmp_path / "lock", "x"):
        assert (tmp_path / "lock").read_text() == f"x, process {os.getpid()}"


def test_the_kernel_lets_go_of_a_killed_holder(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from histofed.base.durable import lock\n"
        f"with lock(Path({str(tmp_path / 'lock')!r}), 'child'):\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    with pytest.raises(AlreadyThere, match="child"), lock(tmp_path / "lock", "x"):
        pass
    child.kill()
    child.communicate()
    with lock(tmp_path / "lock", "x"):
        pass


# -- what a power cut may find -------------------------------------------------------------------------------------------


def test_a_file_is_synced_before_it_gets_its_name_and_its_folder_before_anybody_hears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with disk_order(monkeypatch, tmp_path) as calls:
        replace(tmp_path / "state", b"new")
    assert calls == ["create .state.DRAWN.tmp", "sync .state.DRAWN.tmp 3", "rename .state.DRAWN.tmp state", "sync ."]


def test_what_is_renamed_or_linked_into_place_has_its_name_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "a").write_bytes(b"x")
    with disk_order(monkeypatch, tmp_path) as calls:
        adopt(tmp_path / "a", tmp_path / "there/b")
        link(tmp_path / "there/b", tmp_path / "c")
    assert calls == [
        *("rename a there/b", "sync there"),
        *("link there/b .c.PID.link", "rename .c.PID.link c", "sync ."),
    ]


def test_what_was_removed_is_gone_from_its_folder_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/inner").touch()
    with disk_order(monkeypatch, tmp_path) as calls:
        remove(tmp_path / "file")
        remove(tmp_path / "folder")
    assert calls == ["unlink file", "sync .", "unlink folder/inner", "unlink folder", "sync ."]


def test_a_folder_is_on_disk_with_all_that_lead_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with disk_order(monkeypatch, tmp_path) as calls:
        make_directory(tmp_path / "a/b/c")
        make_directory(tmp_path / "a/b/c")
    made, synced = calls[:-3], calls[-3:]
    assert [call for call in made if call.startswith("folder")] == ["folder a", "folder a/b", "folder a/b/c"]
    assert sorted(synced) == ["sync .", "sync a", "sync a/b"]


def test_a_line_is_synced_and_so_is_the_cut_of_a_torn_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with disk_order(monkeypatch, tmp_path) as calls:
        log = AppendLog(tmp_path / "log")
        log.append(b"one")
        log.close()
    assert calls == ["create log", "sync .", "sync log 4"]
    (tmp_path / "log").write_bytes(b"one\nhal")
    with disk_order(monkeypatch, tmp_path) as calls:
        AppendLog(tmp_path / "log").close()
    assert calls == ["sync .", "cut log 4", "sync log 4"]
