"""Log lines: for the journal under systemd, for machines as JSON, for people in a terminal.

- stderr is the journal (JOURNAL_STREAM): structured fields, through systemd-python where it is installed, else by the
  journal's own protocol (`journald.py`); where its socket is not there, lines with the `<N>` priority that it reads;
- stderr is a terminal: time, level, words;
- otherwise: one JSON object per line (`ts`, `level`, `logger`, `msg`, and the fields).

Control characters are removed from every text, so that nobody who controls a name can forge a line or talk to a terminal.
Of an exception that is not ours only the class and the places in the code are told: its message may quote a file name.
Fields are for identifiers that may leave the site (round, site, experiment, digest, counts), never for paths or patients.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TextIO

from histofed.base.clock import iso
from histofed.base.errors import HistofedError
from histofed.base.ids import RoundKey, TaskKey
from histofed.telemetry import journald
from histofed.telemetry.events import EVENTS, message_id

FieldValue = bool | int | float | str | None
JournalSend = Callable[..., object]
"""`systemd.journal.send`."""

# C0 and C1 control characters, line and paragraph separators, and the marks that turn the direction of text
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")
_FIELD: Final = re.compile(r"[^A-Z0-9_]")
_PRIORITIES: Final = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))


def configure(level: str = "INFO", *, environ: Mapping[str, str] = os.environ, stream: TextIO | None = None) -> None:
    """Send all logging of this process to one place; once, in `main`. `level` is a name such as `INFO`."""
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler(environ, sys.stderr if stream is None else stream))
    root.setLevel(level)
    # the SDK repeats every failed export at length; its warnings and errors are enough
    logging.getLogger("opentelemetry").setLevel(logging.WARNING)


def handler(environ: Mapping[str, str], stream: TextIO) -> logging.Handler:
    """The handler that suits where `stream` leads."""
    if _is_journal(environ, stream):
        if (send := _journal_send()) is not None:
            return JournalHandler(send, Path(sys.argv[0]).name)
        return _to(stream, PriorityFormatter())
    return _to(stream, HumanFormatter() if stream.isatty() else JsonFormatter())


def fields(about: RoundKey | TaskKey | None = None, /, **values: FieldValue) -> dict[str, object]:
    """Identifiers of a line: `log.info("task accepted", extra=fields(task, event="task.accepted"))`.

    A round is told as `experiment` and `round`, a task as these and `site`; an `event` is one of `events.EVENTS`.
    Raises `ValueError` for another: nobody could be alerted to it.
    """
    if (event := values.get("event")) is not None and event not in EVENTS:
        raise ValueError(f"{event!r} is no event of histofed.telemetry.events")
    return {"histofed_fields": {**_identifiers(about), **values}}


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "ts": _moment(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": message(record),
            **{name: value for name, value in fields_of(record).items() if name not in {"ts", "level", "logger", "msg"}},
        }
        if (error := _error(record)) is not None:
            line["error"] = error
        return json.dumps(line, ensure_ascii=False)


class HumanFormatter(logging.Formatter):
    """For a terminal: local words, fields behind."""

    def format(self, record: logging.LogRecord) -> str:
        told = "".join(f" {name}={value}" for name, value in fields_of(record).items())
        error = _error(record)
        return f"{_moment(record)[11:19]} {record.levelname.lower():8} {message(record)}{told}" + (
            f"\n    {error}" if error else ""
        )


class PriorityFormatter(logging.Formatter):
    """`<6>message field=value`: sd-daemon(3)."""

    def format(self, record: logging.LogRecord) -> str:
        told = "".join(f" {name}={value}" for name, value in fields_of(record).items())
        error = _error(record)
        return f"<{priority(record.levelno)}>{message(record)}{told}" + (f" [{error}]" if error else "")


class JournalHandler(logging.Handler):
    """Structured entries: MESSAGE, PRIORITY, HISTOFED_ROUND, HISTOFED_SITE ..."""

    def __init__(self, send: JournalSend, identifier: str) -> None:
        """`identifier` is the name that `journalctl` shows before each line."""
        super().__init__()
        self._send = send
        self._identifier = identifier

    def emit(self, record: logging.LogRecord) -> None:
        entry = {"PRIORITY": str(priority(record.levelno)), "SYSLOG_IDENTIFIER": self._identifier, "LOGGER": record.name}
        entry |= {f"HISTOFED_{_FIELD.sub('_', name.upper())}": str(value) for name, value in fields_of(record).items()}
        if (error := _error(record)) is not None:
            entry["HISTOFED_ERROR"] = error
        if (event := entry.get("HISTOFED_EVENT", "")) in EVENTS:
            entry["MESSAGE_ID"] = message_id(event)
        try:
            self._send(message(record), **entry)
        except OSError:
            self.handleError(record)


def complain(words: str, *, environ: Mapping[str, str] = os.environ, stream: TextIO | None = None) -> None:
    """The last words of a command that cannot do its work: one line on stderr, which is an error in the journal too."""
    target = sys.stderr if stream is None else stream
    target.write(f"{'<3>' if _is_journal(environ, target) else ''}{words}\n")


def clean(text: str) -> str:
    """`text` without control characters, each run of which becomes one space."""
    return _CONTROL.sub(" ", text)


def message(record: logging.LogRecord) -> str:
    """The words of a line, in one line."""
    return clean(record.getMessage())


def fields_of(record: logging.LogRecord) -> dict[str, FieldValue]:
    """What `fields` attached, cleaned."""
    attached: Mapping[str, FieldValue] = getattr(record, "histofed_fields", {})
    return {clean(name): clean(value) if isinstance(value, str) else value for name, value in attached.items()}


def priority(level: int) -> int:
    """syslog's number for a level of `logging`."""
    return next(number for least, number in _PRIORITIES if level >= least)


def _error(record: logging.LogRecord) -> str | None:
    """An exception in one line: class, our own message, and the places in the code, innermost last."""
    if not record.exc_info or record.exc_info[1] is None:
        return None
    error = record.exc_info[1]
    words = f": {clean(str(error))}" if isinstance(error, HistofedError) else ""
    frames = traceback.extract_tb(error.__traceback__)
    places = " > ".join(f"{Path(frame.filename).stem}.{frame.name}:{frame.lineno}" for frame in frames)
    return f"{type(error).__name__}{words}" + (f" at {places}" if places else "")


def _moment(record: logging.LogRecord) -> str:
    return iso(datetime.fromtimestamp(record.created, UTC))


def _to(stream: TextIO, formatter: logging.Formatter) -> logging.Handler:
    to_stream = logging.StreamHandler(stream)
    to_stream.setFormatter(formatter)
    return to_stream


def _is_journal(environ: Mapping[str, str], stream: TextIO) -> bool:
    """Whether `stream` is the journal's own socket: JOURNAL_STREAM is inherited, also by what was redirected since."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _journal_send() -> JournalSend | None:
    try:
        from systemd import journal
    except ImportError:
        return journald.sender() if journald.SOCKET.exists() else None
    send: JournalSend = journal.send
    return send


def _identifiers(about: RoundKey | TaskKey | None) -> dict[str, FieldValue]:
    match about:
        case TaskKey():
            return {**_identifiers(about.round), "site": about.site}
        case RoundKey():
            return {"experiment": about.experiment, "round": about.number}
    return {}
