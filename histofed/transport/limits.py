"""Every limit of the wire in one table: option, value, reason. Measured values: operations manual, "gRPC".

Both ends take their options from here and nowhere else, so that the two can be read side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20

CHUNK: Final = MIB
"""Bytes of a blob in one message: 16 KiB chunks cost three times the CPU, 4 MiB ones more again."""
MESSAGE: Final = 4 * MIB
"""Bytes of the largest message: a gzip bomb ends here, before it is unpacked."""
SYNC_EVERY: Final = 32 * MIB
"""A receiver calls fdatasync, and a sender hears of it, at least this often."""
COPY_LEAST: Final = 16 * KIB
"""Bytes of the shortest copy that stands for data; also the block in which files are compared."""
ACK_EVERY_S: Final = 5.0
"""... and at least this often on a slow link, so that the sender sees progress."""
WINDOW: Final = 2 * SYNC_EVERY
"""Bytes that a sender may be ahead of the acknowledgements: one stretch on its way while the one before is synced."""
STALL_S: Final = 60.0
"""A transfer in which no byte moved for this long is dead; it is cut and resumed. A call whose request does not come is
cut too."""
TURNS: Final = 2
"""Transfers that go on at once whatever they move; two fill two cores."""
LINE: Final = 100e6
"""Bytes per second, nearly what a line of 1 Gbit/s carries: where transfers move as much together, others wait."""
LOOK_S: Final = 1.0
"""How often that is looked at while somebody waits."""
LOOKS: Final = 10
"""... and after so many the other end hears that it still waits, well before it would think that nothing moves."""
CALL_S: Final = 30.0
"""Deadline of a unary call unless the caller has a better one."""
CONCURRENT_RPCS: Final = 4096
"""Calls that a server works on at once; more are refused with RESOURCE_EXHAUSTED instead of waiting in silence. Every
connected site has one that lasts, its stream of offers, and needs two or three beside it while it works."""
CALLS_OF_ONE: Final = 64
"""... and of them for one member, over all its connections; more are refused in words. As many as one connection takes, and
far above an agent's handful and an operator's watchers: a site that lets its calls hang leaves the others theirs."""
ERROR_CLASS: Final = "histofed-error"
"""Trailing metadata: the class of the error, so that the other end raises the same one."""
DETAILS: Final = 1500
"""Characters of an error's sentence on the wire; it travels in the metadata, which is bounded too."""


@dataclass(frozen=True)
class Option:
    """One gRPC channel argument, its value and why it is not the default."""

    name: str
    value: int
    reason: str


_BOTH: Final = (
    Option("grpc.max_receive_message_length", MESSAGE, "an unlimited one lets 1 MiB of gzip take 3 GiB of memory"),
    Option("grpc.max_send_message_length", MESSAGE, "what the other end would refuse fails here, with our own name in it"),
    Option("grpc.compression_enabled_algorithms_bitset", 1, "identity only: gzip of weights costs 15 times the path"),
    Option("grpc.keepalive_time_ms", 30_000, "without keepalive a dead peer is never noticed"),
    Option("grpc.keepalive_timeout_ms", 10_000, "a peer has this long to answer"),
    Option("grpc.http2.ping_timeout_ms", 10_000, "the clock that really ends a frozen peer; the default is 60 s"),
    Option("grpc.http2.max_pings_without_data", 0, "pings on an idle link, as many as keepalive wants"),
    Option("grpc.keepalive_permit_without_calls", 1, "idle agents stay connected"),
    Option("grpc.max_metadata_size", 8 * KIB, "we send a trace context and one sentence"),
    Option("grpc.absolute_max_metadata_size", 16 * KIB, "more is refused at once"),
)

_SERVER: Final = (
    Option("grpc.max_concurrent_streams", 64, "one connection cannot occupy the server"),
    Option("grpc.http2.min_ping_interval_without_data_ms", 20_000, "the default answers our keepalive with too_many_pings"),
    Option("grpc.max_connection_age_ms", 3_600_000, "agents come back through DNS, with their newest certificate"),
    Option("grpc.max_connection_age_grace_ms", 600_000, "streams end in order; a transfer that is cut resumes"),
    Option("grpc.so_reuseport", 0, "two daemons on one port is a mistake to hear about"),
)

_CLIENT: Final = (
    Option("grpc.enable_retries", 0, "we retry where the operation is idempotent, with back-off and a log line"),
    Option("grpc.initial_reconnect_backoff_ms", 500, "an aggregator that restarts is back in seconds"),
    Option("grpc.max_reconnect_backoff_ms", 1_000, "our own pauses decide; a call within gRPC's fails with an old error"),
    Option("grpc.use_local_subchannel_pool", 1, "a renewed certificate gets a connection of its own"),
)


def server_table() -> tuple[Option, ...]:
    """Every option of a server."""
    return _BOTH + _SERVER


def channel_table() -> tuple[Option, ...]:
    """Every option of a client."""
    return _BOTH + _CLIENT


def server_options() -> list[tuple[str, int]]:
    """The server's options as gRPC takes them."""
    return [(option.name, option.value) for option in server_table()]


def channel_options() -> list[tuple[str, int]]:
    """The client's options as gRPC takes them."""
    return [(option.name, option.value) for option in channel_table()]
