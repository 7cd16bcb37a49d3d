"""Losses, rates and sample sheets for TensorBoard, where the `tensorboard` package is installed (`histofed[tensorboard]`).

A run that goes on from a checkpoint, or returns from a divergence, takes steps again that are in the log already: the log
then says from which step on the older ones are to be forgotten. It is for looking; nothing reads it back.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import numpy as np
from PIL import Image

from histofed.base import durable

if TYPE_CHECKING:
    from torch.utils.tensorboard import FileWriter

_FLUSH_SECONDS: Final = 10


class EventLog:
    """The log of one run in a folder. Raises `CannotWriteState`; `ImportError` where the package is not installed."""

    def __init__(self, folder: Path, step: int) -> None:
        """Goes on behind `step`."""
        from torch.utils.tensorboard import SummaryWriter

        self._told = self._done = step
        with durable.state_errors("the TensorBoard log"):
            self._writer = SummaryWriter(str(folder), purge_step=step + 1, flush_secs=_FLUSH_SECONDS)

    def reached(self, step: int) -> None:
        """Tell of each step once it is done, behind what else is told of it but its sheet."""
        self._begin(step)
        self._done = step

    def _begin(self, step: int) -> None:
        """A step that was done before, or one below the last, is told of anew: after a return, which may be of one step."""
        if step < self._told or step <= self._done:
            # not a new file: TensorBoard reads those of one second in the order of numbers as text, where 10 is before 9
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog

            with durable.state_errors("the TensorBoard log"):
                writer = cast("FileWriter", self._writer.file_writer)  # torch declares it None, which it is once closed
                writer.add_event(Event(step=step, session_log=SessionLog(status=SessionLog.START)))
            self._done = step - 1
        self._told = step

    def losses(self, step: int, losses: Mapping[str, float], images_per_second: float) -> None:
        """What a step reports."""
        self._begin(step)
        with durable.state_errors("the TensorBoard log"):
            for name, value in losses.items():
                self._writer.add_scalar(f"loss/{name.removesuffix('_loss')}", value, step)
            self._writer.add_scalar("images per second", images_per_second, step)

    def rates(self, step: int, rates: Mapping[str, float]) -> None:
        """The learning rates by name; they may fall towards the end, and a return from a divergence halves them."""
        self._begin(step)
        with durable.state_errors("the TensorBoard log"):
            for name, rate in rates.items():
                self._writer.add_scalar(f"rate/{name}", rate, step)

    def sheet(self, step: int, png: bytes) -> None:
        """A sample sheet of the last step that was done."""
        with Image.open(io.BytesIO(png)) as picture, durable.state_errors("the TensorBoard log"):
            pixels = np.asarray(picture.convert("RGB"))
            self._writer.add_image("samples", pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Everything is written."""
        with durable.state_errors("the TensorBoard log"):
            self._writer.close()
