"""The state directory of a site that has worked, made without an aggregator: for what is done with states."""

from __future__ import annotations

import contextlib
from pathlib import Path

from agent.layout import Layout
from agent.outbox import Outbox
from agent.private import PrivateTensors
from agent.state import State
from histofed.audit.history import History
from histofed.audit.journal import Journal
from histofed.audit.verify import Head, records
from histofed.base import durable
from histofed.base.clock import SystemClock
from histofed.base.ids import ExperimentId, RoundKey, SiteId, TaskKey, sha256
from histofed.pki.credentials import Credentials
from histofed.pki.signing import sign
from histofed.statements import UPDATE_TYPE, File, UpdateManifest, encode

PILOT, CLOCK = ExperimentId("pilot"), SystemClock()
TASK = TaskKey(RoundKey(PILOT, 3), "train", SiteId("north-clinic"))


def used_state(root: Path, credentials: Credentials) -> Layout:
    """A site that trained: round 2 is settled, round 3's update waits."""
    layout = Layout(root)
    durable.make_directory(layout.identity.parent)
    credentials.save(layout.identity)
    layout.aggregator.write_text("aggregator.example:8443\n")
    with contextlib.closing(State(layout.state, CLOCK)) as state:
        private = PrivateTensors(layout.private, state)
        for number in (2, 3):
            trained(layout, private, number)
        state.set_private_round(PILOT, 2)
        state.take(TASK, 1, sha256(b"a"), sha256(b"b"))
        state.note_history(credentials.ca_sha256, History(1, Head(10, "1" * 64)))
    journal(layout, "agent.started", "consent.allowed")
    update = layout.root / "written"
    update.write_bytes(b"an update")
    Outbox(layout.outbox).put(sign(UPDATE_TYPE, encode(manifest()), credentials), update, 2)
    (layout.outbox / "unreadable").mkdir()
    return layout


def trained(layout: Layout, private: PrivateTensors, number: int, data: bytes = b"") -> None:
    """The site has trained round `number`."""
    (layout.root / "written").write_bytes(data or b"private %d" % number)
    private.add_pending(RoundKey(PILOT, number), layout.root / "written")


def journal(layout: Layout, *actions: str) -> None:
    """These records are in the journal."""
    with contextlib.closing(Journal(layout.journal, CLOCK, "agent-north-clinic")) as opened:
        for action in actions:
            opened.append(action, subject={})


def manifest() -> UpdateManifest:
    """Of round 3's update."""
    digest = "0" * 64
    weights = File(sha256(b"an update"), 9)
    return UpdateManifest(
        "test.example", PILOT, digest, 3, "train", "north-clinic", 1, digest, "float32", weights,
        1, 1, 1, {}, 2, digest, "2026-01-01T00:00:00.000000Z",
    )  # fmt: skip


def told(layout: Layout) -> list[str]:
    """The actions in the journal."""
    return [record.action for record in records(layout.journal)]


def seen(layout: Layout, credentials: Credentials) -> History | None:
    """How far the aggregator's history went when the site heard of it last."""
    with contextlib.closing(State(layout.state, CLOCK)) as state:
        return state.history(credentials.ca_sha256)


def instance(layout: Layout) -> str:
    """Which agent this is."""
    with contextlib.closing(State(layout.state, CLOCK)) as state:
        return state.instance
