"""What a blob costs on the wire: upload and download over mutual TLS, against a raw Python TLS socket in the same run.

    .venv/bin/python -m bench.transfer [--mib 512] [--repeats 3] [--json FILE]

Every case runs in two processes of its own, client and server; what counts is their CPU, user and system, per 1000 MB
(10^9 bytes). The peer sends the same file in the same 1 MiB pieces through `ssl` sockets with the same certificates, and
its receiver hashes and writes to disk with fdatasync every 32 MiB, as ours does. Repeats are interleaved and the median
of each case is taken, so that a busy machine treats all alike. Target: at most 2.5 times the peer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import resource
import socket
import ssl
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

from histofed.base.clock import SystemClock
from histofed.base.ids import Digest, TaskKey
from histofed.pki.authority import Authority
from histofed.pki.credentials import Credentials
from histofed.pki.keys import new_key, signing_request
from histofed.transport import blobs, frames, limits, tls
from histofed.transport.blob_service import BlobService
from histofed.transport.channel import open_connection
from histofed.transport.gate import Caller
from histofed.transport.server import bind, fleet_gate, make_server
from histofed.transport.store import BlobStore

TARGET = 2.5
TASK = "bench/1/train/north-clinic"
COMMAND = "python -m bench.transfer"


@dataclass(frozen=True)
class Result:
    """One row of `bench/results.json`."""

    name: str
    value: float
    unit: str
    target: float | None
    met: bool | None
    baseline: float | None
    command: str


@dataclass(frozen=True)
class Setting:
    """What both processes of a case need."""

    folder: Path
    size: int
    sha256: Digest

    @property
    def source(self) -> Path:
        return self.folder / "source"

    def credentials(self, who: str) -> Credentials:
        return Credentials.load(self.folder / f"{who}.pem")


def measure(mib: int, repeats: int) -> list[Result]:
    """Run every case `repeats` times and compare."""
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        setting = prepare(Path(folder), mib * limits.MIB)
        for _ in range(repeats):
            for name, (server, client) in CASES.items():
                seconds[name].append(run(server, client, setting) / (setting.size / 1e9))
                for left in (*setting.folder.glob("store/*"), *setting.folder.glob("received*")):
                    left.unlink()
    cost = {name: statistics.median(values) for name, values in seconds.items()}
    peer = cost.pop("raw TLS socket")
    rows = [Result("raw TLS socket, CPU of both ends", round(peer, 2), "s/GB", None, None, None, COMMAND)]
    for name, value in cost.items():
        ratio = value / peer
        rows.append(Result(f"blob {name}, CPU of both ends", round(value, 2), "s/GB", None, None, round(peer, 2), COMMAND))
        rows.append(
            Result(f"blob {name} / raw TLS socket", round(ratio, 2), "x", TARGET, ratio <= TARGET, round(peer, 2), COMMAND)
        )
    return rows


def prepare(folder: Path, size: int) -> Setting:
    """A federation, and a file of random bytes, already in the page cache."""
    authority = Authority.create("bench", SystemClock())
    for who, identity, hosts in (
        ("aggregator", authority.aggregator(), ("localhost", "127.0.0.1")),
        ("site", authority.site("north-clinic"), ()),
    ):
        key = new_key()
        issued = authority.issue(identity, signing_request(key), hosts=hosts)
        Credentials.make(key, issued.certificate_pem, authority.certificate_pem).save(folder / f"{who}.pem")
    found = hashlib.sha256()
    with (folder / "source").open("wb") as file:
        for _ in range(size // limits.MIB):
            piece = os.urandom(limits.MIB)
            found.update(piece)
            file.write(piece)
    return Setting(folder, size, Digest(found.hexdigest()))


def run(server: Callable[[Setting, Pipe], None], client: Callable[[Setting, int], None], setting: Setting) -> float:
    """One case in two fresh processes; CPU seconds of the transfer, both ends together."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    ours2, theirs2 = spawn.Pipe()
    serving = spawn.Process(target=_serve, args=(server, setting, theirs))
    serving.start()
    port = ours.recv()
    calling = spawn.Process(target=_call, args=(client, setting, port, theirs2))
    calling.start()
    client_s = ours2.recv()
    ours.send("stop")
    server_s = ours.recv()
    for process in (calling, serving):
        process.join()
        if process.exitcode:
            sys.exit(f"a process of the benchmark failed with {process.exitcode}")
    return float(client_s + server_s)


