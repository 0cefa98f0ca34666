"""Reference energies, neighbours per atom, shortest distance."""

import dataclasses

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.neighborlist import neighbor_list

from attncalc import data
from attncalc.data.statistics import (
    determines_each_element,
    electrons,
    per_element,
    undetermined,
)

ELEMENTS = {1: -13.6, 6: -1029.5, 7: -1485.3, 8: -2042.6}


def _sum_of_elements(names: list[str]) -> data.Dataset:
    structures = tuple(molecule(name) for name in names)
    return data.Dataset(
        structures=structures,
        energies=np.array([sum(ELEMENTS[z] for z in atoms.numbers) for atoms in structures]),
    )


def test_reference_energies_are_exact_for_sums_over_elements():
    found = data.reference_energies(_sum_of_elements(["H2O", "CH4", "HCN", "CO2", "NH3", "N2"]))
    assert list(found) == [1, 6, 7, 8]
    assert found == pytest.approx(ELEMENTS, rel=1e-12)


def test_reference_energies_are_the_least_squares():
    structures = (Atoms("H"), Atoms("H"), Atoms("H2"))
    dataset = data.Dataset(structures=structures, energies=np.array([-1.0, -3.0, -5.0]))
    assert data.reference_energies(dataset) == pytest.approx({1: (-1 - 3 - 2 * 5) / 6})


def test_what_is_left_of_known_elements_is_fitted_too():
    """With water alone, all is the oxygen's; hydrogen molecules determine the rest."""
    dataset = _sum_of_elements(["H2O", "H2"])
    assert per_element(dataset[:1], np.array([1.2]), [1]) == pytest.approx({1: 0.0, 8: 1.2})
    assert per_element(dataset, np.array([1.2, 0.2]), [1]) == pytest.approx({1: 0.1, 8: 1.0})


def test_energies_that_others_do_not_determine():
    training = _sum_of_elements(["H2O", "CH4"])
    wanted = _sum_of_elements(["H2O", "CH3CH2OH", "CO2", "O2"])
    assert undetermined(training, training).tolist() == []
    # two equations for three elements
    assert undetermined(training, wanted).tolist() == [1, 2, 3]
    known = dataclasses.replace(training, isolated_energies={1: ELEMENTS[1]})
    assert undetermined(known, wanted).tolist() == []
    assert [determines_each_element(one) for one in (training, known)] == [False, True]


def test_one_molecule_gives_the_shortest_of_all_solutions():
    dataset = _sum_of_elements(["CH3CH2OH"] * 50)
    found = data.reference_energies(dataset)
    counts = {1: 6, 6: 2, 8: 1}
    total = dataset.energies[0]
    assert sum(n * found[z] for z, n in counts.items()) == pytest.approx(total, rel=1e-12)
    # The minimum-norm solution of one equation is parallel to its row.
    scale = total / sum(n**2 for n in counts.values())
    assert found == pytest.approx({z: n * scale for z, n in counts.items()}, rel=1e-10)


def test_avg_num_neighbors_of_a_crystal_and_of_isolated_atoms():
    fcc = bulk("Cu", cubic=True)  # 12 nearest neighbours at 2.55 Å, the next 6 at 3.61 Å
    dataset = data.Dataset(structures=(fcc, fcc * (2, 1, 1)), energies=np.zeros(2))
    assert data.avg_num_neighbors(dataset, 3.0) == 12
    assert data.avg_num_neighbors(dataset, 3.7) == 18
    lonely = data.Dataset(structures=(Atoms("H"),), energies=np.zeros(1))
    assert data.avg_num_neighbors(lonely, 5.0) == 0


def test_avg_num_neighbors_equals_ase_over_several_batches():
    rng = np.random.default_rng(0)
    structures = []
    for k in range(70):
        atoms = molecule(("CH3CH2OH", "C6H6", "H2O")[k % 3])
        atoms.rattle(0.1, rng=rng)
        structures.append(atoms)
    dataset = data.Dataset(structures=tuple(structures), energies=np.zeros(70))
    n_edges = sum(len(neighbor_list("i", atoms, 2.0)) for atoms in structures)
    expected = n_edges / sum(map(len, structures))
    assert data.avg_num_neighbors(dataset, 2.0) == pytest.approx(expected)


def test_shortest_distance_of_molecules():
    dataset = data.Dataset(
        structures=(Atoms("H"), Atoms("H2", [[0, 0, 0], [0, 0, 0.8]]), molecule("C6H6")),
        energies=np.zeros(3),
    )
    assert data.shortest_distance(dataset) == pytest.approx(0.8)
    assert data.shortest_distance(dataset[:1]) == np.inf


@pytest.mark.parametrize(
    ("atoms", "expected"),
    [
        (bulk("Cu"), 3.61 / np.sqrt(2)),
        (bulk("Si"), 5.43 * np.sqrt(3) / 4),
        # Near through the boundary only; not at all along the direction without period.
        (Atoms("H2", [[0.1, 0, 0], [4.9, 0, 0]], cell=[5, 5, 5], pbc=True), 0.2),
        (Atoms("H2", [[0.1, 0, 0], [4.9, 0, 0]], cell=[5, 5, 5], pbc=[0, 1, 1]), 4.8),
        # A skewed cell: an image along a sum of vectors is nearer than along each of them.
        (Atoms("H", cell=[[3, 0, 0], [-2.9, 1, 0], [0, 0, 9]], pbc=True), np.hypot(0.1, 1.0)),
    ],
)
def test_shortest_distance_sees_images(atoms, expected):
    far = Atoms("H2", [[0, 0, 0], [0, 0, 8.0]])
    dataset = data.Dataset(structures=(far, atoms, far), energies=np.zeros(3))
    assert data.shortest_distance(dataset) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    "call", [data.reference_energies, lambda d: data.avg_num_neighbors(d, 5.0)]
)
def test_an_empty_dataset_is_refused(call):
    empty = data.Dataset(structures=(), energies=np.zeros(0), source="nothing.npz")
    with pytest.raises(ValueError, match=r"nothing.npz: the data set is empty"):
        call(empty)
    assert data.shortest_distance(empty) == np.inf


def test_atoms_on_top_of_each_other_are_named_by_file_and_structure():
    structures = [molecule("H2O") for _ in range(70)]
    structures[66].positions[1] = structures[66].positions[0]
    dataset = data.Dataset(structures=structures, energies=np.zeros(70), source="water.npz")
    with pytest.raises(ValueError, match=r"^water.npz: structure 66: atom 0 .* apart: remove"):
        data.avg_num_neighbors(dataset, 3.0)


def test_electrons_of_a_data_set():
    cation = Atoms("NH4", molecule("CH4").positions, info={"charge": 1})
    closed = data.from_ase([with_energy(molecule("H2O")), with_energy(cation)])
    assert electrons(closed) == {
        "closed_shells": True,
        "total_charges": [0, 1],
        "multiplicities": [1, 1],
    }
    radical = data.from_ase([with_energy(molecule("CH3"))])
    assert electrons(radical) == {
        "closed_shells": False,
        "total_charges": [0, 0],
        "multiplicities": [2, 2],
    }
    crystal = data.from_ase([with_energy(bulk("NaCl", "rocksalt", a=5.6))])
    assert not electrons(crystal)["closed_shells"]
    assert "multiplicities" not in electrons(crystal)


def with_energy(atoms: Atoms) -> Atoms:
    atoms.info["energy"] = 0.0
    return atoms
