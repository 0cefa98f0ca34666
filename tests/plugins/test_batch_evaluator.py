"""Batches of other programs, which change them in place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.build import molecule
from contract import model_of_electrons

from attncalc import AttnCalculator
from attncalc.plugins.batch_evaluator import BatchEvaluator
from attncalc.system import System


@pytest.mark.parametrize("spins", [None, (2, 3, 4)], ids=["lowest", "given"])
def test_charges_and_multiplicities_of_each_structure(spins: tuple[int, ...] | None) -> None:
    """Water, its cation and its anion; where none is given, the multiplicity is the lowest."""
    structures = [molecule("H2O") for _ in range(3)]
    charges = (1, 0, -1)
    for k, atoms in enumerate(structures):
        atoms.info = {"charge": charges[k]} | ({} if spins is None else {"spin": spins[k]})
    expected = AttnCalculator(model_of_electrons(), device="cpu").calculate_many(structures)
    system = System.from_ase(structures)
    names = ("positions", "atomic_numbers", "cell", "pbc", "system_idx")
    given = {name: getattr(system, name) for name in names}
    found = BatchEvaluator(model_of_electrons())(
        **given,
        charge=torch.tensor(charges),
        spin=None if spins is None else torch.tensor(spins),
    )
    for k, one in enumerate(expected):
        assert found["energy"][k].item() == pytest.approx(one["energy"], abs=1e-9)
        forces = found["forces"][3 * k : 3 * k + 3].numpy()
        np.testing.assert_allclose(forces, one["forces"], atol=1e-9)
    assert np.ptp([one["energy"] for one in expected]) > 1e-3


def test_what_changes_in_place_is_looked_at() -> None:
    batches = BatchEvaluator("so3krates-ethanol", device="cpu")
    system = System.from_ase(molecule("CH3CH2OH"))
    names = ("positions", "atomic_numbers", "cell", "pbc", "system_idx", "charge", "spin")
    given = {name: getattr(system, name).clone() for name in names}
    before = batches(**given)
    given["charge"][0] = 2.0
    with pytest.raises(ValueError, match="total charge"):
        batches(**given)
    given["charge"][0] = 0.0
    assert torch.equal(batches(**given)["energy"], before["energy"])
    given["spin"][0] = 3
    with pytest.raises(ValueError, match="multiplicity"):
        batches(**given)
