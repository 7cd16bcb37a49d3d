"""The live view of an experiment: `draw` turns a `Course` into a rich renderable and does nothing else.

A reason came from another machine. So every word is a `Text` of readable letters: rich takes a plain string for markup.
Only `watch.py` imports this, and only when a person watches: rich costs a tenth of a second.
"""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from histofed.base.words import readable
from histofed.cli.moments import Course
from histofed.cli.tables import between, losses, short, size, span, trained
from histofed.cli.views import Experiment, Round, Task

ROUNDS_SHOWN = 8
"""Past rounds on the screen; the newest ones."""
BAR_WIDTH = 22

_STYLES = {
    "admitted": "green",
    "committed": "green",
    "finished": "green",
    "rejected": "red",
    "declined": "red",
    "expired": "red",
    "abandoned": "red",
    "failed": "red",
    "cancelled": "red",
}


def draw(course: Course, now: float) -> RenderableType:
    """The whole screen; `now` is monotonic seconds, for the times that are left."""
    if course.moment is None:
        return _words(course.notice or "Waiting for the aggregator ...", "yellow" if course.notice else "dim")
    sight = course.moment.sight
    parts: list[RenderableType] = [_header(sight.experiment)]
    if course.notice:
        parts.append(_words(course.notice, "yellow"))
    if sight.round is not None and not sight.round.closed:
        parts += [Text(), _round_line(sight.round), _tasks(sight.round, course, now)]
    elif sight.experiment.state == "running":
        parts += [Text(), Text("Between rounds ...", style="dim")]
    closed = [one for one in course.moment.rounds().values() if one.closed]
    if closed:
        parts += [Text(), _history(closed)]
    return Group(*parts)


def _header(experiment: Experiment) -> Text:
    parts = [
        _words(experiment.name, "bold"),
        _words(f"  {experiment.recipe}  ", "dim"),
        _words(experiment.state, _STYLES.get(experiment.state, "cyan")),
        _words(f"  {experiment.rounds_committed} of {experiment.rounds} rounds committed"),
    ]
    if experiment.model_digest:
        parts.append(_words(f"  model {short(experiment.model_digest)}", "dim"))
    if experiment.reason:
        parts.append(_words(f"  {experiment.reason}", "yellow"))
    return Text.assemble(*parts)


def _round_line(one: Round) -> Text:
    state = _words(f"  {one.state}  {len(one.sampled)} of {len(one.eligible)} sites sampled")
    return Text.assemble(_words(f"Round {one.round}", "bold"), state)


def _words(words: str, style: str = "") -> Text:
    return Text(readable(words), style=style)


def _tasks(one: Round, course: Course, now: float) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    for _ in ("site", "phase", "bar", "amount", "losses", "rate"):
        table.add_column(no_wrap=True)
    for task in one.tasks:
        pace = course.paces.get(task.site)
        left = pace.seconds_left(task, now) if pace is not None else None
        table.add_row(
            _words(task.site),
            _words(_phase(task), _STYLES.get(task.state, "cyan")),
            ProgressBar(total=max(1, task.total), completed=_completed(task), width=BAR_WIDTH),
            _words(_amount(task)),
            _words(losses(task.losses)),
            _words(_rate(task)),
            _words(f"{span(left)} left" if left is not None else task.reason),
        )
    return table


def _phase(task: Task) -> str:
    working = task.state in ("accepted", "uploading")
    return task.phase if working and task.phase else task.state


def _completed(task: Task) -> float:
    if task.state in ("received", "admitted"):
        return max(1, task.total)
    return min(task.done, task.total)


def _amount(task: Task) -> str:
    if task.state in ("received", "admitted"):
        return size(task.update_bytes)
    if not task.total:
        return ""
    if task.phase == "train":
        return f"step {task.done}/{task.total}"
    return f"{size(task.done)} of {size(task.total)}"


def _rate(task: Task) -> str:
    if task.rate <= 0 or task.state not in ("accepted", "uploading"):
        return ""
    return f"{task.rate:.1f} images/s" if task.phase == "train" else f"{size(task.rate)}/s"


def _history(closed: list[Round]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("ROUND", "STATE", "ADMITTED", "SITES", "TOOK", "MEANS"):
        table.add_column(heading)
    for one in closed[-ROUNDS_SHOWN:]:
        took = between(one.opened_at, one.committed_at)
        table.add_row(
            _words(str(one.round)),
            _words(one.state, _STYLES.get(one.state, "")),
            _words(f"{len(one.admitted)}/{len(one.sampled)}"),
            _words(", ".join(one.sampled)),
            _words(span(took.total_seconds()) if took else "-"),
            _words(losses(trained(one.metrics)) or one.reason),
        )
    return table
