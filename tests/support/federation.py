"""A whole federation of real processes in a temporary folder: for end-to-end tests, benches and fault runs.

Aggregator and agents are processes, started like systemd starts them: with a notify socket, whose READY=1 is awaited.
Short commands (`init`, `enroll`, the operator's) run in the test's own process, which saves a second each; `run` starts
them as processes where that matters. Nothing here sleeps, except between two scrapes of gauges, which nobody announces.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from histofed.base.clock import SystemClock
from histofed.cli.client import OperatorClient
from histofed.cli.config import load_operator
from histofed.cli.views import document
from histofed.cli.watch import follow
from tests.support.commands import Done, run_here
from tests.support.daemons import DaemonProcess, run_module

__all__ = [
    "CONSENT",
    "FEDERATION",
    "DaemonProcess",
    "Federation",
    "free_ports",
    "gan_experiment",
    "mean_experiment",
    "task_of",
]

FEDERATION: Final = "test"
_SCRAPE_S: Final = 0.25
Sight = Mapping[str, Any]
"""A document of `rounds watch --json`: `experiment`, and `round` with its tasks or None."""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Federation:
    """An aggregator and agents in one folder; a context manager that leaves no process behind."""

    def __init__(
        self, folder: Path, *, federation: str = FEDERATION, aggregator_toml: str = "", template: Federation | None = None
    ) -> None:
        """With a `template`, a federation that is stopped, begin with what its `init` and `enroll` made.

        Its sites keep their names and certificates; `write_site` makes their files, which name this federation's address.
        """
        self.folder = folder
        self.ports = dict(zip(("grpc", "enrolment", "health", "metrics"), free_ports(4), strict=True))
        self.state = folder / "aggregator"
        self.operator = self.state / "operator"
        self.daemons: dict[str, DaemonProcess] = {}
        self.aggregator_config = folder / "aggregator.toml"
        listen = "\n".join(f'{name} = "127.0.0.1:{port}"' for name, port in self.ports.items())
        self.aggregator_config.write_text(
            f'federation = "{federation}"\nstate_dir = "{self.state}"\n{aggregator_toml}\n[listen]\n{listen}\n'
        )
        self.address = f"localhost:{self.ports['grpc']}"
        if template is not None:
            self._copy_identities(template)

    def _copy_identities(self, template: Federation) -> None:
        shutil.copytree(template.state, self.state)
        operator = self.operator / "operator.toml"
        operator.write_text(operator.read_text().replace(template.address, self.address))
        for state in template.folder.glob("*/state"):
            shutil.copytree(state, self.folder / state.parent.name / "state")

    def __enter__(self) -> Federation:
        if not self.state.exists():
            self.command("aggregator.cli", "init", "--config", str(self.aggregator_config))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for daemon in self.daemons.values():
            daemon.stop(signal.SIGKILL)

    def write_more(self, tables: str) -> None:
        """Add tables to the aggregator's file; its next start reads them."""
        with self.aggregator_config.open("a") as file:
            file.write(tables)

    # --- processes ---------------------------------------------------------------------------------------------------

    def start_aggregator(self, env: Mapping[str, str] | None = None) -> DaemonProcess:
        """Start it and wait until it is ready."""
        daemon = self.launch_aggregator(env)
        daemon.wait_notified("READY=1")
        return daemon

    def launch_aggregator(self, env: Mapping[str, str] | None = None) -> DaemonProcess:
        """Start it without waiting for it."""
        return self._launch("aggregator", ["aggregator", "run", "--config", str(self.aggregator_config)], env)

    def start_agent(self, site: str, env: Mapping[str, str] | None = None) -> DaemonProcess:
        """Start a site that is enrolled and wait until it is ready."""
        daemon = self.launch_agent(site, env)
        daemon.wait_notified("READY=1")
        return daemon

    def start_agents(self, *sites: str) -> None:
        """Start several at once and wait until all are ready."""
        for daemon in [self.launch_agent(site) for site in sites]:
            daemon.wait_notified("READY=1")

    def launch_agent(self, site: str, env: Mapping[str, str] | None = None) -> DaemonProcess:
        """Start a site without waiting for it."""
        return self._launch(site, ["agent", "run", "--config", str(self.site(site) / "agent.toml")], env)

    def _launch(self, name: str, arguments: Sequence[str], env: Mapping[str, str] | None) -> DaemonProcess:
        daemon = DaemonProcess(name, run_module(*arguments), self.folder, env or {})
        self.daemons[name] = daemon
        return daemon

    def command(self, module: str, *arguments: str, code: int = 0) -> Done:
        """Run a command line in this process. Fails when it does not end with `code`."""
        done = run_here(module, *arguments)
        assert done.code == code, f"{module} {arguments}: exit {done.code}\n{done.out}{done.error}"
        return done

    def run(
        self, module: str, *arguments: str, text: str | None = None, code: int = 0, env: Mapping[str, str] | None = None
    ) -> str:
        """Run a command line as a process to its end; both streams. Fails when it does not exit with `code`."""
        starter = f"import sys; from {module} import main; sys.exit(main())"
        done = subprocess.run(
            [sys.executable, "-c", starter, *arguments],
            input=text,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, **(env or {})},
        )
        assert done.returncode == code, f"{module} {arguments}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout if code == 0 else done.stdout + done.stderr

    # --- sites -------------------------------------------------------------------------------------------------------

    def site(self, name: str) -> Path:
        """The site's folder."""
        return self.folder / name

    def enrol(self, name: str, *, data: Path | None = None, consent: str | None = None, extra: str = "") -> None:
        """Make a site: token, enrolment, configuration, consent."""
        self.write_site(name, data=data, consent=consent, extra=extra)
        self.enroll(name, self.join_line(name))

    def join_line(self, site: str, *, again: bool = False) -> str:
        """A new one-time join line; `again` for a site that has enrolled."""
        line: str = self.cli("token", "create", "--site", site, *["--again"] * again)["join_line"]
        return line

    def enroll(self, name: str, line: str, code: int = 0) -> Done:
        """`histofed-agent enroll` with a join line, from a file that is gone afterwards."""
        file = self.site(name) / "join-line"
        file.write_text(line)
        try:
            return self.command(
                "agent.cli",
                *("enroll", "--config", str(self.site(name) / "agent.toml"), "--join-line-file", str(file)),
                code=code,
            )
        finally:
            file.unlink()

    def write_site(self, name: str, *, data: Path | None = None, consent: str | None = None, extra: str = "") -> None:
        """The site's configuration and consent; `extra` is more of agent.toml, tables only."""
        folder = self.site(name)
        folder.mkdir(exist_ok=True)
        tiles = f'[data]\nroot = "{data}"\n' if data else ""
        (folder / "agent.toml").write_text(
            f'state_dir = "{folder / "state"}"\nconsent = "{folder / "consent.toml"}"\n'
            f'aggregator = "{self.address}"\n{extra}\n{tiles}'
        )
        self.write_consent(name, CONSENT if consent is None else consent)

    def write_consent(self, name: str, text: str = "") -> None:
        """Replace the hospital's consent file; by default everything is allowed."""
        (self.site(name) / "consent.toml").write_text(text or CONSENT)

    # --- the operator ------------------------------------------------------------------------------------------------

    @property
    def operator_config(self) -> Path:
        """The operator's file."""
        return self.operator / "operator.toml"

    def cli(self, *arguments: str, code: int = 0) -> Any:
        """`histofed ... --json` as the operator; the document."""
        done = self.command("histofed.cli.main", "--config", str(self.operator_config), "--json", *arguments, code=code)
        return json.loads(done.out)

    def submit(self, toml: str) -> str:
        """Submit an experiment; its name."""
        path = self.folder / "experiment.toml"
        path.write_text(toml)
        name: str = self.cli("experiments", "submit", str(path))["experiment"]["name"]
        return name

    @contextmanager
    def watching(self, experiment: str) -> Iterator[Iterator[Mapping[str, Any]]]:
        """The documents of `rounds watch --json` as they come, until the experiment ends or rests."""
        command = ["--config", str(self.operator / "operator.toml"), "--json", "rounds", "watch", experiment]
        starter = "import sys; from histofed.cli.main import main; sys.exit(main())"
        with subprocess.Popen([sys.executable, "-c", starter, *command], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                yield (json.loads(line) for line in process.stdout)
            finally:
                process.terminate()

    def wait_until_ended(self, experiment: str, seconds: float = 120.0) -> Sight:
        """Watch the experiment to its end; its last document."""
        return self.wait_until_seen(experiment, lambda sight: sight["experiment"]["ended_at"] is not None, seconds)

    def wait_until_seen(self, experiment: str, wanted: Callable[[Sight], bool], seconds: float = 120.0) -> Sight:
        """Watch the experiment, also over restarts of the aggregator, until a document is as wanted."""
        operator = load_operator(self.operator_config)
        seen: list[Sight] = []

        async def look() -> None:
            moments = follow(
                lambda: OperatorClient.connect(operator), experiment, seconds, SystemClock(), lambda _notice: None
            )
            async with asyncio.timeout(seconds), contextlib.aclosing(moments):
                async for moment in moments:
                    seen[:] = [document(moment.sight)]
                    if wanted(seen[0]):
                        return
            raise AssertionError(f"{experiment} ended, or rests, before that")

        try:
            asyncio.run(look())
        except (TimeoutError, AssertionError) as error:
            raise AssertionError(f"not seen: {error}; last: {json.dumps(seen, indent=1)}\n{self.logs()}") from error
        return seen[0]

    def wait_until_trained(self, experiment: str, site: str, steps: int = 1, number: int = 1) -> Sight:
        """Watch until the site has told of `steps` steps of a round's training: the middle of a round."""

        def trains(sight: Sight) -> bool:
            state = sight["round"]
            task = task_of(sight, site) if state is not None and state["round"] == number else None
            return task is not None and task["phase"] == "train" and task["done"] >= steps

        return self.wait_until_seen(experiment, trains)

    def measured(self) -> Mapping[str, float]:
        """What Prometheus reads from the aggregator now."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports['metrics']}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}

    def wait_until_measured(self, wanted: Callable[[Mapping[str, float]], bool], seconds: float = 30.0) -> None:
        """Scrape until the values are as wanted; the daemon renews its gauges every few seconds."""
        deadline = time.monotonic() + seconds
        while not wanted(found := self.measured()):
            if time.monotonic() > deadline:
                ours = {name: value for name, value in found.items() if name.startswith("histofed_")}
                raise AssertionError(f"not measured in {seconds} s; last: {json.dumps(ours, indent=1)}")
            time.sleep(_SCRAPE_S)

    def parts(self, experiment: str) -> list[dict[str, str]]:
        """The digests of each model's parts, by round, the first model first."""
        models = sorted(self.cli("models", "list", experiment)["models"], key=lambda model: model["round"])
        return [{part["name"]: part["sha256"] for part in model["parts"]} for model in models]

    def logs(self) -> str:
        """The ends of all logs, for a failed test."""
        return "\n\n".join(f"--- {daemon.name}\n{daemon.tail()}" for daemon in self.daemons.values())


def task_of(sight: Sight, site: str) -> Mapping[str, Any]:
    """The site's task in the newest round; an empty one when it was not sampled."""
    return next((task for task in sight["round"]["tasks"] if task["site"] == site), {"done": -1, "phase": "", "state": ""})


CONSENT: Final = """\
experiments = ["*"]
recipes = ["*"]
models = ["*"]
image_sizes = "16..256"
classes = ["*"]
maximum_steps = 10000
"""


def mean_experiment(
    name: str = "demo", rounds: int = 3, *, extra: str = "", config: str = "dimension = 1000\nsteps = 5"
) -> str:
    """An experiment of the torch-free recipe."""
    return f'name = "{name}"\nrecipe = "mean"\nrounds = {rounds}\n{extra}\n[config]\n{config}\n'


def gan_experiment(
    name: str,
    sites: Sequence[str],
    *,
    rounds: int = 1,
    steps: int = 2,
    classes: Sequence[str] = ("MSIH", "nonMSIH"),
    discriminator: str = "cnn",
) -> str:
    """The smallest experiment that reads tiles; after one abandoned round it rests."""
    return f"""
name = "{name}"
recipe = "gan"
rounds = {rounds}
[sampling]
sites = {json.dumps(sites)}
minimum = {len(sites)}
[round]
abandoned_limit = 1
[config]
image_size = 32
classes = {json.dumps(classes)}
batch = {2 * len(classes)}
latent = 8
steps = {steps}
[config.discriminator]
name = "{discriminator}"
"""
