"""Record the state directories that this release writes, for later releases to open: once per release, before its tag.

    python -m tests.upgrade.record        # writes tests/upgrade/states/VERSION.tar.gz; refuses to write it again

A federation of two sites: one experiment finished, one in the middle of a round's training, then everybody is stopped as
systemd stops them. No update waits in an outbox, and no GAN is trained: what those leave is small beside the schemas.
`facts.json` has what a later release must still find. Keys and certificates in it are of this federation alone, which never
ran anywhere else.
"""

from __future__ import annotations

import json
import signal
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Final

from histofed import __version__
from tests.support.federation import Federation, mean_experiment

STATES: Final = Path(__file__).parent / "states"
SITES: Final = ("north", "south")
FINISHED: Final = mean_experiment("finished", rounds=2)
OPEN: Final = mean_experiment("open", rounds=3, config="dimension = 1000\nsteps = 40\ndelay_s = 0.2")


def main() -> int:
    """Write the file."""
    target = STATES / f"{__version__}.tar.gz"
    if target.exists():
        sys.stderr.write(f"{target} is recorded: a release is recorded once\n")
        return 1
    with tempfile.TemporaryDirectory(prefix="histofed-record-") as scratch, Federation(Path(scratch)) as federation:
        facts = _live(federation)
        folder = Path(scratch)
        (folder / "facts.json").write_text(json.dumps(facts, indent=1))
        with tarfile.open(target, "w:gz") as archive:
            archive.add(folder / "facts.json", "facts.json")
            archive.add(federation.state, "aggregator")
            for site in SITES:
                archive.add(federation.site(site) / "state", site)
    print(f"{target}: {target.stat().st_size} bytes")
    return 0


def _live(federation: Federation) -> dict[str, object]:
    federation.start_aggregator()
    for site in SITES:
        federation.enrol(site)
    federation.start_agents(*SITES)
    federation.submit(FINISHED)
    federation.wait_until_ended("finished")
    federation.submit(OPEN)
    federation.wait_until_trained("open", "north", steps=5)
    facts: dict[str, object] = {"version": __version__, "parts": federation.parts("finished")}
    for name in (*SITES, "aggregator"):
        assert federation.daemons[name].stop(signal.SIGTERM) == 0, federation.logs()
    return facts


if __name__ == "__main__":
    sys.exit(main())
