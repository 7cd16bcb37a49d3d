"""Join tokens in any order of making, using, expiring, restarting: each lets one hospital in, once, and no other."""

from __future__ import annotations

import shutil
import tempfile
from datetime import datetime, timedelta
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from aggregator.database import Database
from aggregator.members import Members
from histofed.base import failpoints
from histofed.base.clock import FakeClock
from histofed.base.errors import AlreadyThere, CannotWriteState
from histofed.base.ids import SiteId
from histofed.pki import tokens

KEY = tokens.new_server_key()
SITES = tuple(SiteId(name) for name in ("north", "south", "east"))


class PowerCut(BaseException):
    """Nobody handles it."""


class JoinTokens(RuleBasedStateMachine):
    """The aggregator's side of joining: `token_site` opens the door, `enrol` walks through it."""

    token = Bundle("token")

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.clock = FakeClock()
        self.open_state()
        self.made: dict[str, tuple[SiteId, datetime]] = {}
        """Site and end of validity of each token."""
        self.used: set[str] = set()
        self.serials = 0

    def open_state(self) -> None:
        self.database = Database(self.folder / "state.db")
        self.members = Members(self.database, self.clock)

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.database.close()
            shutil.rmtree(self.folder)

    def valid(self, token: str) -> bool:
        return token not in self.used and self.clock.now() < self.made[token][1]

    def enrol(self, token: str, members: Members) -> bool:
        """What the servicer does between asking and answering."""
        site, _ = self.made[token]
        self.serials += 1
        try:
            members.enrol(tokens.digest(token, KEY), site, f"spiffe://demo/site/{site}", str(self.serials), self.clock.now())
        except AlreadyThere:
            return False
        return True

    def use_up(self, token: str) -> None:
        """With it go the others of its site that were made so far."""
        self.used |= {each for each, (site, _) in self.made.items() if site == self.made[token][0]}

    @rule(target=token, site=st.sampled_from(SITES), minutes=st.integers(1, 60))
    def create(self, site: SiteId, minutes: int) -> str:
        token = tokens.make()
        end = self.clock.now() + timedelta(minutes=minutes)
        self.members.create_token(tokens.digest(token, KEY), site, end)
        self.made[token] = site, end
        return token

    @rule(token=token)
    def knock(self, token: str) -> None:
        site = self.members.token_site(tokens.digest(token, KEY))
        assert site == (self.made[token][0] if self.valid(token) else None)

    @rule(token=token)
    def use(self, token: str) -> None:
        """The whole way: what is not valid ends at the door, what is valid is used up."""
        if self.members.token_site(tokens.digest(token, KEY)) is None:
            assert not self.valid(token)
            return
        assert self.enrol(token, self.members)
        self.use_up(token)

    @rule(token=token)
    def two_knock_before_either_walks_in(self, token: str) -> None:
        """Two connections, or a copy of the aggregator on the same file: both were let through the door."""
        if not self.valid(token):
            return
        other = Database(self.folder / "state.db")
        try:
            let_in = [self.enrol(token, members) for members in (self.members, Members(other, self.clock))]
        finally:
            other.close()
        assert let_in == [True, False]
        self.use_up(token)

    @rule(token=token, committed=st.booleans())
    def power_cut_while_walking_in(self, token: str, committed: bool) -> None:
        """It is used up with its certificate, or neither happened."""
        if not self.valid(token):
            return
        armed, failpoints._armed = failpoints._armed, {"aggregator.rows_committed": _Cut()}  # type: ignore[dict-item]  # stands in for one
        try:
            if committed:
                self.enrol(token, self.members)
            else:
                with self.database.writing():
                    raise PowerCut
        except PowerCut:
            self.restart()
        finally:
            failpoints._armed = armed
        if committed:
            self.use_up(token)

    @rule()
    def disk_full_while_making_one(self) -> None:
        """The operator was told that it failed, after the row was written: a token that nobody knows."""
        armed, failpoints._armed = failpoints._armed, failpoints._parse("aggregator.rows_committed=ENOSPC")
        token = tokens.make()
        self.made[token] = SITES[0], self.clock.now()
        try:
            self.members.create_token(tokens.digest(token, KEY), SITES[0], self.clock.now())
        except CannotWriteState:
            pass
        finally:
            failpoints._armed = armed
        assert self.members.token_site(tokens.digest(token, KEY)) is None, "it has expired at once"

    @rule(token=token)
    def guess(self, token: str) -> None:
        """Half a token, another key, the stored digest itself: none of them opens."""
        stored = tokens.digest(token, KEY)
        for wrong in (token[:-1], token + "x", stored, ""):
            assert self.members.token_site(tokens.digest(wrong, KEY)) is None
        assert self.members.token_site(tokens.digest(token, tokens.new_server_key())) is None

    @rule(minutes=st.integers(-30, 90))
    def time_passes(self, minutes: int) -> None:
        """It may also be set back."""
        self.clock.jump(60.0 * minutes)

    @rule()
    def restart(self) -> None:
        self.database.close()
        self.open_state()

    @invariant()
    def the_door_is_open_exactly_as_long_as_a_token_is_valid(self) -> None:
        if hasattr(self, "made"):
            ends = [end for token, (_, end) in self.made.items() if self.valid(token)]
            assert self.members.tokens_valid_until() == max(ends, default=None)

    @invariant()
    def every_site_here_used_a_token_of_its_own(self) -> None:
        if hasattr(self, "made"):
            assert {row.name for row in self.members.sites()} == {self.made[token][0] for token in self.used}


class _Cut:
    """An armed failpoint at which the power goes."""

    def pass_by(self, name: str) -> None:
        raise PowerCut


TestJoinTokens = JoinTokens.TestCase
TestJoinTokens.settings = settings(max_examples=8, stateful_step_count=25, deadline=None)
