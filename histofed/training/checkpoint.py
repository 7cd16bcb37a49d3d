"""Where an interrupted task goes on: a tensor file and a small JSON file that names it.

Writing is all or nothing: the tensor file gets a name of its own first, and replacing the JSON file is the instant at which
the new checkpoint counts. A checkpoint belongs to one piece of work, told by its fingerprint (configuration, seed, weights,
tiles); one of other work is dropped, and so is one that the disk has damaged, because starting again gives the same bytes.

Beside it may lie a second one of the same form, the last state that was *good*: where training returns to when it diverges.
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
from histofed.base.ids import Json, canonical
from histofed.weights import Array

_VERSION: Final = 2
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


class CheckpointStore:
    """The checkpoint of one task in its output folder."""

    def __init__(self, folder: Path, fingerprint: str, name: str = "checkpoint") -> None:
        self._folder, self._fingerprint, self._name = folder, fingerprint, name
        self._state = folder / f"{name}.json"

    def good(self) -> CheckpointStore:
        """The store of the last good state, beside this one; `clear` does not reach it."""
        return CheckpointStore(self._folder, self._fingerprint, "good")

    def save(self, checkpoint: Checkpoint) -> None:
        """Durable on return; replaces the one before. Raises `CannotWriteState`, and then the one before still counts."""
        name = f"{self._name}-{checkpoint.step}.safetensors"
        weights.save(self._folder / name, checkpoint.tensors)
        document: dict[str, Json] = {
            "version": _VERSION,
            "fingerprint": self._fingerprint,
            "step": checkpoint.step,
            "sums": dict(checkpoint.sums),
            "counts": dict(checkpoint.counts),
            "returns": checkpoint.returns,
            "tensors": name,
        }
        durable.replace(self._state, canonical(document))
        self._remove_tensors(keep=name)
        durable.failpoint("agent.checkpoint_written")

    def load(self) -> Checkpoint | None:
        """The checkpoint of this very work, or None."""
        try:
            document: dict[str, Any] = json.loads(self._state.read_bytes())
            if document["version"] != _VERSION or document["fingerprint"] != self._fingerprint:
                _logger.info("the checkpoint in the task's folder belongs to other work; starting from the beginning")
                return None
            tensors = weights.read(self._folder / document["tensors"])
            sums, counts = dict(document["sums"]), dict(document["counts"])
            return Checkpoint(int(document["step"]), sums, tensors, counts, int(document["returns"]))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, BadData) as error:
            _logger.warning("the task's checkpoint is damaged (%s); starting from the beginning", error)
            return None

    def clear(self) -> None:
        """Remove it: the work is done."""
        durable.remove(self._state)
        self._remove_tensors(keep="")

    def _remove_tensors(self, keep: str) -> None:
        for path in self._folder.glob(f"{self._name}-*.safetensors"):
            if path.name != keep:
                durable.remove(path)
