"""One direction of a link, without a clock: packets are late, lost, slow or cut as it is told."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from tests.faults.runs.wire import QUEUE_S, Rules, Wire

PACKETS = [bytes([number]) * 1250 for number in range(200)]


def wire(rules: Rules, seed: int = 1) -> Wire:
    made = Wire(Random(seed))
    made.rules = rules
    return made


def test_without_rules_packets_come_out_as_they_went_in() -> None:
    line = wire(Rules())
    for packet in PACKETS:
        line.send(packet, 1.0)
    assert line.arrived(1.0) == PACKETS
    assert line.next_due is None


def test_a_delay_is_kept_to_the_moment() -> None:
    line = wire(Rules(delay_s=0.25))
    line.send(b"late", 1.0)
    assert line.next_due == 1.25
    assert line.arrived(1.24) == []
    assert line.arrived(1.25) == [b"late"]


def test_a_bandwidth_spaces_packets_and_drops_what_would_wait_too_long() -> None:
    line = wire(Rules(bits_per_s=1e6))
    for packet in PACKETS:
        line.send(packet, 0.0)
    due = []
    while (moment := line.next_due) is not None:
        due.append(moment)
        line.arrived(moment)
    assert due[0] == 0.01, "1250 bytes at 1 Mbit/s"
    assert all(abs(after - before - 0.01) < 1e-9 for before, after in pairwise(due))
    assert due[-1] <= QUEUE_S + 0.02
    assert len(due) < len(PACKETS)


def test_a_share_of_the_packets_is_lost() -> None:
    line = wire(Rules(loss=0.05))
    for number in range(10_000):
        line.send(b"x", float(number))
    assert 350 < 10_000 - len(line.arrived(1e6)) < 650


def test_a_cut_loses_what_is_under_way_and_nothing_after_it() -> None:
    line = wire(Rules(delay_s=1.0))
    line.send(b"under way", 0.0)
    line.rules = Rules(cut=True)
    line.send(b"refused", 0.5)
    assert line.arrived(2.0) == []
    line.rules = Rules()
    line.send(b"after", 3.0)
    assert line.arrived(3.0) == [b"after"]


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 0.5)), max_size=30))
def test_without_jitter_no_packet_overtakes_another(steps: list[tuple[float, float]]) -> None:
    line, now = wire(Rules()), 0.0
    for number, (pause, delay_s) in enumerate(steps):
        now += pause
        line.rules = Rules(delay_s=delay_s)
        line.send(bytes([number]), now)
    assert line.arrived(1e9) == [bytes([number]) for number in range(len(steps))]
