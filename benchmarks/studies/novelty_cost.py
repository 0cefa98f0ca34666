"""Cost of novelty: time of a step of ethanol without and with it, and its share of a step.

    OMP_NUM_THREADS=1 python benchmarks/studies/novelty_cost.py

CPU time of this process; the best of 25 repetitions reduces the effect of other processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ase.build import molecule

from attncalc import Evaluator, System, load

MODELS = {"so3krates-ethanol": 100, "equiformer-ethanol": 20}  # steps of one repetition


def best(function: Callable[[], object], n: int) -> float:
    """Return the shortest time per call, µs."""
    found = []
    for _ in range(25):
        began = time.process_time()
        for _ in range(n):
            function()
        found.append((time.process_time() - began) / n)
    return 1e6 * min(found)


def main() -> None:
    system = System.from_ase(molecule("CH3CH2OH"))
    for name, n in MODELS.items():
        evaluator = Evaluator(load(name, device="cpu"))
        evaluator(system)
        surroundings = evaluator(system).surroundings
        assert surroundings is not None
        alone = best(lambda evaluator=evaluator: evaluator(system), n)
        novelty = best(surroundings.novelty, 500)
        print(f"{name}: step {alone:.0f} µs, novelty {novelty:.1f} µs, {novelty / alone:.1%}")


if __name__ == "__main__":
    main()
