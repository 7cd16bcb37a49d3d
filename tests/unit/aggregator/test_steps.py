"""The way to a model from those before it: which steps are told, and what it costs to ask."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aggregator.database import Database
from aggregator.rows import ModelRow
from aggregator.steps import steps_to
from aggregator.store import Store
from histofed.base.clock import FakeClock
from histofed.base.errors import NotFound
from histofed.base.ids import Digest, ExperimentId, sha256
from histofed.pki.signing import Envelope
from histofed.statements import MODEL_TYPE, Contribution, File, ModelStatement, decode_model, encode

DEMO = ExperimentId("demo")
SITES = 1000
ROUNDS = 5


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    database = Database(tmp_path / "state.db")
    made = Store(database, FakeClock())
    made.add_experiment(DEMO, "", Digest("1" * 64), "admin")
    yield made
    database.close()


def models(store: Store) -> list[ModelRow]:
    """The first model and those of `ROUNDS` rounds of many sites, each told as a step too."""
    made: list[ModelRow] = []
    contributions = [Contribution(f"site-{number:04}", "e" * 64, 1 / SITES) for number in range(SITES)]
    for number in range(ROUNDS + 1):
        parts = {"shared": File(sha256(b"shared %d" % number), 1000)}
        if made:
            parts["step"] = File(sha256(b"step %d" % number), 100)
        base = made[-1].digest if made else ""
        statement = ModelStatement(
            "test", DEMO, "1" * 64, "gan", number, base, parts, "shared", "fedavg", contributions if made else []
        )
        payload = encode(statement)
        envelope = Envelope(MODEL_TYPE, payload, b"", b"")
        made.append(ModelRow(sha256(payload), DEMO, number, "candidate", envelope, FakeClock().now()))
        store.add_first_model(made[-1])
    return made


def test_steps_lead_back_to_the_first_model(store: Store) -> None:
    made = models(store)

    found = steps_to(store, made[-1].digest)

    assert [step.file.sha256 for step in found] == [sha256(b"step %d" % number) for number in range(ROUNDS, 0, -1)]
    assert [step.begin for step in found] == [sha256(b"shared %d" % number) for number in range(ROUNDS - 1, -1, -1)]
    assert steps_to(store, made[0].digest) == ()
    with pytest.raises(NotFound):
        steps_to(store, Digest("f" * 64))


def test_an_offer_reads_no_statement_of_a_thousand_sites_again(store: Store) -> None:
    """Each offer and each download of each site asks, on the daemon's loop."""
    made = models(store)
    steps_to(store, made[-1].digest)

    def seconds_of(work: Callable[[], object]) -> float:
        begun = time.thread_time()
        work()
        return time.thread_time() - begun

    one_statement = min(seconds_of(lambda: decode_model(made[-1].statement.payload)) for _ in range(5))
    asking = min(seconds_of(lambda: steps_to(store, made[-1].digest)) for _ in range(5))
    assert asking < one_statement, f"{ROUNDS + 1} statements stand on the way"