def _serve(server: Callable[[Setting, Pipe], None], setting: Setting, pipe: Pipe) -> None:
    before = cpu_s()
    server(setting, pipe)  # sends its port, returns when told to stop
    pipe.send(cpu_s() - before)


def _call(client: Callable[[Setting, int], None], setting: Setting, port: int, pipe: Pipe) -> None:
    before = cpu_s()
    client(setting, port)
    pipe.send(cpu_s() - before)


def cpu_s() -> float:
    """User and system time of this process, all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


# ---- ours


class _Anyone:
    """Every site may do everything."""

    async def may_upload(self, who: Caller, task: TaskKey, sha256: Digest, size: int) -> None: ...

    async def received(self, who: Caller, task: TaskKey, sha256: Digest, size: int) -> None: ...

    async def may_download(self, who: Caller, sha256: Digest) -> None: ...

    async def base_of(self, task: TaskKey) -> Digest | None:
        return None

    async def may_compare(self, who: Caller, sha256: Digest, held: Digest) -> bool:
        return False


def serve_upload(setting: Setting, pipe: Pipe) -> None:
    asyncio.run(_serve_blobs(BlobStore(setting.folder / "store"), setting, pipe))


def serve_download(setting: Setting, pipe: Pipe) -> None:
    store = BlobStore(setting.folder / "store")
    os.link(setting.source, store.path(setting.sha256))
    asyncio.run(_serve_blobs(store, setting, pipe))


async def _serve_blobs(store: BlobStore, setting: Setting, pipe: Pipe) -> None:
    clock = SystemClock()
    server = make_server(fleet_gate("bench", denied=lambda serial: False, clock=clock))
    frames.serve(BlobService(store, _Anyone(), clock), server)
    port = bind(server, "127.0.0.1:0", tls.server_credentials(setting.credentials("aggregator")))
    await server.start()
    pipe.send(port)
    await asyncio.to_thread(pipe.recv)
    await server.stop(None)


def upload(setting: Setting, port: int) -> None:
    async def transfer() -> None:
        async with open_connection(f"localhost:{port}", setting.credentials("site")) as connection:
            await blobs.upload(
                connection, setting.source, setting.sha256, task=TASK, clock=SystemClock(), random=random.Random(0)
            )

    asyncio.run(transfer())


def download(setting: Setting, port: int) -> None:
    async def transfer() -> None:
        async with open_connection(f"localhost:{port}", setting.credentials("site")) as connection:
            await blobs.download(
                connection,
                setting.sha256,
                setting.folder / "received",
                size=setting.size,
                clock=SystemClock(),
                random=random.Random(0),
            )

    asyncio.run(transfer())


# ---- the peer


def serve_raw(setting: Setting, pipe: Pipe) -> None:
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


CASES: dict[str, tuple[Callable[[Setting, Pipe], None], Callable[[Setting, int], None]]] = {
    "raw TLS socket": (serve_raw, send_raw),
    "upload": (serve_upload, upload),
    "download": (serve_download, download),
}


def main() -> None:
    """Print a table; write the rows as JSON where asked."""
    arguments = argparse.ArgumentParser(description="CPU of blob transfers against a raw TLS socket")
    arguments.add_argument("--mib", type=int, default=512, help="size of the blob in MiB")
    arguments.add_argument("--repeats", type=int, default=3, help="runs of each case; the median counts")
    arguments.add_argument("--json", type=Path, help="write the rows here")
    options = arguments.parse_args()
    rows = measure(options.mib, options.repeats)
    for row in rows:
        judged = "" if row.target is None else f"   target <= {row.target} {'met' if row.met else 'MISSED'}"
        print(f"{row.name:44} {row.value:8.2f} {row.unit:5}{judged}")
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
