"""Where things lie below the agent's state directory; one place, so that `enroll`, `run` and `status` agree."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from histofed.base import durable
from histofed.base.errors import ConfigError, NotEnrolled
from histofed.base.owner import in_words


@dataclass(frozen=True)
class Layout:
    """The state directory of one agent."""

    root: Path

    @property
    def lock(self) -> Path:
        """Held as long as a daemon runs."""
        return self.root / "agent.lock"

    @property
    def identity(self) -> Path:
        """Key, certificate and CA, 0600."""
        return self.root / "identity" / "agent.pem"

    @property
    def aggregator(self) -> Path:
        """The address that enrolment was told, `host:port`."""
        return self.root / "identity" / "aggregator"

    @property
    def state(self) -> Path:
        """SQLite: instance, task in hand, private rounds."""
        return self.root / "state.db"

    @property
    def journal(self) -> Path:
        """The audit journal's segments."""
        return self.root / "journal"

    @property
    def outbox(self) -> Path:
        """Finished updates."""
        return self.root / "outbox"

    @property
    def private(self) -> Path:
        """Private tensors."""
        return self.root / "private"

    def private_tensors(self) -> list[Path]:
        """Every file of private tensors, by name. Raises `CannotWriteState`."""
        return [file for folder in durable.listing(self.private) for file in durable.listing(folder, "*.safetensors")]

    @property
    def bases(self) -> Path:
        """What the last task of each experiment started from."""
        return self.root / "bases"

    @property
    def work(self) -> Path:
        """Checkpoints and results of the task in hand."""
        return self.root / "work"

    @property
    def tile_cache(self) -> Path:
        """Decoded tiles, where the configuration names no other place."""
        return self.root / "tile-cache"

    @property
    def status(self) -> Path:
        """What the daemon does, as JSON, for `histofed-agent status`."""
        return self.root / "status.json"


def aggregator_address(configured: str | None, layout: Layout) -> str:
    """The configured address, or the one that enrolment stored. Raises `NotEnrolled` or `ConfigError`."""
    if configured is not None:
        return configured
    if not layout.identity.exists():
        raise NotEnrolled(
            f"there is no identity in {layout.root}: run `histofed-agent enroll` with a join line of the operator"
        )
    try:
        with in_words():
            return layout.aggregator.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError('where is the aggregator? set aggregator = "host:port" in agent.toml') from error
