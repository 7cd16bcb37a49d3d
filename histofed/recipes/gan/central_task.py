"""What `histofed train` is asked for: one run in one place. Done by `central.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from histofed.base.errors import NotFound, UsageError
from histofed.recipes.gan.settings import Settings
from histofed.tiles.store import TileStore
from histofed.training.loop import CHECKPOINT_SECONDS


@dataclass(frozen=True)
class CentralTask:
    """One run."""

    settings: Settings
    data: Path
    """The tiles' root."""
    out: Path
    seed: int = 0
    device: str = "auto"
    devices: int = 1
    """How many play each step together; with device `cpu`, processes."""
    threads: int = 0
    """CPU threads; 0 leaves the choice to torch."""
    max_steps: int | None = None
    """At most so many steps now; the plan stays."""
    sheet_every: int = 200
    """Steps; 0 draws one at the end only."""
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    store: TileStore | None = None
    """Where decoded tiles are kept; None decodes them into memory every time."""
    restart: bool = False
    """Forget what the folder holds."""

    def check(self) -> None:
        """Raises `UsageError` for what cannot be meant, `NotFound` without tiles."""
        if self.max_steps is not None and self.max_steps < 1:
            raise UsageError("--max-steps is at least 1")
        if self.devices < 1:
            raise UsageError("--devices is at least 1")
        if not self.data.is_dir():
            raise NotFound(f"--data {self.data}: there is no such folder")
        if self.out.resolve().is_relative_to(self.data.resolve()):
            raise UsageError(f"--out {self.out} lies in --data {self.data}, among the tiles: name a folder outside of it")
