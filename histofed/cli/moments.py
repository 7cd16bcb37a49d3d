"""A watched experiment over time: what was seen, how fast it goes, and what changed. Pure; `watch.py` feeds it.

The stream shows the newest round only and may skip states when much happens at once. So a `Moment` also carries the list of
past rounds, which `watch.py` asks for whenever a round closed, and `changes` compares both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from histofed.cli.tables import between, losses, short, size, span, trained
from histofed.cli.views import Experiment, Round, Sight, Task

TASKS_WITH_NEWS = frozenset({"accepted", "uploading", "received", "admitted", "rejected", "declined", "expired"})


@dataclass(frozen=True)
class Moment:
    """What was seen last."""

    sight: Sight
    past: tuple[Round, ...] = ()
    """Rounds as `rounds list` gave them when a round last closed; may hold the newest one too."""

    def rounds(self) -> Mapping[int, Round]:
        """All rounds seen, by number; the stream is newer than the list, unless the list knows how a round ended."""
        known = {one.round: one for one in self.past}
        newest = self.sight.round
        if newest is not None and not (newest.round in known and known[newest.round].closed and not newest.closed):
            known[newest.round] = newest
        return dict(sorted(known.items()))


@dataclass(frozen=True)
class Pace:
    """Where a task's phase stood when it was first seen; what has been done since tells its speed."""

    round: int
    attempt: int
    phase: str
    done: int
    at: float
    """Monotonic seconds."""

    def seconds_left(self, task: Task, now: float) -> float | None:
        """Until the phase is done, at the speed so far; None while nothing can be said."""
        passed, done = now - self.at, task.done - self.done
        if passed <= 0 or done <= 0 or task.total <= 0:
            return None
        return max(0.0, (task.total - task.done) * passed / done)


@dataclass(frozen=True)
class Course:
    """Everything a live view draws from."""

    moment: Moment | None = None
    paces: Mapping[str, Pace] = field(default_factory=dict)
    """By site."""
    notice: str = ""
    """What is wrong with the connection; empty while messages come."""


def observe(course: Course, moment: Moment, now: float) -> Course:
    """A message came: keep the pace of phases that go on, begin a new one for those that changed."""
    newest = moment.sight.round
    paces: dict[str, Pace] = {}
    for task in newest.tasks if newest is not None else ():
        assert newest is not None
        fresh = Pace(newest.round, task.attempt, task.phase, task.done, now)
        before = course.paces.get(task.site)
        goes_on = before is not None and (before.round, before.attempt, before.phase) == (
            fresh.round,
            fresh.attempt,
            fresh.phase,
        )
        paces[task.site] = before if goes_on and before is not None and before.done <= task.done else fresh
    return Course(moment, paces, "")


def interrupted(course: Course, notice: str) -> Course:
    """The connection was lost; what was seen stays."""
    return Course(course.moment, course.paces, notice)


def changes(before: Moment | None, after: Moment) -> tuple[str, ...]:
    """One line per thing that happened in between."""
    old = before.rounds() if before is not None else {}
    lines: list[str] = []
    experiment = after.sight.experiment
    moved = before is None or before.sight.experiment.state != experiment.state
    if moved and not experiment.rests:
        lines.append(experiment_line(experiment))
    for number, one in after.rounds().items():
        lines += _round_changes(old.get(number), one)
    if moved and experiment.rests:
        lines.append(experiment_line(experiment))
    return tuple(lines)


def experiment_line(experiment: Experiment) -> str:
    """`demo is running, 1 of 3 rounds committed`."""
    line = f"{experiment.name} is {experiment.state}, {experiment.rounds_committed} of {experiment.rounds} rounds committed"
    return f"{line}: {experiment.reason}" if experiment.reason else line


def _round_changes(before: Round | None, after: Round) -> list[str]:
    name = f"round {after.round}"
    lines: list[str] = []
    if before is None:
        lines.append(f"{name}: sampled {', '.join(after.sampled)} of {len(after.eligible)} eligible")
    known = {task.site: task for task in before.tasks} if before is not None else {}
    for task in after.tasks:
        seen = known.get(task.site)
        if task.state in TASKS_WITH_NEWS and (seen is None or (seen.state, seen.attempt) != (task.state, task.attempt)):
            lines.append(f"{name}: {task.site} {_task_words(task)}")
    if before is None or before.state != after.state:
        lines += [f"{name}: {words}" for words in _round_words(after)]
    return lines


def _task_words(task: Task) -> str:
    words = task.state
    if task.state in ("uploading", "received", "admitted") and task.update_bytes:
        words += f" ({size(task.update_bytes)})"
    if task.state == "accepted" and task.attempt > 1:
        words += f" (attempt {task.attempt})"
    return f"{words}: {task.reason}" if task.reason else words


def _round_words(one: Round) -> list[str]:
    if one.state == "aggregating":
        return ["averaging the admitted updates"]
    if one.state == "abandoned":
        return [f"abandoned: {one.reason}"]
    if one.state != "committed":
        return []
    took = between(one.opened_at, one.committed_at)
    parts = [f"committed model {short(one.model_digest)}", f"{len(one.admitted)} of {len(one.sampled)} admitted"]
    parts += [f"in {span(took.total_seconds())}"] if took else []
    parts += [losses(trained(one.metrics))] if one.metrics else []
    return [", ".join(parts)]
