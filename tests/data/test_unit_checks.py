"""Energies against the work of the forces: named where units are wrong, silent everywhere else."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT

from attncalc import data
from attncalc.data import unit_checks

KCAL, KJ = units.kcal / units.mol, units.kJ / units.mol
HARTREE, RYDBERG, BOHR = units.Hartree, units.Rydberg, units.Bohr

# What energies and forces are multiplied by if they are taken for eV and eV/Å, and what is said.
WRONG_UNITS = {
    "kcal/mol, eV/Å": (1 / KCAL, 1, 'units="E: kcal/mol; F: eV/Angstrom"'),
    "eV, kcal/mol/Å": (1, 1 / KCAL, 'units="E: eV; F: kcal/mol/Angstrom"'),
    "Hartree, eV/Å": (1 / HARTREE, 1, 'units="E: Hartree; F: eV/Angstrom"'),
    "eV, Hartree/Å": (1, 1 / HARTREE, 'units="E: eV; F: Hartree/Angstrom"'),
    "eV, Hartree/Bohr": (1, BOHR / HARTREE, 'units="E: eV; F: Hartree/Bohr"'),
    "Hartree, Hartree/Bohr": (
        1 / HARTREE,
        BOHR / HARTREE,
        "forces per Bohr beside positions in Å?",
    ),
    "positions in Bohr": (1, 1 / BOHR, "forces per Å beside positions in Bohr?"),
    "kJ/mol, eV/Å": (1 / KJ, 1, 'units="E: kJ/mol; F: eV/Angstrom"'),
    "kJ/mol, kcal/mol/Å": (1 / KJ, 1 / KCAL, 'units="E: kJ/mol; F: kcal/mol/Angstrom"'),
    "kcal/mol, kJ/mol/Å": (1 / KCAL, 1 / KJ, 'units="E: kcal/mol; F: kJ/mol/Angstrom"'),
    "kcal/mol, Hartree/Å": (1 / KCAL, 1 / HARTREE, 'units="E: kcal/mol; F: Hartree/Angstrom"'),
    "Hartree, kcal/mol/Å": (1 / HARTREE, 1 / KCAL, 'units="E: Hartree; F: kcal/mol/Angstrom"'),
    "kcal/mol, Hartree/Bohr": (1 / KCAL, BOHR / HARTREE, 'units="E: kcal/mol; F: Hartree/Bohr"'),
    "eV, Rydberg/Bohr": (1, BOHR / RYDBERG, 'units="E: eV; F: Rydberg/Bohr"'),
    "eV, meV/Å": (1, 1000, 'units="E: eV; F: meV/Angstrom"'),
    "kJ/mol, kJ/mol/nm": (1 / KJ, 10 / KJ, "forces per nm beside positions in Å?"),
    "gradients": (1, -1, "the forces have the sign of the gradient; multiply them by -1"),
    "kcal/mol, -eV/Å": (
        1 / KCAL,
        -1,
        "by -1; and energies in kcal/mol beside forces in eV/Angstro",
    ),
}


def in_other_units(dataset: data.Dataset, energy: float, forces: float) -> data.Dataset:
    return dataclasses.replace(
        dataset,
        energies=dataset.energies * energy,
        forces=tuple(f * forces for f in dataset.forces),
    )


def in_another_order(dataset: data.Dataset, order: str) -> data.Dataset:
    """Forces of other frames, of other atoms, or with x and y exchanged."""
    if order == "frames" and len({len(atoms) for atoms in dataset.structures}) == 1:
        frames = np.random.default_rng(0).permutation(len(dataset))
        forces = [dataset.forces[k] for k in frames]
    else:
        forces = [f[::-1] if order == "atoms" else f[:, [1, 0, 2]] for f in dataset.forces]
    return dataclasses.replace(dataset, forces=tuple(forces))


def emt(atoms: Atoms, n: int, rattle: float, seed: int = 0) -> data.Dataset:
    """Structures around one, independent of each other, with the labels of ASE's EMT."""
    frames = []
    for k in range(n):
        copy = atoms.copy()
        copy.rattle(rattle, seed=seed + k)
        copy.calc = EMT()
        copy.get_forces()
        frames.append(copy)
    return data.from_ase(frames, source="emt.extxyz")


@pytest.fixture(scope="module")
def shaken() -> data.Dataset:
    return emt(bulk("Cu", cubic=True), 40, 0.05)


def test_right_units_are_silent(shaken):
    found = data.work_ratio(shaken)
    assert found.ratio == pytest.approx(1, abs=0.05)
    assert found.is_conclusive
    assert found.displacement < 0.3
    assert data.unit_mismatch(shaken) is None


