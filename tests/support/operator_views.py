"""Views of a small federation for the CLI's tests: one experiment `demo`, rounds of two sites."""

from __future__ import annotations

from dataclasses import replace

from histofed.cli.views import Experiment, Refusal, Round, Sight, Task

DIGEST = "ab" * 32
BASE = "cd" * 32


def experiment(state: str = "running", committed: int = 1, reason: str = "") -> Experiment:
    """`demo`, three rounds."""
    ended = "2026-01-01T12:10:00.000000Z" if state in ("finished", "failed", "cancelled") else None
    return Experiment(
        name="demo",
        recipe="gan",
        state=state,
        reason=reason,
        rounds=3,
        rounds_committed=committed,
        sha256="ef" * 32,
        submitted_by="alice",
        created_at="2026-01-01T12:00:00.000000Z",
        ended_at=ended,
        model_digest=DIGEST if committed else None,
    )


def task(site: str, state: str = "accepted", phase: str = "train", done: int = 40, total: int = 100) -> Task:
    """A task that trains."""
    return Task(
        site=site,
        kind="train",
        state=state,
        reason="",
        attempt=1,
        phase=phase,
        done=done,
        total=total,
        losses={"d": 1.25, "g": 0.75} if phase == "train" else {},
        rate=31.5 if phase == "train" else 2e6,
        update_bytes=14_100_000 if state in ("uploading", "received", "admitted") else 0,
    )


def open_round(number: int, *tasks: Task) -> Round:
    """A round that works."""
    return Round(
        experiment="demo",
        round=number,
        state="open",
        reason="",
        eligible=("east", "north", "south", "west"),
        sampled=tuple(one.site for one in tasks),
        admitted=(),
        refused=(),
        model_digest=None,
        base_digest=BASE,
        opened_at="2026-01-01T12:00:00.000000Z",
        deadline="2026-01-01T18:00:00.000000Z",
        committed_at=None,
        metrics={},
        tasks=tasks,
    )


def committed_round(number: int, *sites: str, refused: tuple[Refusal, ...] = ()) -> Round:
    """A round that made a model, 65 seconds after it opened."""
    return replace(
        open_round(number, *(task(site, "admitted", "", 0, 0) for site in sites)),
        state="committed",
        admitted=tuple(site for site in sites if site not in {refusal.site for refusal in refused}),
        refused=refused,
        model_digest=DIGEST,
        committed_at="2026-01-01T12:01:05.000000Z",
        metrics={"d": 1.1, "g": 0.9},
    )


def sight(newest: Round | None, state: str = "running", committed: int = 1) -> Sight:
    """What a watcher is sent."""
    return Sight(experiment(state, committed), newest)
