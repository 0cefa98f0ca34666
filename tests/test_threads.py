"""One calculator, or one potential, in several threads at once: everybody gets the own results."""

import copy
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from attncalc import AttnCalculator, load
from attncalc.fast import lower
from attncalc.neighbors import fresh_graph
from attncalc.potential import evaluate
from attncalc.system import System

COPPER = Path(__file__).parent / "models" / "cu-emt.safetensors"
N_THREADS, N_CALLS = 4, 25


@pytest.fixture(autouse=True)
def turns_are_short() -> Iterator[None]:
    """So that threads meet in the middle of what they do."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def structures() -> list[Atoms]:
    found = []
    for k in range(N_THREADS):
        atoms = bulk("Cu", a=3.6, cubic=True) * (1 + k % 2, 1, 1)
        atoms.rattle(0.05, seed=k)
        found.append(atoms)
    return found


def all_at_once(work: Callable[[int], list]) -> list:
    """What all threads find wrong."""
    wrong: list = []

    def one(k: int) -> None:
        try:
            wrong.extend(work(k))
        except BaseException as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=one, args=(k,)) for k in range(N_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


def test_one_calculator_for_several_structures() -> None:
    calc = AttnCalculator(COPPER, device="cpu")
    known = [(calc.get_property("energy", a), calc.get_property("forces", a)) for a in structures()]

    def work(k: int) -> list:
        wrong = []
        atoms = structures()[k]
        atoms.calc = calc
        for _ in range(N_CALLS):
            atoms.rattle(0.0)
            same = atoms.get_potential_energy() == known[k][0]
            same &= np.array_equal(atoms.get_forces(), known[k][1])
            (result,) = calc.calculate_many([atoms])
            same &= result["forces"].shape == known[k][1].shape
            wrong += [] if same else [k]
        return wrong

    assert all_at_once(work) == []


@pytest.mark.parametrize("threads", [1, 2])
def test_one_potential_for_several_structures(threads: int) -> None:
    potential = lower(load(COPPER, threads=threads))
    graphs = [
        fresh_graph(System.from_ase(a * (5, 5, 1)), cutoff=potential.cutoff, species=(29,))
        for a in structures()
    ]
    known = [evaluate(potential, graph) for graph in graphs]

    def work(k: int) -> list:
        found = [evaluate(potential, graphs[k]) for _ in range(N_CALLS)]
        return [
            k
            for result in found
            for name in ("energy", "energies", "forces", "strain_gradient")
            if not torch.equal(getattr(result, name), getattr(known[k], name))
        ]

    assert all_at_once(work) == []


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda calc: pickle.loads(pickle.dumps(calc))]
)
def test_copies_have_a_lock_of_their_own(copied: Callable) -> None:
    calc = AttnCalculator(COPPER, device="cpu")
    (atoms, *_) = structures()
    energy = calc.get_property("energy", atoms)
    twin = copied(calc)
    assert twin.results["energy"] == energy
    with calc._lock:  # nobody waits for it
        assert (
            all_at_once(lambda k: [] if twin.get_property("energy", atoms) == energy else [k]) == []
        )
