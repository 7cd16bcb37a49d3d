"""A thousand sites: errors, the time until a sampled site has its offer, memory, and what a round costs.

    python -m bench.fleet [--enrolled 1000] [--sampled 100] [--rounds 50] [--weights 5000000] [--processes 4]
    python -m bench.fleet --growth                 # the same with small models: cost by sampled and by enrolled sites

The aggregator is the real daemon; sites are those of `bench/fleet/lean.py`. Dispatch is the time from the moment at which a
round opened, as the aggregator wrote it down, until the offer was read at the site's end of its stream. Everything shares
this machine's cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from aggregator import schema
from aggregator.config import AggregatorConfig
from aggregator.database import Database
from aggregator.setup import load
from bench.result import Result, at_most, hand_over
from bench.rounds.meter import cpu_seconds, memory, tree
from histofed.base.clock import SystemClock, iso
from histofed.pki.credentials import Credentials
from histofed.pki.keys import new_key, signing_request
from tests.support.daemons import DaemonProcess
from tests.support.federation import FEDERATION, Federation

COMMAND: Final = "python -m bench.fleet"
DISPATCH_TARGET_S: Final = 2.0
MEMORY_TARGET: Final = 1.1
ENROLLED_TARGET: Final = 1.25
"""Cost of a round at twice as many enrolled sites, as many sampled."""
SAMPLED_TARGET: Final = 2.3
"""Cost of a round at twice as many sampled sites."""
SETTLED: Final = 10
"""Rounds after which memory should not grow any more."""
LIMIT_S: Final = 7200.0


@dataclass(frozen=True)
class Fleet:
    """What was seen of one run."""

    errors: tuple[str, ...]
    admitted: int
    dispatch_s: tuple[float, ...]
    round_s: tuple[float, ...]
    cpu_s: tuple[float, ...]
    """The aggregator's and its workers', per round."""
    anonymous: tuple[int, ...]
    """Bytes of the aggregator at the end of each round."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--enrolled", type=int, default=1000)
    parser.add_argument("--sampled", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--weights", type=int, default=5_000_000)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--growth", action="store_true", help="compare fleets and samples of several sizes")
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args()
    if options.growth:
        hand_over(_growth(options.processes), options.json)
        return
    found = run(options.enrolled, options.sampled, options.rounds, options.weights, options.processes)
    hand_over(_rows(found, options.enrolled, options.sampled, options.weights), options.json)


def _rows(found: Fleet, enrolled: int, sampled: int, weights: int) -> list[Result]:
    what = f"{enrolled} sites, {sampled} per round, {weights / 1e6:g} M weights"
    for error in sorted(set(found.errors))[:10]:
        print(error)
    dispatch = statistics.quantiles(found.dispatch_s, n=100)
    settled = min(SETTLED, len(found.anonymous)) - 1
    return [
        at_most(f"{what}: errors in {len(found.round_s)} rounds", len(found.errors), "", 0, COMMAND),
        at_most(f"{what}: dispatch, median", dispatch[49], "s", None, COMMAND),
        at_most(f"{what}: dispatch, p99", dispatch[98], "s", DISPATCH_TARGET_S, COMMAND),
        at_most(f"{what}: round, median", statistics.median(found.round_s), "s", None, COMMAND),
        at_most(f"{what}: aggregator's CPU per round", statistics.median(found.cpu_s), "s", None, COMMAND),
        at_most(
            f"{what}: aggregator's memory, last round / round {settled + 1}",
            found.anonymous[-1] / found.anonymous[settled],
            "x",
            MEMORY_TARGET,
            COMMAND,
            found.anonymous[settled] / 1e6,
        ),
    ]


def _growth(processes: int) -> list[Result]:
    costs = {}
    for enrolled, sampled in ((500, 50), (1000, 50), (1000, 100)):
        found = run(enrolled, sampled, 8, 1000, processes)
        costs[enrolled, sampled] = statistics.median(found.cpu_s[1:])
        print(f"{enrolled} enrolled, {sampled} sampled: {costs[enrolled, sampled]:.3f} s of CPU a round", flush=True)
    command = f"{COMMAND} --growth"
    few, wide, many = costs[500, 50], costs[1000, 50], costs[1000, 100]
    return [
        at_most("CPU of a round, 1000 enrolled / 500", wide / few, "x", ENROLLED_TARGET, command, few),
        at_most("CPU of a round, 100 sampled / 50", many / wide, "x", SAMPLED_TARGET, command, wide),
    ]


