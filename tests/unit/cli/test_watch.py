from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from histofed.base.clock import FakeClock
from histofed.base.errors import AggregatorUnavailable, HistofedError, NotFound
from histofed.cli.client import OperatorClient
from histofed.cli.command import Terminal
from histofed.cli.moments import Moment
from histofed.cli.views import Round, Sight
from histofed.cli.watch import follow, run
from histofed.v1 import admin_pb2 as pb
from tests.support.operator_service import RunningAggregator, experiment, round_
from tests.support.operator_views import committed_round, open_round, sight, task
from tests.unit.cli.conftest import Ran


class Script:
    """What each connection sees: messages, then an error or the stream's end."""

    def __init__(self, *connections: Sequence[Sight | HistofedError]) -> None:
        self.connections = list(connections)
        self.lists = 0
        self.open = 0
        """Streams that are not closed."""

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[OperatorClient]:
        yield cast("OperatorClient", self)
        assert self.open == 0, "a stream is closed before its connection"

    async def rounds(self, experiment: str) -> tuple[Round, ...]:
        self.lists += 1
        return (committed_round(self.lists, "north"),)

    async def watch(self, experiment: str) -> AsyncIterator[Sight]:
        self.open += 1
        try:
            for item in self.connections.pop(0):
                if isinstance(item, HistofedError):
                    raise item
                yield item
        finally:
            self.open -= 1


async def watched(script: Script, patience: float = 60.0) -> tuple[list[Moment], list[str]]:
    notices: list[str] = []
    moments = follow(script.connect, "demo", patience, FakeClock(), notices.append)
    return [moment async for moment in moments], notices


async def test_it_ends_with_the_experiment() -> None:
    seen, notices = await watched(Script([sight(None, "draft"), sight(None), sight(None, "finished")]))

    assert [moment.sight.experiment.state for moment in seen] == ["draft", "running", "finished"]
    assert notices == []


async def test_a_pause_is_waited_for_until_its_open_round_has_ended() -> None:
    pausing = replace(sight(open_round(2)), experiment=replace(sight(None, "paused").experiment, open_round=2))

    seen, _ = await watched(Script([pausing, sight(committed_round(2, "north"), "paused")]))

    assert len(seen) == 2


@pytest.mark.parametrize("changes", [{"model_digest": None}, {"rounds_committed": 3}])
async def test_a_pause_does_not_end_what_goes_on_all_the_same(changes: dict[str, Any]) -> None:
    paused = replace(sight(None), experiment=replace(sight(None, "paused").experiment, **changes))

    seen, _ = await watched(Script([paused, sight(None, "finished")]))

    assert [moment.sight.experiment.state for moment in seen] == ["paused", "finished"]


async def test_a_restart_of_the_aggregator_is_survived_and_told() -> None:
    gone = AggregatorUnavailable("nobody listens")
    script = Script([sight(None)], [gone], [sight(None, "finished")])

    seen, notices = await watched(script)

    assert len(seen) == 2
    assert notices[0].startswith("the aggregator closed the stream")
    assert notices[1].startswith("nobody listens; trying again in")


async def test_patience_ends() -> None:
    gone = AggregatorUnavailable("nobody listens")

    with pytest.raises(AggregatorUnavailable, match="nobody listens"):
        await watched(Script(*[[gone] for _ in range(1000)]), patience=60.0)


async def test_what_cannot_succeed_is_not_tried_again() -> None:
    script = Script([NotFound("no experiment demo")], [])

    with pytest.raises(NotFound):
        await watched(script)
    assert len(script.connections) == 1


async def test_past_rounds_are_asked_for_when_one_closes_and_not_at_every_step() -> None:
    steps = [sight(open_round(1, task("north", done=done))) for done in range(5)]
    script = Script([*steps, sight(open_round(2, task("north"))), sight(committed_round(2, "north"), "finished")])

    seen, _ = await watched(script)

    assert script.lists == 3
    assert seen[-1].past[0].round == 3


Histofed = Callable[..., Ran]


def messages(end: str) -> list[pb.WatchRoundsResponse]:
    return [
        pb.WatchRoundsResponse(experiment=experiment("DRAFT", 0)),
        pb.WatchRoundsResponse(experiment=experiment("RUNNING", 1), round=round_(2, "OPEN")),
        pb.WatchRoundsResponse(experiment=experiment(end, 2, "" if end == "FINISHED" else "too few sites"), round=round_(2)),
    ]


def test_a_pipe_gets_a_line_per_change(histofed: Histofed, aggregator: RunningAggregator) -> None:
    aggregator.servicer.watches.append(messages("FINISHED"))

    found = histofed("rounds", "watch", "demo")

    assert found.code == 0
    lines = found.out.splitlines()
    assert lines[0] == "demo is draft, 0 of 2 rounds committed"
    assert "round 2: north accepted" in lines
    assert lines[-1] == "demo is finished, 2 of 2 rounds committed"


