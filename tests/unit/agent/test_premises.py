"""What the daemon says of a consent file and of tiles that no task could use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.config import AgentConfig, DataConfig
from agent.premises import check_root, faults
from histofed.base.errors import ConfigError


def test_a_site_that_allows_nothing_and_has_no_tiles_is_not_wrong(tmp_path: Path) -> None:
    assert faults(AgentConfig(consent=tmp_path / "none.toml")) == ()


def test_both_are_looked_at_whatever_the_other_is(tmp_path: Path) -> None:
    consent = tmp_path / "consent.toml"
    consent.write_text("maximum_steps = -1\n")
    wrong, away = faults(AgentConfig(consent=consent, data=DataConfig(root=tmp_path / "tiles")))
    assert wrong.startswith(f"{consent}:1: 'maximum_steps' is not allowed")
    assert away.endswith("mount the tiles or correct the setting")
    consent.write_text("maximum_steps = 1\n")
    assert faults(AgentConfig(consent=consent, data=DataConfig(root=tmp_path / "tiles"))) == (away,)


def test_a_root_that_cannot_be_looked_at_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder above it is closed to this user, or the server of its mount has forgotten it."""

    def closed(path: Path) -> bool:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(Path, "is_dir", closed)
    with pytest.raises(ConfigError, match=r"cannot be looked at by this user \(\d+\): Permission denied"):
        check_root(tmp_path)
