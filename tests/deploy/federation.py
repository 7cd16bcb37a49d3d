"""A federation on machines: founded, joined and operated with the commands that administrators type."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from histofed.tiles.draw import draw_tiles
from tests.deploy.machine import Machine
from tests.support.federation import CONSENT, Sight, task_of

AGENT: Final = "histofed-agent"
AGGREGATOR: Final = "histofed-aggregator"
TILES: Final = "/srv/histology"
_OPERATOR: Final = "/var/lib/histofed-aggregator/operator/operator.toml"


def found(machine: Machine, *hosts: str) -> None:
    """Configure the aggregator and make its federation; it does not run yet."""
    machine.write("/etc/histofed/aggregator.toml", f"public_hosts = {json.dumps(hosts)}\n")
    machine.run("histofed-aggregator", "init", user=AGGREGATOR)


def join(hub: Machine, machine: Machine, site: str, toml: str = "", *, door: str = "") -> None:
    """Configure an agent and enrol it as `site`; it does not run yet. The aggregator runs on `hub`.

    `door` is the address of the aggregator where the site knows it by another one than the first of its names.
    """
    data = f'[data]\nroot = "{TILES}"\ncache_dir = "/var/cache/histofed-agent"\n'
    machine.write("/etc/histofed/agent.toml", f"{toml}\n{data}")
    machine.write("/etc/histofed/consent.toml", CONSENT)
    line = operate(hub, "token", "create", "--site", site)["join_line"]
    if door:
        kind, _, rest = line.split(" ", 2)
        line = f"{kind} {door}:8444 {rest}"
    machine.run("histofed-agent", "enroll", user=AGENT, text=f"{line}\n")


def operate(hub: Machine, *words: str) -> Any:
    """`histofed ... --json` as the operator; the document."""
    return json.loads(hub.run("histofed", "--config", _OPERATOR, "--json", *words).stdout)


def submit(hub: Machine, toml: str) -> str:
    """Submit an experiment; its name."""
    hub.write("/run/experiment.toml", toml)
    name: str = operate(hub, "experiments", "submit", "/run/experiment.toml")["experiment"]["name"]
    return name


@contextmanager
def watching(hub: Machine, experiment: str) -> Iterator[Callable[[Callable[[Sight], bool]], Sight]]:
    """`rounds watch --json`, also over restarts of the aggregator; call what is given to wait for a document."""
    with hub.reading("histofed", "--config", _OPERATOR, "--json", "rounds", "watch", experiment) as documents:

        def until(wanted: Callable[[Sight], bool]) -> Sight:
            last: Sight = {}
            for line in documents:
                last = json.loads(line)
                if wanted(last):
                    return last
            raise AssertionError(f"not seen of {experiment}; last: {json.dumps(last, indent=1)}\n{hub.log()}")

        yield until


def trains(site: str, steps: int = 1) -> Callable[[Sight], bool]:
    """The site has told of that many steps of the round's training."""

    def wanted(sight: Sight) -> bool:
        task = task_of(sight, site) if sight["round"] is not None else {}
        return task.get("phase") == "train" and task["done"] >= steps

    return wanted


def ended(sight: Sight) -> bool:
    """The experiment has ended."""
    return sight["experiment"]["ended_at"] is not None


def drawn_tiles(folder: Path, seed: int) -> dict[Path, str]:
    """Tiles of one hospital, as a bind for its machine."""
    folder.mkdir(parents=True)
    draw_tiles(folder, patients_per_class=4, tiles_per_patient=2, size=48, seed=seed)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return {folder: TILES}


def committed(hub: Machine, experiment: str) -> Sequence[Mapping[str, Any]]:
    """The rounds that were committed."""
    listed = operate(hub, "rounds", "list", experiment)["rounds"]
    return [each for each in listed if each["state"] == "committed"]