def test_a_program_gets_a_document_per_line(histofed: Histofed, aggregator: RunningAggregator) -> None:
    aggregator.servicer.watches.append(messages("FINISHED"))

    documents: list[dict[str, Any]] = [
        json.loads(line) for line in histofed("rounds", "watch", "demo", "--json").out.splitlines()
    ]

    assert [document["experiment"]["state"] for document in documents] == ["draft", "running", "finished"]
    assert documents[0]["round"] is None
    assert documents[1]["round"]["tasks"][0]["losses"] == {"g": 0.7}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_an_output_that_takes_few_letters_gets_words_and_whole_documents(
    encoding: str, config: Path, aggregator: RunningAggregator
) -> None:
    def told(*, as_json: bool, tty: bool = False) -> str:
        ended = messages("FINISHED")
        ended[-1].experiment.reason = "unheard…"
        aggregator.servicer.watches.append(ended)
        out = (TtyOfBytes if tty else io.TextIOWrapper)(io.BytesIO(), encoding=encoding)
        assert run(config, "demo", 60.0, Terminal(out, io.StringIO()), as_json=as_json).exit_code == 0
        out.flush()
        return cast("io.BytesIO", out.buffer).getvalue().decode(encoding)

    documents = [json.loads(line) for line in told(as_json=True).splitlines()]
    assert documents[-1]["experiment"]["reason"] == "unheard…"
    assert "rounds committed: unheard" in told(as_json=False)
    assert "unheard" in told(as_json=False, tty=True)


def test_a_reason_does_not_talk_to_the_terminal(histofed: Histofed, aggregator: RunningAggregator) -> None:
    ended = messages("FAILED")
    ended[-1].experiment.reason = "\x1b]0;all is well\x07\nround 3: north admitted"
    aggregator.servicer.watches.append(ended)

    found = histofed("rounds", "watch", "demo")

    shown = r": \x1b]0;all is well\x07\nround 3: north admitted"
    assert found.out.splitlines()[-1] == f"demo is failed, 2 of 2 rounds committed{shown}"
    assert found.error == f"histofed: experiment demo failed{shown}\n"


def test_an_experiment_that_failed_is_an_exit_code_and_a_reason(histofed: Histofed, aggregator: RunningAggregator) -> None:
    aggregator.servicer.watches.append(messages("FAILED"))

    found = histofed("rounds", "watch", "demo")

    assert found.code == 65
    assert found.error == "histofed: experiment demo failed: too few sites\n"


def test_a_paused_experiment_is_not_waited_for(histofed: Histofed, aggregator: RunningAggregator) -> None:
    paused = pb.WatchRoundsResponse(experiment=experiment("PAUSED", 1, "too few sites"), round=round_(2, "ABANDONED"))
    aggregator.servicer.watches.append([*messages("FINISHED")[:2], paused])

    found = histofed("rounds", "watch", "demo")

    assert found.code == 75
    assert found.out.splitlines()[-1] == "demo is paused, 1 of 2 rounds committed: too few sites", "behind its cause"
    assert found.error == (
        "histofed: experiment demo is paused: too few sites; `histofed experiments resume demo` begins the next round, "
        "`cancel` ends it\n"
    )


def test_a_cut_stream_is_taken_up_again(histofed: Histofed, aggregator: RunningAggregator) -> None:
    aggregator.servicer.watches += [messages("FINISHED")[:2], messages("FINISHED")]

    found = histofed("rounds", "watch", "demo")

    assert found.code == 0
    assert "trying again" in found.error
    assert found.out.count("round 2: north accepted") == 1


async def test_whoever_listens_no_more_leaves_no_connection_behind() -> None:
    script = Script([sight(None), sight(None, "finished")])

    async with aclosing(follow(script.connect, "demo", 60.0, FakeClock(), print)) as moments:
        await anext(moments)
        assert script.open == 1

    assert script.open == 0


def test_a_reader_that_leaves_ends_it_without_a_word(config: Path, aggregator: RunningAggregator) -> None:
    aggregator.servicer.watches.append(messages("FINISHED"))
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [sys.executable, "-m", "histofed.cli.main", "--config", str(config), "rounds", "watch", "demo"]
        ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False, timeout=60)
    finally:
        os.close(writer)

    assert ended.returncode == 128 + signal.SIGPIPE
    assert ended.stderr == b""


def test_an_unknown_experiment(histofed: Histofed) -> None:
    assert histofed("rounds", "watch", "other").code == 65


class TtyOfBytes(io.TextIOWrapper):
    """A terminal whose letters are few."""

    def isatty(self) -> bool:
        return True


class Tty(io.StringIO):
    """A terminal, as far as anybody asks."""

    def isatty(self) -> bool:
        return True


def test_a_person_gets_the_live_view(config: Path, aggregator: RunningAggregator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    aggregator.servicer.watches.append(messages("FINISHED"))
    screen = Tty()

    ended = run(config, "demo", 60.0, Terminal(screen, io.StringIO()), as_json=False)

    assert ended.exit_code == 0
    assert "\x1b[" in screen.getvalue()
    assert "2 of 2 rounds committed" in screen.getvalue()
