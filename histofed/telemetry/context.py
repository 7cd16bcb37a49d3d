"""Where in which trace we are: the W3C Trace Context in pure Python, so that it works with every export switched off.

A round is one trace whatever happens to the aggregator: `round_parent` derives the identity of the round's first span
from the experiment and the round's number, so a restarted aggregator, and every site, names the same trace. The audit
journal stores these identifiers beside each record.

Source: W3C Recommendation "Trace Context", level 1 (header `traceparent`, version 00).
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass

from histofed.base.errors import BadData

_TRACE_ID = re.compile(r"(?!0{32})[0-9a-f]{32}\Z")
_SPAN_ID = re.compile(r"(?!0{16})[0-9a-f]{16}\Z")
# a later version may append fields; version ff is forbidden
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?\Z")


@dataclass(frozen=True)
class TraceContext:
    """One span's identity. It is always marked as sampled: whether spans are exported is each process's own setting."""

    trace_id: str
    """32 lower-case hexadecimal digits, not all zero."""
    span_id: str
    """16 lower-case hexadecimal digits, not all zero."""

    def __post_init__(self) -> None:
        if not (_TRACE_ID.match(self.trace_id) and _SPAN_ID.match(self.span_id)):
            raise BadData(f"{self.trace_id[:40]!r} and {self.span_id[:24]!r} are not a trace id and a span id")

    @property
    def traceparent(self) -> str:
        """The header's value: 55 characters."""
        return f"00-{self.trace_id}-{self.span_id}-01"

    @classmethod
    def parse(cls, text: str) -> TraceContext:
        """The reverse of `traceparent`. Raises `BadData`."""
        found = _TRACEPARENT.match(text)
        if not found or (found[1] == "00" and found[5]):
            raise BadData(f"{text[:80]!r} is not a traceparent (00-TRACE-SPAN-01)")
        return cls(found[2], found[3])

    @classmethod
    def new(cls) -> TraceContext:
        """The first span of a trace of its own."""
        return cls(_nonzero(secrets.token_hex(16)), _nonzero(secrets.token_hex(8)))

    def child(self) -> TraceContext:
        """A new span in the same trace."""
        return TraceContext(self.trace_id, _nonzero(secrets.token_hex(8)))


def round_parent(experiment: str, number: int) -> TraceContext:
    """The identity of a round's first span; everything else of the round is below it."""
    name = experiment.encode()
    material = b"histofed.trace/v1" + len(name).to_bytes(4, "big") + name + number.to_bytes(8, "big")
    digest = hashlib.sha256(material).hexdigest()
    return TraceContext(_nonzero(digest[:32]), _nonzero(digest[32:48]))


def _nonzero(digits: str) -> str:
    """All zeros mean "no trace" on the wire."""
    return digits if digits.strip("0") else digits[:-1] + "1"
