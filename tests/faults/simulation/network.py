"""The network: latency, loss, cuts of both or one way, requests that arrive twice or after their repetition.

What a site sees of it is a gRPC channel (`channel.py`), so the real `agent.link.Link` and the real transfers run over it
unchanged. Streams keep their order, as HTTP/2 does; separate calls overtake each other. A cut is noticed by each end in its
own time. Errors of the aggregator arrive as themselves: the gate and the channel that would carry them are tested elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Final, Protocol

from histofed.base.errors import AggregatorUnavailable, DeadlineExceeded

NOTICE_S: Final = 40.0
"""A cut is noticed within this time: keepalive's 30 s, and 10 s for the answer (`transport/limits.py`)."""
UP, DOWN = "up", "down"


@dataclass(frozen=True)
class Answer:
    """A call under way at the aggregator."""

    future: asyncio.Future[Any]
    cancel: Callable[[], object]


class Server(Protocol):
    """One life of the aggregator, as the network reaches it."""

    def serve(self, site: str, method: str, request: Any) -> Answer:
        """Work on a call; its future ends with an error when this life ends."""
        ...

    def serve_stream(self, site: str, method: str, request: Any, tell: Callable[[Any], None]) -> Callable[[], object]:
        """Work on a stream; `tell` gets each message, then an `Ended`. Returns what cancels it."""
        ...


@dataclass(frozen=True)
class Ended:
    """The last word of a stream: how it ended."""

    error: Exception | None = None


@dataclass(frozen=True)
class Weather:
    """How bad the network is; a seed chooses it, healing makes it fair."""

    latency_s: float = 0.02
    loss: float = 0.0
    """Share of the messages with which a connection dies."""
    twice: float = 0.0
    """Share of the calls that arrive twice."""
    late: float = 0.0
    """Share of the messages that others overtake."""


