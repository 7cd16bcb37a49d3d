"""Draw one sample sheet in a child process: `python sheet.py EXPERIMENT.toml TENSORS SEED TARGET.png`. Imports torch."""

from __future__ import annotations

import sys
from pathlib import Path

from histofed.base.experiment import parse_experiment
from histofed.recipes.registry import recipe


def main() -> int:
    """Returns 0 when a sheet was drawn, 1 where the recipe has nothing to draw."""
    experiment_file, tensors, seed, target = sys.argv[1:]
    file = parse_experiment(Path(experiment_file).read_text(encoding="utf-8")).file
    workshop = recipe(file.recipe).workshop()
    drawn = workshop.sample_sheet(file.recipe_config, Path(tensors), int(seed), Path(target))
    return 0 if drawn else 1


if __name__ == "__main__":
    sys.exit(main())
