"""An aggregator's state directory that no daemon runs on, with a round in the middle of its life."""

from __future__ import annotations

import sqlite3
from datetime import timedelta
from pathlib import Path

from aggregator.config import AggregatorConfig
from aggregator.database import Database
from aggregator.events import Accepted, Admitted, Announced, Event, Opened, Received
from aggregator.rounds import Round, plan, step
from aggregator.rows import ModelRow
from aggregator.store import Store
from histofed.audit.journal import Journal
from histofed.audit.verify import Head
from histofed.base import durable
from histofed.base.clock import SystemClock
from histofed.base.ids import Digest, ExperimentId, RoundKey, SiteId, sha256
from histofed.pki.signing import Envelope
from histofed.statements import MODEL_TYPE, UPDATE_TYPE, File, ModelStatement, encode
from histofed.transport.store import owner_of
from tests.support.commands import Done, run_here

DEMO, NORTH = ExperimentId("demo"), SiteId("north")
UPDATE = b"an update"
"""The bytes of north's update in round 1."""


class Centre:
    """An aggregator's state directory and its rows."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.state = folder / "state"
        self.toml = folder / "aggregator.toml"
        self.toml.write_text(f'federation = "test"\nstate_dir = "{self.state}"\n[retention]\nreserve_bytes = 0\n')
        self.config = AggregatorConfig(federation="test", state_dir=self.state)
        self.clock = SystemClock()

    def cli(self, *arguments: str, code: int = 0) -> str:
        done: Done = run_here("aggregator.cli", *arguments, "--config", str(self.toml))
        assert done.code == code, done.error
        return done.out if code == 0 else done.error

    def journal(self, *actions: str) -> Head:
        journal = Journal(self.state / "journal", self.clock, "test")
        for action in actions:
            journal.append(action, subject={})
        head = journal.head
        journal.close()
        return head

    def blob(self, data: bytes) -> File:
        durable.make_directory(self.state / "blobs")
        (self.state / "blobs" / sha256(data)).write_bytes(data)
        return File(sha256(data), len(data))

    def model(self, number: int) -> ModelRow:
        parts = {"shared": self.blob(b"shared %d" % number)}
        statement = ModelStatement("test", "demo", "1" * 64, "mean", number, "", parts, "shared", "fedavg", [])
        envelope = Envelope(MODEL_TYPE, encode(statement), b"s", b"c")
        return ModelRow(sha256(envelope.payload), DEMO, number, "candidate", envelope, self.clock.now())

    def populate(self) -> None:
        """An experiment with its first model, and round 1 open with north's update in it."""
        self.journal("aggregator.started", "experiment.submitted")
        self.database = Database(self.state / "state.db")
        store = self.store = Store(self.database, self.clock)
        store.add_experiment(DEMO, "", Digest("1" * 64), "admin")
        model = self.model(0)
        store.add_first_model(model)
        state = plan(RoundKey(DEMO, 1), model.digest, (NORTH, SiteId("south")), (NORTH, SiteId("south")), 1, 3, 3600)
        store.add_round(state)
        update = self.blob(UPDATE)
        received = Received(NORTH, 1, sha256(b"payload"), Digest(update.sha256), update.bytes)
        opened = self.clock.now() - timedelta(seconds=3000)
        for event in (Opened(opened), Accepted(NORTH, 1), Announced(NORTH, Digest(update.sha256), update.bytes), received):
            state = self.advance(state, event)
        self.advance(state, Admitted(NORTH))
        (self.state / "blobs" / f"{update.sha256}.{owner_of('demo/1/train/north')}.received").touch()
        (self.state / "blobs" / f"{'7' * 64}.{'a' * 16}.part").write_bytes(b"an upload that is not complete")
        self.database.close()

    def advance(self, state: Round, event: Event) -> Round:
        after, _ = step(state, event)
        update = Envelope(UPDATE_TYPE, b"payload", b"s", b"c") if isinstance(event, Received) else None
        self.store.save_round(state, after, event, update)
        return after

    def sql(self, query: str, *values: object) -> list[tuple[object, ...]]:
        connection = sqlite3.connect(self.state / "state.db")
        with connection:
            found = connection.execute(query, values).fetchall()
        connection.close()
        return found

    def files(self) -> set[str]:
        return {path.name for path in (self.state / "blobs").iterdir()}
