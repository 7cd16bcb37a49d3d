"""`histofed-agent doctor`: what is wrong with this site, and what to do. It changes nothing.

It reads configuration and state as the daemon would, counts tiles by their names and knocks at the aggregator's door without
saying anything. It may run beside the daemon. No word of it names anything below the data root: classes are called as the
consent file or the presets call them.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from agent import status
from agent.config import AgentConfig, DataConfig, proxy_setting
from agent.consent import load_policy
from agent.enrolment import own_site
from agent.layout import Layout, aggregator_address
from agent.outbox import UNREADABLE, counted
from agent.premises import check_root
from agent.state import SCHEMA, lost
from histofed.audit import verify
from histofed.backup import swap
from histofed.base import checkup
from histofed.base.clock import Clock, from_iso
from histofed.base.config import Loaded
from histofed.base.doctor import Check, Doubt
from histofed.base.durable import free_bytes
from histofed.base.errors import (
    AggregatorUnavailable,
    BadData,
    ConfigError,
    NotEnrolled,
    NotFound,
    TrainingFailed,
    VersionMismatch,
)
from histofed.base.owner import usable
from histofed.base.proxy import ENVIRONMENT, ProxySetting, find
from histofed.pki.credentials import Credentials
from histofed.tiles import disk
from histofed.tiles.folder import OTHER_CLASS, PUBLISHED, class_key, look, scan
from histofed.tiles.tileset import TileSet, check_patients
from histofed.transport.diagnose import probe, split

ENROLL: Final = "histofed-agent enroll"
RESERVE: Final = 2 * 2**30
"""Bytes that one task wants: the global model, a checkpoint, the update."""
SOON: Final = timedelta(hours=24)
"""A certificate that ends so soon was not renewed at half its life, as it should have been."""
PROBE_S: Final = 120.0
"""Longest wait for torch to be imported."""


def checks(loaded: Loaded[AgentConfig], clock: Clock) -> Iterable[Check]:
    """Every check, the ones that others depend on first."""
    config, layout = loaded.config, Layout(loaded.config.state_dir)
    yield Check("configuration", lambda: f"valid, {len(loaded.sources)} settings are not the default")
    yield Check("consent", lambda: consent(config.consent))
    yield Check("data", lambda: data(config.data))
    root = config.data.root
    if root is not None and os.access(root, os.R_OK | os.X_OK):  # else the check before this one says why not
        yield Check("tiles", lambda: tiles(root, expected_classes(config.consent), config.minimum_patients))
    yield Check("training", lambda: training(config))
    yield Check("state", lambda: checkup.state_directory(layout.root, RESERVE, ENROLL))
    if layout.root.is_dir() and not usable(layout.root):
        return  # nothing in it can be looked at, and one sentence about it is enough
    if (layout.root / swap.PLAN).exists():
        yield Check("restore", lambda: swap.interrupted(layout.root))
        return  # half of the state is on its way: what else could be said would be wrong in a moment
    yield Check("certificate", lambda: certificate(layout.identity, clock))
    if not layout.identity.exists():
        return  # without an identity there is nothing to connect as, and no daemon that ran
    yield Check("daemon", lambda: status.examine(layout, clock, "histofed-agent run, or systemctl start histofed-agent"))
    yield Check("name", lambda: name(aggregator_address(config.aggregator, layout), proxy_setting(config)))
    yield Check(
        "aggregator",
        lambda: reach(aggregator_address(config.aggregator, layout), layout.identity, clock, proxy_setting(config)),
    )
    yield Check("clock", lambda: checkup.clock(clock.now(), _newest(layout.journal)))
    if not (layout.state.exists() or layout.journal.is_dir()):  # a restored state has not run, and no outbox need be in it
        yield Check("journal", lambda: Doubt("there is none yet; the daemon's first start makes it"))
        return
    yield Check("journal", lambda: verify.examine(layout.journal))
    yield Check("database", lambda: database(layout.state))
    if layout.outbox.is_dir():
        yield Check("outbox", lambda: outbox(layout.outbox))
    yield Check("cache", lambda: cache(config.data, layout))


def consent(path: Path) -> str | Doubt:
    """The hospital's file can be read. Raises `ConfigError`."""
    policy = load_policy(path)
    if policy.missing:
        return Doubt(f"{path} does not exist: nothing is allowed to run here until the hospital writes it")
    allowed = policy.consent
    if not (allowed.experiments and allowed.recipes and allowed.maximum_steps):
        return Doubt(f"{path} allows nothing to run: experiments, recipes and maximum_steps must all allow something")
    return f"{path}: experiments {', '.join(allowed.experiments)}; at most {allowed.maximum_steps} steps"


