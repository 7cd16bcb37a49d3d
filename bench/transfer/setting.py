"""What the two processes of a case find in their folder: certificates of a federation, and the file that is sent."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from histofed.base.clock import SystemClock
from histofed.base.ids import Digest
from histofed.pki.authority import Authority
from histofed.pki.credentials import Credentials
from histofed.pki.keys import new_key, signing_request
from histofed.transport import limits


@dataclass(frozen=True)
class Setting:
    """What both processes of a case need."""

    folder: Path
    size: int
    sha256: Digest

    @property
    def source(self) -> Path:
        return self.folder / "source"

    def credentials(self, who: str) -> Credentials:
        return Credentials.load(self.folder / f"{who}.pem")


def prepare(folder: Path, size: int) -> Setting:
    """A federation, and a file of random bytes, already in the page cache."""
    authority = Authority.create("bench", SystemClock())
    for who, identity, hosts in (
        ("aggregator", authority.aggregator(), ("localhost", "127.0.0.1")),
        ("site", authority.site("north-clinic"), ()),
    ):
        key = new_key()
        issued = authority.issue(identity, signing_request(key), hosts=hosts)
        Credentials.make(key, issued.certificate_pem, authority.certificate_pem).save(folder / f"{who}.pem")
    found = hashlib.sha256()
    with (folder / "source").open("wb") as file:
        for _ in range(size // limits.MIB):
            piece = os.urandom(limits.MIB)
            found.update(piece)
            file.write(piece)
    return Setting(folder, size, Digest(found.hexdigest()))
