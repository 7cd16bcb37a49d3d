"""The contract between a daemon and its service manager, in one class; both daemons are a `Service` inside it.

    SIGTERM, SIGINT   drain: finish or checkpoint what runs, then exit 0; a second one means now (exit 128 + n)
    SIGHUP            read the configuration again; a broken one is refused and the old one stays
    SIGUSR1           write every thread's stack to stderr; SIGABRT, the watchdog's, does so too and ends the daemon

Signal handlers set flags only; everything happens in the event loop. The watchdog is fed by that loop, and only while the
service says that it makes progress, so a hung daemon is restarted. A drain longer than `drain_seconds` is cut short with
exit code 75: state is durable at every instant, so nothing is lost by it. So is a thread that hangs in the kernel at the
end, in a file of a mount whose server is away: the interpreter would wait for it without a bound.

Exit codes are those of `errors.py`; anything else that escapes is a bug and exits 70.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import signal
import sys
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol

from histofed.base.clock import Clock, SystemClock
from histofed.base.errors import HistofedError, TryLater
from histofed.base.heap import share_heap
from histofed.base.notify import Notifier
from histofed.base.owner import in_words

log = logging.getLogger(__name__)

TICK_SECONDS: Final = 5.0
"""How often STATUS is refreshed; the watchdog may ask for more often."""
DRAIN_SECONDS: Final = 270.0
"""Shorter than the unit's `TimeoutStopSec=300`, so that the daemon ends itself in words rather than by SIGKILL."""
RELEASE_SECONDS: Final = 20.0
"""How long cancelled work, then `stop`, and then the threads of both may take."""


class Service(Protocol):
    """What a daemon does; `Daemon` says when."""

    async def start(self) -> None:
        """Open the state and listen; READY follows. Errors end the daemon with their exit code."""
        ...

    async def serve(self, drain: asyncio.Event) -> None:
        """Work until `drain` is set and what was begun is finished or checkpointed. It may end by itself."""
        ...

    async def reload(self) -> str:
        """Read the configuration again; a sentence on what changed. `ConfigError` keeps the old one."""
        ...

    async def stop(self) -> None:
        """Release everything, however far `start` came. Always called."""
        ...

    def status(self) -> str:
        """What is going on, in one line."""
        ...

    def turning(self) -> bool:
        """Whether the work makes progress: only then is the watchdog fed."""
        ...


