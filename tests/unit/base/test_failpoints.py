"""What strikes at a failpoint, when, and what is said of a misspelt one."""

from __future__ import annotations

import errno

import pytest

from histofed.base import failpoints
from histofed.base.errors import CannotWriteState, ConfigError
from histofed.base.failpoints import failpoint
from tests.support.failpoints import armed


def test_a_failpoint_strikes_at_its_passage(monkeypatch: pytest.MonkeyPatch) -> None:
    with armed(monkeypatch, "blob.complete=EIO:3,blob.before_complete=ENOSPC"):
        failpoint("blob.complete")
        failpoint("blob.complete")
        with pytest.raises(OSError, match=r"blob\.complete") as caught:
            failpoint("blob.complete")
        assert caught.value.errno == errno.EIO
        failpoint("blob.complete")
        failpoint("agent.task_accepted")


def test_a_failpoint_may_strike_on_the_way_through_one_function_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Store:
        def put(self) -> None:
            failpoint("adopt.before_rename")

    class Output(Store):
        def put(self) -> None:
            failpoint("adopt.before_rename")

    with armed(monkeypatch, "adopt.before_rename@Store.put=EIO:2"):
        Output().put()
        Store().put()
        Output().put()
        failpoint("adopt.before_rename")
        with pytest.raises(OSError, match=r"adopt\.before_rename"):
            Store().put()


def test_between_two_writes_a_refusing_disk_is_told_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    with armed(monkeypatch, "agent.update_in_outbox=ENOSPC"), pytest.raises(CannotWriteState, match="No space left"):
        failpoint("agent.update_in_outbox")


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "nowhere=kill",
        "blob.complete",
        "blob.complete=",
        "blob.complete=explode",
        "blob.complete@Store.put",
        "nowhere@Store.put=kill",
        "blob.complete=errorcode",
        "blob.complete=kill:0",
        "blob.complete=kill:x",
        "blob.complete=kill:²",
    ],
)
def test_a_misspelt_failpoint_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="HISTOFED_FAILPOINTS"):
        failpoints._parse(text)


def test_nothing_is_armed_by_default() -> None:
    assert failpoints._parse("") is None