@pytest.mark.parametrize("case", WRONG_UNITS)
def test_wrong_units_are_named(shaken, case):
    energy, forces, expected = WRONG_UNITS[case]
    wrong = in_other_units(shaken, energy, forces)
    assert data.work_ratio(wrong).ratio == pytest.approx(energy / forces, rel=0.05)
    message = data.unit_mismatch(wrong)
    assert message.startswith("emt.extxyz: energy differences are ")
    assert expected in message
    assert "\n" not in message


@pytest.mark.parametrize("case", [name for name in WRONG_UNITS if "-" not in name and "," in name])
def test_what_the_message_says_helps(shaken, case, tmp_path):
    """The entry that is proposed, put into the file, gives the right numbers."""
    energy, forces, _ = WRONG_UNITS[case]
    wrong = in_other_units(shaken, energy, forces)
    arrays = {
        "z": wrong.structures[0].numbers,
        "R": np.stack([atoms.positions for atoms in wrong.structures]),
        "cell": wrong.structures[0].cell.array,
        "E": wrong.energies,
        "F": np.stack(wrong.forces),
    }
    np.savez(tmp_path / "a.npz", **arrays)
    message = data.unit_mismatch(data.read(tmp_path / "a.npz", energy_unit="eV"))
    if "as in units" in message:
        return  # the energy unit is any
    entry = message.split('units="')[1].split('"')[0]
    np.savez(tmp_path / "a.npz", **arrays, units=entry)
    mended = data.read(tmp_path / "a.npz")
    assert data.unit_mismatch(mended) is None
    np.testing.assert_allclose(mended.energies, shaken.energies, rtol=1e-12)
    np.testing.assert_allclose(np.stack(mended.forces), np.stack(shaken.forces), atol=1e-12)


def test_energies_per_atom(shaken):
    message = data.unit_mismatch(in_other_units(shaken, 1 / 4, 1))
    assert "the energies seem to be per atom; multiply them by the number of atoms" in message
    assert "kJ/mol/Angstrom" in message, "1/4 is not far from 1/4.184"
    cell = emt(bulk("Cu", cubic=True).repeat((2, 1, 1)), 30, 0.05)
    message = data.unit_mismatch(in_other_units(cell, 1 / 8, 1))
    assert message.endswith(
        "the energies seem to be per atom; multiply them by the number of atoms"
    )


def test_a_ratio_of_no_units(shaken):
    assert "this is no ratio of usual units" in data.unit_mismatch(in_other_units(shaken, 3.2, 1))


def test_a_few_wrong_labels_do_not_matter(shaken):
    energies = shaken.energies.copy()
    energies[[3, 17]] += 5.0
    assert data.unit_mismatch(dataclasses.replace(shaken, energies=energies)) is None
    forces = [f * (50 if k == 5 else 1) for k, f in enumerate(shaken.forces)]
    assert data.unit_mismatch(dataclasses.replace(shaken, forces=forces)) is None


