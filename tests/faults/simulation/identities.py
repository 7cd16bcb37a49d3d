"""Certificates of a federation's members, made once per process: making keys is what a seed need not repeat."""

from __future__ import annotations

import tempfile
from datetime import timedelta
from pathlib import Path

from histofed.base.clock import FakeClock
from histofed.base.durable import make_directory
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
        self._pem: dict[str, bytes] = {}
        self.aggregator: Credentials = self._federation.issue(
            self._federation.authority.aggregator(), LIFETIME, ("aggregator.example",)
        )

    def file(self, site: str) -> Path:
        """The identity file of a site."""
        path = make_directory(Path(self._folder.name)) / f"{site}.pem"
        if site not in self._pem:
            credentials = self._federation.site(site, LIFETIME)
            credentials.save(path)
            self._pem[site] = credentials.certificate_pem
        return path

    def certificate(self, site: str) -> bytes:
        """A site's certificate, PEM."""
        self.file(site)
        return self._pem[site]

    def close(self) -> None:
        """Remove the files."""
        self._folder.cleanup()
