"""What every task will want of this site and only the hospital can give: a consent file that is right, tiles that are there.

The daemon looks at its start, at a reload and once a minute, says in the log what is wrong, once, and keeps it for `status`:
it runs on, and each offer is decided by what holds then. `check` and `doctor` say the same sentences.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from agent.config import AgentConfig
from agent.consent import load_policy
from histofed.base.errors import ConfigError

log = logging.getLogger(__name__)

LOOK_S: Final = 60.0


class Premises:
    """What is wrong with them, as far as the daemon has seen."""

    def __init__(self) -> None:
        self.faults: tuple[str, ...] = ()
        """One sentence each."""
        self._again = asyncio.Event()

    def look_again(self) -> None:
        """The configuration has changed."""
        self._again.set()

    async def watch(self, config: Callable[[], AgentConfig]) -> None:
        """Look until cancelled; in a thread, for a mount whose server is away holds up whoever looks."""
        while True:
            try:
                self._take(await asyncio.to_thread(faults, config()))
            except Exception:
                # too many threads of this user, perhaps: what is only looked at ends no daemon
                log.exception("consent file and data root could not be looked at; the next look is in %.0f s", LOOK_S)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._again.wait(), LOOK_S)
            self._again.clear()

    def _take(self, found: tuple[str, ...]) -> None:
        for fault in found:
            if fault not in self.faults:
                log.error("%s", fault)
        if self.faults and not found:
            log.info("consent file and data root are right again")
        self.faults = found


def faults(config: AgentConfig) -> tuple[str, ...]:
    """What is wrong with the consent file and the data root, in words. One that is not named or not there is not wrong."""
    found = []
    for look in (lambda: load_policy(config.consent), lambda: check_root(config.data.root)):
        try:
            look()
        except ConfigError as error:
            found.append(str(error))
    return tuple(found)


def check_root(root: Path | None) -> None:
    """Raises `ConfigError` for a data root that is set and is no folder, or one that this user may not read."""
    if root is None:
        return
    try:
        is_folder = root.is_dir()
    except OSError as error:
        raise ConfigError(
            f"data.root = {root} cannot be looked at by this user ({os.geteuid()}): {error.strerror}; repair the mount, or "
            "give it the right to"
        ) from error
    if not is_folder:
        raise ConfigError(f"data.root = {root} is not a folder; mount the tiles or correct the setting")
    if not os.access(root, os.R_OK | os.X_OK):
        raise ConfigError(f"data.root = {root} cannot be read by this user ({os.geteuid()}): give it the right to read")
