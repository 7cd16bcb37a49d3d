"""What a life of the aggregator has instead of child processes and of gRPC, and what is to happen to its machine."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from aggregator.jobs import Job
from aggregator.worker import perform
from histofed.base.errors import WorkerKilled, WorkerLost
from tests.faults.simulation.virtual import VirtualClock


@dataclass
class Trouble:
    """What is to happen to this machine."""

    cut_after: int = 0
    """The power goes at this passage of a failpoint from now; 0 for not."""
    refuses: float = 0.0
    """Share of the writes that the disk refuses."""
    lost_workers: float = 0.0
    """Share of the jobs whose child process keeps being killed, or hangs when it is."""

    def heal(self) -> None:
        """Nothing more."""
        self.cut_after, self.refuses, self.lost_workers = 0, 0.0, 0.0


class InlineWorkers:
    """`Workers` without processes: a job takes some virtual time, and then no time at all."""

    def __init__(self, trouble: Trouble, clock: VirtualClock, random: Random) -> None:
        self._trouble = trouble
        self._clock = clock
        self._random = random

    async def run(self, job: Job) -> Any:
        """Do the job. Raises what it raises, `WorkerKilled` and `WorkerLost`."""
        await self._clock.sleep(self._random.expovariate(1 / 0.2))
        if self._random.random() < self._trouble.lost_workers:
            raise self._random.choice((WorkerKilled, WorkerLost))("the child process was killed, again and again")
        return perform(job)


@dataclass(frozen=True)
class Called:
    """As much of a gRPC call as the servicers ask for."""

    site: str
    certificate: bytes

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"x509_pem_cert": [self.certificate]}

    def peer(self) -> str:
        return f"sim:{self.site}"

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()
