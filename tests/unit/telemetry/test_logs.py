"""Log lines for machines, for people and for the journal."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histofed.base.errors import ConfigError
from histofed.base.ids import ExperimentId, RoundKey, SiteId, TaskKey
from histofed.telemetry import journald
from histofed.telemetry.events import EVENTS, message_id
from histofed.telemetry.logs import JournalHandler, clean, complain, configure, fields, handler, priority


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """A logger that ends where the test says; the process's own handlers come back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield logging.getLogger("histofed.test")
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_machine_gets_one_object_per_line(log: logging.Logger) -> None:
    stream = io.StringIO()
    configure(environ={}, stream=stream)
    log.info("task %s", "accepted", extra=fields(round=3, site="north", msg="x"))
    log.debug("not told")
    (line,) = stream.getvalue().splitlines()
    told = json.loads(line)
    assert told.pop("ts").endswith("Z")
    assert told == {"level": "info", "logger": "histofed.test", "msg": "task accepted", "round": 3, "site": "north"}


def test_a_person_gets_words(log: logging.Logger) -> None:
    stream = Terminal()
    configure("DEBUG", environ={}, stream=stream)
    log.debug("task accepted", extra=fields(round=3))
    assert stream.getvalue()[9:] == "debug    task accepted round=3\n"


def test_the_journal_gets_priorities_or_structured_fields(
    log: logging.Logger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[str, dict[str, str]]] = []
    journal = types.ModuleType("systemd.journal")
    journal.send = lambda message, **entry: sent.append((message, entry))  # type: ignore[attr-defined]  # made here
    systemd = types.ModuleType("systemd")
    systemd.journal = journal  # type: ignore[attr-defined]  # made here
    with (tmp_path / "journal").open("w+") as stream:
        status = os.fstat(stream.fileno())
        environ = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        monkeypatch.setitem(sys.modules, "systemd", None)
        monkeypatch.setattr(journald, "SOCKET", tmp_path / "no journal listens here")
        configure(environ=environ, stream=stream)
        log.warning("disk is nearly full", extra=fields(free="4 %"))
        stream.seek(0)
        assert stream.read() == "<4>disk is nearly full free=4 %\n"
        monkeypatch.setitem(sys.modules, "systemd", systemd)
        monkeypatch.setitem(sys.modules, "systemd.journal", journal)
        monkeypatch.setattr(sys, "argv", ["/usr/bin/histofed-agent", "run"])
        configure(environ=environ, stream=stream)
    log.error("round abandoned", extra=fields(round=3, event="round.ended", **{"odd-name": "x"}))
    expected = {"PRIORITY": "3", "LOGGER": "histofed.test", "HISTOFED_ROUND": "3", "HISTOFED_ODD_NAME": "x"}
    named = {"HISTOFED_EVENT": "round.ended", "MESSAGE_ID": message_id("round.ended"), "SYSLOG_IDENTIFIER": "histofed-agent"}
    assert sent == [("round abandoned", expected | named)]


def test_a_task_is_told_by_its_experiment_round_and_site(log: logging.Logger) -> None:
    stream = io.StringIO()
    configure(environ={}, stream=stream)
    task = TaskKey(RoundKey(ExperimentId("demo"), 12), "train", SiteId("north"))
    log.info("task accepted", extra=fields(task, event="task.accepted"))
    told = json.loads(stream.getvalue())
    assert (told["experiment"], told["round"], told["site"], told["event"]) == ("demo", 12, "north", "task.accepted")


def test_every_event_that_is_told_is_in_the_table_and_the_other_way_round() -> None:
    root = Path(__file__).resolve().parents[3]
    sources = [
        path.read_text() for package in ("agent", "aggregator", "histofed") for path in (root / package).rglob("*.py")
    ]
    told = {name for text in sources for name in re.findall(r'(?:\bevent=|_event\()f?"([^"]+)"', text)}
    assert told == set(EVENTS)


def test_an_event_that_nobody_could_be_alerted_to_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'round\.begun' is no event"):
        fields(event="round.begun")


def test_message_ids_never_change() -> None:
    assert message_id("round.ended") == "05075e17aec5550099929800057838da"
    assert len({message_id(name) for name in EVENTS}) == len(EVENTS)


def test_the_last_words_of_a_command_are_an_error_in_the_journal(tmp_path: Path) -> None:
    with (tmp_path / "journal").open("w+") as stream:
        status = os.fstat(stream.fileno())
        complain("histofed-agent: no", environ={"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}, stream=stream)
        complain("histofed-agent: no", environ={}, stream=stream)
        stream.seek(0)
        assert stream.read() == "<3>histofed-agent: no\nhistofed-agent: no\n"


def test_a_stream_that_was_redirected_is_not_the_journal(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as stream:
        assert not isinstance(handler({"JOURNAL_STREAM": "8:1"}, stream), JournalHandler)


@pytest.mark.parametrize(
    ("level", "number"),
    [(logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7), (1, 7)],
)
def test_priorities_are_those_of_syslog(level: int, number: int) -> None:
    assert priority(level) == number


@given(st.text())
def test_a_line_is_one_line_without_control_characters(text: str) -> None:
    cleaned = clean(text)
    assert len(cleaned.splitlines()) <= 1
    assert not any(character < " " or "\x7f" <= character <= "\x9f" for character in cleaned)


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_nobody_can_forge_a_line_or_talk_to_the_terminal(log: logging.Logger, stream: io.StringIO) -> None:
    configure(environ={}, stream=stream)
    log.info("site %s", "north\n<0>forged\x1b[2J\x9b", extra=fields(site="a\r\nb\u202e"))
    written = stream.getvalue()
    assert written.count("\n") == 1
    assert not any(character in written for character in "\x1b\x9b\r\u202e")


def test_of_a_foreign_error_only_class_and_place_are_told(log: logging.Logger) -> None:
    stream = io.StringIO()
    configure(environ={}, stream=stream)
    try:
        Path("/srv/histology/TCGA-AA-3488/tile.png").read_bytes()
    except OSError:
        log.exception("a tile could not be read")
    told = json.loads(stream.getvalue())
    assert told["error"].startswith("FileNotFoundError at test_logs.test_of_a_foreign_error")
    assert "TCGA" not in stream.getvalue()


def test_our_own_errors_are_told_in_their_words(log: logging.Logger) -> None:
    stream = Terminal()
    configure(environ={}, stream=stream)
    log.error("not started", exc_info=ConfigError("agent.toml:3: there is no key 'x'"))
    assert stream.getvalue().splitlines()[1] == "    ConfigError: agent.toml:3: there is no key 'x'"
