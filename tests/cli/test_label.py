"""Labels of many structures: those of the oracle, in order, and what has none says why."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.io import read, write
from command_line import COPPER, attncalc, fails, files, fork_workers, succeeds

from attncalc import AttnCalculator, data
from attncalc.data.frame_labels import FURTHER

N, GOLD, OVERLAP = 70, 20, 66


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers import nothing anew: tests/cli/test_shards.py has those of users."""
    fork_workers(monkeypatch)


def write_crystals() -> None:
    """Rattled copper, more than one shard of it; one is gold, and of one two atoms coincide."""
    frames = []
    for k in range(N):
        atoms = bulk("Cu", a=3.6, cubic=True)
        atoms.rattle(0.05, seed=k)
        if k == GOLD:
            atoms.numbers[2] = 79
        if k == OVERLAP:
            atoms.positions[1] = atoms.positions[0]
        frames.append(atoms)
    write("many.xyz", frames)


@pytest.mark.parametrize("command", ["label", "relax", "relax --workers", "md"])
def test_positions_in_another_unit_are_refused(command: str) -> None:
    """Data are converted when they are read to train on; here all structures are in Å."""
    atoms = bulk("Cu", a=3.6 / units.Bohr, cubic=True)
    atoms.info["units"] = "E: Hartree; R: Bohr"
    write("many.xyz", [atoms, atoms])
    name, *more = command.split()
    more = [*more, "1"] if more else []
    model = "--oracle" if name == "label" else "--model"
    said = fails(name, "many.xyz", model, COPPER, *more)
    assert said == "Error: many.xyz states that its positions are in Bohr: convert them to Å"
    assert files() == {"many.xyz"}


def test_molecules_that_count_as_radicals_are_counted() -> None:
    pytest.importorskip("tblite", reason="needs tblite: pip install attncalc[xtb]")
    ammonium = Atoms("NH4", molecule("CH4").positions)
    stated = ammonium.copy()
    stated.info["charge"] = 1
    write("many.xyz", [ammonium, molecule("CH4"), stated])
    said = attncalc("label", "many.xyz", "--oracle", "gfn2").stderr
    assert "1 of 3 structures: charge 0 e and multiplicity 2 are assumed" in said
    assert [atoms.info["spin"] for atoms in read("many.labelled.xyz", ":")] == [2, 1, 1]


@pytest.mark.usefixtures("forked")
def test_what_is_written_has_no_units_of_former_labels() -> None:
    """Or its energies would be read in kcal/mol."""
    atoms = bulk("Cu", a=3.6, cubic=True)
    atoms.info |= {"units": "E: kcal/mol; R: angstrom", "level_of_theory": "PBE", "name": "copper"}
    for name in (name for names in FURTHER.values() for name in names):
        atoms.set_array(name, np.ones(4))
    write("many.xyz", atoms)
    succeeds("relax", "many.xyz", "--model", COPPER)
    succeeds("relax", "many.xyz", "--model", COPPER, "--workers", 1, "-o", "shards.xyz")
    succeeds("label", "many.xyz", "--oracle", COPPER, "-o", "labelled.xyz")
    for file in ("many.relaxed.xyz", "shards.xyz", "labelled.xyz"):
        found = read(file)
        assert found.info["name"] == "copper"
        assert "units" not in found.info
        assert found.arrays.keys() <= {"numbers", "positions"}
        assert found.info.get("level_of_theory") != "PBE"
        found.calc = AttnCalculator(COPPER)
        energy = data.read(file).energies[0]
        assert energy == pytest.approx(found.get_potential_energy(), abs=1e-4)


