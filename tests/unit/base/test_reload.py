"""What a reload says: what changed, and what waits for a restart until there is one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from histofed.base.config import Loaded
from histofed.base.reload import Reloads


@dataclass(frozen=True)
class Config:
    """Two settings."""

    level: str = "INFO"
    port: int = 1


def test_what_needs_a_restart_is_said_until_it_is_taken_back() -> None:
    reloads = Reloads(Loaded(Config(), {}), ("level",))

    def take(config: Config) -> str:
        return reloads.take(Loaded(config, {}))

    assert take(Config()) == "nothing changed"
    assert take(Config(level="DEBUG")) == "changed: level"
    moved = Config(level="DEBUG", port=2)
    assert take(moved) == "changed: port; a restart is needed for port"
    assert take(moved) == "nothing changed; a restart is needed for port"
    assert take(replace(moved, port=1)) == "changed: port"
