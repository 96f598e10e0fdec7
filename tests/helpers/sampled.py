"""Sample two batches of a recipe with random weights, and print the peak memory: run by a test.

    python sampled.py SMALL_RECIPE_JSON RECIPE_JSON

The process's peak resident memory above what it held after sampling with the small one, as Linux counts it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rearkit.model import build
from rearkit.recipe.loading import load_recipe
from rearkit.sampling.sampler import Sampler


def resident(line: str) -> int:
    """Bytes by a line of /proc/self/status; getrusage's peak would begin with that of the parent process."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(entry for entry in status if entry.startswith(line + ":")).split()[1]) * 1024


def sample(content: str) -> None:
    recipe = load_recipe(json.loads(content))
    sampler = Sampler(build(recipe))
    list(sampler.stream([n % sampler.model.space.num_classes for n in range(2 * recipe.sample.batch)]))


def main() -> None:
    small, measured = sys.argv[1:]
    sample(small)  # so that the libraries are loaded
    before = resident("VmRSS")
    sample(measured)
    print(json.dumps({"peak": resident("VmHWM") - before}))


if __name__ == "__main__":
    main()