@pytest.mark.usefixtures("forked")
def test_a_models_energies_forces_and_stress() -> None:
    write_crystals()
    result = attncalc("label", "many.xyz", "--oracle", COPPER, "--json")
    assert result.exit_code == 1
    assert "2 of 70 structures failed: see many.labelled.failed.xyz" in result.stderr
    assert "oracle: cu-emt, SHA-256 " in result.stderr
    assert json.loads(result.stdout)["failed"] == 2
    labelled = read("many.labelled.xyz", ":")
    assert [a.info["structure"] for a in labelled] == [
        k for k in range(N) if k not in (GOLD, OVERLAP)
    ]
    expected = AttnCalculator(COPPER).calculate_many(read("many.xyz", "5::10"))
    for k, one in zip(range(5, N, 10), expected, strict=True):
        (atoms,) = (a for a in labelled if a.info["structure"] == k)
        assert atoms.get_potential_energy() == pytest.approx(one["energy"], abs=1e-6)
        np.testing.assert_allclose(atoms.get_forces(), one["forces"], atol=1e-6)
        np.testing.assert_allclose(atoms.get_stress(), one["stress"], atol=1e-7)
    text = Path("many.labelled.failed.xyz").read_text()
    assert "Au" in text
    assert text.count("error=") == 2


@pytest.mark.usefixtures("forked")
def test_parts_give_the_same_file() -> None:
    write_crystals()
    attncalc("label", "many.xyz", "--oracle", COPPER, "-o", "two.xyz", "--workers", 2)
    attncalc("label", "many.xyz", "--oracle", COPPER, "-o", "whole.xyz")
    for k in (2, 1):
        attncalc("label", "many.xyz", "--oracle", COPPER, "-o", "parts.xyz", "--shard", f"{k}/2")
    attncalc("label", "many.xyz", "--oracle", COPPER, "-o", "parts.xyz", "--gather")
    whole = Path("whole.xyz").read_bytes()
    assert whole == Path("two.xyz").read_bytes() == Path("parts.xyz").read_bytes()


@pytest.mark.usefixtures("forked")
def test_a_calculator_from_a_module() -> None:
    Path("teacher.py").write_text("from ase.calculators.emt import EMT as make\n")
    frames = [molecule("CO"), bulk("Cu", cubic=True), molecule("CO")]
    frames[2].info["charge"] = 1
    write("few.xyz", frames)
    result = attncalc("label", "few.xyz", "--oracle", "teacher:make")
    assert result.exit_code == 1
    assert "teacher:make has no parameter `charge`: charged structures will be refused" in (
        result.output
    )
    for atoms, given in zip(read("few.labelled.xyz", ":"), frames, strict=False):
        given.calc = EMT()
        assert atoms.get_potential_energy() == pytest.approx(given.get_potential_energy())
        np.testing.assert_allclose(atoms.get_forces(), given.get_forces(), atol=1e-7)
    assert "stress" in read("few.labelled.xyz", 1).calc.results
    assert "charge not told to the calculator" in Path("few.labelled.failed.xyz").read_text()


@pytest.mark.usefixtures("forked")
def test_atoms_that_are_held_have_forces_too() -> None:
    Path("teacher.py").write_text("from ase.calculators.emt import EMT as make\n")
    free, held = (bulk("Cu", cubic=True) for _ in range(2))
    for atoms in (free, held):
        atoms.rattle(0.1, seed=1)
    held.set_constraint(FixAtoms([0, 1]))
    for oracle in ("teacher:make", COPPER):
        write("few.xyz", [free, held], columns=["symbols", "positions", "move_mask"])
        Path("few.labelled.xyz").unlink(missing_ok=True)
        assert attncalc("label", "few.xyz", "--oracle", oracle).exit_code == 0
        one, other = read("few.labelled.xyz", ":")
        assert len(other.constraints) == 1
        forces = other.calc.results["forces"]
        assert np.abs(forces[:2]).min() > 0.01
        np.testing.assert_allclose(forces, one.calc.results["forces"], atol=1e-6)
        np.testing.assert_allclose(
            other.calc.results["stress"], one.calc.results["stress"], atol=1e-8
        )


@pytest.mark.usefixtures("forked")
def test_another_version_of_a_module_is_another_oracle() -> None:
    write("few.xyz", [bulk("Cu", cubic=True) for _ in range(65)])
    command = ("label", "few.xyz", "--oracle", "changing:make", "-o", "out.xyz")
    Path("changing.py").write_text("from ase.calculators.emt import EMT as make\n")
    assert attncalc(*command, "--shard", "1/2").exit_code == 0
    Path("changing.py").write_text("from ase.calculators.emt import EMT\nmake = EMT\n")
    sys.modules.pop("changing")
    assert "holds shards of another oracle" in fails(*command, "--shard", "2/2")


