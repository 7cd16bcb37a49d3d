"""Root in a daemon's folder is told to become the daemon's user, before anything is spent or made."""

from __future__ import annotations

import errno
import os
import pwd
from pathlib import Path

import pytest

from histofed.base import checkup, durable
from histofed.base.doctor import Doubt
from histofed.base.errors import CannotWriteState, ConfigError, NotOurs
from histofed.base.owner import denial, in_words, owner_beside_root, refuse_others, refuse_root
from tests.support.users import NOBODY, as_nobody, mounted_read_only, needs_root, open_tmp_path

tmp_path = open_tmp_path


@pytest.fixture
def daemons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of another user's, looked at by root."""
    folder = durable.make_directory(tmp_path / "state")
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
    else:
        # who is not root has to be told that it is
        monkeypatch.setattr(os, "geteuid", lambda: 0)
    return folder


def test_root_is_told_which_line_to_type(daemons: Path) -> None:
    owner = daemons.owner()
    with pytest.raises(ConfigError, match=f"belongs to {owner}.*runuser -u {owner} -- histofed-agent enroll"):
        refuse_root(daemons, "histofed-agent enroll")


def test_a_doctor_that_root_asked_says_that_root_sees_more(daemons: Path) -> None:
    found = checkup.state_directory(daemons, 1, "init")
    assert isinstance(found, Doubt)
    assert "root sees and may more than the daemon" in found.words


def test_an_owner_without_a_name_is_a_number(daemons: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody_known(number: int) -> pwd.struct_passwd:
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", nobody_known)
    assert owner_beside_root(daemons) == str(daemons.stat().st_uid)


def test_ones_own_folder_and_one_that_is_not_there_yet_are_fine(tmp_path: Path) -> None:
    refuse_root(tmp_path, "histofed-agent enroll")
    refuse_root(tmp_path / "none", "histofed-agent enroll")
    assert owner_beside_root(tmp_path / "none") is None


@needs_root
def test_another_users_folder_is_refused_with_both_names_and_the_line_to_type(tmp_path: Path) -> None:
    state = durable.make_directory(tmp_path / "state")
    sentence = (
        f"{state} belongs to root, and this command runs as nobody: as root, put `runuser -u root --` before this command"
    )
    with as_nobody():
        with pytest.raises(NotOurs) as caught:
            refuse_others(state, "histofed-agent backup")
        assert str(caught.value) == sentence
        with pytest.raises(NotOurs) as caught, in_words():
            (state / "journal" / "lock").read_bytes()
        assert str(caught.value) == sentence
        refuse_others(tmp_path / "none", "histofed-agent backup")


@needs_root
def test_where_only_making_is_refused_it_is_said(tmp_path: Path) -> None:
    with as_nobody(), pytest.raises(NotOurs, match=f"{tmp_path} .*who may make nothing there"):
        durable.make_directory(tmp_path / "state")


@needs_root
def test_ones_own_file_is_opened_by_its_mode_and_anothers_in_ones_own_folder_is_given_back(tmp_path: Path) -> None:
    state = durable.make_directory(tmp_path / "state")
    own, left = state / "own", state / "left"
    own.touch(0o400)
    left.touch(0o600)
    os.chown(state, NOBODY, NOBODY)
    os.chown(own, NOBODY, NOBODY)
    with as_nobody():
        assert f"its mode 0400 forbids it: chmod u+rw {own}" in str(denial(own))
        words = f"{left} belongs to root, in a folder of nobody.*as root, chown nobody {left}"
        with pytest.raises(NotOurs, match=words), durable.lock(left, "test"):
            pass


@needs_root
def test_a_disk_that_is_mounted_read_only_is_no_missing_right(tmp_path: Path) -> None:
    state = durable.make_directory(tmp_path / "state")
    (state / "state.db").touch(0o600)
    words = "is on a file system that is mounted read-only: remount it, or repair the disk"
    with mounted_read_only(state):
        with pytest.raises(CannotWriteState, match=f"{state} {words}") as caught:
            refuse_others(state, "histofed-agent run")
        assert caught.value.exit_code == 73
        told = denial(state / "state.db")
        assert (type(told), str(told)) == (CannotWriteState, f"{state / 'state.db'} {words}")
        with pytest.raises(CannotWriteState, match=words):
            checkup.state_directory(state, 1, "init")
        with as_nobody(), pytest.raises(NotOurs, match="belongs to root"):
            refuse_others(state, "histofed-agent run")


def test_a_refusal_without_a_path_is_left_as_it_is() -> None:
    with pytest.raises(PermissionError), in_words():
        raise PermissionError(1, "Operation not permitted")


def test_a_file_in_the_state_directorys_place_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("in the way")
    with pytest.raises(ConfigError, match=f"^{tmp_path}/state is no folder"):
        refuse_others(tmp_path / "state", "histofed-agent run")


def test_a_path_that_cannot_be_used_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    words = f"^{tmp_path}/file/status.json: Not a directory; name another place$"
    with pytest.raises(CannotWriteState, match=words), in_words():
        (tmp_path / "file" / "status.json").read_bytes()
    with (
        pytest.raises(CannotWriteState, match=r"^/state/journal: Input/output error; repair the disk$"),
        in_words(),
    ):
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/state/journal")


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file", "/state/ca.crt"),
        OSError(9, "Bad file descriptor"),
        OSError(24, "Too many", "/a"),
    ],
)
def test_what_is_an_error_of_ours_is_left_as_it_is(error: OSError) -> None:
    with pytest.raises(type(error)) as caught, in_words():
        raise error
    assert caught.value is error


@pytest.mark.parametrize("filename", [None, "lock"])
def test_a_missing_right_is_never_a_full_disk(tmp_path: Path, filename: str | None) -> None:
    with pytest.raises(NotOurs) as caught, durable.state_errors("the lock"):
        raise PermissionError(1, "Operation not permitted", *([str(tmp_path / filename)] if filename else []))
    assert "free space" not in str(caught.value)
    assert "Operation not permitted" in str(caught.value)


def test_a_file_in_a_folders_place_is_never_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CannotWriteState, match="a file is where a folder must be"):
            durable.make_directory(folder)
