"""Warnings of the calculator: once of a structure that is outside, and none inside."""

from __future__ import annotations

import itertools
import pickle
import warnings

import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from contract import ethanol
from taught import taught, untaught

from attncalc import AttnCalculator
from attncalc.evaluator import Evaluator
from attncalc.novelty.messages import OutsideAtom
from attncalc.potential import Potential
from attncalc.result import Result
from attncalc.system import System


@pytest.fixture(scope="module")
def potential() -> Potential:
    return taught()


def test_the_calculator_warns_once_of_a_structure(potential: Potential) -> None:
    calculator = AttnCalculator(potential, device="cpu")
    assert calculator.novelty is None
    said = r"^outside the training data: atom \d+ \([CHO]\) has novelty \d[\d.e+]*, 1 is the edge; "
    for name in ("C6H6", "CO2"):
        atoms = molecule(name)
        with pytest.warns(UserWarning, match=said):
            calculator.calculate(atoms)
        novelty = calculator.novelty
        assert novelty is not None
        assert novelty.shape == (len(atoms),)
        assert novelty.max() > 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for seed in range(3):
                atoms.rattle(0.01, seed=seed)
                calculator.calculate(atoms)
                calculator.calculate(molecule("C6H6"))


def test_the_calculator_warns_again_when_novelty_has_doubled(potential: Potential) -> None:
    calculator = AttnCalculator(potential, device="cpu")
    atoms = ethanol()
    told = []
    for _ in range(40):  # a hydrogen atom leaves
        atoms.positions[8] += 0.02 * (atoms.positions[8] - atoms.positions[2])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            calculator.calculate(atoms)
        assert calculator.novelty is not None
        told += [float(calculator.novelty.max())] * len(caught)
    assert len(told) >= 3
    assert told[0] > 1
    assert all(after > 2 * before for before, after in itertools.pairwise(told))


def test_every_new_molecule_is_looked_at_where_a_look_is_expensive(
    potential: Potential, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where the features of the last layer are not at hand."""
    evaluate = Evaluator.__call__

    def without_features(self: Evaluator, system: System) -> Result:
        result = evaluate(self, system)
        assert result.surroundings is not None
        network = self.plain.network
        blind = result.surroundings._replace(features=None, network=network)
        numbers = (getattr(result, name) for name in ("energy", "energies", "forces"))
        return Result(*numbers, result.strain_gradient, surroundings=blind)

    monkeypatch.setattr(Evaluator, "__call__", without_features)
    calculator = AttnCalculator(potential, device="cpu")
    calculator.calculate(ethanol())
    for name in ("C6H6", "CO2"):
        with pytest.warns(UserWarning, match="^outside the training data"):
            calculator.calculate(molecule(name))


def test_a_novelty_that_is_rounded_to_the_edge() -> None:
    assert "has novelty just above 1, 1 is the edge" in str(OutsideAtom(3, "H", 1.0006))
    assert "has novelty 1.01, 1 is the edge" in str(OutsideAtom(3, "H", 1.009))


def test_the_calculator_is_silent_inside(potential: Potential) -> None:
    calculator = AttnCalculator(potential, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calculator.calculate(ethanol())
        again = pickle.loads(pickle.dumps(calculator))
        again.calculate(ethanol())
        calculator.calculate_many([ethanol()])
    assert calculator.novelty.max() <= 1
    assert np.array_equal(again.novelty, calculator.novelty)


def test_of_many_structures_the_first_outside_is_named(potential: Potential) -> None:
    calculator = AttnCalculator(potential, device="cpu")
    many = [ethanol(), molecule("CO2"), ethanol(), molecule("C6H6")]
    with pytest.warns(UserWarning, match="^2 of 4 structures, the first is 1: outside the train"):
        results = calculator.calculate_many(many)
    for atoms, result in zip(many, results, strict=True):
        SinglePointCalculator(atoms, **result)
    novelty = [result.novelty for _, result in calculator.evaluator.many(many)]
    assert novelty[0] is not None
    assert len(np.concatenate(novelty)) == sum(map(len, many))


def test_the_calculator_of_a_model_that_was_not_told() -> None:
    calculator = AttnCalculator(untaught(), device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calculator.calculate(molecule("C6H6"))
    assert calculator.novelty is None
