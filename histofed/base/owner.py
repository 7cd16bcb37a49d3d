"""Root in a daemon's folder: what root makes there, the daemon cannot read, and what root sees says little about the daemon.

Called by what writes into a state directory before there is a daemon (`enroll`, `init`), and by both doctors.
"""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from histofed.base.errors import ConfigError


def owner_beside_root(folder: Path) -> str | None:
    """The folder's owner where root runs this command and the folder is somebody else's; None otherwise."""
    if os.geteuid() != 0 or not folder.exists() or (owner := folder.stat().st_uid) == 0:
        return None
    try:
        return pwd.getpwuid(owner).pw_name
    except KeyError:
        return str(owner)


def refuse_root(folder: Path, command: str) -> None:
    """`command` would leave root's files in a daemon's folder. Raises `ConfigError` with the line to type."""
    owner = owner_beside_root(folder)
    if owner is not None:
        raise ConfigError(
            f"{folder} belongs to {owner}, whose daemon could not read what root makes there: "
            f"runuser -u {owner} -- {command}"
        )