@pytest.mark.usefixtures("forked")
def test_labels_of_before_are_replaced() -> None:
    """Those that the new oracle has not would seem to be its own."""
    Path("teacher.py").write_text("from ase.calculators.emt import EMT as make\n")
    atoms = molecule("CO")
    write("first.xyz", atoms)
    assert attncalc("label", "first.xyz", "--oracle", "so3krates-organic").exit_code == 0
    once = read("first.labelled.xyz")
    once.info |= {"units": "kcal/mol", "level_of_theory": "PBE", "virial": np.eye(3), "name": "CO"}
    once.info |= {"REF_energy": -1.0, "dft_dipole": np.zeros(3)}
    once.info |= {"energy_weight": 5.0, "config_forces_weight": 2.0}  # of MACE, no labels
    once.set_array("REF_forces", np.ones((2, 3)))
    once.set_array("mulliken_charges", np.ones(2))
    write("once.xyz", once)
    assert attncalc("label", "once.xyz", "--oracle", "teacher:make").exit_code == 0
    twice = read("once.labelled.xyz")
    assert set(twice.arrays) == {"numbers", "positions"}
    kept = {"name", "energy_weight", "config_forces_weight"}
    assert set(twice.info) == {*kept, "charge", "spin", "structure", "level_of_theory"}
    assert twice.info["level_of_theory"] == "teacher:make"
    assert set(twice.calc.results) == {"energy", "forces"}


@pytest.mark.usefixtures("forked")
def test_a_multiplicity_is_read_and_magnetic_moments_are_not() -> None:
    atoms = molecule("H2O")
    atoms.info["multiplicity"] = 3
    write("water.xyz", atoms)
    assert attncalc("label", "water.xyz", "--oracle", "so3krates-organic").exit_code == 1
    assert 'error="structure 0: multiplicity 3"' in Path("water.labelled.failed.xyz").read_text()
    write("oxygen.xyz", molecule("O2"))
    result = attncalc("label", "oxygen.xyz", "--oracle", "so3krates-organic")
    assert "1 of 1 structures: initial magnetic moments of the atoms are not read" in result.stderr


@pytest.mark.usefixtures("forked")
def test_what_failed_may_be_labelled_again() -> None:
    """By its number it is found in the input, and its reason is forgotten."""
    Path("teacher.py").write_text("from ase.calculators.emt import EMT as make\n")
    write_crystals()
    assert attncalc("label", "many.xyz", "--oracle", COPPER).exit_code == 1
    failed = Path("many.labelled.failed.xyz")
    text = failed.read_text()
    assert f'error="structure {GOLD}: ' in text
    assert f'error="structure {OVERLAP}: ' in text
    write("gold.xyz", read(failed, 0), columns=["symbols", "positions"])
    assert 'error="structure 20: ' in Path("gold.xyz").read_text()
    assert attncalc("label", "gold.xyz", "--oracle", "teacher:make").exit_code == 0
    assert "error" not in read("gold.labelled.xyz").info


@pytest.mark.usefixtures("forked")
def test_stress_of_a_calculator_that_waits_to_be_asked() -> None:
    Path("lazy.py").write_text(
        "from ase.calculators.emt import EMT\n"
        "class Lazy(EMT):\n"
        "    def calculate(self, atoms=None, properties=(), system_changes=()):\n"
        "        super().calculate(atoms, properties, system_changes)\n"
        "        if 'stress' not in properties:\n"
        "            del self.results['stress']\n"
    )
    write("one.xyz", bulk("Cu", cubic=True))
    assert attncalc("label", "one.xyz", "--oracle", "lazy:Lazy").exit_code == 0
    assert len(read("one.labelled.xyz").calc.results["stress"]) == 6


