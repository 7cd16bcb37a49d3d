"""What a run in one place leaves in its folder, by name. No torch.

    OUT/run.json                 what was run, on what, how far (record.py)
    OUT/model.safetensors        the generator to be used, the average over its steps: `ema.*`, as in a federation
    OUT/checkpoint.safetensors   everything that the same command needs to go on, bit for bit on a CPU
    OUT/good.safetensors         where training returns to when it diverges; only while it runs
    OUT/samples/                 a sample sheet per so many steps, and the newest as `latest.png`
    OUT/tensorboard/             losses, rates and sheets
    OUT/lock                     held while a process works here

Nothing else in the folder is touched, so that notes of a person may lie beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from histofed.base import durable

_OURS: Final = ("run.json", "model.safetensors", "checkpoint.safetensors", "good.safetensors", "samples", "tensorboard")


@dataclass(frozen=True)
class Outputs:
    """The folder of a run."""

    folder: Path

    @property
    def record(self) -> Path:
        """What was run."""
        return self.folder / "run.json"

    @property
    def model(self) -> Path:
        """The generator to be used."""
        return self.folder / "model.safetensors"

    @property
    def latest_sheet(self) -> Path:
        """The newest sample sheet."""
        return self.folder / "samples" / "latest.png"

    @property
    def events(self) -> Path:
        """TensorBoard's folder."""
        return self.folder / "tensorboard"

    def prepare(self) -> None:
        """Make the folder, and remove half-written files of a process that was killed. Raises `CannotWriteState`.

        Only for who holds the lock.
        """
        for folder in (self.folder, durable.make_directory(self.folder / "samples", mode=0o755)):
            for left in folder.glob(".*.tmp"):
                durable.remove(left)

    def clear(self) -> None:
        """Forget the run. Raises `CannotWriteState`."""
        for name in _OURS:
            durable.remove(self.folder / name)

    def put_sheet(self, step: int, png: bytes) -> None:
        """Keep a sheet under its step and as the newest. Raises `CannotWriteState`."""
        for path in (self.folder / "samples" / f"step-{step:06d}.png", self.latest_sheet):
            durable.replace(path, png, mode=0o644)
