"""One seed, in a network namespace of its own: `python -m tests.faults.runs.one SEED LIBRARY TEMPLATE FOLDER`.

The runner (`tests/faults/__main__.py`) starts it under `unshare --net` and reads the last line that it prints, a JSON
document: violations (none: the seed passed), seconds, what struck, who ended by itself, how many transfers were resumed.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from tests.faults.facts import Violation
from tests.faults.runs.judge import judge
from tests.faults.runs.rig import Rig, stopped_template
from tests.faults.runs.schedule import draw
from tests.faults.runs.transfers import Resumed, reopened


def main(seed: str, library: str, template: str, folder: str) -> None:
    """Play the seed and judge what is left."""
    begin = time.monotonic()
    rig = Rig(Path(folder), Path(library), draw(int(seed)), stopped_template(Path(template)))
    try:
        with rig:
            rig.play()
        scratch = Path(folder) / "scratch"
        scratch.mkdir()
        found = judge(rig, scratch)
    except AssertionError as error:
        found = [Violation("stuck", str(error))]
    document = {
        "seed": int(seed),
        "violations": [str(each) for each in found],
        "seconds": round(time.monotonic() - begin, 1),
        "recovery_s": round(rig.recovery_s, 1),
        "struck": {name: shim.struck for name, shim in rig.shims.items() if shim.struck},
        "exits": rig.exits,
        "resumed": vars(_resumed(rig)),
    }
    print(json.dumps(document))


def _resumed(rig: Rig) -> Resumed:
    up, *down = (reopened(log.read_bytes()) if (log := rig.folder / f"{name}.log").exists() else 0 for name in rig.shims)
    return Resumed(up, sum(down))


if __name__ == "__main__":
    main(*sys.argv[1:])
