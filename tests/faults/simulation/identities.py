"""Certificates of a federation's members, made once per process: making keys is what a seed need not repeat."""

from __future__ import annotations

import tempfile
from datetime import timedelta
from pathlib import Path

from histofed.base.clock import FakeClock
from histofed.pki.credentials import Credentials
from tests.faults.simulation.virtual import START
from tests.support.pki import Federation

LIFETIME = timedelta(days=3650)
"""Longer than any simulation: what expires is tested elsewhere."""


class Identities:
    """An authority and whoever was asked for."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="histofed-identities-")
        self._federation = Federation("simulation.example", FakeClock(START - timedelta(days=30)))
        self._credentials: dict[Path, Credentials] = {}
        self.aggregator: Credentials = self._federation.issue(
            self._federation.authority.aggregator(), LIFETIME, ("aggregator.example",)
        )

    def file(self, site: str) -> Path:
        """The identity file of a site."""
        path = self._path(site)
        if path not in self._credentials:
            credentials = self._federation.site(site, LIFETIME)
            credentials.save(path)
            self._credentials[path] = credentials
        return path

    def certificate(self, site: str) -> bytes:
        """A site's certificate, PEM."""
        return self.load(self.file(site)).certificate_pem

    def load(self, path: Path) -> Credentials:
        """What `Credentials.load` would read again and again."""
        return self._credentials[path]

    def _path(self, site: str) -> Path:
        return Path(self._folder.name) / f"{site}.pem"

    def close(self) -> None:
        """Remove the files."""
        self._folder.cleanup()
