"""What the daemon says of a consent file and of tiles that no task could use."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from agent.config import AgentConfig, DataConfig
from agent.premises import Premises, check_root, faults
from histofed.base.errors import ConfigError
from tests.support.agent_site import until


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


async def test_a_look_that_fails_is_not_the_last_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    premises, errors = Premises(), [RuntimeError("can't start new thread")]

    def config() -> AgentConfig:
        if errors:
            raise errors.pop()
        return AgentConfig(consent=tmp_path / "none.toml", data=DataConfig(root=tmp_path / "tiles"))

    premises.look_again()
    watching = asyncio.create_task(premises.watch(config))
    await until(lambda: bool(premises.faults) or watching.done())
    assert premises.faults[0].endswith("mount the tiles or correct the setting")
    assert "could not be looked at" in caplog.text
    watching.cancel()


def test_a_root_that_cannot_be_looked_at_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder above it is closed to this user, or the server of its mount has forgotten it."""

    def closed(path: Path) -> bool:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(Path, "is_dir", closed)
    with pytest.raises(ConfigError, match=r"cannot be looked at by this user \(\d+\): Permission denied"):
        check_root(tmp_path)
