"""The end of the operator's own certificate, told while there is time: nothing renews it by itself.

Once it has ended, no call gets through, and `histofed/transport/diagnose.py` says the same. Called before a command asks.
"""

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta
from typing import Final, TextIO

from histofed.base.clock import Clock
from histofed.cli.config import OperatorConfig
from histofed.pki.pem import end_of

SOON: Final = timedelta(days=14)


def warn(operator: OperatorConfig, clock: Clock, error: TextIO) -> None:
    """One sentence on `error` in the certificate's last days; a file that cannot be read is the connection's to tell."""
    with contextlib.suppress(OSError):
        if sentence := words(operator.certificate.read_bytes(), clock.now()):
            error.write(f"histofed: {sentence}\n")


def words(certificate_pem: bytes, now: datetime) -> str | None:
    """What to do, and until when; None where there is time, or the end is past or not to be read."""
    end = end_of(certificate_pem)
    if end is None or not now <= end <= now + SOON:
        return None
    return (
        f"this operator's certificate ends on {end:%Y-%m-%d %H:%M} UTC: have `histofed-aggregator operator NAME --out DIR` "
        "run on the aggregator's host before, and use the folder that it makes"
    )
