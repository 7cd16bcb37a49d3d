"""What a site may send, and what becomes of its task when it may not."""

from __future__ import annotations

import pytest

from aggregator import events
from aggregator.services.permissions import SitePermissions
from aggregator.space import Space
from aggregator.tasks import TaskState
from histofed.base.errors import CannotWriteState, Stale, TryLater
from histofed.base.ids import Digest
from histofed.pki.identity import Identity, Role
from histofed.transport.gate import Caller
from tests.support.engine_bench import EXPERIMENT, KEY, NORTH, Bench, opened


async def test_below_the_reserve_an_update_waits_and_its_task_stays(bench: Bench) -> None:
    async with bench.engine() as engine:
        await opened(engine)
        engine.dispatch(KEY, events.Accepted(NORTH, 1))
        task = engine.store.round(KEY).task_key(NORTH)
        who = Caller(Identity("test", Role.SITE, NORTH), "01", b"", "ipv4:127.0.0.1:1")
        free = 300 * 2**20
        permissions = SitePermissions(engine, Space(bench.folder, 256 * 2**20, lambda _: free), bench.chronicle(engine))
        with pytest.raises(CannotWriteState, match="300 MiB free, 100 MiB more would leave less than its reserve"):
            await permissions.may_upload(who, task, Digest("e" * 64), 100 * 2**20)
        assert engine.store.round(KEY).task(NORTH).state is TaskState.ACCEPTED
        free = 400 * 2**20
        await permissions.may_upload(who, task, Digest("e" * 64), 100 * 2**20)
        assert engine.store.round(KEY).task(NORTH).state is TaskState.UPLOADING
        bench.clock.advance(EXPERIMENT.file.round.deadline_s)
        bench.scheduler(engine).tick()
        with pytest.raises(Stale, match="its update came too late"):
            await permissions.may_upload(who, task, Digest("e" * 64), 10)


async def test_a_site_that_was_not_met_sends_nothing(bench: Bench) -> None:
    """What it has seen may show that this state was put back: then its update belongs to another history."""
    async with bench.engine() as engine:
        await opened(engine)
        engine.dispatch(KEY, events.Accepted(NORTH, 1))
        task = engine.store.round(KEY).task_key(NORTH)
        who = Caller(Identity("test", Role.SITE, NORTH), "01", b"", "ipv4:127.0.0.1:1")
        space = Space(bench.folder, 0, lambda _: 2**40)
        permissions = SitePermissions(engine, space, bench.chronicle(engine, met=()))
        with pytest.raises(TryLater, match="not heard yet what site north has seen"):
            await permissions.may_upload(who, task, Digest("e" * 64), 10)
        assert engine.store.round(KEY).task(NORTH).state is TaskState.ACCEPTED