def data(config: DataConfig) -> str | Doubt:
    """The tiles' folder is there, has something in it and can be read. Raises `ConfigError`, `BadData`."""
    root = config.root
    if root is None:
        return Doubt("no [data] root is set: only experiments that read no tiles can run here")
    check_root(root)
    with os.scandir(root) as entries:
        seen = [(_is_folder(entry), os.access(entry.path, os.R_OK)) for entry in entries]
    if not any(is_folder for is_folder, _ in seen):
        raise BadData(f"data.root = {root} has no folder in it: tiles lie in one folder per class; is the disk mounted?")
    if closed := sum(not readable for _, readable in seen):
        raise ConfigError(f"{closed} of {len(seen)} entries of data.root cannot be read by this user ({os.geteuid()})")
    if os.access(root, os.W_OK):
        return Doubt(f"{root}, {len(seen)} entries; this user can write there: mount it read-only, the agent only reads")
    return f"{root}, {len(seen)} entries, read-only"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """False also for a link that leads to where this user may not look: the refusal would name it."""
    try:
        return disk.is_folder(entry)
    except PermissionError:
        return False


def expected_classes(consent: Path) -> tuple[str, ...]:
    """The classes that an experiment may ask for here: the consent file's where it names two, else those of the presets."""
    try:
        allowed = load_policy(consent).consent.classes
    except ConfigError:
        allowed = ()  # the consent's own check says so
    named = {class_key(name): name for name in reversed(allowed) if not set("*?[") & set(name)}
    return tuple(reversed(named.values())) if len(named) > 1 else tuple(PUBLISHED)


def tiles(root: Path, classes: tuple[str, ...], minimum_patients: int) -> str | Doubt:
    """What a training on two or more of these classes would find, by names alone. Raises `BadData` for an unreadable tree.

    What it would refuse is a doubt and no failure: the next experiment may have other classes, or read no tiles.
    """
    looked = look(root, classes)
    there = tuple(name for name in classes if name not in looked.missing)
    asked = there if len(there) > 1 else classes
    try:
        found = scan(root, asked)
        check_patients(found, minimum_patients)
    except BadData as error:
        words = f"{_counted(looked.tileset)}; a training on {', '.join(asked)} would fail: {error}"
        if there:
            return Doubt(words)
        return Doubt(
            f"{words}; or experiments must name this site's folders, classes = [...] in their [config]: "
            f"`histofed data check {root}` lists them"
        )
    return "; ".join([_counted(found), *found.notes()])


def _counted(found: TileSet) -> str:
    """`MSIH 70 tiles of 12 patients, nonMSIH 65 tiles of 11 patients`, and what lies under other names."""
    counts = [
        f"{name} {found.count(index)} tiles of {len(found.patients(index))} patients"
        for index, name in enumerate(found.classes)
    ]
    others = found.refused.get(OTHER_CLASS, 0)
    return ", ".join([*counts, *([f"{others} pictures in folders of other names"] if others else [])])


def training(config: AgentConfig) -> str | Doubt:
    """torch can be imported, and finds the device that is configured; looked at in a child process.

    Raises `ConfigError` for a device that is not there, `TrainingFailed` when torch does not even start.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "histofed.training.probe"],
            capture_output=True,
            text=True,
            timeout=PROBE_S,
            check=False,
        )
    except PermissionError as error:
        raise TrainingFailed(
            f"{sys.executable} cannot be started by this user ({os.geteuid()}), and training is a process of its own: "
            "install histofed where the daemon's user may read it"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise TrainingFailed(
            f"torch did not start within {PROBE_S:.0f} s: is the machine overloaded, a GPU hung?"
        ) from error
    if done.returncode != 0:
        return _no_torch(done, config)
    found: dict[str, Any] = json.loads(done.stdout)
    gpus, device = found["gpus"], config.trainer.device
    index = int(device.partition(":")[2] or 0)
    if device.startswith("cuda") and index >= len(gpus):
        raise ConfigError(
            f"trainer.device = {device}, and torch {found['torch']} finds {len(gpus)} GPUs: look at nvidia-smi and at "
            "the CUDA version of torch, or set device = cpu"
        )
    if device != "cpu" and 1 < config.trainer.devices > len(gpus):  # on a CPU they are processes
        raise ConfigError(
            f"trainer.devices = {config.trainer.devices}, and torch {found['torch']} finds {len(gpus)} GPUs: lower it"
        )
    where = f"GPU {', '.join(gpus)}" if gpus and device != "cpu" else f"CPU ({found['cpu']}, {found['threads']} threads)"
    words = f"torch {found['torch']} on {where}"
    if where.startswith("CPU") and found["cpu"] == "DEFAULT":
        return Doubt(f"{words}: this processor shows no vector instructions, training will be many times slower")
    return words


def _no_torch(done: subprocess.CompletedProcess[str], config: AgentConfig) -> Doubt:
    """Missing where no tiles are is no harm; anything else is."""
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    if "No module named" in last and config.data.root is None:
        return Doubt("torch is not installed: only experiments that need none can run here")
    raise TrainingFailed(f"torch cannot be used here ({last}): install histofed with its training extra, or repair it")


def certificate(path: Path, clock: Clock) -> str | Doubt:
    """This site's identity is whole and valid. Raises what `Credentials.load` raises, and `NotEnrolled` at its end."""
    credentials = Credentials.load(path)
    site, now = own_site(credentials), clock.now()
    span = f"{credentials.not_before:%Y-%m-%d %H:%M} to {credentials.not_after:%Y-%m-%d %H:%M} UTC"
    if not credentials.not_before <= now <= credentials.not_after:
        raise NotEnrolled(
            f"the certificate of {site} is valid from {span}, and it is {now:%Y-%m-%d %H:%M}: set the clock, or enrol again"
        )
    if credentials.not_after - now < SOON:
        return Doubt(
            f"{site}, valid {span}: it should have been renewed; does the daemon run, does it reach the aggregator?"
        )
    return f"{site}, valid {span}"


