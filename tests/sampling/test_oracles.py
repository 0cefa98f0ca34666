"""Oracles: labels are those of the teacher, and what it refuses has a reason."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import teachers
from ase import Atoms, units
from ase.build import bulk, fcc111, molecule
from ase.calculators.calculator import Calculator
from ase.constraints import FixAtoms
from contract import random_potential
from networks import tiny_so3krates
from teachers import spheres, tiny_model

from attncalc import AttnCalculator, Evaluator, save
from attncalc.sampling.oracles import Labels, load_oracle
from attncalc.sampling.relaxation import CONVERGED, relaxations

COPPER = Path(__file__).parents[1] / "models" / "cu-emt.safetensors"


def structures() -> list[Atoms]:
    found = [molecule(name) for name in ("CH3CH2OH", "H2O", "C6H6")]
    found += [Atoms("OH", [[0, 0, 0], [0, 0, 0.97]]), Atoms("NH4", _ammonium())]
    for atoms, charge in zip(found, (0, 0, 0, -1, 1), strict=True):
        atoms.info.update(charge=charge, spin=1)
        atoms.rattle(0.03, seed=1)
    return found


def _ammonium() -> np.ndarray:
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) * 0.59
    return np.vstack([np.zeros(3), corners])


def test_a_model_labels_as_its_calculator_does(tmp_path: Path) -> None:
    path = tiny_model(tmp_path / "tiny.safetensors")
    oracle, calculator = load_oracle(str(path)), AttnCalculator(path)
    for atoms, labels in zip(structures(), oracle.label(structures()), strict=True):
        atoms.calc = calculator
        assert labels.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-5)
        np.testing.assert_allclose(labels.forces, atoms.get_forces(), atol=1e-5)
        np.testing.assert_allclose(labels.charges, atoms.get_charges(), atol=1e-6)
        np.testing.assert_allclose(labels.dipole, atoms.get_dipole_moment(), atol=1e-5)
        ratios = calculator.hirshfeld_ratios
        np.testing.assert_allclose(labels.hirshfeld_ratios, ratios, atol=1e-6)
        assert labels.charges.sum() == pytest.approx(atoms.info["charge"], abs=1e-5)
    assert oracle.teacher.startswith("tiny, SHA-256 ")


def test_a_name_of_nothing_says_what_oracles_there_are() -> None:
    with pytest.raises(FileNotFoundError, match=r"'gfn3'; .*; other oracles: gfn2 and MODULE:"):
        load_oracle("gfn3")


def test_a_model_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    oracle = load_oracle(str(tiny_model(tmp_path / "tiny.safetensors", species=(1, 8))))
    found = oracle.label(structures())
    assert [isinstance(labels, str) for labels in found] == [True, False, True, False, True]
    assert found[0] == "this model was not trained on C"


def test_charges_and_multiplicities_are_refused_one_by_one(tmp_path: Path) -> None:
    """Of equal atoms, in any order."""
    save(random_potential(tiny_so3krates(3.5)), tmp_path / "neutral.safetensors")
    oracle, known = load_oracle(str(tmp_path / "neutral.safetensors")), structures()[0]
    many = [known.copy() for _ in range(5)]
    many[0].info["spin"] = 3
    many[2].info |= {"charge": -1, "spin": 2}
    many[4].info |= {"charge": 1, "spin": 2}
    labels = oracle.label(many)
    assert [isinstance(one, str) for one in labels] == [True, False, True, False, True]
    assert labels[0].startswith("multiplicity 3")
    assert labels[2].startswith("total charge -1 e")
    assert labels[1].energy == pytest.approx(labels[3].energy)


def test_every_crystal_has_a_stress_of_its_own() -> None:
    """A slab without a third cell vector and a molecule have none."""
    crystals = [bulk("Cu", a=a, cubic=True) * (1, 1, n) for a, n in ((3.5, 1), (3.6, 2), (3.7, 1))]
    slab = fcc111("Cu", (1, 1, 2), a=3.6)
    many = [*crystals, slab, Atoms("Cu2", [[0, 0, 0], [0, 0, 2.3]])]
    for atoms in many:
        atoms.info = {"charge": 0, "spin": 1}
    labels = load_oracle(str(COPPER)).label(many)
    calculator = AttnCalculator(COPPER)
    for atoms, one in zip(crystals, labels, strict=False):
        np.testing.assert_allclose(one.stress, calculator.get_stress(atoms), atol=1e-6)
    assert labels[0].stress[0] < -0.01 < 0.01 < labels[2].stress[0]
    assert labels[3].stress is labels[4].stress is None


def test_a_structure_beyond_all_is_refused_alone(tmp_path: Path) -> None:
    oracle = load_oracle(str(tiny_model(tmp_path / "tiny.safetensors")))
    found = structures()
    found[1].positions[0, 0] = 1e8
    labels = oracle.label(found)
    assert [isinstance(one, str) for one in labels] == [False, True, False, False, False]
    assert labels[1].endswith("from the origin")


def test_an_impossible_structure_is_refused_alone(tmp_path: Path) -> None:
    oracle = load_oracle(str(tiny_model(tmp_path / "tiny.safetensors")))
    found = structures()[:1] * 3
    found[2] = found[2].copy()
    found[2].positions[0, 0] = np.nan  # of the same atoms as the others
    labels = oracle.label(found)
    assert [isinstance(one, str) for one in labels] == [False, False, True]
    assert "not finite" in labels[2]


def test_a_structure_too_large_for_the_memory_is_refused_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle, many = load_oracle(str(tiny_model(tmp_path / "tiny.safetensors"))), Evaluator.many

    def limited(self: Evaluator, given: Sequence[Atoms]):
        if any(len(atoms) > 9 for atoms in given):
            raise MemoryError("std::bad_alloc")
        return many(self, given)

    monkeypatch.setattr(Evaluator, "many", limited)
    labels = oracle.label(structures())
    assert [isinstance(one, str) for one in labels] == [False, False, True, False, False]
    assert labels[2] == "not enough memory"


def test_gfn2_labels_as_tblite_does() -> None:
    tblite = pytest.importorskip("tblite.ase", reason="needs tblite: pip install attncalc[xtb]")
    for atoms, labels in zip(structures(), load_oracle("gfn2").label(structures()), strict=True):
        atoms.set_initial_charges([atoms.info["charge"], *[0] * (len(atoms) - 1)])
        atoms.calc = tblite.TBLite(method="GFN2-xTB", verbosity=0)
        assert labels.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
        np.testing.assert_allclose(labels.forces, atoms.get_forces(), atol=1e-5)
        np.testing.assert_allclose(labels.charges, atoms.get_charges(), atol=1e-5)
        np.testing.assert_allclose(labels.dipole, atoms.get_dipole_moment(), atol=1e-5)


def test_gfn2_refuses_with_a_reason() -> None:
    pytest.importorskip("tblite.interface", reason="needs tblite: pip install attncalc[xtb]")
    torn = Atoms("N2", [[0, 0, 0], [0, 0, 4.0]], info={"charge": 0, "spin": 1})
    assert load_oracle("gfn2").label([torn]) == ["electrons in fractional orbitals"]


@pytest.mark.parametrize(("name", "spin"), [("CH3", 2), ("NO2", 2), ("C2H5", 2), ("O2", 3)])
def test_gfn2_labels_open_shells(name: str, spin: int) -> None:
    tblite = pytest.importorskip("tblite.ase", reason="needs tblite: pip install attncalc[xtb]")
    atoms = molecule(name)
    atoms.info.update(charge=0, spin=spin)
    (labels,) = load_oracle("gfn2").label([atoms])
    atoms.calc = tblite.TBLite(method="GFN2-xTB", verbosity=0, multiplicity=spin)
    assert labels.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
    np.testing.assert_allclose(labels.forces, atoms.get_forces(), atol=1e-5)


@pytest.mark.parametrize(("name", "spin"), [("O2", 1), ("NO", 2)])
def test_gfn2_refuses_shared_electrons(name: str, spin: int) -> None:
    """Of two orbitals of one energy: singlet oxygen, and a hole in a pair of them."""
    pytest.importorskip("tblite.interface", reason="needs tblite: pip install attncalc[xtb]")
    atoms = molecule(name)
    atoms.info.update(charge=0, spin=spin)
    assert load_oracle("gfn2").label([atoms]) == ["electrons in fractional orbitals"]


def test_any_calculator() -> None:
    oracle = load_oracle("teachers:spheres")
    atoms = structures()[0]
    (labels,) = oracle.label([atoms])
    atoms.calc = spheres()
    assert labels.energy == pytest.approx(atoms.get_potential_energy())
    np.testing.assert_allclose(labels.forces, atoms.get_forces())
    assert labels.charges is None
    first = labels.forces.copy()
    oracle.label(structures()[:3])
    np.testing.assert_array_equal(labels.forces, first)
    atoms.set_constraint(FixAtoms([0]))  # not of the labels
    (of_fixed,) = oracle.label([atoms])
    np.testing.assert_array_equal(of_fixed.forces, first)
    assert atoms.constraints
    digest = hashlib.sha256(Path(teachers.__file__).read_bytes()).hexdigest()
    assert oracle.teacher == f"teachers:spheres, SHA-256 of the module {digest}"
    assert oracle.level_of_theory == "teachers:spheres"


def test_a_calculator_is_told_charge_and_multiplicity() -> None:
    oracle = load_oracle("teachers:electrons")
    frames = structures()
    frames[0].info["spin"] = 3
    assert [labels.energy for labels in oracle.label(frames)] == [30, 10, 10, 9, 11]
    # one place and two charges: nothing is left of the other
    frames[3].info["charge"] = 1
    assert [labels.energy for labels in oracle.label(frames)] == [30, 10, 10, 11, 11]
    frames[3].info["charge"] = 2
    assert oracle.label(frames[3:4]) == ["NotImplementedError: no charge above 1"]
    assert oracle.caution == ""


@pytest.mark.parametrize("name", ["teachers:deaf", "teachers:electrons_by_keywords"])
def test_ions_are_refused_where_nobody_tells_their_charge(name: str) -> None:
    oracle = load_oracle(name)
    found = oracle.label(structures())
    assert [one for one in found if isinstance(one, str)] == found[3:]
    assert found[3:] == ["charge not told to the calculator"] * 2
    assert oracle.caution == f"{name} has no parameter `charge`: charged structures will be refused"
    triplet = structures()[0]
    triplet.info["spin"] = 3
    told = load_oracle("teachers:spheres").label([triplet, structures()[3]])
    assert told[0] == "multiplicity not told to the calculator"
    assert isinstance(told[1], Labels)


def test_ions_of_a_calculator_of_tblite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tblite.ase", reason="needs tblite: pip install attncalc[xtb]")
    (tmp_path / "of_tblite.py").write_text(
        "from tblite.ase import TBLite\n"
        "def mine(charge, multiplicity):\n"
        "    electrons = dict(charge=charge, multiplicity=multiplicity)\n"
        "    return TBLite(method='GFN2-xTB', verbosity=0, **electrons)\n"
    )
    monkeypatch.chdir(tmp_path)
    ours, theirs = (load_oracle(name) for name in ("of_tblite:mine", "gfn2"))
    pairs = zip(ours.label(structures()), theirs.label(structures()), strict=True)
    for k, (mine, gfn2) in enumerate(pairs):
        assert mine.energy == pytest.approx(gfn2.energy, abs=1e-6)
        np.testing.assert_allclose(mine.forces, gfn2.forces, atol=1e-5)
        assert mine.charges.sum() == pytest.approx(structures()[k].info["charge"], abs=1e-6)
    # the density of the structure before is not the first guess: its rounding would show
    first, second = structures()[1], structures()[1]
    second.rattle(0.05, seed=2)
    energy = ours.label([first, second])[1].energy
    assert load_oracle("of_tblite:mine").label([second])[0].energy == energy


def test_modules_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "beside_the_data.py").write_text("from teachers import spheres as mine\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert load_oracle("beside_the_data:mine").level_of_theory == "beside_the_data:mine"
    assert sys.path == before


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("teachers:none", ImportError, "teachers:none"),
        ("no_such_module:calculator", ImportError, "no_such_module"),
        ("teachers:no_calculator", ValueError, "must return an ASE calculator"),
        ("teachers:tiny_model", ValueError, "path"),
        ("teachers:SPECIES", ValueError, "not a callable"),
        ("no_such_model", FileNotFoundError, "no_such_model"),
    ],
)
def test_what_is_no_oracle(name: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        load_oracle(name)


def test_relaxations_go_downhill_to_rest() -> None:
    pair = Atoms("H2", [[0, 0, 0], [0, 0, 1.3]], info={"charge": 0, "spin": 1})
    for path, problem in relaxations(load_oracle("teachers:spheres"), [pair, structures()[0]], 60):
        assert problem == ""
        assert path[-1][1].energy < path[0][1].energy
        assert len(path) <= 61
        # labels are those of what single precision holds
        for atoms, labels in path[:2]:
            assert (atoms.positions == atoms.positions.astype(np.float32)).all()
            again = atoms.copy()
            again.calc = spheres()
            assert labels.energy == pytest.approx(again.get_potential_energy(), abs=1e-12)
        if len(atoms) == 2:
            assert np.abs(path[-1][1].forces).max() < CONVERGED
            assert path[-1][0].get_distance(0, 1) == pytest.approx(2 ** (1 / 6) * 0.9, abs=0.02)


def test_steps_of_a_relaxation_are_short() -> None:
    """However large the forces are: here hundreds of eV/Å."""
    pair = Atoms("H2", [[0, 0, 0], [0, 0, 0.55]], info={"charge": 0, "spin": 1})
    ((path, _),) = relaxations(load_oracle("teachers:spheres"), [pair], 20)
    assert np.abs(path[0][1].forces).max() > 100
    positions = np.array([atoms.positions for atoms, _ in path])
    steps = np.linalg.norm(np.diff(positions, axis=0), axis=(1, 2))
    assert steps[0] == pytest.approx(0.3, abs=1e-5)
    assert steps.max() < 0.3 + 1e-5
    assert np.abs(path[-1][1].forces).max() < 1


class Refusing:
    """Labels one structure, and no other."""

    teacher = level_of_theory = "none"
    device = caution = ""

    def __init__(self) -> None:
        self.n_left = 1

    def label(self, structures: Sequence[Atoms]) -> list[Labels | str]:
        self.n_left -= 1
        one = Labels(0.0, np.ones((len(structures[0]), 3)))
        return [one if self.n_left >= 0 else "out of order" for _ in structures]


def test_a_relaxation_ends_where_the_teacher_refuses() -> None:
    ((path, problem),) = relaxations(Refusing(), structures()[:1], 5)
    assert (len(path), problem) == (1, "out of order")


def test_units_of_gfn2() -> None:
    pytest.importorskip("tblite.interface", reason="needs tblite: pip install attncalc[xtb]")
    atoms = structures()[1]
    (labels,) = load_oracle("gfn2").label([atoms])
    assert labels.energy / units.Hartree == pytest.approx(-5.07, abs=0.02)
    moved = [atoms.copy(), atoms.copy()]
    for sign, copy in zip((1, -1), moved, strict=True):
        copy.positions[1, 0] += sign * 1e-3
    ends = load_oracle("gfn2").label(moved)
    slope = (ends[0].energy - ends[1].energy) / 2e-3
    assert -slope == pytest.approx(labels.forces[1, 0], abs=1e-3)


class Smeared(Calculator):
    """Forces of the free energy, and an energy that is extrapolated to zero smearing."""

    implemented_properties = ("energy", "free_energy", "forces")

    def calculate(self, atoms, properties, system_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": -1.0, "free_energy": -1.5, "forces": np.zeros((len(atoms), 3))}

    def get_stress(self, atoms):
        raise NotImplementedError("stress of this basis")  # not ASE's own kind of error


def smeared() -> Smeared:
    return Smeared()


def test_the_free_energy_is_the_label_as_forces_derive_from_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "smeared_teacher", sys.modules[__name__])
    atoms = bulk("Cu")
    atoms.info |= {"charge": 0, "spin": 1}
    (labels,) = load_oracle("smeared_teacher:smeared").label([atoms])
    assert isinstance(labels, Labels), "no stress is no failure"
    assert (labels.energy, labels.stress) == (-1.5, None)


class Odd(Smeared):
    """Energies as arrays of one number, as of wrappers of PyTorch; of helium two numbers."""

    def calculate(self, atoms, properties, system_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        if atoms.numbers[0] == 10:
            sys.exit(3)
        energy = np.full(2 if atoms.numbers[0] == 2 else 1, -1.0)
        self.results |= {"energy": energy, "free_energy": energy}
        if atoms.numbers[0] == 3:
            self.results["forces"] = np.zeros((1, 3))


def odd() -> Odd:
    return Odd()


def test_results_of_any_kind(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "odd_teacher", sys.modules[__name__])
    kinds = ("H2", "He2", "Li2", "Ne")
    structures = [Atoms(kind, info={"charge": 0, "spin": 1}) for kind in kinds]
    good, *bad = load_oracle("odd_teacher:odd").label(structures)
    assert good.energy == -1.0
    assert bad[0].startswith("ValueError: can only convert an array of size 1")
    assert bad[1:] == ["ValueError: forces have shape [1, 3], not [2, 3]", "SystemExit: 3"]
