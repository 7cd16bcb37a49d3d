"""Root in a daemon's folder is told to become the daemon's user, before anything is spent or made."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from histofed.base import checkup, durable
from histofed.base.doctor import Doubt
from histofed.base.errors import ConfigError
from histofed.base.owner import owner_beside_root, refuse_root

NOBODY = 65534


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
