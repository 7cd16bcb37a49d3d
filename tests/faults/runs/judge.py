"""What must be true after a run, whatever happened in it: read from what the daemons left on disk and what they told.

`tests/faults/history.py` holds the aggregator's disk against the pure model of the round. Here is what it cannot know: the
bytes (every model is computed again from what was admitted), the agents' journals, their private tensors and their disks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from agent.layout import Layout
from agent.state import State
from aggregator.rounds import Round, RoundState
from aggregator.tasks import TaskState
from histofed import weights
from histofed.audit.record import AuditRecord
from histofed.audit.verify import records, verify
from histofed.base.clock import SystemClock
from histofed.base.ids import ExperimentId, RoundKey
from tests.faults.facts import Disk, Fact, History, ModelSeen, Refused, Restored, Stopped, Violation
from tests.faults.history import check
from tests.faults.observation import read_state
from tests.faults.promises import bytes_were_kept
from tests.faults.runs import transfers
from tests.faults.runs.rig import Rig
from tests.faults.runs.schedule import AGGREGATOR, Schedule
from tests.support import expected


def judge(rig: Rig, scratch: Path) -> list[Violation]:
    """Every violation of a run that was played to its end; `scratch` is an empty folder."""
    disk = read_state(rig.state)
    found = list(check(History(_told(rig), disk)))
    found += _models(disk, rig.schedule, scratch)
    found += _files(rig.state / "blobs")
    for site in rig.schedule.sites:
        found += _site(rig.site(site) / "state", site, disk, rig.schedule)
        found += bytes_were_kept(transfers.told((rig.folder / f"{site}.log").read_bytes(), rig.logged.get(site)))
    found += _logs(rig)
    return found


def _told(rig: Rig) -> list[Fact]:
    """What the operator was shown; how often the aggregator died, or was refused by its disk."""
    name = ExperimentId(rig.schedule.name)
    told, at = list[Fact](), dict[int, int]()
    for number, sight in enumerate([*rig.sights, None]):
        at[number] = len(told)
        told += [Restored(at[made]) for made, put_back in rig.restored if put_back == number]
        if sight is not None and sight["round"] is not None and sight["round"]["state"] == "committed":
            told.append(ModelSeen(RoundKey(name, sight["round"]["round"]), sight["round"]["model_digest"]))
    return [*told, *[Stopped()] * rig.sudden_ends, *[Refused()] * rig.refusals]


def _models(disk: Disk, schedule: Schedule, scratch: Path) -> Iterator[Violation]:
    """Each model is, to the bit, what its admitted updates make. With a quorum of all, and no deadline that passed, those
    are the updates of everybody in every round: the models of an undisturbed run.
    """
    committed = [state for state in disk.rounds if state.state is RoundState.COMMITTED]
    in_time = not any(row.name == "DeadlinePassed" for row in disk.events)
    if (
        schedule.everybody
        and in_time
        and [state.admitted for state in disk.rounds] != [tuple(sorted(schedule.sites))] * schedule.rounds
    ):
        what = ", ".join(f"{state.key.number} {state.state}: {'+'.join(state.admitted)}" for state in disk.rounds)
        yield Violation("undisturbed", f"quorum was everybody and no deadline passed; the rounds are {what}")
    want = expected.models_of([(state.key.number, state.admitted) for state in committed], schedule.toml, scratch)
    made = {model.round: model for model in disk.models}
    for number, parts in zip([0, *(state.key.number for state in committed)], want, strict=True):
        if number not in made or made[number].parts != frozenset(parts.values()):
            yield Violation("bytes", f"the model of round {number} is not what its admitted updates make")


def _files(blobs: Path) -> Iterator[Violation]:
    """A blob is what its name says; an ended round leaves nothing behind."""
    for path in sorted(blobs.iterdir()):
        if len(path.name) != 64:
            yield Violation("litter", f"{path.name} is left in the blob store")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != path.name:
            yield Violation("bytes", f"the blob {path.name[:12]} holds other bytes")


# --- a site -----------------------------------------------------------------------------------------------------------


def _site(state: Path, site: str, disk: Disk, schedule: Schedule) -> Iterator[Violation]:
    report = verify(state / "journal")
    if not report.ok:
        yield Violation("journal", f"{site}'s journal breaks after record {report.records}: {report.problem}")
        return
    yield from _verdicts(tuple(records(state / "journal")), site, disk.rounds)
    yield from _private_tensors(state, site, disk, schedule)
    for path in (*(state / "outbox").iterdir(), *(state / "work").iterdir()):
        yield Violation("litter", f"{site} keeps {path.relative_to(state)} although every round has ended")


def _verdicts(journal: Sequence[AuditRecord], site: str, rounds: Sequence[Round]) -> Iterator[Violation]:
    """What the site was told of its updates is what the aggregator did, and everything admitted was told or is known."""
    tasks = {state.key.number: task for state in rounds for task in state.tasks if task.site == site}
    # what was said before a backup was put back was said by a history that is no more
    since = max((record.sequence for record in journal if record.action == "aggregator.restored"), default=0)
    for record in journal:
        if record.action != "update.verdict" or record.sequence < since:
            continue
        number = record.subject["round"]
        task = tasks.get(number) if isinstance(number, int) else None
        due = TaskState.ADMITTED if record.outcome == "success" else TaskState.REJECTED
        if task is None or (task.state, task.weights) != (due, record.subject["sha256"]):
            yield Violation("word-broken", f"{site} was told {due} in round {number}; the aggregator has {task}")
    sent = {(record.subject["round"], record.subject["sha256"]) for record in journal if record.action == "update.sent"}
    for number, task in tasks.items():
        if task.state is TaskState.ADMITTED and (number, task.weights) not in sent:
            yield Violation("twice", f"round {number} admitted an update of {site} that the site's journal does not know")


def _private_tensors(state: Path, site: str, disk: Disk, schedule: Schedule) -> Iterator[Violation]:
    """They count the steps of committed rounds with this site's update in it, and of no other."""
    layout = Layout(state)
    rows = State(layout.state, SystemClock())
    try:
        number = rows.private_round(ExperimentId(schedule.name))
    finally:
        rows.close()
    if number == 0:
        return
    mine = [each.key.number for each in disk.rounds if each.state is RoundState.COMMITTED and site in each.admitted]
    counted = float(weights.read(layout.private / schedule.name / f"{number}.safetensors")["mean.steps"][0])
    due = schedule.steps * len([each for each in mine if each <= number])
    if number not in mine or counted != due:
        yield Violation("private", f"{site}: private tensors of round {number} count {counted} steps, not {due}")


# --- words ------------------------------------------------------------------------------------------------------------


def _logs(rig: Rig) -> Iterator[Violation]:
    """No daemon fails in a way that it has no sentence for."""
    for name in (AGGREGATOR, *rig.schedule.sites):
        lines = (rig.folder / f"{name}.log").read_text(errors="replace").splitlines()
        for number, line in enumerate(lines, 1):
            if "Traceback (most recent call last)" in line:
                place = " | ".join(lines[number : number + 40][-3:])
                yield Violation("words", f"{name}.log:{number}: a traceback: {place}")
            elif '"logger": "asyncio"' in line:
                yield Violation("words", f"{name}.log:{number}: {line[:300]}")
