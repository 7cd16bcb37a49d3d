"""`histofed-aggregator doctor`: what is wrong with this aggregator, and what to do. It changes nothing.

It reads configuration and state as the daemon would, without the daemon's repairs: no certificate is renewed, no half line
is cut off, no schema is migrated. It may run beside the daemon.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from aggregator import setup
from aggregator.config import AggregatorConfig
from aggregator.database import revisions
from aggregator.history import refuse_emptied
from aggregator.lifetime import ending, missing_hosts
from histofed.audit import history, verify
from histofed.audit.record import GENESIS
from histofed.audit.segments import segments
from histofed.backup import swap
from histofed.base import checkup
from histofed.base.clock import Clock, from_iso
from histofed.base.config import Loaded
from histofed.base.doctor import Check, Doubt
from histofed.base.errors import BadData, ConfigError, NotEnrolled, VersionMismatch
from histofed.base.owner import usable
from histofed.pki.authority import COPIED
from histofed.pki.identity import federation_of
from histofed.pki.keys import certificate_from_pem
from histofed.pki.pem import refuse_readable_by_others

INIT: Final = "histofed-aggregator init"
SOON: Final = timedelta(days=30)
"""Before the CA's end: every site has to enrol again then, which needs planning."""


def checks(loaded: Loaded[AggregatorConfig], clock: Clock) -> Iterable[Check]:
    """Every check, the ones that others depend on first."""
    config = loaded.config
    state, identity, lock = config.state_dir, config.state_dir / "identity", config.state_dir / "lock"
    wanted = {"grpc": config.listen.grpc, "enrolment": config.listen.enrolment}
    wanted |= {"health": config.listen.health, "metrics": config.listen.metrics}
    yield Check("configuration", lambda: f"valid, {len(loaded.sources)} settings are not the default")
    yield Check("state", lambda: checkup.state_directory(state, config.retention.reserve_bytes, INIT))
    yield Check("ports", lambda: checkup.ports(wanted, lock))
    yield Check("names", lambda: names(config.public_hosts))
    if state.is_dir() and not usable(state):
        return  # nothing in it can be looked at, and one sentence about it is enough
    if (state / swap.PLAN).exists():
        yield Check("restore", lambda: swap.interrupted(state))
        return  # half of the state is on its way: what else could be said would be wrong in a moment
    if not identity.is_dir() and setup.lost(state) is None:
        if state.is_dir():  # a package made it; where nothing is, the state's own check says so
            yield Check("keys", lambda: keys(identity))
        return  # nothing else can be there, and one sentence about it is enough
    yield Check("daemon", lambda: checkup.running(lock, "histofed-aggregator run, or systemctl start histofed-aggregator"))
    yield Check("keys", lambda: keys(identity))
    yield Check("CA", lambda: authority(identity, config.federation, clock))
    yield Check("certificate", lambda: certificate(identity, config.public_hosts, clock))
    yield Check("clock", lambda: checkup.clock(clock.now(), _newest(state / "journal")))
    yield Check("journal", lambda: journal(state))
    if not setup.has_run(state):
        yield Check("database", lambda: Doubt("there is none yet; the daemon's first start makes it"))
        return
    yield Check("database", lambda: database(state / "state.db"))
    yield Check("models", lambda: models(state / "state.db", state / "blobs"))


def keys(identity: Path) -> str:
    """The two secrets are there and their owner's alone. Raises `NotEnrolled` and `ConfigError`."""
    secrets = {identity / "ca.key": COPIED, identity / "token.key": ""}
    for path, copied in secrets.items():
        if not path.exists():
            sentence = f"there is no {path}: run {INIT}, or restore a backup of the identity folder"
            raise NotEnrolled(setup.lost(identity.parent) or sentence)
        refuse_readable_by_others(path, path.stat().st_mode & 0o777, copied)
    return f"{len(secrets)} files, readable by their owner alone"


def authority(identity: Path, federation: str, clock: Clock) -> str | Doubt:
    """The federation's CA is valid and the configuration's. Raises `NotEnrolled` and `ConfigError`."""
    try:
        ca = certificate_from_pem((identity / "ca.pem").read_bytes(), "CA certificate")
    except OSError as error:
        sentence = f"{identity / 'ca.pem'} cannot be read ({error.strerror}): run {INIT}, or restore it"
        raise NotEnrolled(setup.lost(identity.parent) or sentence) from error
    if (found := federation_of(ca)) != federation:
        raise ConfigError(f"the state belongs to federation {found!r}, the configuration says {federation!r}: correct it")
    left = ca.not_valid_after_utc - clock.now()
    if left < timedelta(0):
        raise NotEnrolled(f"the CA expired on {ca.not_valid_after_utc:%Y-%m-%d}: make a new federation, or set the clock")
    if left < SOON:
        return Doubt(f"the CA expires on {ca.not_valid_after_utc:%Y-%m-%d}: every site has to enrol again before")
    return f"{federation}, until {ca.not_valid_after_utc:%Y-%m-%d}"


