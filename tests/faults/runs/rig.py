"""A federation of real processes to which a schedule happens: aggregator, agents, their links, disks and clocks.

The rig's process lives in a network namespace of its own: the aggregator listens there, each agent in one beyond its link.
Every daemon runs under the shim and under a supervisor like systemd's: one that ended is started again. An operator watches
all the time; what was seen is part of the history.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from tests.faults.runs.daemon import RATE
from tests.faults.runs.links import Links, hub_address
from tests.faults.runs.schedule import (
    AGGREGATOR,
    SITES,
    Action,
    ClockJump,
    Cut,
    DiskCall,
    DiskFull,
    Freeze,
    Kill,
    KillTrainer,
    Rollback,
    Schedule,
    Weather,
    timeline,
)
from tests.faults.runs.shim import Shim, build
from tests.faults.runs.wire import Rules
from tests.support.daemons import DaemonProcess, run_module
from tests.support.federation import Federation, Sight
from tests.support.processes import children, trainers

RESTART_S: Final = 0.5
"""A daemon that ended by itself is started again after so long, as by systemd."""
READY_S: Final = 300.0
"""A machine that has other work needs long for what takes a second."""
STUCK_S: Final = 400.0
"""An experiment that has not ended so long after its last fault is stuck: the longest pause of an agent is a minute."""
AGE_S: Final = 26 * 3600.0
"""How old the certificates are, so that a clock may be set back by hours before they were issued never."""
PUBLIC_HOSTS: Final = ("localhost", "127.0.0.1", *(hub_address(index) for index in range(len(SITES))))
_GOOD: Final = Rules()


class Rig(Federation):
    """One seed's federation; a context manager."""

    def __init__(self, folder: Path, library: Path, schedule: Schedule, template: Federation) -> None:
        super().__init__(folder, aggregator_toml=_settings(), template=template)
        self.schedule = schedule
        self.sights: list[Sight] = []
        """What the operator saw, in this order."""
        self.restored: list[tuple[int, int]] = []
        """Restores from a backup: how many sights there were when it was made, and when it was put back."""
        self.logged: dict[str, int] = {}
        """How many bytes the site's log had before that was put back."""
        self._opened = threading.Event()
        """A round was seen."""
        self.exits: list[tuple[str, int]] = []
        """Daemons that ended by themselves, and their exit codes."""
        self.recovery_s = 0.0
        """From the end of the last fault to the end of the experiment."""
        self.sudden_ends = 0
        """How often the aggregator was killed."""
        states = {AGGREGATOR: self.state} | {site: self.site(site) / "state" for site in schedule.sites}
        self.shims = {name: Shim(library, folder / f"{name}.shim", state) for name, state in states.items()}
        self._links: Links | None = None
        self._backed_up = 0
        self._stack = ExitStack()
        self._down: dict[str, float] = {}
        """Daemons that do not run now, and when the supervisor starts them."""

    def __enter__(self) -> Rig:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        self._links = self._stack.enter_context(Links(self.schedule.sites, self.schedule.seed))
        for site in self.schedule.sites:
            self.write_site(site)
        self.launch_aggregator().wait_notified("READY=1", READY_S)
        for daemon in [self.launch_agent(site) for site in self.schedule.sites]:
            daemon.wait_notified("READY=1", READY_S)
        return self

    def __exit__(self, *error: object) -> None:
        try:
            for daemon in self.daemons.values():
                daemon.stop(signal.SIGKILL)
        finally:
            self._stack.close()

    def _launch(self, name: str, arguments: Sequence[str], env: Mapping[str, str] | None) -> DaemonProcess:
        around, place = list[str](), {"HISTOFED_LISTEN__GRPC": f"0.0.0.0:{self.ports['grpc']}"}
        if name != AGGREGATOR:
            assert self._links is not None
            around = self._links.entering(name)
            place = {"HISTOFED_AGGREGATOR": f"{hub_address(self.schedule.sites.index(name))}:{self.ports['grpc']}"}
        # the shim is for the daemon alone: what leads into its network must not be struck
        environment = [f"{key}={value}" for key, value in (place | self.shims[name].environment | dict(env or {})).items()]
        command = [*around, "env", *environment, *run_module("tests.faults.runs.daemon", *arguments)]
        self.daemons[name] = daemon = DaemonProcess(name, command, self.folder, {})
        return daemon

    @property
    def refusals(self) -> int:
        """How often the aggregator's disk refused."""
        return self.shims[AGGREGATOR].struck

    # --- a run --------------------------------------------------------------------------------------------------------

    def play(self) -> None:
        """Submit the experiment, let the schedule happen, wait until it has ended, stop everybody.

        Raises `AssertionError` when the experiment does not end, or a daemon does not stop when it is told to.
        """
        self.submit(self.schedule.toml)
        with self._observed() as ended:
            if not self.schedule.from_submission:
                self._supervise(time.monotonic() + READY_S, self._opened)
            begin = time.monotonic()
            for action in timeline(self.schedule.faults):
                self._supervise(begin + action.at_s, ended)
                if ended.is_set():
                    break
                self._carry_out(action)
            calm = time.monotonic()
            self._supervise(calm + STUCK_S, ended)
            self.recovery_s = time.monotonic() - calm
            assert ended.is_set(), f"stuck {STUCK_S:.0f} s after the last fault; the last sight: {self.sights[-1:]}"
        self._heal()
        self._await_rest()
        for name, daemon in self.daemons.items():
            code = daemon.stop(signal.SIGTERM)
            assert code == 0, f"{name} was told to stop and ended with {code}:\n{daemon.tail()}"

    def _await_rest(self) -> None:
        """Until no site has a task in hand or an update to send, so that what is left then is litter."""
        until = time.monotonic() + STUCK_S
        while time.monotonic() < until and any(self._busy(site) for site in self.schedule.sites):
            self._supervise(time.monotonic() + 0.2, threading.Event())

    def _busy(self, site: str) -> bool:
        state = self.site(site) / "state"
        return any(any((state / name).iterdir()) for name in ("work", "outbox"))

    @contextmanager
    def _observed(self) -> Iterator[threading.Event]:
        """An operator watches, over every restart; the event says that the experiment has ended, or the watch has."""
        ended, failed = threading.Event(), list[BaseException]()

        def note(sight: Sight) -> bool:
            self.sights.append(sight)
            if sight["round"] is not None:
                self._opened.set()
            return sight["experiment"]["ended_at"] is not None

        def watch() -> None:
            try:
                self.wait_until_seen(self.schedule.name, note, READY_S + STUCK_S + 60)
            except BaseException as error:
                failed.append(error)
            ended.set()

        thread = threading.Thread(target=watch, name="operator")
        thread.start()
        try:
            yield ended
        finally:
            thread.join()
            if failed:
                raise failed[0]

    def _supervise(self, until: float, ended: threading.Event) -> None:
        """Start what has ended again, until the moment comes or the event."""
        while not ended.is_set() and time.monotonic() < until:
            for name, daemon in self.daemons.items():
                if not daemon.running and name not in self._down:
                    self.exits.append((name, daemon.wait_ended()))
                    self._down[name] = time.monotonic() + RESTART_S
            self._start_due()
            _wait_for_an_end(self.daemons.values(), min(0.2, max(0.0, until - time.monotonic())))

    def _start_due(self) -> None:
        for name in [name for name, moment in self._down.items() if moment <= time.monotonic()]:
            del self._down[name]
            if name == AGGREGATOR:
                self.launch_aggregator()
            else:
                self.launch_agent(name)

    # --- faults -------------------------------------------------------------------------------------------------------

    def _carry_out(self, action: Action) -> None:
        match action.fault:
            case Kill(daemons, down_s):
                for name in daemons:
                    self._kill(name, down_s)
            case KillTrainer(site):
                self._kill_trainers(site)
            case Freeze(name):
                self._signal(name, signal.SIGSTOP if action.begins else signal.SIGCONT)
            case Cut(site, ways):
                up, down = (Rules(cut=action.begins and way in ways) for way in ("up", "down"))
                self._treat(site, up, down)
            case Weather() as weather:
                rules = Rules(False, weather.delay_s, weather.jitter_s, weather.loss, weather.bits_per_s)
                self._treat(weather.site, *((rules, rules) if action.begins else (_GOOD, _GOOD)))
            case DiskCall(name, calls, error, before, times):
                self.shims[name].strike(calls, error, before, times)
            case DiskFull(name):
                (self.shims[name].fill_disk if action.begins else self.shims[name].empty_disk)()
            case Rollback():
                self._roll_back(action.begins)
            case ClockJump(name, by_s):
                self.shims[name].set_clock(by_s if action.begins else 0.0)

    def _roll_back(self, begins: bool) -> None:
        """Make a backup beside the daemon, or put it back. A daemon that is away just then has none made."""
        file = self.folder / "backup"
        if begins:
            self._backed_up = len(self.sights)
            self._operate("backup", str(file))
        elif file.exists():
            self._kill(AGGREGATOR, 0.0)
            self.logged = {site: self.daemons[site].log.stat().st_size for site in self.schedule.sites}
            assert self._operate("restore", str(file), "--replace"), "a backup that was made can be restored"
            self.restored.append((self._backed_up, len(self.sights)))

    def _operate(self, *words: str) -> bool:
        """`histofed-aggregator` with these words, by a healthy disk and a right clock; whether it went well."""
        starter = "import sys; from aggregator.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", starter, *words, "--config", str(self.aggregator_config)]
        done = subprocess.run(command, capture_output=True, check=False)
        with (self.folder / "operator.log").open("ab") as log:
            log.write(done.stdout + done.stderr)
        return done.returncode == 0

    def _kill(self, name: str, down_s: float) -> None:
        if self.daemons[name].running:
            self.daemons[name].stop(signal.SIGKILL)
            self.sudden_ends += name == AGGREGATOR
            self._down[name] = time.monotonic() + down_s

    def _kill_trainers(self, site: str) -> None:
        if self.daemons[site].running:
            for process in trainers(self.daemons[site].pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)

    def _signal(self, name: str, number: signal.Signals) -> None:
        """To a daemon and its children."""
        daemon = self.daemons[name]
        if daemon.running:
            for process in (daemon.pid, *children(daemon.pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, number)

    def _treat(self, site: str, up: Rules, down: Rules) -> None:
        assert self._links is not None
        self._links.treat(site, up, down)

    def _heal(self) -> None:
        """Nothing is wrong any more, except that clocks stay as they were set."""
        for name, shim in self.shims.items():
            shim.heal()
            self._signal(name, signal.SIGCONT)
        for site in self.schedule.sites:
            self._treat(site, _GOOD, _GOOD)
        self._down = dict.fromkeys(self._down, 0.0)
        self._start_due()
        for daemon in self.daemons.values():
            with contextlib.suppress(AssertionError):
                daemon.wait_notified("READY=1", 0.0)


def _wait_for_an_end(daemons: Iterable[DaemonProcess], seconds: float) -> None:
    """Until one of the daemons that run has ended, or so long."""
    running = [daemon.pid for daemon in daemons if daemon.running]
    descriptors = [os.pidfd_open(process) for process in running]
    try:
        select.select(descriptors, [], [], seconds)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _settings() -> str:
    hosts = f"public_hosts = {list(PUBLIC_HOSTS)}".replace("'", '"')
    return f"{hosts}\n[transfer]\nmax_bytes_per_second = {RATE}"


@contextmanager
def template(folder: Path) -> Iterator[Federation]:
    """A federation whose sites are enrolled, with certificates that are a day old; its daemons are stopped."""
    shim = Shim(build(folder), folder / "template.shim", folder / "template")
    shim.set_clock(-AGE_S)
    (folder / "template").mkdir()
    federation = Federation(folder / "template", aggregator_toml=_settings())
    federation.run("aggregator.cli", "init", "--config", str(federation.aggregator_config), env=shim.environment)
    with federation:
        aggregator = federation.launch_aggregator(shim.environment)
        aggregator.wait_notified("READY=1", READY_S)
        for site in SITES:
            federation.enrol(site)
        assert aggregator.stop() == 0
        _address_file(folder).write_text(federation.address)
        yield federation


def stopped_template(folder: Path) -> Federation:
    """The federation that another process made by `template` in `folder`."""
    federation = Federation(folder / "template", aggregator_toml=_settings())
    federation.address = _address_file(folder).read_text()
    return federation


def _address_file(folder: Path) -> Path:
    """What the operator's file of the template names."""
    return folder / "template-address"
