"""The aggregator's tables. Portable SQL: SQLite is the embedded default, nothing here stands in the way of PostgreSQL.

Times are text in the form of `clock.iso`: sortable, microseconds, UTC, the same in every database. The tables as they
were in each release are made by the migrations, never by this module (`tests/unit/aggregator/test_store.py` holds both
together).
"""

from __future__ import annotations

from sqlalchemy import Column, ForeignKey, ForeignKeyConstraint, Index, Integer, LargeBinary, MetaData, Table, Text

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
    }
)

sites = Table(
    "sites",
    metadata,
    Column("name", Text, primary_key=True),
    Column("enrolled_at", Text, nullable=False),
    Column("last_seen_at", Text),
    # when the site was given up as absent; NULL as long as it counts as present
    Column("left_at", Text),
    Column("version", Text, nullable=False, server_default=""),
    Column("instance", Text, nullable=False, server_default=""),
)

certificates = Table(
    "certificates",
    metadata,
    Column("serial", Text, primary_key=True),
    Column("identity", Text, nullable=False, index=True),
    Column("issued_at", Text, nullable=False),
    Column("expires_at", Text, nullable=False),
    Column("revoked_at", Text),
)

tokens = Table(
    "tokens",
    metadata,
    # HMAC of the token; the token itself is nowhere on disk
    Column("digest", Text, primary_key=True),
    Column("site", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("expires_at", Text, nullable=False),
    Column("used_at", Text),
)

experiments = Table(
    "experiments",
    metadata,
    Column("name", Text, primary_key=True),
    Column("toml", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("state", Text, nullable=False, index=True),
    Column("reason", Text, nullable=False, server_default=""),
    Column("submitted_by", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("ended_at", Text),
    # rounds up to this number do not count against round.abandoned_limit: an operator resumed after them
    Column("forgiven", Integer, nullable=False, server_default="0"),
)

rounds = Table(
    "rounds",
    metadata,
    Column("experiment", Text, ForeignKey("experiments.name"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("state", Text, nullable=False, index=True),
    Column("kind", Text, nullable=False),
    Column("reason", Text, nullable=False, server_default=""),
    Column("base", Text, nullable=False),
    Column("model", Text),
    # JSON list of site names
    Column("eligible", Text, nullable=False),
    Column("quorum", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("deadline_s", Integer, nullable=False),
    Column("opened_at", Text),
    Column("deadline", Text),
    Column("committed_at", Text),
    # JSON table of averaged metrics
    Column("metrics", Text, nullable=False, server_default="{}"),
    # admitted updates that close it before its deadline; 0 in rounds of release 0.1: all that were sampled
    Column("enough", Integer, nullable=False, server_default="0"),
)

tasks = Table(
    "tasks",
    metadata,
    Column("experiment", Text, primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("site", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("reason", Text, nullable=False, server_default=""),
    Column("manifest", Text),
    Column("weights", Text),
    Column("update_bytes", Integer, nullable=False, server_default="0"),
    ForeignKeyConstraint(["experiment", "round"], ["rounds.experiment", "rounds.number"]),
    Index("ix_tasks_site", "site", "experiment", "round"),
)

updates = Table(
    "updates",
    metadata,
    # SHA-256 of the signed manifest
    Column("manifest", Text, primary_key=True),
    Column("experiment", Text, nullable=False),
    Column("round", Integer, nullable=False),
    Column("site", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("signature", LargeBinary, nullable=False),
    Column("certificate", LargeBinary, nullable=False),
    Column("received_at", Text, nullable=False),
    Index("ix_updates_round", "experiment", "round"),
)

models = Table(
    "models",
    metadata,
    # SHA-256 of the statement
    Column("digest", Text, primary_key=True),
    Column("experiment", Text, ForeignKey("experiments.name"), nullable=False, index=True),
    Column("round", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("signature", LargeBinary, nullable=False),
    Column("certificate", LargeBinary, nullable=False),
    Column("created_at", Text, nullable=False),
    # when retention removed its files; the statement stays
    Column("removed_at", Text, index=True),
)

model_parts = Table(
    "model_parts",
    metadata,
    Column("model", Text, ForeignKey("models.digest"), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("sha256", Text, nullable=False, index=True),
    Column("bytes", Integer, nullable=False),
)

epochs = Table(
    "epochs",
    metadata,
    # counts from 1, which has no row; each restore begins the next one
    Column("number", Integer, primary_key=True),
    Column("began_at", Text, nullable=False),
    # digest of the backup's manifest; empty for a state that was put back by hand
    Column("backup", Text, nullable=False, server_default=""),
)

backups = Table(
    "backups",
    metadata,
    Column("id", Text, primary_key=True),
    Column("made_at", Text, nullable=False, index=True),
    # JSON table: the newest committed round of each experiment in it
    Column("rounds", Text, nullable=False),
    # SHA-256 of its manifest, once the file is complete
    Column("digest", Text),
    # when the daemon journalled it
    Column("noted_at", Text),
    # path of the file, in the system's bytes, from the moment before it has this name
    Column("target", LargeBinary),
)

events = Table(
    "events",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=True),
    Column("at", Text, nullable=False),
    Column("experiment", Text, nullable=False),
    Column("round", Integer, nullable=False),
    # JSON of what happened, as in aggregator/events.py
    Column("event", Text, nullable=False),
    Index("ix_events_round", "experiment", "round"),
)
