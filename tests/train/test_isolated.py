"""Energies of isolated atoms, which a model must have where its atoms separate."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT

from attncalc import AttnCalculator, data, train
from attncalc.train.isolated import BOX, _multiplicity, isolated_atoms


def energy_of(symbols: str) -> float:
    return float(Atoms(symbols, calculator=EMT()).get_potential_energy())


EMT_ENERGIES = {29: energy_of("Cu"), 28: energy_of("Ni")}


@pytest.fixture
def known(parts) -> tuple[data.Dataset, data.Dataset]:
    """Training and validation set, which know the energies of isolated atoms."""
    training, validation, _ = parts
    return dataclasses.replace(training, isolated_energies=EMT_ENERGIES), validation


@pytest.mark.filterwarnings("ignore:.*outside the training data")
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_trained_model_has_the_energies_of_isolated_atoms(
    recipe, parts, known, batch_size: int, tmp_path: Path
) -> None:
    config = {**recipe.config, "num_features": 32, "head_features": 32}
    recipe = dataclasses.replace(
        recipe, config=config, epochs=30, batch_size=batch_size, optimizer="soap", stress_weight=0.0
    )
    found = {}
    for name, some in (("with", known), ("without", parts[:2])):
        if batch_size == 1 and name == "without":  # as with larger ones
            continue
        model = train.fit(recipe, *some, tmp_path / name).model
        calculator = AttnCalculator(model)
        alone = [Atoms([z], cell=[20] * 3, pbc=True) for z in EMT_ENERGIES]
        energies = [one["energy"] for one in calculator.calculate_many(alone)]
        found[name] = np.abs(np.subtract(energies, [*EMT_ENERGIES.values()]))
        # an atom that is just out of the reach of another is alone
        pair = Atoms("CuNi", [[0, 0, 0], [3.41, 0, 0]], cell=[20] * 3, pbc=True)
        (result,) = calculator.calculate_many([pair])
        assert result["energy"] == pytest.approx(sum(energies), abs=1e-4)
    assert found["with"].max() < 0.25  # eV
    assert batch_size == 1 or found["without"].max() > 1.5


def test_the_card_says_how_well_they_are_known(recipe, dataset, tmp_path, monkeypatch) -> None:
    source = tmp_path / "cells.h5"
    data.write_hdf5(dataclasses.replace(dataset, isolated_energies=EMT_ENERGIES), source)
    monkeypatch.chdir(tmp_path)
    for name, stream in (("in-memory", False), ("streamed", True)):
        ours = dataclasses.replace(recipe, name=name, data=str(source), epochs=1, stream=stream)
        done = train.run(ours)
        off = done.potential.training_info["isolated_error"]
        row = f"| isolated atoms | energies within {1e3 * off:.0f} meV of the data |"
        assert row in done.model.with_suffix(".md").read_text()
        assert off > 0


def test_which_atoms_are_trained_on(recipe, known) -> None:
    training, _ = known
    found = isolated_atoms(recipe, training)
    assert [str(atoms.symbols) for atoms in found.structures] == ["Ni", "Cu"] * 100
    assert found.energies.tolist() == [EMT_ENERGIES[28], EMT_ENERGIES[29]] * 100
    assert not np.any(found.forces)
    assert not found.stress.any()
    assert all(atoms.pbc.all() and atoms.cell[0, 0] == BOX for atoms in found.structures)
    for n, n_epochs, n_atoms in ((20, None, 2), (21, 999, 4), (21, 100, 8), (9000, 9, 200)):
        short = dataclasses.replace(recipe, epochs=n_epochs, minutes=None if n_epochs else 1)
        assert len(isolated_atoms(short, training[[0] * n])) == n_atoms
        # a resumed run knows how many epochs fit
        timed = dataclasses.replace(recipe, epochs=1, minutes=1)
        assert len(isolated_atoms(timed, training[[0] * n])) == 2 * math.ceil(min(n, 2000) / 20)
    of_nickel = dataclasses.replace(training, isolated_energies={28: 1.0, 79: 2.0})
    assert set(isolated_atoms(recipe, of_nickel).energies) == {1.0}


def test_there_are_none_without_energies_of_them(recipe, parts, known) -> None:
    training, _ = known
    assert isolated_atoms(recipe, parts[0]) is None
    assert isolated_atoms(recipe, dataclasses.replace(training, isolated_energies={79: 1})) is None
    reads_spin = {"config": {**recipe.config, "embed_spin": True}}
    for change in ({"baseline": "EMT"}, {"energy_weight": 0.0}, reads_spin):
        assert isolated_atoms(dataclasses.replace(recipe, **change), training) is None


@pytest.mark.parametrize(("off", "said"), [(20.0, "-23."), (-1000.0, "+99")])
def test_energies_with_another_zero_are_not_used(
    recipe, known, tmp_path, caplog, off, said
) -> None:
    training, validation = known
    wrong = {z: energy + off for z, energy in EMT_ENERGIES.items()}
    training = dataclasses.replace(training, isolated_energies=wrong)
    assert isolated_atoms(recipe, training) is None
    train.fit(dataclasses.replace(recipe, epochs=1), training, validation, tmp_path)
    (line,) = [line for line in caplog.messages if "isolated" in line]
    assert "energies of isolated atoms are not used: the structures are at " + said in line


def test_a_run_is_tied_to_them(recipe, parts, known, tmp_path, caplog) -> None:
    recipe = dataclasses.replace(recipe, epochs=4)
    with caplog.at_level("INFO"):
        train.fit(recipe, *known, tmp_path)
    expected = "training on the isolated atoms of the data too: Ni Cu, 100 times an epoch each"
    (line,) = [line for line in caplog.messages if line.startswith(expected)]
    assert re.search(r"their energies are off by up to [\d.]+ eV now$", line)
    with pytest.raises(ValueError, match=r"other data \(different: isolated atoms; now from"):
        train.fit(recipe, *parts[:2], tmp_path)
    train.fit(recipe, *known, tmp_path)  # it is done


def test_labels_of_molecules(recipe) -> None:
    """Neutral free atoms: no charge, the volume of a free atom."""
    water = Atoms("OHH", [[0, 0, 0], [1, 0, 0], [0, 1, 0]])
    training = data.Dataset(
        (water,),
        np.array([-14.0]),
        forces=[np.zeros((3, 3))],
        charges=[np.zeros(3)],
        hirshfeld_ratios=[np.ones(3)],
        dipoles=np.zeros((1, 3)),
        isolated_energies={1: -1.0, 8: -2.0},
    )
    found = isolated_atoms(recipe, training)
    assert not any(atoms.pbc.any() for atoms in found.structures)
    assert [str(atoms.symbols) for atoms in found.structures] == ["H", "O"] * 100
    assert not np.any(found.charges)
    assert np.all(np.equal(found.hirshfeld_ratios, 1))
    assert found.dipoles.tolist() == [[0, 0, 0]] * 200
    assert found.stress is None


def test_multiplicities_of_all_elements() -> None:
    """Each suits its number of electrons; those of some are known from spectroscopy."""
    found = {z: _multiplicity(z) for z in range(1, 119)}
    assert all((z + multiplicity) % 2 == 1 for z, multiplicity in found.items())
    known = {1: 2, 6: 3, 7: 4, 24: 7, 25: 6, 58: 1, 64: 9, 99: 4}
    assert {z: found[z] for z in known} == known
