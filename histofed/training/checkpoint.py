"""Where an interrupted task goes on: a tensor file and a small JSON file that names it.

Writing is all or nothing: the tensor file gets a name of its own first, and replacing the JSON file is the instant at which
the new checkpoint counts. A checkpoint belongs to one piece of work, told by its fingerprint (configuration, seed, weights,
tiles); one of other work is dropped, and so is one that the disk has damaged, because starting again gives the same bytes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from histofed import weights
from histofed.base import durable
from histofed.base.errors import BadData
from histofed.base.ids import Json, canonical
from histofed.weights import Array

_VERSION: Final = 1
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` steps."""

    step: int
    sums: Mapping[str, float]
    """Losses summed over the steps taken, for the result's metrics."""
    tensors: Mapping[str, Array]
    """Weights, moments and the state of the random number generators."""


class CheckpointStore:
    """The checkpoint of one task in its output folder."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self._folder, self._fingerprint = folder, fingerprint
        self._state = folder / "checkpoint.json"

    def save(self, checkpoint: Checkpoint) -> None:
        """Durable on return; replaces the one before. Raises `CannotWriteState`, and then the one before still counts."""
        name = f"checkpoint-{checkpoint.step}.safetensors"
        weights.save(self._folder / name, checkpoint.tensors)
        document: dict[str, Json] = {
            "version": _VERSION,
            "fingerprint": self._fingerprint,
            "step": checkpoint.step,
            "sums": dict(checkpoint.sums),
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
            return Checkpoint(int(document["step"]), dict(document["sums"]), tensors)
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
        for path in self._folder.glob("checkpoint-*.safetensors"):
            if path.name != keep:
                durable.remove(path)
