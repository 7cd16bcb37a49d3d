"""Private tensors (moments, a local discriminator) that never leave the site and advance only with the round.

A training writes the private tensors of its round as *pending*, beside what is committed. Only when the aggregator says
"round r was committed with your update in it" (`settled_round` of the next offer) do the pending tensors of r become the
committed ones. An update that was rejected, or came too late, so leaves no trace in the site's next training. When the
aggregator was restored from a backup, `settled_round` goes back, and the tensors of that round are here again if the backup
was its newest one; otherwise training starts with fresh ones.

On disk: `private/EXPERIMENT/ROUND.safetensors`, one file per round that may still matter, and the committed round's number
in the state file. Order of an advance: the row first, then the deletion of the others, so that a crash between the two
leaves at most a file too many.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from agent.state import State
from histofed.base import durable
from histofed.base.failpoints import failpoint
from histofed.base.ids import ExperimentId, RoundKey
from histofed.telemetry.logs import fields

log = logging.getLogger(__name__)


class PrivateTensors:
    """The private tensors of one site, over all experiments."""

    def __init__(self, folder: Path, state: State) -> None:
        self._folder = durable.make_directory(folder)
        self._state = state

    def settle(self, work: RoundKey, settled_round: int, backup_rounds: Sequence[int] = ()) -> int:
        """Before work on `work` begins: commit what the aggregator says was committed. Returns the committed round.

        Pending tensors of `work` itself stay: its update may be on its way. A committed round whose tensors this site
        does not have (its state was lost) means a fresh start, and returns 0. Those of `backup_rounds` stay as well, and
        those of the site's next round after each: an aggregator that is restored from its newest backup goes back to the
        former, or, when this site's update was in the backup and its round was still open, commits that round and asks for
        the latter. There are two as long as nobody knows whether the newest will be whole.
        """
        experiment = work.experiment
        committed = settled_round if settled_round and self._file(RoundKey(experiment, settled_round)).exists() else 0
        if settled_round and not committed and self._state.private_round(experiment) != 0:
            log.warning(
                "the private tensors of round %d are not here any more; training starts with fresh ones",
                settled_round,
                extra=fields(experiment=experiment, round=work.number),
            )
        if committed != self._state.private_round(experiment):
            self._state.set_private_round(experiment, committed)
        failpoint("agent.private_state_advanced")
        kept = {number for backup_round in backup_rounds for number in self._since(experiment, backup_round)}
        self._forget_all_but(experiment, {committed, work.number, *kept})
        return committed

    def has(self, key: RoundKey) -> bool:
        """Whether the tensors that training on this round wrote are here."""
        return self._file(key).exists()

    def committed(self, experiment: ExperimentId) -> Path | None:
        """The tensors to start from; None for a fresh start."""
        number = self._state.private_round(experiment)
        return self._file(RoundKey(experiment, number)) if number else None

    def add_pending(self, work: RoundKey, written: Path) -> None:
        """Take over what training on `work` wrote. Nothing happens when it wrote nothing, or it was taken over before."""
        if written.exists():
            durable.make_directory(self._file(work).parent)
            durable.adopt(written, self._file(work))

    def experiments(self) -> tuple[ExperimentId, ...]:
        """Experiments of which something is kept, by name. Raises `CannotWriteState`."""
        return tuple(ExperimentId(path.name) for path in durable.listing(self._folder) if path.is_dir())

    def forget(self, experiment: ExperimentId) -> None:
        """The experiment has ended. Row first, as in every advance: what a crash leaves is asked about again."""
        self._state.set_private_round(experiment, 0)
        durable.remove(self._folder / experiment)

    def _file(self, key: RoundKey) -> Path:
        return self._folder / key.experiment / f"{key.number}.safetensors"

    def _since(self, experiment: ExperimentId, backup_round: int) -> tuple[int, ...]:
        """The round of a backup and the first one after it that is here.

        The one after a backup in which nothing is committed yet counts as much: a restored aggregator commits it with this
        site's update, although the round was abandoned in the history that was lost.
        """
        here = sorted(int(path.stem) for path in durable.listing(self._folder / experiment, "*.safetensors"))
        return (backup_round, *[number for number in here if number > backup_round][:1])

    def _forget_all_but(self, experiment: ExperimentId, rounds: set[int]) -> None:
        for path in durable.listing(self._folder / experiment, "*.safetensors"):
            if path.name not in {f"{number}.safetensors" for number in rounds}:
                durable.remove(path)
