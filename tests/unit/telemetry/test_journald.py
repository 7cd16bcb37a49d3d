"""The journal's own protocol, against a socket that listens as the journal does."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from histofed.telemetry import journald


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    """Where the entries arrive."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "socket"))
        yield listening


def test_an_entry_is_one_datagram_of_fields(journal: socket.socket) -> None:
    journald.sender(Path(journal.getsockname()))("round opened", PRIORITY="6", HISTOFED_ROUND="12")
    assert journal.recv(4096) == b"MESSAGE=round opened\nPRIORITY=6\nHISTOFED_ROUND=12\n"


def test_a_value_of_several_lines_cannot_begin_another_field() -> None:
    assert journald.encode({"REASON": "a\nPRIORITY=0"}) == b"REASON\n\x0c\0\0\0\0\0\0\0a\nPRIORITY=0\n"


def test_an_entry_too_large_for_a_datagram_travels_as_a_sealed_file(journal: socket.socket) -> None:
    words = "x" * 3_000_000
    journald.sender(Path(journal.getsockname()))(words)
    data, (memory,), _, _ = socket.recv_fds(journal, 4096, 1)
    try:
        assert data == b""
        assert os.pread(memory, 4_000_000, 0) == b"MESSAGE=" + words.encode() + b"\n"
        with pytest.raises(PermissionError):
            os.write(memory, b"changed")
    finally:
        os.close(memory)


def test_a_journal_that_was_started_again_is_found(journal: socket.socket, tmp_path: Path) -> None:
    send = journald.sender(tmp_path / "socket")
    send("before")
    journal.close()
    with pytest.raises(OSError):
        send("meanwhile")
    (tmp_path / "socket").unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as again:
        again.bind(str(tmp_path / "socket"))
        send("after")
        assert again.recv(4096) == b"MESSAGE=after\n"
