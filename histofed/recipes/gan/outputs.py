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
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

from histofed.base import durable
from histofed.base.errors import AlreadyThere

_OURS: Final = ("model.safetensors", "checkpoint.safetensors", "good.safetensors", "samples", "tensorboard", "run.json")
"""The record last: without it, what is left of the others would be taken for somebody else's."""
_PRECIOUS: Final = ("model.safetensors", "samples", "tensorboard")
"""Names that other programs and people give too. A checkpoint says itself whose it is."""
_HALF: Final = ".*.tmp"
"""What `durable` leaves of a file when it is killed."""


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
    def checkpoint(self) -> Path:
        """Where the same command goes on from."""
        return self.folder / "checkpoint.safetensors"

    @property
    def latest_sheet(self) -> Path:
        """The newest sample sheet."""
        return self.folder / "samples" / "latest.png"

    @property
    def events(self) -> Path:
        """TensorBoard's folder."""
        return self.folder / "tensorboard"

    def require_own(self) -> None:
        """Raises `AlreadyThere` where what a run writes is there and no run wrote it, such as a model that was pulled."""
        if self.record.exists():
            return
        others = [name for name in _PRECIOUS if _holds_something(self.folder / name)]
        if others:
            raise AlreadyThere(
                f"{self.folder} holds {' and '.join(others)} and no run.json: no run made that, and this one would "
                "overwrite it; choose another --out, or move it away"
            )

    def prepare(self) -> None:
        """Make the folder, and remove half-written files of a process that was killed. Raises `CannotWriteState`.

        Only for who holds the lock.
        """
        for folder in (self.folder, durable.make_directory(self.folder / "samples", mode=0o755)):
            for left in folder.glob(_HALF):
                durable.remove(left)

    def clear(self) -> None:
        """Forget the run. Raises `CannotWriteState`."""
        for name in _OURS:
            durable.remove(self.folder / name)

    def put_sheet(self, step: int, png: bytes) -> None:
        """Keep a sheet under its step and as the newest. Raises `CannotWriteState`."""
        for path in (self.folder / "samples" / f"step-{step:06d}.png", self.latest_sheet):
            durable.replace(path, png, mode=0o644)


def _holds_something(path: Path) -> bool:
    """A file, or a folder with more in it than a run that was killed at once leaves."""
    if not path.is_dir():
        return path.exists()
    return any(not fnmatch(one.name, _HALF) for one in path.iterdir())
