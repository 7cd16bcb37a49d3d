"""The peers' rounds beside ours, in one run: NVFLARE and Flower by their scripts, each in an environment of its own.

The scripts (`flower_round.py`, `nvflare_round.py`) are not part of this repository: they start the peer's own daemons with
TLS on this machine and write what a round cost as JSON. Ours runs first and again last, so that a machine that grew slower
or quicker meanwhile shows; the better of the two counts for neither side alone, their mean does.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.result import Result, at_most
from bench.rounds import ours

COMMAND: Final = "python -m bench.rounds peers"
LIMIT_S: Final = 3000
_SERVER: Final[Mapping[str, tuple[str, ...]]] = {
    "nvflare": ("server parent", "server job"),
    "flower": ("superlink", "serverapp", "superexec"),
}
"""The roles that together do what our aggregator does."""


@dataclass(frozen=True)
class Peer:
    """What one peer's script found."""

    name: str
    median_round_s: float
    cpu_s_per_site_round: float
    server_resident_mib: int
    rounds: tuple[float, ...]


def peer(name: str, scripts: Path, python: Path, sites: int, size: str, rounds: int) -> Peer:
    """Run a peer's script. Raises `SystemExit` with its last words when it fails."""
    with tempfile.TemporaryDirectory(prefix="histofed-bench-") as folder:
        target = Path(folder) / "result.json"
        command = [str(python), str(scripts / f"{name}_round.py"), "--sites", str(sites), "--rounds", str(rounds)]
        command += ["--size", size, "--json", str(target), "--work", str(Path(folder) / "work"), "--limit", str(LIMIT_S)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S + 300, check=False, cwd=folder)
        if not target.exists():
            raise SystemExit(f"{name}: exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        found: dict[str, Any] = json.loads(target.read_text())
    peaks = found["peak_mib_by_role"]
    return Peer(
        name,
        found["median_round_s"],
        found["cpu_s_per_site_round"],
        sum(peaks.get(role, 0) for role in _SERVER[name]),
        tuple(found["round_s"]),
    )


def compare(before: ours.Rounds, after: ours.Rounds, peers: list[Peer], targets: Mapping[str, float]) -> list[Result]:
    """Our rounds over theirs: wall time with a target, CPU and memory for information."""
    size, sites = before.size, before.sites
    wall = statistics.mean((before.median_round_s, after.median_round_s))
    cpu = statistics.mean((before.cpu_s_per_site_round, after.cpu_s_per_site_round))
    memory = max(before.aggregator_resident_mib, after.aggregator_resident_mib)
    what = f"round of {sites} sites, {size}"
    rows = [
        at_most(f"{what}: wall time", wall, "s", None, COMMAND),
        at_most(f"{what}: CPU per site, both ends", cpu, "s", None, COMMAND),
        at_most(f"{what}: aggregator's peak, mapped files included", memory, "MiB", None, COMMAND),
    ]
    for one in peers:
        target = targets.get(one.name)
        rows += [
            at_most(f"{what}: wall time / {one.name}", wall / one.median_round_s, "x", target, COMMAND, one.median_round_s),
            at_most(
                f"{what}: CPU / {one.name}", cpu / one.cpu_s_per_site_round, "x", None, COMMAND, one.cpu_s_per_site_round
            ),
            at_most(
                f"{what}: memory / {one.name}",
                memory / max(one.server_resident_mib, 1),
                "x",
                None,
                COMMAND,
                one.server_resident_mib,
            ),
        ]
    return rows
