"""What a caller may touch: a site its own tasks and the bytes that they need, an operator every model to read.

Who may call which method at all is said elsewhere (`histofed/transport/authz.py`). Called by the service of blobs, and by
`aggregator/services/rounds.py` for the tasks.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from aggregator import events, rounds
from aggregator.engine import Engine
from aggregator.history import Chronicle
from aggregator.models import SHARED
from aggregator.services import convert
from aggregator.services.offers import offered_steps
from aggregator.space import Space
from aggregator.tasks import TaskState
from histofed.base.errors import NotAuthorised, TooLarge
from histofed.base.ids import Digest, SiteId, TaskKey
from histofed.encodings.file import longest
from histofed.pki.identity import Role
from histofed.telemetry.logs import fields
from histofed.transport.server import Caller
from histofed.transport.store import BlobStore, owner_of

log = logging.getLogger(__name__)


class SitePermissions:
    """Which bytes a caller may send and read (`histofed/transport/blob_service.py`, Permissions)."""

    def __init__(self, engine: Engine, blobs: BlobStore, space: Space, chronicle: Chronicle) -> None:
        self._engine = engine
        self._blobs = blobs
        self._chronicle = chronicle
        self._space = space

    async def may_upload(self, who: Caller, task: TaskKey, sha256: Digest, size: int) -> None:
        """Only the update of the caller's own accepted task, no longer than one can be, while the disk has room.

        One update at a time: the bytes of another one that the task announced before are removed once there is room for
        this one. Nothing here is awaited, so no update can be received meanwhile.
        """
        check_own(who, task)
        self._chronicle.check_met(task.site)
        with self._chronicle.forgotten(task.round):
            self._engine.note_late(task, convert.who(who))
        if reason := self._too_long(task, size):
            self._engine.dispatch(task.round, events.Rejected(task.site, reason), who=convert.who(who))
            raise TooLarge(f"task {task}: {reason}")
        announced = events.Announced(task.site, sha256, size)
        rounds.step(self._engine.round_of(task), announced)  # an announcement that is refused costs no byte
        self._check_room(task, sha256, size)
        if self._replaces(task, sha256):
            self._blobs.forget_others(owner_of(str(task)), sha256, self._engine.store.is_part)
        self._engine.dispatch(task.round, announced, who=convert.who(who))

    async def may_download(self, who: Caller, sha256: Digest) -> None:
        """A site reads the base of its live tasks and the steps to it; an operator reads every model."""
        if who.identity.role is Role.OPERATOR:
            allowed = self._engine.store.is_part(sha256)
        else:
            allowed = any(self._needed(task, sha256) for task in self._engine.tasks_of(SiteId(who.name)))
        if not allowed:
            raise NotAuthorised(f"blob {sha256[:12]} is not part of a task or model that {who.identity.uri} may read")

    async def base_of(self, task: TaskKey) -> Digest | None:
        """What the round started from; it stays as long as the round is open."""
        return self._base(task)

    async def may_compare(self, who: Caller, sha256: Digest, held: Digest) -> bool:
        """Only with what its own tasks of the same experiment start from: whether other blobs are here is none of its
        business."""
        if who.identity.role is Role.OPERATOR:
            return self._engine.store.is_part(held)
        site = SiteId(who.name)
        return any(
            self._base(task) == sha256 and self._engine.store.was_base_of(site, task.round.experiment, held)
            for task in self._engine.tasks_of(site)
        )

    async def received(self, who: Caller, task: TaskKey, sha256: Digest, size: int) -> None:
        """The bytes are complete; the manifest that follows is what counts."""
        check_own(who, task)
        log.info("update uploaded", extra=fields(task, bytes=size))

    def _too_long(self, task: TaskKey, size: int) -> str:
        """Why no update of the task can be so long; empty where one can. Room that is promised is room that others lack."""
        limit = self._engine.experiment(task.round.experiment).file.aggregation.max_update_bytes
        if size > limit:
            return f"the update has {size} bytes, the experiment's limit is {limit} (aggregation.max_update_bytes)"
        base = self._engine.store.part(self._engine.round_of(task).base, SHARED)
        if size > (most := longest(base.bytes)):
            return f"the update has {size} bytes, one of the round's model at most {most}: send that model's tensors alone"
        return ""

    def _replaces(self, task: TaskKey, sha256: Digest) -> bool:
        """Whether the site may have sent the task's update under another digest, in this attempt or an earlier one."""
        mine = self._engine.round_of(task).task(task.site)
        return mine.weights != sha256 and (mine.weights is not None or mine.attempt > 1)

    def _check_room(self, task: TaskKey, sha256: Digest, size: int) -> None:
        """Room for what is still to come, beside what other uploads were promised. Raises `CannotWriteState`."""
        others = dict(self._announced(but=task))
        if self._space.fits(size + sum(whole for _, whole in others.values())):
            return  # as on most disks on most days: no file was looked at
        to_come = self._lacking(task, sha256, size)
        if self._replaces(task, sha256):
            to_come -= self._blobs.bytes_of_others(owner_of(str(task)), sha256, self._engine.store.is_part)
        lacking = {other: self._lacking(other, *announced) for other, announced in others.items()}
        mine = self._engine.round_of(task).task(task.site)
        if (mine.weights, mine.update_bytes) == (sha256, size):
            # it was promised its room, as they were; where the disk lost some since, those that need least go first
            # instead of each waiting for the others
            lacking = {other: n for other, n in lacking.items() if (n, str(other)) < (to_come, str(task))}
        if to_come > 0:
            self._space.check(to_come, promised=sum(lacking.values()))

    def _announced(self, but: TaskKey) -> Iterator[tuple[TaskKey, tuple[Digest, int]]]:
        """The other updates that are on their way, and how long each will be in the end."""
        for state in self._engine.open_rounds:
            for task in state.tasks:
                key = state.task_key(task.site)
                if task.state is TaskState.UPLOADING and task.weights is not None and key != but:
                    yield key, (task.weights, task.update_bytes)

    def _lacking(self, task: TaskKey, sha256: Digest, size: int) -> int:
        """Bytes of the update that are still to come."""
        return max(0, size - self._blobs.committed(sha256, owner_of(str(task))))

    def _needed(self, task: TaskKey, sha256: Digest) -> bool:
        """Whether the file is the task's base or a step to it."""
        steps = offered_steps(self._engine, task.round.experiment, self._engine.round_of(task).base)
        return self._base(task) == sha256 or any(step.file.sha256 == sha256 for step in steps)

    def _base(self, task: TaskKey) -> Digest:
        """The file that the task starts from."""
        return Digest(self._engine.store.part(self._engine.round_of(task).base, SHARED).sha256)


def check_own(who: Caller, task: TaskKey) -> None:
    """A task is its site's alone, by the caller's certificate. Raises `NotAuthorised`."""
    if task.site != who.name:
        raise NotAuthorised(f"task {task} belongs to another site than {who.identity.uri}")
