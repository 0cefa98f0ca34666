"""Warnings of the calculator: once of a structure that is outside, and none inside."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
from ase.build import molecule
from contract import ethanol
from taught import OF_ROUNDING, taught, untaught

from attncalc import AttnCalculator
from attncalc.potential import Potential


@pytest.fixture(scope="module")
def potential() -> Potential:
    return taught()


def test_the_calculator_warns_once_of_a_structure(potential: Potential) -> None:
    calculator = AttnCalculator(potential, device="cpu")
    assert calculator.novelty is None
    said = r"^outside the training data: atom \d+ \([CHO]\) has novelty \d[\d.e+]*, 1 is the edge; "
    for name in ("C6H6", "CO2", "C6H6"):
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


def test_the_calculator_is_silent_inside(potential: Potential) -> None:
    calculator = AttnCalculator(potential, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calculator.calculate(ethanol())
        again = pickle.loads(pickle.dumps(calculator))
        again.calculate(ethanol())
    assert calculator.novelty.max() <= 1
    assert np.array_equal(again.novelty, calculator.novelty)
    (result,) = calculator.calculate_many([ethanol()])
    assert result["novelty"] == pytest.approx(calculator.novelty, abs=OF_ROUNDING)


def test_the_calculator_of_a_model_that_was_not_told() -> None:
    calculator = AttnCalculator(untaught(), device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calculator.calculate(molecule("C6H6"))
    assert calculator.novelty is None
    assert "novelty" not in calculator.calculate_many([ethanol()])[0]
