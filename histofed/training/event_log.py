"""Losses, rates and sample sheets for TensorBoard, where the `tensorboard` package is installed (`histofed[tensorboard]`).

A run that goes on from a checkpoint, or returns from a divergence, takes steps again that are in the log already: the new
file then says from which step on the older ones are to be forgotten. The log is for looking; nothing reads it back.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image

from histofed.base import durable

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_FLUSH_SECONDS: Final = 10


class EventLog:
    """The log of one run in a folder. Raises `CannotWriteState`; `ImportError` where the package is not installed."""

    def __init__(self, folder: Path, step: int) -> None:
        """Goes on behind `step`."""
        self._folder, self._step = folder, step
        self._writer = self._open(step)

    def losses(self, step: int, losses: Mapping[str, float], images_per_second: float) -> None:
        """What a step reports."""
        self._at(step)
        with durable.state_errors("the TensorBoard log"):
            for name, value in losses.items():
                self._writer.add_scalar(f"loss/{name.removesuffix('_loss')}", value, step)
            self._writer.add_scalar("images per second", images_per_second, step)

    def rates(self, step: int, rates: Mapping[str, float]) -> None:
        """The learning rates by name; they may fall towards the end, and a return from a divergence halves them."""
        self._at(step)
        with durable.state_errors("the TensorBoard log"):
            for name, rate in rates.items():
                self._writer.add_scalar(f"rate/{name}", rate, step)

    def sheet(self, step: int, png: bytes) -> None:
        """A sample sheet."""
        self._at(step)
        with Image.open(io.BytesIO(png)) as picture, durable.state_errors("the TensorBoard log"):
            pixels = np.asarray(picture.convert("RGB"))
            self._writer.add_image("samples", pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Everything is written."""
        with durable.state_errors("the TensorBoard log"):
            self._writer.close()

    def _at(self, step: int) -> None:
        if step < self._step:
            self.close()
            # TensorBoard reads files in the order of their names: a second, and then a number as text, where 10 is before 9
            time.sleep(min(max(self._second + 1 - time.time(), 0.0), 1.0))
            self._writer = self._open(step - 1)
        self._step = step

    def _open(self, step: int) -> SummaryWriter:
        from torch.utils.tensorboard import SummaryWriter

        self._second = math.floor(time.time())
        with durable.state_errors("the TensorBoard log"):
            return SummaryWriter(str(self._folder), purge_step=step + 1, flush_secs=_FLUSH_SECONDS)
