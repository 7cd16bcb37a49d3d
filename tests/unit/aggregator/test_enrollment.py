"""What members and strangers can make the aggregator write for ever is bounded, and an honest site does not notice.

Enrolling again ends what somebody else may hold of a site's keys.
"""

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
from histofed.pki.credentials import Credentials
from histofed.pki.keys import new_key, signing_request
from histofed.v1 import enrollment_pb2 as pb
from tests.support.calls import Call
from tests.support.pki import Federation

MEMBERS_KEY = new_key()
REQUEST = signing_request(MEMBERS_KEY)
KEY = tokens.new_server_key()


@dataclass
class Desk:
    folder: Path
    clock: FakeClock
    database: Database
    members: Members
    federation: Federation
    servicer: EnrollmentServicer

    async def renew(self, site: str, credentials: Credentials | None = None) -> Credentials:
        """With any certificate of the site's where none is given."""
        call = cast("Any", Call(credentials or self.federation.site(site)))
        return self.held(await self.servicer.Renew(pb.RenewRequest(csr_pem=REQUEST), call))

    async def enrol(self, token: str, address: str = "ipv4:127.0.0.1:1") -> Credentials:
        request = pb.EnrollRequest(token=token, csr_pem=REQUEST)
        return self.held(await self.servicer.Enroll(request, cast("Any", Call(None, address))))

    def line(self, site: str) -> str:
        token, until = tokens.make(), self.clock.now() + timedelta(minutes=1)
        self.members.create_token(tokens.digest(token, KEY), SiteId(site), until)
        return token

    async def join(self, site: str, address: str = "ipv4:127.0.0.1:1") -> Credentials:
        """With a line of its own."""
        return await self.enrol(self.line(site), address)

    def held(self, answer: pb.EnrollResponse | pb.RenewResponse) -> Credentials:
        return Credentials.make(MEMBERS_KEY, answer.certificate_pem, answer.ca_pem)

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
    federation, members = Federation("test", clock), Members(database, clock)
    servicer = EnrollmentServicer(
        members=members,
        journal=journal,
        authority=federation.authority,
        token_key=KEY,
        address="localhost:1",
        clock=clock,
    )
    yield Desk(tmp_path, clock, database, members, federation, servicer)
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

    await desk.join("north")
    assert (desk.told()[-1].action, desk.told()[-1].outcome) == ("site.enrol", "success")


async def test_enrolling_again_revokes_what_was_issued_before(desk: Desk) -> None:
    first, south = await desk.join("north"), await desk.join("south")
    stolen = await desk.renew("north", first)
    desk.clock.advance(86400)
    newest = await desk.join("north")
    for members in (desk.members, Members(desk.database, desk.clock)):  # also after a restart
        assert [members.revoked(each.serial) for each in (first, stolen, newest, south)] == [True, True, False, False]
    assert desk.told()[-1].subject["revoked"] == 2
    (north, _) = desk.members.sites()
    assert north.enrolled_at == desk.clock.now()


async def test_who_enrols_is_journalled_with_the_address(desk: Desk) -> None:
    await desk.join("north", "ipv4:10.0.0.7:51234")
    assert desk.told()[-1].subject["peer"] == "ipv4:10.0.0.7:51234"


async def test_a_line_that_was_made_before_its_site_joined_does_not_take_its_place(desk: Desk) -> None:
    kept, other = desk.line("north"), desk.line("south")
    await desk.join("north")
    with pytest.raises(NotAuthorised, match="unknown, used or expired"):
        await desk.enrol(kept)
    await desk.enrol(other)


async def test_what_ended_before_stays_ended_when_the_clock_is_set_back(desk: Desk) -> None:
    first = await desk.join("north")
    desk.clock.jump(8 * 86400)
    await desk.join("north")
    assert desk.told()[-1].subject["revoked"] == 0, "none that was valid"
    assert desk.members.revoked(first.serial)


async def test_a_thief_who_renewed_all_day_does_not_keep_the_site_from_it_after_it_enrolled_again(desk: Desk) -> None:
    stolen = await desk.join("north")
    for _ in range(CERTIFICATES - 1):
        stolen = await desk.renew("north", stolen)
    again = await desk.join("north")
    for _ in range(CERTIFICATES - 1):
        again = await desk.renew("north", again)


async def test_a_certificate_that_a_restore_forgot_is_renewed_until_its_site_enrols_again(desk: Desk) -> None:
    await desk.join("north")
    desk.clock.advance(60)
    forgotten = desk.federation.site("north")
    await desk.renew("north", forgotten)
    desk.clock.advance(60)
    again = await desk.join("north")
    with pytest.raises(NotAuthorised, match="has enrolled since this certificate was issued"):
        await desk.renew("north", forgotten)
    desk.clock.jump(-3600)
    await desk.renew("north", again)
    await desk.renew("north", await desk.renew("north", again))
