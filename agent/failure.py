"""What an error of a task means to others: whether to try again, and which words may leave the site."""

from __future__ import annotations

from typing import Final

from agent.config import AgentConfig
from histofed.base.errors import (
    CannotWriteState,
    HeldOutPatients,
    HistofedError,
    Lost,
    NotOurs,
    TooFewPatients,
    TrainingFailed,
    TryLater,
    WorkerLost,
)

_COUNTING: Final = (TooFewPatients, HeldOutPatients)
"""Their sentences count patients."""


def may_succeed_later(error: HistofedError) -> bool:
    """Whether another attempt at the same task could end differently: never with the same data or the same bytes.

    What a disk has lost it may make anew, or find put back.
    """
    return isinstance(error, TrainingFailed | CannotWriteState | TryLater | Lost | WorkerLost)


def for_the_operator(error: HistofedError, *configs: AgentConfig) -> str:
    """The error's sentence, or its class's where the sentence names a place on this machine, by any of `configs`, or counts
    patients."""
    # a refusal to write names what links lead to
    places = [place for one in configs for place in (one.state_dir, one.data.root, one.data.cache_dir, one.consent) if place]
    places += [one.state_dir.resolve() for one in configs]
    sentence = str(error)
    # whose the files are may be told of a folder above those places, or of what a link leads to
    if isinstance(error, (NotOurs, *_COUNTING)) or any(str(place) in sentence for place in places):
        doc = (type(error).__doc__ or type(error).__name__).strip()
        return f"{doc} The site's log says {'more' if isinstance(error, _COUNTING) else 'where'}."
    return sentence
