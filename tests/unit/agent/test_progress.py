"""What a site says of a transfer: whether it waits, and how fast it moves."""

from __future__ import annotations

from agent.progress import Board
from histofed.base.clock import FakeClock


def test_a_transfer_that_waits_says_so_and_its_rate_is_that_of_what_moves() -> None:
    clock = FakeClock()
    board = Board("upload", clock)
    for _ in range(3):
        clock.advance(10)
        board.transferred(100, 1000)  # resumed; others have their turn
        assert board.words() == "upload 100 of 1000, nothing moved yet"
    clock.advance(2)
    board.transferred(500, 1000)
    assert (board.words(), board.rate) == ("upload 500 of 1000", 200.0)
    clock.advance(2)
    board.transferred(1000, 1000)
    assert (board.words(), board.rate) == ("upload 1000 of 1000", 225.0)


def test_what_is_complete_already_does_not_wait() -> None:
    board = Board("download", FakeClock())
    board.transferred(1000, 1000)
    assert board.words() == "download 1000 of 1000"
