"""How long an aggregator with a long past takes to be ready again: 10,000 committed rounds of four sites.

    python -m bench.restart [--rounds 10000] [--sites 4] [--repeats 3] [--json FILE]

The federation is a real one, and its experiment's first model was made by the daemon. The past is then written as the daemon
would have left it, but at once: rows of every round, task, update and signed model, the journal with every transition, in
one unbroken chain, the files of the newest models, and the events that retention keeps. Timed is the start of the process
until it tells its manager READY, with a bare start of the same federation (no round yet) as the baseline; afterwards the
daemon must name every round, and its journal must verify.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from aggregator import events, rounds, schema
from aggregator.config import AggregatorConfig
from aggregator.database import Database
from aggregator.events import Event
from aggregator.rounds import Round
from aggregator.rows import ModelRow, envelope_values, round_values, task_values
from aggregator.setup import load
from aggregator.store import Store
from bench.result import Result, at_most, hand_over
from histofed import statements
from histofed.audit.journal import Journal
from histofed.audit.record import SYSTEM, AuditRecord
from histofed.audit.segments import segment_path
from histofed.base.clock import SystemClock, iso
from histofed.base.ids import Digest, ExperimentId, RoundKey, SiteId, sha256
from histofed.pki.credentials import Credentials
from histofed.pki.signing import Envelope, sign
from histofed.statements import ModelStatement, decode_model
from tests.support.federation import Federation, mean_experiment

COMMAND: Final = "python -m bench.restart"
TARGET_S: Final = 5.0
DETAILED: Final = 1000
"""Rounds whose events and manifests retention keeps."""
FILES: Final = 50
"""Models whose files retention keeps."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="histofed-bench-") as name:
        hand_over(measure(Path(name), options.rounds, options.sites, options.repeats), options.json)


def measure(folder: Path, count: int, sites: int, repeats: int) -> list[Result]:
    """Start it without a past, write the past, start it again."""
    with Federation(folder) as federation:
        federation.start_aggregator()
        federation.submit(mean_experiment("demo", count + 1))
        federation.wait_until_seen("demo", lambda sight: sight["experiment"]["state"] == "running")
        federation.daemons["aggregator"].stop()
        bare = statistics.median(_start(federation) for _ in range(repeats))
        _write_past(federation, count, tuple(SiteId(f"site-{number}") for number in range(sites)))
        long = statistics.median(_start(federation) for _ in range(repeats))
        federation.start_aggregator()
        begin = time.monotonic()
        found = len(federation.cli("rounds", "list", "demo")["rounds"])
        listed = time.monotonic() - begin
        federation.daemons["aggregator"].stop()
        if found != count:
            raise SystemExit(f"the daemon names {found} rounds of {count}")
        federation.command("histofed.cli.main", "audit", "verify", str(federation.state / "journal"))
        size = sum(path.stat().st_size for path in federation.state.rglob("*") if path.is_file())
    what = f"{count} past rounds"
    return [
        at_most(f"restart with {what}", long, "s", TARGET_S, COMMAND, bare),
        at_most(f"restart with {what} / with none", long / bare, "x", None, COMMAND, bare),
        at_most(f"rounds list of {what}", listed, "s", None, COMMAND),
        at_most(f"state directory after {what}", size / 1e6, "MB", None, COMMAND),
    ]


def _start(federation: Federation) -> float:
    begin = time.monotonic()
    daemon = federation.start_aggregator()
    ready = time.monotonic() - begin
    daemon.stop()
    return ready


def _write_past(federation: Federation, count: int, sites: tuple[SiteId, ...]) -> None:
    """Rows and journal of `count` rounds that were committed."""
    config = AggregatorConfig(federation="test", state_dir=federation.state)
    database = Database(federation.state / "state.db")
    store = Store(database, SystemClock())
    first = store.latest_model(ExperimentId("demo"))
    assert first is not None, "the daemon made it"
    credentials = load(config, SystemClock()).credentials
    journal = Journal(federation.state / "journal", SystemClock(), "bench")
    head = journal.head
    journal.close()
    past = tuple(_rounds(first, credentials, count, sites))
    with database.writing() as connection:
        _insert(connection, past, count)
    database.close()
    for _, _, model in past[-FILES:]:
        for part in decode_model(model.statement.payload).parts.values():
            (federation.state / "blobs" / part.sha256).write_bytes(_content(model.round))
    _write_journal(federation.state / "journal", head.sequence, head.hash, past)


