"""attncalc convert: published weights, and data."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule
from ase.io import write
from command_line import attncalc, fails, files, succeeds

from attncalc import AttnCalculator, data, load


def test_convert(shared: Path) -> None:
    base = shared / "reference" / "so3krates" / "euclidean_default"
    arguments = ("convert", "so3krates", f"{base}_params.npz")
    arguments += ("--config", f"{base}_hyperparameters.json", "--elements", "H,C,N,O")
    said = succeeds(*arguments, "-o", "out.safetensors")
    assert re.fullmatch(
        r"wrote out\.safetensors: [\d,]+ parameters, 4 elements\n"
        r"note: forces have a kink where an atom crosses the cutoff\n",
        said,
    )
    assert files() == {"out.safetensors"}
    assert load("out.safetensors").species == (1, 6, 7, 8)
    AttnCalculator("out.safetensors").get_potential_energy(molecule("CH3CH2OH"))
    before = Path("out.safetensors").read_bytes()
    assert "use --overwrite" in fails(*arguments, "-o", "out.safetensors")
    assert Path("out.safetensors").read_bytes() == before
    wrong = [*arguments[:-1], "H,Xx,Yy", "-o", "other.safetensors"]
    assert fails(*wrong) == "Error: no such element: Xx, Yy"
    assert files() == {"out.safetensors"}


def test_convert_equiformer(shared: Path) -> None:
    """The published network runs, and what it breaks is said at every turn."""
    base = shared / "reference" / "equiformer" / "nonlinear_l2"
    arguments = ("convert", "equiformer", f"{base}.weights.safetensors")
    arguments += ("--config", f"{base}.config.json", "--elements", "H,C,O")
    arguments += ("--std", 0.2, "--mean", -4208.5, "--n-atoms", 9)
    said = succeeds(*arguments, "-o", "out.safetensors")
    assert said == (
        "wrote out.safetensors: 3,488,193 parameters, 3 elements\n"
        "note: energy and forces jump where an atom crosses the cutoff\n"
        "note: a molecule and its mirror image have different energies\n"
        "note: energy and forces are wrong at atoms of high symmetry, as in CH4 or perfect "
        "crystals\n"
    )
    atoms = molecule("CH3CH2OH")
    atoms.calc = AttnCalculator("out.safetensors")
    assert abs(atoms.get_potential_energy() + 4208.5) < 5
    write("chiral.xyz", molecule("H2O2"))
    failed = fails("verify", "out.safetensors", "--structure", "chiral.xyz")
    assert "reflection: energy unchanged" in failed
    assert "pair vanishes at the cutoff" in failed
    assert "forces continuous at a symmetric site" in failed
    assert fails(*arguments[:-4], "--mean", 1.0, "-o", "other.safetensors") == (
        "Error: a mean energy needs n_atoms, the number of atoms of the molecule"
    )
    assert files() == {"out.safetensors", "chiral.xyz"}


def test_convert_a_network_of_all_pairs(shared: Path) -> None:
    """The first So3krates: what it breaks is said, and crystals are refused."""
    base = shared / "reference" / "so3krates" / "sphc_nonlocal"
    arguments = ("convert", "so3krates", f"{base}_params.npz", "--config")
    arguments += (f"{base}_dynamic_hyperparameters.json", "--elements", "H,C,O")
    said = succeeds(*arguments, "-o", "out.safetensors")
    assert said.startswith("wrote out.safetensors: 66,298 parameters, 3 elements\nnote: ")
    assert "\nnote: two molecules far apart have another energy than each alone\n" in said
    atoms = molecule("CH3CH2OH")
    atoms.calc = AttnCalculator("out.safetensors")
    atoms.get_potential_energy()
    failed = fails("verify", "out.safetensors")
    assert "reflection: energy unchanged" in failed
    assert "pair vanishes at the cutoff" in failed
    assert "forces continuous at a symmetric site" in failed
    atoms.set_cell([9, 9, 9])
    atoms.pbc = True
    with pytest.raises(ValueError, match=r"set atoms\.pbc = False or use a model of finite range"):
        atoms.get_potential_energy()


def test_convert_of_no_file() -> None:
    Path("a.json").write_text("{}")
    said = fails("convert", "so3krates", "no.npz", "--config", "a.json", "-o", "out.safetensors")
    assert "no.npz" in said
    assert files() == {"a.json"}


def test_convert_data() -> None:
    """Two files in one that trainings can stream."""
    for name, start in (("a.extxyz", 0), ("b.xyz", 3)):
        first = "Properties=species:S:1:pos:R:3:forces:R:3 energy="
        frames = [f"1\n{first}{start + k}\nH 0 0 0 0 0 1\n" for k in range(3)]
        Path(name).write_text("".join(frames))
    said = succeeds("convert", "data", "a.extxyz", "b.xyz", "-o", "all.h5")
    assert said == "wrote all.h5: 6 structures\n"
    assert data.stream("all.h5").energies.tolist() == [0, 1, 2, 3, 4, 5]
    again = ("convert", "data", "a.extxyz", "-o", "all.h5")
    assert "all.h5 exists: choose another name, or use --overwrite" in fails(*again)
    assert "wrote all.h5" in succeeds(*again, "--overwrite")
    assert "must end in .h5" in fails("convert", "data", "a.extxyz", "-o", "all.npz")
    assert "no.xyz: no such file" in fails("convert", "data", "no.xyz", "-o", "other.h5")
    assert not Path("other.h5").exists()


def test_files_that_do_not_fit_together(shared: Path) -> None:
    """Energies of two methods in one file are told, of two units refused."""
    first = "1\nProperties=species:S:1:pos:R:3:forces:R:3:REF_forces:R:3 REF_energy=-1"
    last = "\nH 0 0 0 0 0 1 0 0 2\n"
    Path("a.extxyz").write_text(first.replace(":forces:R:3", "") + "\nH 0 0 0 0 0 2\n")
    Path("b.extxyz").write_text(f"{first} energy=-7{last}")
    both = ("convert", "data", "a.extxyz", "b.extxyz", "-o", "all.h5")
    said = attncalc(*both).stderr
    assert "b.extxyz: its label set 'default' was read, of what is before it 'REF'" in said
    succeeds(*both, "--labels", "REF", "--overwrite")
    assert data.stream("all.h5").energies.tolist() == [-1, -1]
    np.savez("c.npz", z=[1], R=np.zeros((2, 1, 3)), E=np.ones(2), F=np.zeros((2, 1, 3)))
    mixed = ("convert", "data", "c.npz", "b.extxyz", "--energy-unit", "kcal/mol", "-o", "c.h5")
    assert "c.npz and b.extxyz cannot both be read in kcal/mol and Angstrom" in fails(*mixed)
    mixed = (*mixed[:5], "eV", *mixed[6:])
    assert attncalc(*mixed).exit_code == 0