def certificate(identity: Path, hosts: tuple[str, ...], clock: Clock) -> str | Doubt:
    """The daemon's own certificate is valid and has every public name. Raises `NotEnrolled` after its end, `ConfigError`."""
    if not (identity / "aggregator.pem").exists():
        return Doubt("there is none; the daemon's next start issues it")
    credentials = setup.own_credentials(identity)
    if clock.now() < credentials.not_before:
        raise ConfigError(f"the certificate begins to be valid at {credentials.not_before:%Y-%m-%d %H:%M}: set the clock")
    if missing := missing_hosts(credentials, hosts):
        names = ", ".join(missing)
        raise ConfigError(f"the certificate does not have {names} of public_hosts: restart the daemon, which issues another")
    if (sentence := ending(credentials, clock.now())) is not None:
        if credentials.not_after < clock.now():
            raise NotEnrolled(sentence)
        return Doubt(sentence)
    return f"{', '.join(hosts)}, until {credentials.not_after:%Y-%m-%d %H:%M} UTC"


def journal(state: Path) -> str | Doubt:
    """Its chain is whole and holds what sites saw. Raises `DigestMismatch`, `WentBack` where all records are gone."""
    folder, rows = state / "journal", state / "state.db"
    written = folder.is_dir() and any(segment.path.stat().st_size for segment in segments(folder))
    if not written and checkup.lost(rows) is None:
        with checkup.opened(rows) as connection:
            counted = (
                "SELECT (SELECT count(*) FROM sites), (SELECT count(*) FROM experiments), (SELECT max(number) FROM epochs)"
            )
            sites, experiments, epoch = connection.execute(counted).fetchone()
        refuse_emptied(verify.Head(0, GENESIS), sites, experiments, epoch or 1)
    return history.examine(folder)


def database(path: Path) -> str | Doubt:
    """Its pages are sound and its schema is known. Raises `NotFound`, `BadData`, `VersionMismatch`."""
    with checkup.opened(path) as connection:
        (revision,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        (rounds,) = connection.execute("SELECT count(*) FROM rounds").fetchone()
    known = revisions()
    if revision not in known:
        raise VersionMismatch(f"the state was written by a newer histofed (schema {revision}): install that release again")
    if revision != known[0]:
        return Doubt(f"schema {revision}; the daemon's next start brings it to {known[0]}")
    return f"sound, schema {revision}, {rounds} rounds, {checkup.megabytes(path.stat().st_size)}"


def models(path: Path, blobs: Path) -> str | Doubt:
    """Every file that a model needs is there, in its length. Raises `BadData`."""
    with checkup.opened(path) as connection:
        columns = {row[1] for row in connection.execute("PRAGMA table_info(models)")}
        kept = "WHERE removed_at IS NULL" if "removed_at" in columns else ""
        files: dict[str, int] = dict(
            connection.execute(f"SELECT sha256, bytes FROM model_parts JOIN models ON model = digest {kept}")  # noqa: S608
        )
    wrong = [sha for sha, size in files.items() if not _has(blobs / sha, size)]
    if wrong:
        raise BadData(
            f"{len(wrong)} of {len(files)} model files are missing or cut short, the first is {wrong[0][:12]}: "
            "restore them from a backup; an experiment whose newest model is among them cannot go on"
        )
    return f"{len(files)} files, {checkup.megabytes(sum(files.values()))}"


def _has(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def names(hosts: tuple[str, ...]) -> str | Doubt:
    """The names that sites are told lead somewhere."""
    lost = []
    for host in hosts:
        try:
            socket.getaddrinfo(host, None)
        except OSError:
            lost.append(host)
    if lost:
        return Doubt(f"{', '.join(lost)} cannot be resolved here; sites must be able to: check the DNS, or public_hosts")
    return ", ".join(hosts)


def _newest(journal: Path) -> datetime | None:
    record = verify.newest(journal) if journal.is_dir() else None
    return None if record is None else from_iso(record.recorded)
