"""Three deaths in mid-round, as the peers' fault scripts stage them, on our daemons: what becomes of the run.

Two sites and a tiny model, tasks that last some seconds; in the second round one process gets SIGKILL, and a daemon that
was killed is started again after `DOWN_S` seconds. Told is what an operator wants to know: whether the experiment ends by
itself, with every round committed and every site's work in it.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from bench.result import Result, at_most
from bench.rounds import ours
from tests.support.federation import Federation
from tests.support.processes import trainers

TRAIN_S: Final = 8.0
DOWN_S: Final = 7.0
ROUNDS: Final = 4
LIMIT_S: Final = 600.0
VICTIM: Final = "site-02"
COMMAND: Final = "python -m bench.rounds faults"


def server_killed(federation: Federation) -> None:
    """The aggregator dies and is started again."""
    federation.daemons["aggregator"].stop(signal.SIGKILL)
    time.sleep(DOWN_S)
    federation.start_aggregator()


def trainer_killed(federation: Federation) -> None:
    """One site's training process dies."""
    (trainer,) = trainers(federation.daemons[VICTIM].pid)
    os.kill(trainer, signal.SIGKILL)


def site_killed(federation: Federation) -> None:
    """One site's daemon dies, its trainer with it, and is started again."""
    federation.daemons[VICTIM].stop(signal.SIGKILL)
    time.sleep(DOWN_S)
    federation.start_agent(VICTIM)


CASES: Final[dict[str, Callable[[Federation], None]]] = {
    "server-killed": server_killed,
    "trainer-killed": trainer_killed,
    "site-killed": site_killed,
}


def run(names: Sequence[str]) -> list[Result]:
    """The cases by name, all by default."""
    if unknown := sorted({*names} - {*CASES}):
        raise SystemExit(f"there is no case {unknown[0]!r}; there are {', '.join(CASES)}")
    return [row for name in names or CASES for row in _case(name, CASES[name])]


def _case(name: str, strike: Callable[[Federation], None]) -> list[Result]:
    with tempfile.TemporaryDirectory(prefix="histofed-bench-") as folder, Federation(Path(folder)) as federation:
        ours.start(federation, 2)
        federation.submit(ours.experiment("exchange", 2, "tiny", ROUNDS, TRAIN_S))
        _wait_for_training(federation)
        print(json.dumps({"case": name, "round": 2, "what": "SIGKILL"}), flush=True)
        strike(federation)
        sight = federation.wait_until_ended("exchange", LIMIT_S)
        found: list[dict[str, Any]] = federation.cli("rounds", "list", "exchange")["rounds"]
    lost = sum(len(one["sampled"]) - len(one["admitted"]) for one in found)
    committed = sum(one["state"] == "committed" for one in found)
    print(
        json.dumps({"case": name, "state": sight["experiment"]["state"], "committed": committed, "lost": lost}), flush=True
    )
    return [
        at_most(f"{name}: rounds not committed", ROUNDS - committed, "of 4", 0, COMMAND),
        at_most(f"{name}: updates of sites lost", lost, "of 8", 0, COMMAND),
    ]


def _wait_for_training(federation: Federation) -> None:
    """Until both trainers of round 2 run."""

    def in_second(sight: Any) -> bool:
        state = sight["round"]
        return state is not None and state["round"] == 2 and all(task["state"] == "accepted" for task in state["tasks"])

    federation.wait_until_seen("exchange", in_second)
    limit = time.monotonic() + 60
    while not trainers(federation.daemons[VICTIM].pid):
        if time.monotonic() > limit:
            raise SystemExit("no trainer was started")
        time.sleep(0.05)
    time.sleep(min(3.0, TRAIN_S / 2))
