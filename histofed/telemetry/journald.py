"""Structured entries for systemd's journal by its native protocol, where systemd-python is not installed.

One datagram is one entry: `FIELD=value` lines, and values of several lines behind their length. An entry that is too large
for a datagram travels as a sealed memory file. Called by `logs.py`, which says what the fields are.

Source: systemd's documentation, "Native Journal Protocol".
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from array import array
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

SOCKET: Final = Path("/run/systemd/journal/socket")
_TOO_LARGE: Final = frozenset({errno.EMSGSIZE, errno.ENOBUFS})
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
"""The journal takes only memory that nobody can change any more."""


def sender(path: Path = SOCKET) -> Callable[..., object]:
    """A function like `systemd.journal.send`; its calls raise `OSError` where no journal listens."""

    def send(message: str, **entry: str) -> None:
        data = encode({"MESSAGE": message, **entry})
        # one for each entry: a journal that was restarted listens on a new socket of the same name
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
            try:
                connection.sendto(data, str(path))
            except OSError as error:
                if error.errno not in _TOO_LARGE:
                    raise
                _send_as_file(connection, data, path)

    return send


def encode(entry: Mapping[str, str]) -> bytes:
    """The bytes of one entry."""
    return b"".join(_field(name.encode(), value.encode(errors="replace")) for name, value in entry.items())


def _field(name: bytes, value: bytes) -> bytes:
    if b"\n" in value:
        return name + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"
    return name + b"=" + value + b"\n"


def _send_as_file(connection: socket.socket, data: bytes, path: Path) -> None:
    memory = os.memfd_create("histofed-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(memory, "wb", closefd=False) as file:
            file.write(data)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
        # socket.send_fds of Python 3.11 forgets the address
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [memory]))
        connection.sendmsg([b""], [rights], 0, str(path))
    finally:
        os.close(memory)
