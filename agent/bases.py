"""The bases this site trained from last, one for each experiment: what did not change in the next one is not fetched again.

    bases/EXPERIMENT/SHA256.safetensors         complete, checked when it came and again before each task
                     SHA256.safetensors.part    on its way
                     SHA256.step                a file that turns an earlier base into a later one (`steps.py`)

The base of the task in hand lies here too: a round that starts from the same model as the one before fetches nothing, and
an update is compared with its base before it is sent. Older ones go when a newer one is complete, all of them when the
experiment has ended. `agent/work.py` is the caller, of the end `agent/tensors.py`.
"""

from __future__ import annotations

from pathlib import Path

from histofed.base import durable
from histofed.base.ids import Digest, ExperimentId
from histofed.transport.held import Held


class Bases:
    """The bases of one site, over all experiments."""

    def __init__(self, folder: Path) -> None:
        self._folder = durable.make_directory(folder)

    def place(self, experiment: ExperimentId, base: Digest) -> Path:
        """Where the base is or will be; its folder is there. Raises `CannotWriteState`."""
        return durable.make_directory(self._folder / experiment) / f"{base}.safetensors"

    def step_place(self, experiment: ExperimentId, step: Digest) -> Path:
        """Where a step is or will be; it goes with the older bases."""
        return self._folder / experiment / f"{step}.step"

    def get(self, experiment: ExperimentId, base: Digest) -> Held | None:
        """This base, if it is here."""
        path = self._folder / experiment / f"{base}.safetensors"
        return Held(base, path) if path.exists() else None

    def earlier(self, experiment: ExperimentId, base: Digest) -> Held | None:
        """Another base of the experiment, if one is here; after a crash there may be several, and any will do.

        Raises `CannotWriteState`.
        """
        found = durable.listing(self._folder / experiment, "*.safetensors")
        return next((Held(Digest(path.stem), path) for path in found if path.stem != base), None)

    def keep_only(self, experiment: ExperimentId, base: Digest) -> None:
        """This base is complete: the others of the experiment are not needed any more. Raises `CannotWriteState`."""
        for path in durable.listing(self._folder / experiment):
            if path.name != f"{base}.safetensors":
                durable.remove(path)

    def experiments(self) -> tuple[ExperimentId, ...]:
        """Experiments of which a base is kept, by name. Raises `CannotWriteState`."""
        return tuple(ExperimentId(path.name) for path in durable.listing(self._folder) if path.is_dir())

    def forget(self, experiment: ExperimentId) -> None:
        """The experiment has ended. Raises `CannotWriteState`."""
        durable.remove(self._folder / experiment)
