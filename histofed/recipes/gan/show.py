"""What a run in one place tells whoever watches it: a bar for a person, lines for a log, nothing at all. No torch.

`central.py` calls a show; `histofed/cli/training_show.py` has those of the command line. A show touches no random number and
changes nothing of the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from histofed.recipes.contract import Progress


@dataclass(frozen=True)
class Span:
    """What is to be done now."""

    first: int
    """Steps that were done before."""
    last: int
    """The step at which this call ends; the run may go on in another one."""
    steps: int
    """Of the whole run."""
    batch: int


class Show(Protocol):
    """Where a run says how it goes."""

    def phase(self, words: str) -> None:
        """What takes its time now."""
        ...

    def begin(self, span: Span) -> None:
        """The loop begins; from here on a stop keeps what was done."""
        ...

    def progress(self, progress: Progress) -> None:
        """A line of the loop, at most two per second."""
        ...
