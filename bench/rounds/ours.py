"""Rounds of the `exchange` recipe through an aggregator and agents, each a daemon under mutual TLS, on this machine."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from bench.rounds.meter import Meter
from tests.support.federation import Federation

WEIGHTS: Final[dict[str, tuple[int, int]]] = {
    "vit_b16": (86_567_656, 152),
    "tenth": (8_656_765, 152),
    "tiny": (1000, 1),
}
"""Values and tensors; ViT-B/16 with 1,000 classes, as the peers' scripts have it, and a tenth of it for small machines."""
LIMIT_S: Final = 1800.0


@dataclass(frozen=True)
class Rounds:
    """What rounds cost; the first, in which everything starts, is left out of the medians."""

    sites: int
    size: str
    round_s: tuple[float, ...]
    median_round_s: float
    cpu_s_per_site_round: float
    """All processes of both ends."""
    aggregator_cpu_s: float
    sites_cpu_s: float
    aggregator_resident_mib: int
    aggregator_anonymous_mib: int
    load_average: float


def experiment(name: str, sites: int, size: str, rounds: int, delay_s: float = 0.0) -> str:
    """The experiment file of a run: every site in every round, none may be missing."""
    weights, tensors = WEIGHTS[size]
    return (
        f'name = "{name}"\nrecipe = "exchange"\nrounds = {rounds}\n'
        f"[sampling]\nminimum = {sites}\n[round]\nquorum = {sites}\n"
        f"[config]\nweights = {weights}\ntensors = {tensors}\ndelay_s = {delay_s}\n"
    )


def run(sites: int, size: str, rounds: int, folder: Path | None = None) -> Rounds:
    """Start a federation, let it do `rounds` rounds, and say what they cost."""
    with tempfile.TemporaryDirectory(prefix="histofed-bench-", dir=folder) as name, Federation(Path(name)) as federation:
        names = start(federation, sites)
        daemons = {site: federation.daemons[site].pid for site in names}
        roots = {"aggregator": (federation.daemons["aggregator"].pid,), "sites": tuple(daemons.values())}
        with Meter(roots) as meter:
            federation.submit(experiment("exchange", sites, size, rounds))
            # not by watching the rounds, which would cost the aggregator a part of what is measured
            federation.daemons["aggregator"].wait_logged('"event": "experiment.', LIMIT_S)
        return _costs(federation, meter, sites, size)


def start(federation: Federation, sites: int) -> tuple[str, ...]:
    """An aggregator and `sites` agents, ready and waiting for work; their names."""
    names = tuple(f"site-{number:02}" for number in range(1, sites + 1))
    federation.start_aggregator()
    for site in names:
        federation.enrol(site)
    federation.start_agents(*names)
    for site in names:
        federation.daemons[site].wait_notified("waits for work")
    return names


def _costs(federation: Federation, meter: Meter, sites: int, size: str) -> Rounds:
    found: list[dict[str, Any]] = federation.cli("rounds", "list", "exchange")["rounds"]
    found.sort(key=lambda one: int(one["round"]))
    if any(one["state"] != "committed" for one in found):
        raise SystemExit(f"not every round was committed: {json.dumps(found, indent=1)}\n{federation.logs()}")
    ends = [datetime.fromisoformat(one["committed_at"]).timestamp() for one in found]
    first = datetime.fromisoformat(found[0]["opened_at"]).timestamp()
    seconds = [end - begin for begin, end in zip([first, *ends], ends, strict=False)]
    steady = seconds[1:] or seconds
    begin = ends[0] if len(ends) > 1 else first
    return Rounds(
        sites=sites,
        size=size,
        round_s=tuple(round(one, 3) for one in seconds),
        median_round_s=round(statistics.median(steady), 3),
        cpu_s_per_site_round=round(meter.cpu_between(begin, ends[-1]) / (sites * len(steady)), 3),
        aggregator_cpu_s=round(meter.cpu("aggregator"), 2),
        sites_cpu_s=round(meter.cpu("sites"), 2),
        aggregator_resident_mib=meter.peak_resident("aggregator") >> 20,
        aggregator_anonymous_mib=meter.peak_anonymous("aggregator") >> 20,
        load_average=os.getloadavg()[0],
    )


def show(found: Rounds) -> str:
    """The numbers, one a line."""
    return "\n".join(f"{key:28} {value}" for key, value in asdict(found).items())