def run(enrolled: int, sampled: int, rounds: int, weights: int, processes: int) -> Fleet:
    """A fleet for one experiment."""
    with tempfile.TemporaryDirectory(prefix="histofed-bench-") as name, Federation(Path(name)) as federation:
        _enrol(federation, enrolled)
        daemon = federation.start_aggregator()
        with _loads(federation, enrolled, processes) as told:
            _wait(lambda: sum(1 for line in told if line["what"] == "connected") >= enrolled, 300)
            federation.submit(
                f'name = "fleet"\nrecipe = "exchange"\nrounds = {rounds}\n'
                f"[sampling]\nminimum = {sampled}\nfraction = {sampled / enrolled}\n[round]\nquorum = {sampled}\n"
                f"[config]\nweights = {weights}\n"
            )
            marks = list(_marks(federation, daemon.pid, rounds, told))
        found: list[dict[str, Any]] = federation.cli("rounds", "list", "fleet")["rounds"]
    opened = {one["round"]: datetime.fromisoformat(one["opened_at"]).timestamp() for one in found}
    took = [datetime.fromisoformat(one["committed_at"]).timestamp() - opened[one["round"]] for one in found]
    return Fleet(
        errors=tuple(line.get("error", "not admitted") for line in told if _is_error(line)),
        admitted=sum(1 for line in told if line.get("admitted")),
        dispatch_s=tuple(line["at"] - opened[_round_of(line)] for line in told if line["what"] == "offer"),
        round_s=tuple(took),
        cpu_s=tuple(after[0] - before[0] for before, after in pairwise(marks)),
        anonymous=tuple(mark[1] for mark in marks[1:]),
    )


def _is_error(line: Mapping[str, Any]) -> bool:
    return line["what"] == "error" or line.get("admitted") is False


def _round_of(line: Mapping[str, Any]) -> int:
    return int(str(line["task"]).split("/")[1])


def _enrol(federation: Federation, count: int) -> None:
    """Certificates by the federation's own CA, and the rows that enrolment would have written."""
    clock = SystemClock()
    config = AggregatorConfig(federation=FEDERATION, state_dir=federation.state)
    authority = load(config, clock).authority
    folder = federation.folder / "sites"
    folder.mkdir()
    now, sites, certificates = iso(clock.now()), [], []
    for number in range(count):
        name, key = f"s{number:05}", new_key()
        issued = authority.issue(authority.site(name), signing_request(key))
        Credentials.make(key, issued.certificate_pem, authority.certificate_pem).save(folder / f"{name}.pem")
        sites.append({"name": name, "enrolled_at": now, "left_at": now})
        certificates.append(
            {
                "serial": issued.serial,
                "identity": issued.identity.uri,
                "issued_at": now,
                "expires_at": iso(issued.not_after),
            }
        )
    database = Database(federation.state / "state.db")
    with database.writing() as connection:
        connection.execute(sa.insert(schema.sites), sites)
        connection.execute(sa.insert(schema.certificates), certificates)
    database.close()


@contextmanager
def _loads(federation: Federation, enrolled: int, processes: int) -> Iterator[Sequence[dict[str, Any]]]:
    """The load processes; what they told so far."""
    told: list[dict[str, Any]] = []
    each = -(-enrolled // processes)
    with ExitStack() as stack:
        for first in range(0, enrolled, each):
            command = [sys.executable, "-m", "bench.fleet.lean", federation.address, str(federation.folder)]
            command += [str(first), str(min(each, enrolled - first))]
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            stack.callback(process.kill)
            threading.Thread(target=_read, args=(process, told), daemon=True).start()
        yield told


def _read(process: subprocess.Popen[str], told: list[dict[str, Any]]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        told.append(json.loads(line))
    told.append({"what": "ended", "code": process.wait()})


def _marks(federation: Federation, pid: int, rounds: int, told: Sequence[Mapping[str, Any]]) -> Iterator[tuple[float, int]]:
    """CPU and memory of the aggregator at the start and at the end of each round."""
    yield _mark(pid)
    daemon = federation.daemons["aggregator"]
    for number in range(1, rounds + 1):
        _wait(partial(_ended, daemon, number, told), LIMIT_S)
        mark = _mark(pid)
        print(f"round {number}: {mark[0]:.1f} s of CPU so far, {mark[1] / 1e6:.0f} MB", flush=True)
        yield mark


def _ended(daemon: DaemonProcess, number: int, told: Sequence[Mapping[str, Any]]) -> bool:
    """Whether this round did. Raises `SystemExit` when nobody is left who could end it."""
    if not daemon.running:
        raise SystemExit(f"the aggregator ended:\n{daemon.tail()}")
    if codes := [line["code"] for line in told if line["what"] == "ended"]:
        raise SystemExit(f"a load process ended with exit code {codes[0]}")
    return len(daemon.logged('"msg": "round ended"')) >= number


def _mark(pid: int) -> tuple[float, int]:
    return sum(map(cpu_seconds, tree(pid))), memory(pid, "RssAnon")


def _wait(ready: Any, seconds: float) -> None:
    limit = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > limit:
            raise SystemExit(f"not after {seconds:.0f} s")
        time.sleep(0.1)


if __name__ == "__main__":
    main()
