"""The processes that play a step together, one for each device of a site: accumulation in parallel (`docs/adr/0012`).

A batch is dealt in parts (`Rules.accumulate`), each with random numbers of its own. Every process deals the whole batch,
plays its share of the parts, and adds its gradients to the others'. So as many processes as there are parts do what one
process does alone: bit for bit with two, and to rounding with more, where sums are taken in another order.

Before every sum all say that they are ready: whoever has failed says so instead, and then nobody waits for a gradient that
will not come. Who is frozen and says nothing is given up after `PATIENCE_S`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

import torch
from torch import Tensor

from histofed.base.errors import TryLater
from histofed.base.ids import Json, canonical, sha256

PATIENCE_S: Final = 600.0
"""Longer than a checkpoint and a sample sheet take, for which the first process keeps the others waiting."""
_READY, _FAILED = 0, 1
Part = TypeVar("Part")


class TeamBroken(Exception):
    """Another process of the team has failed or is gone; `teamwork.py` knows which, and says it in its own words."""


class Team:
    """One process alone: all parts are its own, and there is nobody to agree with."""

    rank, size = 0, 1

    @property
    def leads(self) -> bool:
        """Whether this process reports, writes and decides."""
        return self.rank == 0

    def share(self, parts: Sequence[Part]) -> list[tuple[int, Part]]:
        """This process's parts, each with its number in the batch."""
        each = len(parts) // self.size
        return list(enumerate(parts))[self.rank * each : (self.rank + 1) * each]

    def decided(self, choice: int) -> int:
        """The first process's choice, a small number. Raises what broke the team, or `TeamBroken`."""
        return choice

    def alike(self, mine: int) -> bool:
        """Whether all processes give the same number, below 2**63. Raises what broke the team, or `TeamBroken`."""
        return True

    def require_alike(self, work: Mapping[str, Json]) -> None:
        """Raises `TryLater` where the processes would not begin with the same, and what broke the team, or `TeamBroken`."""
        # each process has read tiles and checkpoint for itself; gradients of two networks, or decks, have no sum
        if not self.alike(int(sha256(canonical(work))[:15], 16)):
            raise TryLater("the tiles changed while this training started; start it again once they no longer change")

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes. Raises what broke the team, or `TeamBroken`."""


ALONE: Final = Team()


class Together(Team):
    """One of several. Made by `teamwork.py`, inside a process group of torch's."""

    def __init__(
        self, rank: int, size: int, talk: torch.distributed.ProcessGroup, explain: Callable[[], Exception] = TeamBroken
    ) -> None:
        self.rank, self.size = rank, size
        self._talk = talk  # over the host's memory, so that agreeing waits for no GPU
        self._explain = explain
        self._broken = False

    def decided(self, choice: int) -> int:
        return self._exchange(_READY, choice)[0]

    def alike(self, mine: int) -> bool:
        return len(set(self._exchange(_READY, mine))) == 1

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        from accelerate.utils import reduce

        self._exchange(_READY, 0)
        try:
            # one message for all of them; the order of summation is the library's and the same every time
            flat: Tensor = reduce(torch.cat([tensor.flatten() for tensor in tensors]), "sum")
        except RuntimeError as error:
            raise self._lost() from error
        for tensor, total in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view(tensor.shape))

    def withdraw(self) -> None:
        """Tell the others, who are at their next exchange or on the way to it, that this process has failed."""
        if not self._broken:
            self._exchange(_FAILED, 0)

    def _exchange(self, state: int, choice: int) -> list[int]:
        """What each process chose."""
        mine = torch.tensor([state, choice])
        all_of_them = [torch.empty_like(mine) for _ in range(self.size)]
        try:
            torch.distributed.all_gather(all_of_them, mine, group=self._talk)
        except RuntimeError as error:
            raise self._lost() from error
        if state == _READY and any(int(one[0]) == _FAILED for one in all_of_them):
            raise self._lost()
        return [int(one[1]) for one in all_of_them]

    def _lost(self) -> Exception:
        self._broken = True
        return self._explain()