@pytest.mark.usefixtures("forked")
def test_labels_that_are_no_numbers() -> None:
    Path("broken.py").write_text(
        "from ase.calculators.emt import EMT\n"
        "class Broken(EMT):\n"
        "    def calculate(self, *given):\n"
        "        super().calculate(*given)\n"
        "        self.results['energy'] = float('nan')\n"
    )
    write("one.xyz", bulk("Cu", cubic=True))
    assert attncalc("label", "one.xyz", "--oracle", "broken:Broken").exit_code == 1
    assert "labels are not finite" in Path("one.labelled.failed.xyz").read_text()


@pytest.mark.usefixtures("forked")
def test_structures_with_more_than_that_in_their_comment() -> None:
    frames = [bulk("Cu", cubic=True) for _ in range(2)]
    for k, atoms in enumerate(frames):
        atoms.info |= {"virial": np.eye(3), "REF_energy": 1.0 * k, "name": f"frame {k}"}
    write("few.xyz", frames)
    assert attncalc("label", "few.xyz", "--oracle", COPPER).exit_code == 0
    assert [atoms.info["name"] for atoms in read("few.labelled.xyz", ":")] == ["frame 0", "frame 1"]


@pytest.mark.usefixtures("forked")
def test_charges_dipoles_and_ratios() -> None:
    atoms = molecule("H2O")
    write("water.xyz", [atoms])
    assert attncalc("label", "water.xyz", "--oracle", "so3krates-organic").exit_code == 0
    (labelled,) = read("water.labelled.xyz", ":")
    calculator = AttnCalculator()
    calculator.calculate(atoms)
    np.testing.assert_allclose(labelled.get_charges(), calculator.results["charges"], atol=1e-6)
    np.testing.assert_allclose(
        labelled.get_dipole_moment(), calculator.results["dipole"], atol=1e-6
    )
    ratios = labelled.arrays["hirshfeld_ratios"]
    np.testing.assert_allclose(ratios, calculator.hirshfeld_ratios, atol=1e-6)


@pytest.mark.usefixtures("forked")
def test_a_model_says_where_it_ends() -> None:
    far = molecule("H2O")
    far.positions[1] *= 0.5  # a bond of 0.52 Å
    write("water.xyz", [molecule("H2O"), far])
    result = attncalc("label", "water.xyz", "--oracle", "so3krates-organic")
    assert result.exit_code == 2
    assert "1 of 2 are outside the training data" in result.stderr
    assert len(read("water.labelled.xyz", ":")) == 2


@pytest.mark.usefixtures("forked")
def test_tight_binding_is_for_molecules() -> None:
    pytest.importorskip("tblite.interface", reason="needs tblite: pip install attncalc[xtb]")
    write("both.xyz", [molecule("H2O"), bulk("Si")])
    assert attncalc("label", "both.xyz", "--oracle", "gfn2").exit_code == 1
    assert (
        "periodic structure: gfn2 labels molecules" in Path("both.labelled.failed.xyz").read_text()
    )
    (water,) = read("both.labelled.xyz", ":")
    assert water.get_dipole_moment()[2] == pytest.approx(-0.44, abs=0.05)


@pytest.mark.usefixtures("forked")
def test_what_cannot_be() -> None:
    write("one.xyz", Atoms("H"))
    assert "no shipped model" in fails("label", "one.xyz", "--oracle", "nothing")
    assert "is the input" in fails("label", "one.xyz", "--oracle", COPPER, "-o", "one.xyz")
    assert "written to .xyz or .extxyz" in fails(
        "label", "one.xyz", "--oracle", COPPER, "-o", "one.cif"
    )


def test_label_needs_no_rdkit() -> None:
    code = "import attncalc.cli.label, sys; sys.exit('rdkit' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_error_in_the_module_of_an_oracle() -> None:
    write("few.xyz", molecule("CO"))
    Path("without_licence.py").write_text("def make(): raise RuntimeError('no licence')\n")
    expected = "Error: --oracle without_licence:make: RuntimeError: no licence"
    assert fails("label", "few.xyz", "--oracle", "without_licence:make") == expected
    expected = "Error: --oracle absent:make: No module named 'absent'"
    assert fails("label", "few.xyz", "--oracle", "absent:make") == expected
