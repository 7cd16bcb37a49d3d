"""What members and strangers can make the aggregator write for ever is bounded, and an honest site does not notice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import sqlalchemy as sa

from aggregator import schema
from aggregator.database import Database
from aggregator.members import Members
from aggregator.services.enrollment import CERTIFICATES, REFUSALS, EnrollmentServicer
from histofed.audit.journal import Journal
from histofed.audit.record import AuditRecord
from histofed.audit.verify import records
from histofed.base.clock import FakeClock
from histofed.base.errors import NotAuthorised, TryLater
from histofed.base.ids import SiteId
from histofed.pki import tokens
from histofed.pki.keys import new_key, signing_request
from histofed.v1 import enrollment_pb2 as pb
from tests.support.calls import Call
from tests.support.pki import Federation

REQUEST = signing_request(new_key())
KEY = tokens.new_server_key()


@dataclass
class Desk:
    folder: Path
    clock: FakeClock
    database: Database
    federation: Federation
    servicer: EnrollmentServicer

    async def renew(self, site: str) -> None:
        call = cast("Any", Call(self.federation.site(site)))
        await self.servicer.Renew(pb.RenewRequest(csr_pem=REQUEST), call)

    async def enrol(self, token: str, address: str = "ipv4:127.0.0.1:1") -> None:
        await self.servicer.Enroll(pb.EnrollRequest(token=token, csr_pem=REQUEST), cast("Any", Call(None, address)))

    async def guess(self, times: int) -> None:
        for number in range(times):
            with pytest.raises(NotAuthorised, match="ask the operator for a new one"):
                await self.enrol("guessed", f"ipv4:10.{number // 250}.{number % 250}.1:1")

    def told(self) -> list[AuditRecord]:
        return list(records(self.folder / "journal"))

    def certificates(self) -> int:
        with self.database.reading() as connection:
            return int(connection.execute(sa.select(sa.func.count()).select_from(schema.certificates)).scalar_one())


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    clock = FakeClock()
    journal, database = Journal(tmp_path / "journal", clock, "test"), Database(tmp_path / "state.db")
    federation = Federation("test", clock)
    servicer = EnrollmentServicer(
        members=Members(database, clock),
        journal=journal,
        authority=federation.authority,
        token_key=KEY,
        address="localhost:1",
        clock=clock,
    )
    yield Desk(tmp_path, clock, database, federation, servicer)
    database.close()
    journal.close()


async def test_a_member_that_renews_all_the_time_is_told_from_when_on_it_may_again(desk: Desk) -> None:
    begin = desk.clock.now()
    for _ in range(CERTIFICATES):
        await desk.renew("north")
        desk.clock.advance(60)
    for _ in range(100):
        with pytest.raises(TryLater, match=f"ask again from {begin + timedelta(days=1):%Y-%m-%d %H:%M} UTC on"):
            await desk.renew("north")
    assert desk.certificates() == len(desk.told()) == CERTIFICATES
    await desk.renew("south")
    desk.clock.advance(86400 - 60 * CERTIFICATES)
    await desk.renew("north")


async def test_a_clock_that_was_ahead_keeps_nobody_from_renewing(desk: Desk) -> None:
    desk.clock.jump(365 * 86400)
    for _ in range(CERTIFICATES):
        await desk.renew("north")
    desk.clock.jump(-365 * 86400)
    await desk.renew("north")


async def test_strangers_fill_no_journal_from_however_many_addresses(desk: Desk) -> None:
    burst = int(REFUSALS.burst)
    await desk.guess(burst + 500)
    assert len(desk.told()) == burst
    desk.clock.advance(60)
    await desk.guess(1)
    assert desk.told()[-1].reason == "token not valid; 500 refusals before this one were too many to be journalled"

    token = tokens.make()
    Members(desk.database, desk.clock).create_token(
        tokens.digest(token, KEY), SiteId("north"), desk.clock.now() + timedelta(minutes=1)
    )
    await desk.enrol(token)
    assert (desk.told()[-1].action, desk.told()[-1].outcome) == ("site.enrol", "success")
