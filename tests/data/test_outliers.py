"""The worst structures: their order, their errors, and that what is planted in one is found."""

import dataclasses

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from attncalc import data
from attncalc.data.errors import Prediction
from attncalc.data.outliers import outliers


def ethanols(n: int, *, scale: float = 0.02) -> list[Atoms]:
    frames = []
    for k in range(n):
        frames.append(molecule("CH3CH2OH"))
        frames[-1].rattle(scale, seed=k)
    return frames


def dataset_of(frames: list[Atoms], **labels) -> data.Dataset:
    rng = np.random.default_rng(0)
    given = {
        "energies": rng.normal(size=len(frames)),
        "forces": tuple(rng.normal(size=(len(atoms), 3)) for atoms in frames),
    }
    return data.Dataset(structures=tuple(frames), source="d.extxyz", **{**given, **labels})


def perfect(dataset: data.Dataset) -> Prediction:
    forces = tuple(np.zeros((len(s), 3)) for s in dataset.structures)
    if dataset.forces is not None:
        forces = tuple(f.copy() for f in dataset.forces)
    return Prediction(dataset.energies.copy(), forces, None)


def remarks_of(dataset: data.Dataset, index: int) -> str:
    """With a model that fails on this structure only."""
    prediction = perfect(dataset)
    prediction.forces[index][0] += 1.0
    (worst,) = outliers(prediction, dataset, n=1)
    assert worst.index == index
    return "; ".join(worst.remarks)


def test_order_and_numbers():
    dataset = dataset_of(ethanols(8))
    prediction = perfect(dataset)
    prediction.forces[3][4] += [0.0, 0.3, 0.4]
    prediction.forces[6][2] += [0.2, 0.0, 0.0]
    prediction.energies[1] -= 0.9
    worst = outliers(prediction, dataset, n=3)
    assert [o.index for o in worst] == [3, 6, 0]
    first = worst[0]
    assert (first.formula, first.atom) == ("C2H6O", 4)
    assert first.force_error == pytest.approx(0.5)
    assert first.force_rmse == pytest.approx(np.sqrt(0.25 / 27))
    assert first.energy_error == 0
    (by_energy,) = outliers(prediction, dataset, by="energy", n=1)
    assert by_energy.index == 1
    assert by_energy.energy_error == pytest.approx(-0.1)


def test_another_zero_of_energy_makes_no_outlier():
    """All are off by one constant; one by a little more."""
    dataset = dataset_of(ethanols(12))
    prediction = perfect(dataset)
    prediction.energies[:] += 1000
    prediction.energies[7] += 0.9
    worst = outliers(prediction, dataset, by="energy", n=2)
    assert worst[0].index == 7
    assert worst[0].energy_error == pytest.approx(0.1 * 11 / 12)


def test_more_than_there_are():
    dataset = dataset_of(ethanols(2))
    assert len(outliers(perfect(dataset), dataset, n=10)) == 2


def test_without_forces():
    dataset = dataset_of(ethanols(3), forces=None)
    (worst,) = outliers(perfect(dataset), dataset, by="energy", n=1)
    assert worst.atom is None
    assert np.isnan(worst.force_rmse)
    with pytest.raises(ValueError, match=r"^d\.extxyz: the data set has no forces"):
        outliers(perfect(dataset), dataset)
    with pytest.raises(ValueError, match='by must be "force" or "energy", got \'size\''):
        outliers(perfect(dataset), dataset, by="size")


# ------------------------------------------------------------------------- what is unusual


def test_a_long_and_a_short_bond():
    frames = ethanols(200)
    oxygen, hydrogen = 2, 3
    assert frames[0].get_distance(oxygen, hydrogen) == pytest.approx(0.97, abs=0.1)
    frames[5].set_distance(oxygen, hydrogen, 1.25, fix=0)
    frames[8].set_distance(oxygen, hydrogen, 0.75, fix=0)
    dataset = dataset_of(frames)
    assert "O2, H3 at 1.250 Å: the longest O-H bond of 200" in remarks_of(dataset, 5)
    assert "O2, H3 at 0.750 Å: the shortest O-H bond of 200" in remarks_of(dataset, 8)


def test_a_close_contact():
    frames = ethanols(200)
    near = Atoms("H", [frames[4].positions[2] + [0.0, 0.0, 1.5]])
    frames[4] = Atoms(
        numbers=frames[4].numbers,
        positions=np.where(np.arange(9)[:, None] == 5, near.positions, frames[4].positions),
    )
    said = remarks_of(dataset_of(frames), 4)
    assert "the closest O-H contact without a bond of 200" in said
    assert "at 1.500 Å" in said


def test_a_lost_atom():
    frames = ethanols(200)
    frames[9].positions[8] += [0.0, 0.0, 30.0]
    said = remarks_of(dataset_of(frames), 9)
    assert "H8 is more than 2.7 Å from its nearest neighbour: the most isolated atom" in said


def test_a_large_force_and_a_high_energy():
    dataset = dataset_of(ethanols(200))
    dataset.forces[17][3] = [0.0, 30.0, 40.0]
    energies = dataset.energies.copy()
    energies[17] = 90.0
    dataset = dataclasses.replace(dataset, energies=energies)
    said = remarks_of(dataset, 17)
    assert "reference force 50 eV/Å on H3: the largest of 200" in said
    high = 1e3 * (90.0 - energies.mean()) / 9
    assert f"label {high:+.0f} meV/atom relative to its composition: the highest energy" in said


def test_a_rare_element_and_size():
    frames = [*ethanols(199), molecule("CH3SH")]
    said = remarks_of(dataset_of(frames), 199)
    assert "S in 1 of 200 structures: the rarest element of 200" in said
    frames[30] = molecule("C6H6")
    said = remarks_of(dataset_of(frames), 30)
    assert "12 atoms: the largest of 200" in said


def test_density():
    frames = []
    for k in range(150):
        frames.append(bulk("Cu", a=3.6, cubic=True))
        frames[-1].rattle(0.02, seed=k)
    frames[11].set_cell(frames[11].cell * 1.05, scale_atoms=True)
    said = remarks_of(dataset_of(frames), 11)
    assert f"{(3.6 * 1.05) ** 3 / 4:.3g} Å³ per atom: the thinnest of 150" in said


def test_images_count_as_neighbours():
    """A crystal of one atom: its bonds go to its own images."""
    frames = [bulk("Cu", a=3.6 + 0.001 * k) for k in range(150)]
    assert "Cu0, Cu0 at 2.546 Å: the shortest Cu-Cu bond of 150" in remarks_of(
        dataset_of(frames), 0
    )


def test_what_many_share_is_not_unusual():
    dataset = dataset_of([molecule("CH4"), *[molecule("CH3CH2OH")] * 9])
    assert "9 atoms" not in remarks_of(dataset, 3)


def test_one_structure():
    dataset = dataset_of(ethanols(1))
    assert remarks_of(dataset, 0) == ""
    single = dataset_of([Atoms("H")])
    assert remarks_of(single, 0) == ""
