"""The judge finds what it is there to find: each law on a small state that breaks it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from aggregator import rounds
from aggregator.rounds import Round
from aggregator.tasks import TaskState
from histofed.audit.record import SYSTEM, AuditRecord, Outcome
from histofed.base.ids import Digest, ExperimentId, RoundKey, SiteId, sha256
from tests.faults.facts import Disk, EventRow, Violation
from tests.faults.runs import judge
from tests.faults.runs.schedule import DEADLINE_S, Schedule

NORTH, EAST = SiteId("north"), SiteId("east")
KEY = RoundKey(ExperimentId("seed-0"), 1)
SCHEDULE = Schedule(0, ("north", "east"), 1, 2, DEADLINE_S, 10, 2, 0.0, False, ())


def admitted(*sites: SiteId) -> Round:
    """A committed round in which these sites' updates are."""
    state = rounds.plan(KEY, Digest("0" * 64), (EAST, NORTH), (EAST, NORTH), 1, 1, 60)
    tasks = tuple(
        replace(task, state=TaskState.ADMITTED, weights=sha256(task.site.encode())) if task.site in sites else task
        for task in state.tasks
    )
    return replace(state, state=rounds.RoundState.COMMITTED, tasks=tasks)


def record(action: str, sha: str, outcome: Outcome = "success") -> AuditRecord:
    return AuditRecord(1, "2026-01-01", 1, "agent-north", action, SYSTEM, {"round": 1, "sha256": sha}, outcome, "", None)


def laws(found: Iterable[Violation]) -> list[str]:
    return [each.law for each in found]


def test_a_word_that_the_aggregator_did_not_keep() -> None:
    mine = sha256(b"north")
    honest = (record("update.sent", mine), record("update.verdict", mine))
    assert laws(judge._verdicts(honest, "north", [admitted(NORTH)])) == []
    assert laws(judge._verdicts(honest, "north", [admitted(EAST)])) == ["word-broken"]
    refused = (record("update.sent", mine), record("update.verdict", mine, "refused"))
    assert laws(judge._verdicts(refused, "north", [admitted(NORTH)])) == ["word-broken"]


def test_an_update_that_the_site_never_sent() -> None:
    assert laws(judge._verdicts((), "north", [admitted(NORTH)])) == ["twice"]
    assert laws(judge._verdicts((record("update.sent", sha256(b"other")),), "north", [admitted(NORTH)])) == ["twice"]


def test_blobs_that_lie_and_what_is_left_behind(tmp_path: Path) -> None:
    (tmp_path / sha256(b"good")).write_bytes(b"good")
    assert laws(judge._files(tmp_path)) == []
    (tmp_path / sha256(b"bad")).write_bytes(b"worse")
    (tmp_path / f"{sha256(b'x')}.owner.part").write_bytes(b"")
    assert sorted(laws(judge._files(tmp_path))) == ["bytes", "litter"]


def test_models_that_are_not_what_was_admitted_make(tmp_path: Path) -> None:
    def disk(*events: EventRow, sites: tuple[SiteId, ...] = (EAST, NORTH)) -> Disk:
        return Disk((), (admitted(*sites),), (), {}, events, (), frozenset())

    folders = iter(tmp_path / str(number) for number in range(9))

    def judged(found: Disk) -> list[str]:
        scratch = next(folders)
        scratch.mkdir()
        return laws(judge._models(found, SCHEDULE, scratch))

    assert judged(disk()) == ["bytes", "bytes"], "neither model is there"
    assert judged(disk(sites=(NORTH,))) == ["undisturbed", "bytes", "bytes"]
    assert judged(disk(EventRow(KEY, "DeadlinePassed", {}), sites=(NORTH,))) == ["bytes", "bytes"]