def _rounds(
    first: ModelRow, credentials: Credentials, count: int, sites: tuple[SiteId, ...]
) -> Iterator[tuple[Round, tuple[Event, ...], ModelRow]]:
    """Each round as the machine leaves it, the events that led there, and the signed model."""
    model, start = first, first.created_at
    template = decode_model(first.statement.payload)
    for number in range(1, count + 1):
        state = rounds.plan(RoundKey(ExperimentId("demo"), number), model.digest, sites, sites, 1, 3, 3600, len(sites))
        found = statements.File(sha256(_content(number)), len(_content(number)))
        statement: ModelStatement = dataclasses.replace(
            template, round=number, base=model.digest, parts=dict.fromkeys(template.parts, found)
        )
        payload = statements.encode(statement)
        now = start + timedelta(seconds=number)
        envelope = sign(statements.MODEL_TYPE, payload, credentials)
        model = ModelRow(Digest(sha256(payload)), first.experiment, number, "candidate", envelope, now)
        happened: list[Event] = [events.Opened(now)]
        for site in sites:
            update, manifest = sha256(f"{number} {site}".encode()), sha256(f"{number} {site} m".encode())
            happened += [
                events.Accepted(site, 1),
                events.Announced(site, update, 4096),
                events.Received(site, 1, manifest, update, 4096),
                events.Admitted(site),
            ]
        happened.append(events.Aggregated(model.digest, now))
        for event in happened:
            state, _ = rounds.step(state, event)
        yield state, tuple(happened), model


def _content(number: int) -> bytes:
    """A part of a model of this round: some bytes."""
    return hashlib.sha256(str(number).encode()).digest() * 128


def _insert(connection: sa.Connection, past: tuple[tuple[Round, tuple[Event, ...], ModelRow], ...], count: int) -> None:
    late = past[-DETAILED:]
    rows: dict[sa.Table, list[dict[str, Any]]] = {
        schema.rounds: [round_values(state) for state, _, _ in past],
        schema.tasks: [task_values(state.key, task) for state, _, _ in past for task in state.tasks],
        schema.models: [_model_values(model, count) for _, _, model in past],
        schema.model_parts: [
            {"model": model.digest, "name": name, **asdict(part)}
            for _, _, model in past
            for name, part in decode_model(model.statement.payload).parts.items()
        ],
        schema.events: [
            {"at": iso(model.created_at), "experiment": "demo", "round": state.key.number, "event": "{}"}
            for state, happened, model in late
            for _ in happened
        ],
        schema.updates: [
            {
                "manifest": task.manifest,
                "experiment": "demo",
                "round": state.key.number,
                "site": task.site,
                **_envelope_values(model.statement),
                "received_at": iso(model.created_at),
            }
            for state, _, model in late
            for task in state.tasks
        ],
    }
    for table, values in rows.items():
        connection.execute(sa.insert(table), values)


def _model_values(model: ModelRow, count: int) -> dict[str, Any]:
    return {
        "digest": model.digest,
        "experiment": model.experiment,
        "round": model.round,
        "state": model.state,
        **_envelope_values(model.statement),
        "created_at": iso(model.created_at),
        "removed_at": iso(model.created_at) if model.round <= count - FILES else None,
    }


def _envelope_values(envelope: Envelope) -> dict[str, Any]:
    return dict(envelope_values(envelope))


def _write_journal(
    folder: Path, sequence: int, head: str, past: tuple[tuple[Round, tuple[Event, ...], ModelRow], ...]
) -> None:
    """Every transition, behind what is there already."""
    clock = SystemClock()
    with segment_path(folder, sequence + 1).open("wb") as file:
        for state, happened, model in past:
            planned = {"round": str(state.key), "base": state.base}
            told = [
                (f"round.{type(event).__name__.lower()}", {"round": str(state.key), "state": state.state})
                for event in happened
            ]
            for action, subject in [("round.planned", planned), *told]:
                sequence += 1
                record = AuditRecord(
                    sequence=sequence,
                    recorded=iso(model.created_at),
                    monotonic=round(clock.monotonic() * 1_000_000),
                    where="bench",
                    action=action,
                    who=SYSTEM,
                    subject=subject,
                    outcome="success",
                    reason="",
                    trace=None,
                )
                line, head = record.line(head)
                file.write(line + b"\n")


if __name__ == "__main__":
    main()
