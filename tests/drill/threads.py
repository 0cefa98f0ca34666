"""One calculator in several threads: every result is, bit for bit, that of one thread alone."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule

from attncalc import AttnCalculator
from attncalc.calculator import Model
from drill.trial import Trial

COPPER = Path(__file__).parents[1] / "models" / "cu-emt.safetensors"
MODELS: list[tuple[str, Model, str]] = [
    ("a small So3krates", COPPER, "Cu"),
    ("So3krates", "so3krates-ethanol", "CH3CH2OH"),
    ("a committee", "so3krates-ethanol-committee", "CH3CH2OH"),
    ("Equiformer", "equiformer-ethanol", "CH3CH2OH"),
]
N_THREADS, N_CALLS = 6, 10


def trials(count: int, seed: int) -> Iterator[Trial]:
    """`count` times six threads, 10 structures each."""
    known: dict[int, AttnCalculator] = {}
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # so that they meet in the middle of what they do
    try:
        for k in range(count):
            number = k % len(MODELS)
            name, model, formula = MODELS[number]
            if number not in known:
                known[number] = AttnCalculator(model, device="cpu")
            wrong = _wrong(known[number], formula, np.random.default_rng([seed, k]))
            yield Trial(f"{N_THREADS} threads share {name}", "; ".join(wrong[:3]))
    finally:
        sys.setswitchinterval(before)


def _wrong(calc: AttnCalculator, formula: str, rng: np.random.Generator) -> list[str]:
    work = [[_structure(formula, rng) for _ in range(N_CALLS)] for _ in range(N_THREADS)]
    alone = [[_results(calc, atoms) for atoms in mine] for mine in work]
    wrong: list[str] = []

    def one(k: int) -> None:
        try:
            for n, atoms in enumerate(work[k]):
                found = _results(calc, atoms)
                if not all(map(np.array_equal, found, alone[k][n])):
                    wrong.append(f"thread {k}, structure {n}: not the results of one thread")
        except BaseException as error:
            wrong.append(f"thread {k}: {error!r}")

    threads = [threading.Thread(target=one, args=(k,)) for k in range(N_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


def _structure(formula: str, rng: np.random.Generator) -> Atoms:
    if formula == "Cu":
        atoms = bulk("Cu", a=3.6, cubic=True) * (int(rng.integers(1, 3)), 1, 1)
    else:
        atoms = molecule(formula)
    atoms.positions += rng.normal(scale=0.03, size=atoms.positions.shape)
    return atoms


def _results(calc: AttnCalculator, atoms: Atoms) -> list:
    atoms.calc = calc
    return [
        atoms.get_potential_energy(),
        atoms.get_forces(),
        atoms.get_potential_energies(),
        calc.calculate_many([atoms])[0]["forces"],
    ]