def name(address: str, proxy: ProxySetting = ENVIRONMENT) -> str:
    """The aggregator's name leads to an address; through a proxy, the proxy's. Raises `AggregatorUnavailable`."""
    host, port = split(address)
    if through := find(proxy, host):
        return f"{host} is looked up by the proxy {through.address} ({through.origin})"
    try:
        found = sorted({str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)})
    except OSError as error:
        raise AggregatorUnavailable(
            f"the name {host} of the aggregator cannot be resolved ({error.strerror}): check it, and the DNS"
        ) from error
    return f"{host} is {', '.join(found)}"


def reach(address: str, identity: Path, clock: Clock, proxy: ProxySetting = ENVIRONMENT) -> str:
    """TCP, TLS 1.3, the aggregator's certificate, and ours in its eyes.

    Raises what `diagnose.probe` found, and `ConfigError` for the enrolment port, which would take any certificate.
    """
    credentials = Credentials.load(identity)
    through = find(proxy, split(address)[0])
    error = probe(address, credentials.ca_pem, credentials, clock.now(), through)
    if error is not None:
        raise error
    if probe(address, credentials.ca_pem, None, clock.now(), through) is None:
        raise ConfigError(
            f"{address} asks for no certificate: it is the enrolment port, where no site works; set aggregator to the "
            "port of listen.grpc (8443, where nobody changed it)"
        )
    way = f", through the proxy {through.address}" if through else ""
    return f"{address} answers over TLS 1.3 and accepts our certificate{way}"


def database(path: Path) -> str:
    """Its pages are sound and its schema is known. Raises `NotFound`, `BadData`, `VersionMismatch`."""
    if (sentence := lost(path)) is not None:
        raise NotFound(sentence)
    with checkup.opened(path) as connection:
        (schema,) = connection.execute("PRAGMA user_version").fetchone()
    if schema > SCHEMA:
        raise VersionMismatch(f"the state was written by a newer histofed (schema {schema}): install that version again")
    return f"sound, schema {schema}"


def outbox(folder: Path) -> str | Doubt:
    """Nothing waits for a verdict, and nothing is there that cannot be sent."""
    waiting, damaged = counted(folder)
    if damaged:
        return Doubt(
            f"{damaged} updates cannot be read and never go out, {waiting} wait for the aggregator: is the disk failing? "
            f"Their tasks are done again while their rounds are open; look at {folder / UNREADABLE}, then empty it"
        )
    if waiting:
        return Doubt(f"{waiting} finished updates wait for the aggregator; they go out when it is reached")
    return "empty"


def cache(config: DataConfig, layout: Layout) -> str | Doubt:
    """Decoded tiles are within their bound, and the disk has room for it."""
    folder = config.cache_dir or layout.tile_cache
    if config.cache_bytes == 0:
        return "off: tiles are decoded for every task"
    used = sum(path.stat().st_size for path in folder.glob("*") if path.is_file()) if folder.is_dir() else 0
    words = f"{checkup.megabytes(used)} of {checkup.megabytes(config.cache_bytes)}"
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if used + free_bytes(there) < config.cache_bytes:
        return Doubt(f"{words}, and its disk has no room for the rest: lower data.cache_bytes or move data.cache_dir")
    return words


def _newest(journal: Path) -> datetime | None:
    record = verify.newest(journal) if journal.is_dir() else None
    return None if record is None else from_iso(record.recorded)