class Network:
    """Every link of one simulation."""

    def __init__(self, random: Random, weather: Weather) -> None:
        self._random = random
        self.weather = weather
        self.server: Server | None = None
        """The aggregator's present life, when there is one."""
        self.messages = 0
        self._blocked: dict[tuple[str, str], float] = {}
        self._streams: dict[str, dict[Stream, None]] = {}
        self._echoes: dict[asyncio.Task[None], None] = {}

    def cut(self, site: str, seconds: float, ways: tuple[str, ...] = (UP, DOWN)) -> None:
        """Nothing passes for a while, or in one direction only; what is open breaks."""
        until = asyncio.get_running_loop().time() + seconds
        for way in ways:
            self._blocked[site, way] = until
        for stream in tuple(self._streams.get(site, ())):
            stream.snap()

    def heal(self) -> None:
        """Everything is well from now on."""
        self._blocked.clear()
        self.weather = Weather()

    def blocked(self, site: str, way: str) -> bool:
        """Nothing passes now."""
        return self._blocked.get((site, way), 0.0) > asyncio.get_running_loop().time()

    def notice_s(self) -> float:
        """After how long an end notices: at once, when it is told so, or when keepalive finds out."""
        return 0.0 if self._random.random() < 0.5 else self._random.uniform(0.0, NOTICE_S)

    def delay_s(self) -> float:
        """How long a message takes."""
        self.messages += 1
        delay = self._random.expovariate(1 / self.weather.latency_s)
        return delay + self._random.uniform(0.1, 5.0) if self._random.random() < self.weather.late else delay

    async def carry(self, site: str, way: str) -> None:
        """One message. Raises `AggregatorUnavailable` when it does not arrive."""
        await asyncio.sleep(self.delay_s())
        if self.blocked(site, way) or self._random.random() < self.weather.loss:
            await asyncio.sleep(self.notice_s())
            raise AggregatorUnavailable(f"the link of {site} was cut on the way {way}")

    def reach(self) -> Server:
        """The aggregator. Raises `AggregatorUnavailable` when it does not run."""
        if self.server is None:
            raise AggregatorUnavailable("connection refused")
        return self.server

    async def call(self, site: str, method: str, request: Any, timeout_s: float | None) -> Any:
        """One unary call. Raises what the aggregator raises, `AggregatorUnavailable` and `DeadlineExceeded`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.carry(site, UP)
                answer = self.reach().serve(site, method, request)
                if self._random.random() < self.weather.twice:
                    self._echo(site, method, request)
                try:
                    await asyncio.wait({answer.future})
                except asyncio.CancelledError:
                    if self._random.random() < 0.5:  # otherwise the aggregator does not hear of it in time
                        answer.cancel()
                    raise
                await self.carry(site, DOWN)
                return answer.future.result()
        except TimeoutError as error:
            raise DeadlineExceeded("the aggregator did not answer in the time allowed") from error

    def _echo(self, site: str, method: str, request: Any) -> None:
        """The same request a little later, or much later; nobody hears this answer."""
        task = asyncio.get_running_loop().create_task(self._again(site, method, request))
        self._echoes[task] = None
        task.add_done_callback(lambda done: self._echoes.pop(done, None))

    async def _again(self, site: str, method: str, request: Any) -> None:
        await asyncio.sleep(self._random.expovariate(1 / 3.0))
        if self.server is not None:
            await asyncio.wait({self.server.serve(site, method, request).future})

    def open(self, stream: Stream) -> None:
        """The stream breaks when its link is cut."""
        self._streams.setdefault(stream.site, {})[stream] = None

    def closed(self, stream: Stream) -> None:
        """It is over."""
        self._streams.get(stream.site, {}).pop(stream, None)


class Stream:
    """One stream between a site and the aggregator, seen from the site: iterate over it, or cancel it."""

    def __init__(self, network: Network, site: str, method: str, request: Any) -> None:
        """`request` is a message, or the async iterator of a stream in both directions."""
        self.site = site
        self._network = network
        self._method = method
        self._request = request
        self._inbound: asyncio.Queue[tuple[float, Any]] = asyncio.Queue()
        self._stop: Callable[[], object] = lambda: None
        self._sender: asyncio.Task[None] | None = None
        self._hung_up = False

    def cancel(self) -> bool:
        """The site hangs up; the aggregator hears of it, at once or in the end."""
        if not self._hung_up:
            self._hung_up = True
            self._network.closed(self)
            if self._sender is not None:
                self._sender.cancel()
            later = self._network.notice_s() if self._network.blocked(self.site, UP) else self._network.delay_s()
            asyncio.get_running_loop().call_later(later, self._stop)
        return True

    def snap(self) -> None:
        """The link was cut: each end notices in its own time."""
        self._network.closed(self)
        loop = asyncio.get_running_loop()
        broken = Ended(AggregatorUnavailable(f"the link of {self.site} was cut"))
        loop.call_later(self._network.notice_s(), self._tell, broken)
        loop.call_later(self._network.notice_s(), self._stop)

    async def __aiter__(self) -> AsyncIterator[Any]:
        """The aggregator's messages. Raises what it raises, and `AggregatorUnavailable`."""
        await self._network.carry(self.site, UP)
        self._begin(self._network.reach())
        arrived = 0.0
        loop = asyncio.get_running_loop()
        while True:
            sent, message = await self._inbound.get()
            # in order, however long each one takes
            arrived = max(arrived, sent + self._network.delay_s())
            await asyncio.sleep(max(0.0, arrived - loop.time()))
            if isinstance(message, Ended):
                self._network.closed(self)
                if message.error is not None:
                    raise message.error
                return
            if not self._network.blocked(self.site, DOWN):
                yield message

    def _begin(self, server: Server) -> None:
        self._network.open(self)
        if not hasattr(self._request, "__anext__"):
            self._stop = server.serve_stream(self.site, self._method, self._request, self._tell)
            return
        requests = _Requests()
        self._stop = server.serve_stream(self.site, self._method, requests, self._tell)
        self._sender = asyncio.get_running_loop().create_task(self._send(requests))

    async def _send(self, requests: _Requests) -> None:
        """What the site sends, one after the other."""
        try:
            async for piece in self._request:
                await self._network.carry(self.site, UP)
                requests.put(piece)
            requests.put(None)
        except AggregatorUnavailable:
            self.snap()

    def _tell(self, message: Any) -> None:
        self._inbound.put_nowait((asyncio.get_running_loop().time(), message))


class _Requests:
    """The aggregator's end of what a site sends."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Any] = asyncio.Queue()

    def put(self, piece: Any) -> None:
        self._queue.put_nowait(piece)

    def __aiter__(self) -> _Requests:
        return self

    async def __anext__(self) -> Any:
        piece = await self._queue.get()
        if piece is None:
            raise StopAsyncIteration
        return piece
