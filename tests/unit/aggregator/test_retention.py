"""What may go, what must stay, and what a crash or a full disk in between leaves behind."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from aggregator import schema
from aggregator.config import RetentionRules
from aggregator.engine import Engine
from aggregator.past import Held
from aggregator.retention import MODELS_AT_ONCE, Retention, expendable
from aggregator.rows import ModelRow
from histofed.base.errors import CannotWriteState
from histofed.base.health import Health
from histofed.base.ids import Digest, ExperimentId, sha256
from histofed.pki.signing import Envelope
from histofed.statements import MODEL_TYPE, File, ModelStatement, encode
from tests.support.engine_bench import EXPERIMENT, NORTH, SOUTH, Bench, Crash, dies, opened, recover, running, submit
from tests.support.failing_disk import hide

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SERVER = sha256(b"the same server tensors in every model")


# --- the decision -----------------------------------------------------------------------------------------------------


def held(experiment: str, number: int, size: int = 10, *, released: bool = False, shares: str = "") -> Held:
    parts = ((sha256(f"{experiment} {number}".encode()), size), (sha256((shares or "common").encode()), 1))
    return Held(
        sha256(f"model {experiment} {number}".encode()),
        ExperimentId(experiment),
        number,
        released,
        NOW + timedelta(minutes=number),
        parts,
    )


def rounds_left(models: list[Held], rules: RetentionRules, bases: frozenset[Digest] = frozenset()) -> list[int]:
    gone = expendable(models, bases, rules)
    return [model.round for model in models if model.digest not in gone]


def test_the_newest_models_of_each_experiment_stay() -> None:
    models = [held(name, number) for name in ("a", "b") for number in range(5)]
    assert rounds_left(models, RetentionRules(models=2)) == [3, 4, 3, 4]


def test_released_models_and_what_an_open_round_starts_from_stay() -> None:
    models = [held("a", number, released=number == 1) for number in range(6)]
    assert rounds_left(models, RetentionRules(models=1), frozenset({models[3].digest})) == [1, 3, 5]


def test_above_the_limit_of_bytes_the_oldest_go_and_shared_files_count_once() -> None:
    models = [held("a", number) for number in range(5)]
    assert rounds_left(models, RetentionRules(bytes=5 * 10 + 1)) == [0, 1, 2, 3, 4]
    assert rounds_left(models, RetentionRules(bytes=5 * 10)) == [1, 2, 3, 4]
    assert rounds_left(models, RetentionRules(bytes=21)) == [3, 4]
    assert rounds_left(models, RetentionRules(bytes=1)) == [4], "the newest stays whatever it costs"
    assert rounds_left(models, RetentionRules(bytes=0)) == [0, 1, 2, 3, 4], "no limit"


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 30), st.integers(0, 50), st.booleans()), max_size=25),
    st.sets(st.integers(0, 24)),
    st.integers(1, 5),
    st.integers(1, 400),
)
def test_nothing_that_is_needed_ever_goes_and_the_rest_fits(
    facts: list[tuple[str, int, int, bool]], bases: set[int], most: int, limit: int
) -> None:
    models = list({(name, number): held(name, number, size, released=out) for name, number, size, out in facts}.values())
    open_bases = frozenset(model.digest for index, model in enumerate(models) if index in bases)
    gone = set(expendable(models, open_bases, RetentionRules(models=most, bytes=limit)))
    newest = {
        max((model for model in models if model.experiment == name), key=lambda m: m.round).digest
        for name in {model.experiment for model in models}
    }
    needed = open_bases | newest | {model.digest for model in models if model.released}
    assert not gone & needed
    stay = [model for model in models if model.digest not in gone]
    total = sum({sha: size for model in stay for sha, size in model.parts}.values())
    assert total <= limit or {model.digest for model in stay} <= needed
    for name in {model.experiment for model in models}:
        ours = sorted((model for model in models if model.experiment == name), key=lambda model: -model.round)
        assert {model.digest for model in ours[most:]} - needed <= gone


# --- what is done -----------------------------------------------------------------------------------------------------


def add_model(bench: Bench, engine: Engine, number: int) -> tuple[ModelRow, Digest]:
    """A committed model with a file of its own and one that all share."""
    shared = sha256(f"shared {number}".encode())
    for data, name in ((f"shared {number}".encode(), shared), (b"the same server tensors in every model", SERVER)):
        bench.blobs.path(name).write_bytes(data)
    parts = {"shared": File(shared, 8), "server": File(SERVER, 38)}
    payload = encode(ModelStatement("test", "demo", "1" * 64, "mean", number, "", parts, "server", "fedavg", []))
    bench.clock.advance(1)
    row = ModelRow(
        sha256(payload), EXPERIMENT.name, number, "candidate", Envelope(MODEL_TYPE, payload, b"s", b"c"), bench.clock.now()
    )
    engine.store.add_first_model(row)
    return row, shared


def retention(bench: Bench, engine: Engine, rules: RetentionRules, health: Health | None = None) -> Retention:
    return bench.retention(engine, rules, health or Health(bench.clock, required=()))


async def test_files_go_rows_and_statements_stay(bench: Bench) -> None:
    async with bench.engine() as engine:
        await running(engine)
        made = [add_model(bench, engine, number) for number in range(1, 5)]
        receipt = bench.blobs.path("e" * 64)
        receipt.write_bytes(b"an update that is being judged")
        receipt.with_name(f"{'e' * 64}.owner.received").touch()
        (bench.scratch / "demo-3-shared.safetensors").write_bytes(b"left by a child that was killed")
        assert retention(bench, engine, RetentionRules(models=2)).apply() is False
        assert bench.blobs.digests() == {made[2][1], made[3][1], SERVER, Digest("e" * 64)}
        assert list(bench.scratch.iterdir()) == []
        old = engine.store.model(made[0][0].digest)
        assert (old.statement, old.removed_at) == (made[0][0].statement, bench.clock.now())
        assert engine.store.model(made[3][0].digest).removed_at is None
        assert not engine.store.is_part(made[0][1])
        before = bench.actions()
        retention(bench, engine, RetentionRules(models=2)).apply()
        assert bench.actions() == before, "what is done is not decided again"
    (decided,) = [record for record in bench.audit() if record.action == "retention.decided"]
    first = bench.forge._model(0).digest
    assert decided.subject["models"] == [first, made[0][0].digest, made[1][0].digest]


async def test_one_turn_is_bounded_and_the_next_goes_on(bench: Bench) -> None:
    async with bench.engine() as engine:
        await running(engine)
        for number in range(1, MODELS_AT_ONCE + 6):
            add_model(bench, engine, number)
        turns = retention(bench, engine, RetentionRules(models=1))
        assert turns.apply() is True
        assert len(bench.blobs.digests()) == 7
        turns.turn()
        assert len(bench.blobs.digests()) == 2


async def test_a_crash_between_the_rows_and_the_files_is_made_good(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench.engine() as engine:
        await running(engine)
        made = [add_model(bench, engine, number) for number in range(1, 4)]
        monkeypatch.setattr("aggregator.retention.failpoint", dies)
        with pytest.raises(Crash):
            retention(bench, engine, RetentionRules(models=1)).apply()
        assert len(bench.blobs.digests()) == 4, "the rows say removed, the files are still here"
    async with bench.engine() as engine:
        recover(engine)
        retention(bench, engine, RetentionRules(models=1)).apply()
        assert bench.blobs.digests() == {made[2][1], SERVER}
        assert bench.actions().count("retention.decided") == 1


async def test_no_audit_no_removal(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    health = Health(bench.clock, required=(), loop_seconds=3600)
    async with bench.engine() as engine:
        await running(engine)
        for number in range(1, 4):
            add_model(bench, engine, number)

        def full(*_: object, **__: object) -> None:
            raise CannotWriteState("the disk is full")

        turns = retention(bench, engine, RetentionRules(models=1), health)
        monkeypatch.setattr(engine, "audit", full)
        turns.turn()
        assert len(bench.blobs.digests()) == 4
        assert health.words() == "retention: the disk is full"
        monkeypatch.undo()
        turns.turn()
        assert len(bench.blobs.digests()) == 4, "not before a minute has passed"
        bench.clock.advance(60)
        turns.turn()
        assert (len(bench.blobs.digests()), health.words()) == (2, "all is well")


@pytest.mark.parametrize("folder", ["blobs", "scratch"])
async def test_a_folder_that_cannot_be_listed_is_told_and_swept_later(
    bench: Bench, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    health = Health(bench.clock, required=(), loop_seconds=3600)
    async with bench.engine() as engine:
        await running(engine)
        _, shared = add_model(bench, engine, 1)
        bench.blobs.path("d" * 64).write_bytes(b"nobody wants it")
        (bench.scratch / "left").touch()
        turns = retention(bench, engine, RetentionRules(), health)
        with monkeypatch.context() as machine:
            hide(machine, bench.folder / folder)
            turns.turn()
        assert "Too many open files" in health.words()
        bench.clock.advance(60)
        turns.turn()
        assert (bench.blobs.digests(), list(bench.scratch.iterdir())) == ({shared, SERVER}, [])
        assert health.words() == "all is well"


async def test_nothing_is_swept_while_a_model_is_being_made(bench: Bench) -> None:
    async with bench.engine() as engine:
        submit(engine)
        assert engine.makes_models
        stray = bench.blobs.path("d" * 64)
        stray.write_bytes(b"its row comes next")
        turns = retention(bench, engine, RetentionRules())
        turns.apply()
        assert stray.exists()


async def test_a_database_that_knows_no_model_judges_no_file(bench: Bench) -> None:
    """It was lost, and begun anew where the journal was gone too."""
    left = bench.blobs.path("d" * 64)
    left.write_bytes(b"a model of the state before")
    async with bench.engine() as engine:
        retention(bench, engine, RetentionRules()).apply()
        assert left.exists()


async def test_events_and_manifests_of_old_rounds_go_and_the_rounds_stay(bench: Bench) -> None:
    async with bench.engine() as engine:
        await opened(engine)
        for number in range(2, 6):
            base = engine.store.latest_model(EXPERIMENT.name)
            assert base is not None
            engine.plan(EXPERIMENT, number, base.digest, (NORTH, SOUTH), (NORTH,))
        assert rounds_with_events(engine) == {1, 2, 3, 4, 5}
        retention(bench, engine, RetentionRules(rounds=2)).apply()
        assert rounds_with_events(engine) == {4, 5}
        assert len(engine.store.rounds("demo")) == 5


async def test_details_of_thousands_of_experiments_go_some_at_a_time(bench: Bench) -> None:
    """A record of the journal names those of which something goes."""
    names = {f"{number:04d}-{'x' * 35}" for number in range(1500)}
    async with bench.engine() as engine:
        await opened(engine)
        with engine.store._database.writing() as connection:
            experiment = connection.execute(sa.select(schema.experiments)).one()._mapping
            planned = connection.execute(sa.select(schema.rounds)).one()._mapping
            connection.execute(sa.insert(schema.experiments), [{**experiment, "name": name} for name in names])
            rounds = [{**planned, "experiment": name, "number": number} for name in names for number in (1, 2)]
            connection.execute(sa.insert(schema.rounds), rounds)
            details = [{"at": "2026", "experiment": name, "round": 1, "event": "{}"} for name in names]
            connection.execute(sa.insert(schema.events), details)
        turns = retention(bench, engine, RetentionRules(rounds=1))
        turns.turn()
        assert 1 in rounds_with_events(engine, names), "not all at once"
        while turns.apply():
            pass
        assert rounds_with_events(engine, names) == set()
    told = [record.subject["details_through_round"] for record in bench.audit() if record.action == "retention.decided"]
    assert {name for some in told for name in some} == names  # type: ignore[union-attr]  # a table by name


def rounds_with_events(engine: Engine, names: Collection[str] = ("demo",)) -> set[int]:
    with engine.store._database.reading() as connection:
        found = connection.execute(sa.select(schema.events.c.experiment, schema.events.c.round)).all()
    return {row.round for row in found if row.experiment in names}
