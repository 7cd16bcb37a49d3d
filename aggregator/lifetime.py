"""The end of the aggregator's own certificate, told while there is time: a start renews it, and nothing else does.

Read by `doctor`, and every few seconds by the daemon, whose condition `certificate` it is.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from histofed.base.clock import Clock
from histofed.base.health import Health
from histofed.pki.credentials import Credentials

SOON: Final = timedelta(days=60)


def ending(credentials: Credentials, now: datetime) -> str | None:
    """What to do about a certificate in its last days or past them; None where there is time."""
    end = credentials.not_after
    if now < end - SOON:
        return None
    when = f"the aggregator's own certificate {'ends' if now <= end else 'ended'} on {end:%Y-%m-%d %H:%M} UTC"
    if end == credentials.ca.not_valid_after_utc:
        return f"{when}, with the CA: every site has to enrol again, in a new federation"
    return f"{when}: {credentials.identity.remedy}"


def tell(credentials: Credentials, clock: Clock, health: Health) -> None:
    """Say it in `histofed status`; readiness does not wait for it."""
    sentence = ending(credentials, clock.now())
    health.set("certificate", sentence is None, sentence or f"valid until {credentials.not_after:%Y-%m-%d %H:%M} UTC")
