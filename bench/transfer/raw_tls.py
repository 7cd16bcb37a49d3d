"""The peer: the same file through Python's `ssl` sockets, hashed and written to disk by who receives it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import ssl
from collections.abc import Iterator
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

from bench.transfer.setting import Setting
from histofed.transport import limits


def serve_raw(setting: Setting, pipe: Pipe) -> None:
    """Take one file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    _trust(context, setting, "aggregator")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        pipe.send(listening.getsockname()[1])
        plain, _ = listening.accept()
        with context.wrap_socket(plain, server_side=True) as secure:
            assert _receive(secure, setting) == setting.sha256
            secure.sendall(b"done")
    pipe.recv()


def send_raw(setting: Setting, port: int) -> None:
    """Send it, and wait for the word that it is on disk."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _trust(context, setting, "site")
    with (
        socket.create_connection(("localhost", port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
        setting.source.open("rb", buffering=0) as file,
    ):
        while piece := file.read(limits.CHUNK):
            secure.sendall(piece)
        assert secure.recv(4) == b"done"


def _trust(context: ssl.SSLContext, setting: Setting, who: str) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=setting.credentials(who).ca_pem.decode())
    context.load_cert_chain(setting.folder / f"{who}.pem")


def _receive(secure: ssl.SSLSocket, setting: Setting) -> str:
    """Hash and write what comes, synced in the same stretches as ours."""
    found, done, synced = hashlib.sha256(), 0, 0
    buffer = bytearray(limits.CHUNK)
    view = memoryview(buffer)
    with _writing(setting.folder / "received-raw") as descriptor:
        while done < setting.size:
            filled = 0
            while filled < min(len(buffer), setting.size - done):
                filled += secure.recv_into(view[filled:])
            found.update(view[:filled])
            os.write(descriptor, view[:filled])
            done += filled
            if done - synced >= limits.SYNC_EVERY:
                os.fdatasync(descriptor)
                synced = done
        os.fdatasync(descriptor)
    return found.hexdigest()


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