@pytest.mark.parametrize("seed", range(20))
def test_labels_without_relation_are_silent(shaken, seed):
    """Random numbers of any size, also of a few enormous ones."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 41))
    tail = rng.choice([0.0, 1.0, 3.0])
    energies = rng.standard_normal(n) * np.exp(tail * rng.standard_normal(n))
    forces = [rng.standard_normal((4, 3)) * np.exp(tail * rng.standard_normal()) for _ in range(n)]
    random = dataclasses.replace(shaken[:n], energies=energies, forces=forces)
    assert data.unit_mismatch(random) is None


def test_what_cannot_be_compared(shaken):
    assert data.work_ratio(dataclasses.replace(shaken, forces=None)) is None
    assert data.work_ratio(shaken[:5]) is None
    assert data.unit_mismatch(shaken[:1]) is None
    # each in a cell of its own: energies differ by the work of the stress, too
    structures = [atoms.copy() for atoms in shaken.structures]
    for k, atoms in enumerate(structures):
        atoms.set_cell(atoms.cell * (1 + 0.001 * k))
    assert data.work_ratio(dataclasses.replace(shaken, structures=structures)) is None
    # the same structure and energy again and again
    again = shaken[[0] * 40]
    assert data.work_ratio(again) is None


def test_other_molecules_between_them_do_not_matter():
    cluster = Atoms("Cu3", [[0, 0, 0], [2.3, 0, 0], [1.1, 2.0, 0]])
    first, second = emt(cluster, 30, 0.05), emt(Atoms("Ni2", [[0, 0, 0], [0, 0, 2.2]]), 30, 0.05)
    mixed = data.concatenate([first, second])[np.random.default_rng(0).permutation(60)]
    assert data.work_ratio(mixed).ratio == pytest.approx(1, abs=0.05)
    assert "F: kcal/mol" in data.unit_mismatch(in_other_units(mixed, 1, 1 / KCAL))


def test_atoms_that_leave_the_cell_come_back(shaken):
    wrapped = [atoms.copy() for atoms in shaken.structures]
    for atoms in wrapped:
        atoms.wrap()
    moved = [
        abs(a.positions - b.positions).max()
        for a, b in zip(wrapped, shaken.structures, strict=True)
    ]
    assert max(moved) > 3
    found = data.work_ratio(dataclasses.replace(shaken, structures=wrapped))
    assert found.ratio == pytest.approx(1, abs=0.05)


def test_molecules_far_apart_are_silent():
    """Two-body clusters at random: the work between them says nothing."""
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(60):
        atoms = Atoms("Cu4", rng.uniform(0, 4, (4, 3)))
        atoms.calc = EMT()
        atoms.get_forces()
        frames.append(atoms)
    for energy, forces, _ in WRONG_UNITS.values():
        assert data.unit_mismatch(in_other_units(data.from_ase(frames), energy, forces)) is None


# ------------------------------------------------------------------------------------ real data

# file: label sets; whether the closest structures are close enough to decide
REAL = {
    "3bpa_test_300K.npz": False,
    "3bpa_train_300K.npz": False,
    "acac_test_300K.npz": False,
    "acac_test_dihedral.npz": False,  # no forces
    "acac_train_300K.npz": False,
    "alkane_c08.npz": True,
    "alkane_c12.npz": True,
    "alkane_c14.npz": True,
    "au2_mgo_4g_50.npz": True,
    "c2h6_dissociation.npz": True,
    "ethanol_pbe_test_norm_mode_3005.npz": False,  # no forces
    "ethanol_pbe_test_norm_mode_874.npz": False,  # no forces
    "ethanol_pbe_train.npz": True,
    "lips20_Li2S.npz": True,
    "lips20_Li7P3S11.npz": True,
    "lips20_P2S5.npz": True,
    "lips20_beta-Li3PS4.npz": True,
    "md17_ethanol_npzformat.npz": True,
    "md22_stachyose_frame0.extxyz": False,  # one structure
    "mlearn_Mo.extxyz": True,
    "mlearn_Si.extxyz": True,
    "qm22_ethanol.npz": True,
    "qm22_hydronium.npz": False,  # no forces
    "qm22_nma.npz": True,
    "rmd17_aspirin.npz": True,
    "rmd17_benzene.npz": True,
    "rmd17_ethanol.npz": True,
    "rmd17_malonaldehyde.npz": True,
    "rmd17_naphthalene.npz": True,
    "rmd17_uracil.npz": True,
    "spice_dev.extxyz": False,
    "spice_dipeptides_polar.extxyz": True,
    "water_pbe0ts_192.npz": True,
    "water_virial_384.npz": False,  # a cell of its own for each structure
    "xtb_acala3nhme.extxyz": False,
    "xtb_at_at.extxyz": False,
    "xtb_c10h2.extxyz": True,
    "xtb_c10h3_cation.extxyz": True,
    "xtb_cumulene_c9h4.extxyz": False,
    "xtb_ethanol.extxyz": True,
    "xtb_stachyose.extxyz": False,
    "zundel.npz": False,
}
# those in which the forces of other frames, atoms or axes are noticed: the closest structures are
# very close, but not in energy
CLOSE = {
    *(
        "c2h6_dissociation.npz",
        "ethanol_pbe_train.npz",
        "lips20_Li2S.npz",
        "lips20_Li7P3S11.npz",
        "lips20_P2S5.npz",
    ),
    *("lips20_beta-Li3PS4.npz", "md17_ethanol_npzformat.npz", "qm22_ethanol.npz", "qm22_nma.npz"),
    *("rmd17_aspirin.npz", "rmd17_benzene.npz", "rmd17_ethanol.npz", "rmd17_malonaldehyde.npz"),
    *("rmd17_naphthalene.npz", "rmd17_uracil.npz", "water_pbe0ts_192.npz", "xtb_c10h2.extxyz"),
    "xtb_c10h3_cation.extxyz",
}


@pytest.mark.parametrize("n_modes", [6, 20, 40, 300])
def test_mirror_images_about_a_minimum_are_silent(n_modes):
    """Pairs r0 + u, r0 - u: quadratic energies cancel, and the ratio of the rest is 1/3."""
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(n_modes):
        shift = rng.normal(scale=0.04, size=(4, 3))
        for sign in (1, -1):
            atoms = bulk("Cu", cubic=True)
            atoms.positions += sign * shift
            atoms.calc = EMT()
            atoms.get_forces()
            frames.append(atoms)
    assert data.unit_mismatch(data.from_ase(frames, source="mirrored")) is None


@pytest.mark.parametrize(("k", "name"), list(enumerate(REAL)), ids=REAL)
def test_real_data_in_right_and_wrong_units(shared_file, k, name):
    """Right units are silent; wrong ones are named where the data decide, and silent elsewhere.

    Each file in one of three wrong units, by turns.
    """
    path = shared_file(name)
    energy_unit = "kcal/mol" if name.startswith("md17") else None
    kinds = ("rmd17", "md17") if name == "rmd17_aspirin.npz" else ("md17",)
    for labels in kinds if name.startswith("rmd17") else (None,):
        dataset = data.read(path, labels=labels, energy_unit=energy_unit)
        assert data.unit_mismatch(dataset) is None
        found = data.work_ratio(dataset)
        decides = found is not None and found.is_conclusive
        assert decides == REAL[name], found
        if decides:
            assert found.ratio == pytest.approx(1, abs=unit_checks.MOST_UNEXPLAINED)
        if dataset.forces is None:
            continue
        assert data.label_mismatch(dataset) is None
        wrong = in_another_order(dataset, ("frames", "atoms", "axes")[k % 3])
        message = data.label_mismatch(wrong) or ""
        if name in CLOSE:
            assert "are energies and forces of the same frames" in message
        else:
            assert not message
        case = ("kcal/mol, eV/Å", "eV, Hartree/Bohr", "gradients")[k % 3]
        energy, forces, expected = WRONG_UNITS[case]
        message = data.unit_mismatch(in_other_units(dataset, energy, forces))
        if decides:
            assert expected in message
        else:
            assert message is None


def test_subsets_of_wild_data_are_silent(shared_file):
    """Bonds that break, few structures: where the work is a poor guess of the energy."""
    rng = np.random.default_rng(0)
    for name in ("c2h6_dissociation.npz", "acac_test_300K.npz", "zundel.npz", "mlearn_Si.extxyz"):
        dataset = data.read(shared_file(name))
        for _ in range(30):
            n = int(rng.integers(13, 60))
            assert data.unit_mismatch(dataset[rng.permutation(len(dataset))[:n]]) is None


def test_committed_small_molecules_are_silent():
    committed = Path(__file__).parent / "xtb_small_molecules_test.extxyz"
    assert data.unit_mismatch(data.read(committed)) is None


def test_of_large_sets_some_structures_are_searched(monkeypatch):
    """For the nearest of them; neighbours in order are always compared."""
    monkeypatch.setattr(unit_checks, "_SEARCH", 9 * 300**2)
    pairs = unit_checks._close(np.random.default_rng(0).standard_normal((2000, 9)))
    assert 1999 <= len(pairs) <= 1999 + 300
    assert {(k, k + 1) for k in range(1999)} <= set(map(tuple, pairs.tolist()))


@pytest.mark.parametrize("kind", ["equal by symmetry", "turned", "noisy", "nearly equal"])
def test_honest_data_with_equal_energies_are_silent(kind: str) -> None:
    rng, crystal, frames = np.random.default_rng(0), bulk("Cu", cubic=True) * (2, 2, 1), []
    if kind != "equal by symmetry":
        crystal.rattle(0.05, seed=1)
    for k in range(16):
        atoms = crystal.copy()
        if kind == "equal by symmetry":
            atoms.positions[k, k % 3] += 0.01
        elif kind == "turned":
            atoms.pbc = False
            atoms.rotate(0.1 * k, "z")
        else:
            atoms.positions += rng.normal(
                scale=1e-7 if kind == "nearly equal" else 1e-3, size=(16, 3)
            )
        atoms.calc = EMT()
        atoms.get_forces()
        frames.append(atoms)
    dataset = data.from_ase(frames, source="honest")
    if kind == "noisy":
        noise = rng.normal(scale=2e-3, size=len(dataset))
        dataset = dataclasses.replace(dataset, energies=np.full(len(dataset), -3.0) + noise)
    assert data.label_mismatch(dataset) is None


def test_forces_of_other_frames_are_noticed() -> None:
    """Also without ../shared; and forces that are all zero."""
    path = emt(bulk("Cu", cubic=True) * (2, 1, 1), 1, 0.0).structures[0]
    frames, rng = [], np.random.default_rng(1)
    for _ in range(40):  # a random walk
        path = path.copy()
        path.positions += rng.normal(scale=0.02, size=(8, 3))
        path.calc = EMT()
        path.get_forces()
        frames.append(path)
    dataset = data.from_ase(frames, source="walk")
    assert data.label_mismatch(dataset) is None
    for order in ("frames", "atoms", "axes"):
        message = data.label_mismatch(in_another_order(dataset, order))
        assert message is not None
        assert "walk: the work of the forces does not explain" in message
    none = in_other_units(dataset, 1.0, 0.0)
    said = "walk: all forces are zero, but energies differ: are they labels?"
    assert data.label_mismatch(none) == said
    equal = dataclasses.replace(none, energies=np.ones(len(none)))
    assert data.label_mismatch(equal) is None
