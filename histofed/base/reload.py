"""A daemon's configuration over SIGHUPs: what holds now, and what waits for a restart.

Each daemon names the settings that it can change while it runs; of the others a reload says that they wait, and says it
again at the next one, because they are compared with what the daemon was started with. A file with any error in it never
comes here: it raises `ConfigError` before, and the old configuration stays whole.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from histofed.base.config import Loaded, changed

T = TypeVar("T")


class Reloads(Generic[T]):
    """The configurations of one process's life."""

    def __init__(self, started: Loaded[T], live: tuple[str, ...]) -> None:
        """`live`: the settings that a reload changes, by the beginning of their keys."""
        self._started = started
        self._last = started
        self._live = live

    def take(self, found: Loaded[T]) -> str:
        """Go over to a configuration that is valid; a sentence on what changed."""
        keys = changed(self._last, found)
        late = [key for key in changed(self._started, found) if not key.startswith(self._live)]
        self._last = found
        words = f"changed: {', '.join(keys)}" if keys else "nothing changed"
        return words + (f"; a restart is needed for {', '.join(late)}" if late else "")
