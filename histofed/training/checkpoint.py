"""Where interrupted work goes on: one safetensors file, its tensors and, in its header, the rest of the state as JSON.

Writing is all or nothing: the file is replaced by a rename, so after a crash at any instant the old or the new checkpoint is
there and no tensor is ever beside another one's step. A checkpoint belongs to one piece of work, told by its fingerprint
(configuration, seed, weights, tiles); one of other work is dropped, and so is one that the disk has damaged: starting again
gives the same bytes.

Beside it may lie a second one of the same form, the last state that was *good*: where training returns to when it diverges.
Used by the workshops of `histofed/recipes` and by central training, which asks whose a checkpoint is before it begins.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from histofed import weights
from histofed.base import durable
from histofed.base.errors import BadData
from histofed.base.failpoints import failpoint
from histofed.base.ids import Json, canonical
from histofed.weights import Array, TensorFile

_VERSION: Final = 3
_STATE: Final = "histofed.checkpoint"
"""The key of the JSON state in the header."""
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` steps."""

    step: int
    sums: Mapping[str, float]
    """Losses summed over the steps taken, for the result's metrics."""
    tensors: Mapping[str, Array]
    """Weights, moments and the state of the random number generators."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """How many steps each sum is over; a player need not move in every step."""
    returns: int = 0
    """How often this run has diverged and gone back."""

    def means(self) -> Mapping[str, float]:
        """The mean of each loss over the steps that had it."""
        return {name: total / self.counts[name] for name, total in self.sums.items()}


@dataclass(frozen=True)
class Found:
    """What a checkpoint says about itself, whoever wrote it; no tensor is read."""

    work: Mapping[str, Json]
    """What the writer's store was told about its work; empty where it was told nothing."""
    fingerprint: str
    state: Checkpoint
    """Without tensors."""


class CheckpointStore:
    """The checkpoint of one piece of work in a folder."""

    def __init__(
        self, folder: Path, fingerprint: str, name: str = "checkpoint", work: Mapping[str, Json] | None = None
    ) -> None:
        """`work` is what `fingerprint` is of, where somebody may ask later how two pieces of work differ."""
        self._folder, self.fingerprint, self._name, self._work = folder, fingerprint, name, dict(work or {})
        self.path = folder / f"{name}.safetensors"

    def good(self) -> CheckpointStore:
        """The store of the last good state, beside this one; `clear` does not reach it."""
        return CheckpointStore(self._folder, self.fingerprint, "good", self._work)

    def save(self, checkpoint: Checkpoint) -> None:
        """Durable on return; replaces the one before. Raises `CannotWriteState`, and then the one before still counts."""
        document: dict[str, Json] = {
            "version": _VERSION,
            "fingerprint": self.fingerprint,
            "work": self._work,
            "step": checkpoint.step,
            "sums": dict(checkpoint.sums),
            "counts": dict(checkpoint.counts),
            "returns": checkpoint.returns,
        }
        weights.store(self.path, checkpoint.tensors, {_STATE: canonical(document).decode()})
        failpoint("agent.checkpoint_written")

    def peek(self) -> Found | None:
        """What is there, of whatever work; None where there is nothing that this release can read."""
        try:
            with TensorFile(self.path) as file:
                return _found(file, with_tensors=False)
        except FileNotFoundError:
            self._say_older()
        except (ValueError, KeyError, TypeError, BadData) as error:
            _logger.warning("a checkpoint is damaged (%s) and cannot be used", error)
        return None

    def load(self) -> Checkpoint | None:
        """The checkpoint of this very work, or None."""
        try:
            with TensorFile(self.path) as file:
                found = _found(file, with_tensors=True)
        except FileNotFoundError:
            self._say_older()
            return None
        except (ValueError, KeyError, TypeError, BadData) as error:
            _logger.warning("the checkpoint is damaged (%s); starting from the beginning", error)
            return None
        if found is None or found.fingerprint != self.fingerprint:
            _logger.warning(
                "the checkpoint found belongs to other work or another version%s; starting from the beginning",
                self._difference(found),
            )
            return None
        return found.state

    def _difference(self, found: Found | None) -> str:
        """What both say of their work, and not alike: ` (differing: device)`."""
        theirs = found.work if found is not None else {}
        names = sorted(name for name in self._work.keys() & theirs.keys() if self._work[name] != theirs[name])
        return f" (differing: {', '.join(names)})" if names else ""

    def clear(self) -> None:
        """Remove it: the work is done."""
        durable.remove(self.path)
        for path in self._older():
            durable.remove(path)

    def _older(self) -> list[Path]:
        """What release 0.1 wrote: a small JSON file and the tensors that it named."""
        return [self._folder / f"{self._name}.json", *self._folder.glob(f"{self._name}-*.safetensors")]

    def _say_older(self) -> None:
        if (self._folder / f"{self._name}.json").exists():
            _logger.info("the checkpoint found is of an older version; starting from the beginning")


def _found(file: TensorFile, *, with_tensors: bool) -> Found | None:
    """What a file holds; None for another version's. Raises `ValueError`, `KeyError` or `TypeError` for nonsense."""
    document: dict[str, Any] = json.loads(file.metadata[_STATE])
    if document["version"] != _VERSION:
        return None
    tensors = {name: array.copy() for name, array in file.items()} if with_tensors else {}
    sums, counts = dict(document["sums"]), dict(document["counts"])
    state = Checkpoint(int(document["step"]), sums, tensors, counts, int(document["returns"]))
    return Found(dict(document["work"]), str(document["fingerprint"]), state)
