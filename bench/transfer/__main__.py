"""What a blob costs on the wire: upload and download over mutual TLS, against a raw Python TLS socket in the same run.

    .venv/bin/python -m bench.transfer [--mib 512] [--repeats 3] [--json FILE]

Every case runs in two processes of its own, client and server; what counts is their CPU, user and system, per 1000 MB
(10^9 bytes). The peer sends the same file in the same 1 MiB pieces through `ssl` sockets with the same certificates, and
its receiver hashes and writes to disk with fdatasync every 32 MiB, as ours does. Repeats are interleaved and the median
of each case is taken, so that a busy machine treats all alike. Target: at most 2.5 times the peer.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

from bench.result import Result, at_most, hand_over
from bench.transfer.case import run
from bench.transfer.ours import download, serve_download, serve_upload, upload
from bench.transfer.raw_tls import send_raw, serve_raw
from bench.transfer.setting import Setting, prepare
from histofed.transport import limits

TARGET = 2.5
COMMAND = "python -m bench.transfer"
CASES: dict[str, tuple[Callable[[Setting, Pipe], None], Callable[[Setting, int], None]]] = {
    "raw TLS socket": (serve_raw, send_raw),
    "upload": (serve_upload, upload),
    "download": (serve_download, download),
}


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
    rows = [at_most("raw TLS socket, CPU of both ends", peer, "s/GB", None, COMMAND)]
    for name, value in cost.items():
        rows.append(at_most(f"blob {name}, CPU of both ends", value, "s/GB", None, COMMAND, peer))
        rows.append(at_most(f"blob {name} / raw TLS socket", value / peer, "x", TARGET, COMMAND, peer))
    return rows


def main() -> None:
    """Print a table; write the rows as JSON where asked."""
    arguments = argparse.ArgumentParser(description="CPU of blob transfers against a raw TLS socket")
    arguments.add_argument("--mib", type=int, default=512, help="size of the blob in MiB")
    arguments.add_argument("--repeats", type=int, default=3, help="runs of each case; the median counts")
    arguments.add_argument("--json", type=Path, help="write the rows here")
    options = arguments.parse_args()
    hand_over(measure(options.mib, options.repeats), options.json)


if __name__ == "__main__":
    main()
