"""One end of a transfer as a process of its own, so that a test can freeze it (SIGSTOP).

python -m tests.support.transfer_peer serve FOLDER FEDERATION PEM STALL     says `port N`, then serves until it is killed
python -m tests.support.transfer_peer upload|download PORT PEM FILE SHA256 BYTES PACE STALL     says `at N` and `done`
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from random import Random

from histofed.base.clock import SystemClock
from histofed.base.ids import Digest
from histofed.pki.credentials import Credentials
from histofed.transport import blobs, limits, tls
from histofed.transport.channel import open_connection
from histofed.transport.pace import Pace
from tests.support.pki import Federation, fixed
from tests.support.wire import serving

TASK = "gan/1/train/north"


def say(words: str) -> None:
    print(words, flush=True)


async def serve(folder: str, federation: str, pem: str, stall_s: str) -> None:
    credentials = tls.server_credentials(fixed(Credentials.load(Path(pem))))
    async with serving(Path(folder), Federation(federation), credentials=credentials, stall_s=float(stall_s)) as wire:
        wire.permissions.released |= wire.store.digests()
        say(f"port {wire.port}")
        await asyncio.Event().wait()


async def move(way: str, port: str, pem: str, file: str, sha256: str, size: str, pace: str, stall_s: str) -> None:
    clock, path, digest = SystemClock(), Path(file), Digest(sha256)
    options = {
        "clock": clock,
        "random": Random(0),
        "pace": Pace(clock, int(pace)),
        "stall_s": float(stall_s),
        "progress": lambda done, total: say(f"at {done}"),
    }
    async with open_connection(f"localhost:{port}", Credentials.load(Path(pem))) as connection:
        if way == "upload":
            await blobs.upload(connection, path, digest, task=TASK, **options)  # type: ignore[arg-type]  # each has its type
        else:
            await blobs.download(connection, digest, path, size=int(size), **options)  # type: ignore[arg-type]  # as above
    say("done")


if __name__ == "__main__":
    limits.ACK_EVERY_S = -1.0  # type: ignore[misc]  # every piece is acknowledged, so that a test can follow
    what, *words = sys.argv[1:]
    asyncio.run(serve(*words) if what == "serve" else move(what, *words))
