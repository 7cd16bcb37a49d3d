"""The table of limits holds together."""

from __future__ import annotations

import pytest

from histofed.transport import limits
from histofed.transport.limits import Option, channel_options, channel_table, server_options, server_table


@pytest.mark.parametrize("table", [server_table(), channel_table()])
def test_every_option_is_there_once_and_has_a_reason(table: tuple[Option, ...]) -> None:
    assert len({option.name for option in table}) == len(table)
    assert all(len(option.reason) > 10 for option in table)


def test_a_chunk_fits_into_a_message_and_a_window_never_starves() -> None:
    assert limits.CHUNK + 1024 < limits.MESSAGE
    assert limits.WINDOW >= 2 * limits.SYNC_EVERY, "a sender must not wait for an acknowledgement nobody owes it"
    assert limits.ACK_EVERY_S < limits.STALL_S


def test_what_keeps_a_bomb_and_a_dead_peer_out_is_set_on_both_ends() -> None:
    for options in (dict(server_options()), dict(channel_options())):
        assert options["grpc.max_receive_message_length"] == 4 << 20
        assert options["grpc.compression_enabled_algorithms_bitset"] == 1
        assert options["grpc.http2.ping_timeout_ms"] == 10_000
    assert (
        dict(server_options())["grpc.http2.min_ping_interval_without_data_ms"]
        < dict(channel_options())["grpc.keepalive_time_ms"]
    )
