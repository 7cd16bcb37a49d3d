"""How long a person waits for the command line: start of `histofed --help` and of `histofed status`.

    .venv/bin/python -m bench.start [--runs 15] [--json FILE]

`status` asks a real aggregator on this machine over mutual TLS; the aggregator is made in a temporary folder for the
measurement. Medians of wall time; the baseline is a bare interpreter in the same run. The start of an aggregating child
(its whole life with a model of one weight) is told without a target: it is part of every round.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from aggregator.aggregate import AggregateJob, UpdateInput
from aggregator.jobs import encode_job
from bench.result import Result, at_most, hand_over
from histofed import weights

BIN = Path(sys.executable).parent
COMMAND = "python -m bench.start"
TARGET_S = 0.4
READY_S = 30.0
"""Seconds that the aggregator may take to answer for the first time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="histofed-bench-") as name:
        hand_over(measure(Path(name), options.runs), options.json)


def measure(folder: Path, runs: int) -> list[Result]:
    """Every command, `runs` times."""
    bare = median_seconds([sys.executable, "-c", "pass"], runs)
    usage = median_seconds([str(BIN / "histofed"), "--help"], runs)
    with aggregator(folder) as operator:
        status = median_seconds([str(BIN / "histofed"), "--config", str(operator), "status"], runs)
    child = median_seconds([sys.executable, "-P", "-m", "aggregator.worker", str(os.getpid())], runs, smallest_job(folder))
    return [
        at_most("histofed --help", usage, "s", TARGET_S, COMMAND, bare),
        at_most("histofed status", status, "s", TARGET_S, COMMAND, bare),
        at_most("aggregating child, one weight", child, "s", None, COMMAND, bare),
    ]


def median_seconds(command: list[str], runs: int, stdin: bytes = b"") -> float:
    """Median wall time of a command that must succeed, after one that warms the caches."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    # an installed package has its bytecode on disk; this variable would compile it anew at every start
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    taken = []
    for _ in range(runs + 1):
        begin = time.perf_counter()
        done = subprocess.run(command, input=stdin, capture_output=True, env=environment, check=False)
        taken.append(time.perf_counter() - begin)
        if done.returncode != 0:
            raise SystemExit(f"{Path(command[0]).name} {' '.join(command[1:])}: {done.stderr.decode(errors='replace')}")
    return statistics.median(taken[1:])


@contextlib.contextmanager
def aggregator(folder: Path) -> Iterator[Path]:
    """A running aggregator; its operator's configuration file."""
    config, state, operator = folder / "aggregator.toml", folder / "state", folder / "operator"
    ports = dict(zip(("grpc", "enrolment", "health", "metrics"), free_ports(4), strict=True))
    listen = "\n".join(f'{name} = "127.0.0.1:{port}"' for name, port in ports.items())
    config.write_text(f'federation = "bench.example"\nstate_dir = "{state}"\nlog_level = "ERROR"\n[listen]\n{listen}\n')
    daemon = str(BIN / "histofed-aggregator")
    subprocess.run([daemon, "init", "--config", config, "--operator-dir", operator], check=True, stdout=subprocess.DEVNULL)
    with subprocess.Popen([daemon, "run", "--config", config]) as process:
        try:
            wait_until_it_answers(process, operator / "operator.toml")
            yield operator / "operator.toml"
        finally:
            process.terminate()


def wait_until_it_answers(process: subprocess.Popen[bytes], operator: Path) -> None:
    """Ask for the status until it comes. Raises `SystemExit` when it does not."""
    command = [str(BIN / "histofed"), "--config", str(operator), "status"]
    begin = time.monotonic()
    while (done := subprocess.run(command, capture_output=True, check=False)).returncode != 0:
        if process.poll() is not None or time.monotonic() - begin > READY_S:
            raise SystemExit(f"the aggregator did not start: {done.stderr.decode(errors='replace')}")
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def smallest_job(folder: Path) -> bytes:
    """An aggregation of one update of one weight."""
    update = folder / "update"
    weights.save(update, {"w": np.zeros(1, np.float32)})
    return encode_job(AggregateJob(update, (UpdateInput("north", update, 1),), None, (), 1, folder / "next", None))


if __name__ == "__main__":
    main()