class Daemon:
    """Runs one service as a daemon, once."""

    def __init__(
        self,
        name: str,
        service: Service,
        *,
        clock: Clock | None = None,
        notifier: Notifier | None = None,
        drain_seconds: float = DRAIN_SECONDS,
    ) -> None:
        self._name = name
        self._service = service
        self._clock = clock or SystemClock()
        self._notifier = notifier or Notifier.from_environment(os.environ, self._clock)
        self._drain_seconds = drain_seconds
        self._drain = asyncio.Event()
        self._now = asyncio.Event()
        self._reload = asyncio.Event()
        self._signals: list[int] = []

    def main(self) -> int:
        """Run in an event loop of its own and give the exit code; where a thread hangs, end the process with it."""
        share_heap()
        threads = ThreadPoolExecutor(thread_name_prefix=f"{self._name}-thread")
        with asyncio.Runner() as runner:
            runner.get_loop().set_default_executor(threads)
            code = runner.run(self.run())
            threads.shutdown(wait=False, cancel_futures=True)
            if hanging := self._hanging():
                words = "%s: %d threads did not end within %.0f s, of a mount that is away perhaps; it ends without them"
                log.error(words, self._name, hanging, RELEASE_SECONDS)
                logging.shutdown()
                os._exit(code or TryLater.exit_code)
        return code

    def _hanging(self) -> int:
        """How many of the loop's threads do not end, within bounds."""
        threads = [thread for thread in threading.enumerate() if thread.name.startswith(f"{self._name}-thread")]
        until = self._clock.monotonic() + RELEASE_SECONDS
        for thread in threads:
            thread.join(max(0.0, until - self._clock.monotonic()))
        return sum(thread.is_alive() for thread in threads)

    async def run(self) -> int:
        """Start, serve, drain, stop; give the exit code. Failures end in the log and in the code, not in an exception."""
        with self._listening():
            code = await self._guarded(self._live())
            self._notifier.stopping(f"{self._name} stops")
            released = await self._guarded(self._release())
        return code or released

    async def _live(self) -> int:
        """Serve until it ends, or until there is no time left for it to end by itself."""
        work = asyncio.create_task(self._work())
        limit = asyncio.create_task(self._limit())
        try:
            await asyncio.wait({work, limit}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                await work
                return 0
            return await limit
        finally:
            await self._cancel(work, limit)

    async def _work(self) -> None:
        """From `start` to the end of `serve`."""
        with in_words():  # later errors may name what no log may
            await self._service.start()
        self._notifier.ready(self._service.status())
        log.info("%s is ready", self._name, extra=_event("daemon.ready"))
        helpers = {asyncio.create_task(self._tick()), asyncio.create_task(self._reloads())}
        serve = asyncio.create_task(self._service.serve(self._drain))
        try:
            done, _ = await asyncio.wait({serve, *helpers}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                await task
        finally:
            await self._cancel(serve, *helpers)

    async def _limit(self) -> int:
        """Wait for the drain to begin and then for the moment that cuts it short; give that moment's exit code."""
        await self._drain.wait()
        self._notifier.stopping(f"{self._name} drains: {self._service.status()}")
        words = "%s drains: it finishes or checkpoints what runs; a second signal stops it at once"
        log.info(words, self._name, extra=_event("daemon.drains"))
        try:
            async with asyncio.timeout(self._drain_seconds):
                await self._now.wait()
        except TimeoutError:
            log.error("%s did not drain within %.0f s and stops now; state is kept", self._name, self._drain_seconds)
            return TryLater.exit_code
        log.warning("%s stops at once, as asked; state is kept", self._name)
        return 128 + self._signals[-1]

    async def _tick(self) -> None:
        """Tell the service manager how it goes, and that it goes."""
        told = ""
        while True:
            if (status := self._service.status()) != told:
                self._notifier.status(status)
                told = status
            if self._service.turning():
                self._notifier.watchdog()
            await self._clock.sleep(min(TICK_SECONDS, self._notifier.watchdog_interval or TICK_SECONDS))

    async def _reloads(self) -> None:
        """Reload as often as asked, one at a time; a failure keeps what was there."""
        while True:
            await self._reload.wait()
            self._reload.clear()
            self._notifier.reloading()
            try:
                words = await self._service.reload()
                log.info("configuration read again: %s", words, extra=_event("configuration.changed"))
            except HistofedError as error:
                log.error("the configuration was not changed: %s", error, extra=_event("configuration.refused"))
            except Exception:
                log.exception("the configuration was not changed because of an error of histofed itself; please report it")
            self._notifier.ready(self._service.status())

    async def _release(self) -> int:
        """Let the service release what it holds, within bounds."""
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                await self._service.stop()
        except TimeoutError:
            log.error("%s did not release everything within %.0f s", self._name, RELEASE_SECONDS)
            return TryLater.exit_code
        return 0

    async def _guarded(self, stage: Coroutine[None, None, int]) -> int:
        """The stage's exit code, or that of the error that ended it, said in the log."""
        try:
            return await stage
        except HistofedError as error:
            log.error("%s: %s", self._name, error, extra=_event("daemon.failed"))
            return error.exit_code
        except Exception:
            words = "%s stopped because of an error of its own; please report it"
            log.exception(words, self._name, extra=_event("daemon.failed"))
            return HistofedError.exit_code

    async def _cancel(self, *tasks: asyncio.Task[None] | asyncio.Task[int]) -> None:
        """Cancel what still runs and wait for it, within bounds; an error on the way out is said in the log."""
        running = {task for task in tasks if not task.done()}
        for task in running:
            task.cancel()
        if not running:
            return
        done, stuck = await asyncio.wait(running, timeout=RELEASE_SECONDS)
        for task in done:
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("%s: while stopping: %s", self._name, error, exc_info=error)
        if stuck:
            log.error("%s: %d tasks did not end within %.0f s", self._name, len(stuck), RELEASE_SECONDS)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """Signals set flags as long as the block lasts."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload.set)
        if sys.__stderr__ is not None:
            # the watchdog's SIGABRT, and a crash in a library, leave every thread's place in the log
            faulthandler.enable(file=sys.__stderr__, all_threads=True)
            faulthandler.register(signal.SIGUSR1, file=sys.__stderr__, all_threads=True)
        try:
            yield
        finally:
            faulthandler.unregister(signal.SIGUSR1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.remove_signal_handler(number)

    def _end(self, number: int) -> None:
        """First: drain. Second: now. Third: somebody insists, and state on disk is right at every instant."""
        self._signals.append(number)
        if len(self._signals) > 2:
            os._exit(128 + number)
        (self._drain if len(self._signals) == 1 else self._now).set()


def _event(name: str) -> dict[str, object]:
    """As `fields` of `histofed/telemetry/logs.py`, which stands above this package."""
    return {"histofed_fields": {"event": name}}
