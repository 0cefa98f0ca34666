"""Every example runs as its user runs it, in an empty folder, and what it leaves is physics."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.io import read
from ase.units import GPa
from command_line import python_forked

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("[0-9][0-9]_*.py"))
README = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
# silicon by PBE: of the data of its model
LATTICE_CONSTANT, BULK_MODULUS = 5.469, 88.6  # Å, GPa


def run_anew(script: Path, folder: Path) -> tuple[int, str, str]:
    """Run it as a user does; return exit status, stdout and stderr."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "Agg",
        "PYTHONPATH": str(EXAMPLES.parent),
    }
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def run_forked(script: Path, folder: Path) -> tuple[int, str, str]:
    """Run it in a fork of this process, where nothing is imported again; return as `run_anew`."""

    def changed() -> None:
        torch.seed()  # by chance, as in a new process
        warnings.filterwarnings("error", category=DeprecationWarning, module=r"__main__\Z")

    return python_forked(script, folder=folder, changed=changed)


@pytest.fixture
def run(tmp_path: Path) -> Callable[[str], str]:
    """Run an example in an empty folder and give what it printed.

    The first is a process of its own, as of a user; the others would spend most of their time on
    imports. A fork cannot use a GPU that its parent has used. The sixth is one too: ASE's table of
    vibrations goes to the output at the time of the import.
    """

    def run(name: str) -> str:
        is_new = name.startswith(("01", "06")) or torch.cuda.is_available()
        status, out, err = (run_anew if is_new else run_forked)(EXAMPLES / f"{name}.py", tmp_path)
        assert status == 0, err
        assert len(re.findall(r"\d+\.?\d*", out)) >= 2, "a few meaningful numbers"
        return out

    return run


def numbers(pattern: str, output: str) -> list[float]:
    """The groups of a pattern that must be found once."""
    (found,) = re.findall(pattern, output)
    return [float(number) for number in ([found] if isinstance(found, str) else found)]


def largest_force(frame) -> float:
    return float(np.linalg.norm(frame.get_forces(), axis=1).max())


def test_there_are_eleven():
    assert [int(script.name[:2]) for script in SCRIPTS] == list(range(1, 12))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_an_example_is_short_and_says_what_it_is(script):
    text = script.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 40
    doc = ast.get_docstring(ast.parse(text))
    assert f"python examples/{script.name}" in doc
    assert f"(examples/{script.name})" in README
    # a script to copy: ASE, attncalc's public names, no flags
    assert "argparse" not in text
    assert not re.search(r"from attncalc\.|import attncalc\.", text)
    # a fork has all parts of a package, a new process has no `ase.io` after `import ase`
    assert set(re.findall(r"^ *import (.*)$", text, flags=re.MULTILINE)) <= {"numpy as np", "torch"}


def test_single_point(run, tmp_path):
    output = run("01_single_point")
    energy, total = numbers(r"energy (\S+) eV, sum over atoms (\S+) eV", output)
    assert energy == total
    assert -4220 < energy < -4210  # ethanol by PBE
    assert numbers(r"net force (\S+)", output)[0] < 1e-6
    assert "forces = -dE/dr" in output
    assert read(tmp_path / "ethanol.extxyz").get_potential_energy() == pytest.approx(
        energy, abs=1e-4
    )


def test_relaxation(run, tmp_path):
    start, end, fmax = numbers(
        r"energy (\S+) -> (\S+) eV, largest force (\S+)", run("02_relaxation")
    )
    assert end < start - 0.1
    assert fmax <= 0.01
    path = read(tmp_path / "ethanol-relaxation.traj", ":")
    assert path[0].get_potential_energy() == pytest.approx(start, abs=1e-4)
    relaxed = read(tmp_path / "ethanol-relaxed.extxyz")
    assert largest_force(relaxed) <= 0.01
    assert relaxed.get_distance(0, 1) == pytest.approx(1.52, abs=0.03)  # C-C
    assert relaxed.get_distance(1, 2) == pytest.approx(1.43, abs=0.03)  # C-O


def test_langevin(run, tmp_path):
    mean, fluctuation = numbers(
        r"mean temperature (\d+) K, fluctuation (\d+) K", run("03_langevin")
    )
    assert 260 < mean < 340  # a mean over 0.75 ps scatters by 12 K
    assert fluctuation == pytest.approx(300 * np.sqrt(2 / 27), rel=0.35)
    frames = read(tmp_path / "ethanol-300K.traj", ":")
    assert len(frames) == 201
    assert all(frame.get_distance(1, 2) == pytest.approx(1.43, abs=0.2) for frame in frames)


def test_npt_crystal(run, tmp_path):
    temperature, pressure, a = numbers(r": (\d+) K, (\S+) GPa, a = (\S+) Å", run("04_npt_crystal"))
    assert 270 < temperature < 330
    assert pressure == pytest.approx(5, abs=0.7)
    # hardly longer at 300 K than at 0 K (experiment: 0.02 %), and compressed
    expected = LATTICE_CONSTANT * (1 - 5 / (3 * BULK_MODULUS))
    assert a == pytest.approx(expected, rel=0.006)
    assert len(read(tmp_path / "silicon-npt.traj", ":")) == 501


def test_neb(run, tmp_path):
    output = run("05_neb")
    (forward,) = numbers(r"trans -> gauche (\S+) meV", output)
    (backward,) = numbers(r"gauche -> trans (\S+) meV", output)
    images = read(tmp_path / "ethanol-neb.extxyz", ":")
    energies = 1e3 * np.array([image.get_potential_energy() for image in images])
    assert 20 < forward < 100  # experiment: 50 meV
    assert forward - backward == pytest.approx(energies[-1] - energies[0], abs=0.2)
    assert abs(forward - backward) < 20  # the two minima are nearly equal
    top = int(energies.argmax())
    assert (np.diff(energies[: top + 1]) > 0).all(), "up to the saddle"
    assert (np.diff(energies[top:]) < 0).all(), "and down"
    assert images[top].get_dihedral(0, 1, 2, 3) == pytest.approx(120, abs=15)
    for k in (0, top, -1):  # both ends and the climbing image: no force is left
        assert largest_force(images[k]) < 0.03


def test_vibrations(run, tmp_path):
    output = run("06_vibrations")
    assert numbers(r"largest of the six rigid motions (\S+)", output)[0] < 50
    lowest, highest = numbers(r"vibrations (\d+) to (\d+) 1/cm", output)
    assert 150 < lowest < 350  # torsions
    assert 3500 < highest < 3900  # O-H
    modes = re.findall(r"^ +\d+ +[\d.]+ +([\d.]+i?)$", output, flags=re.MULTILINE)
    assert len([mode for mode in modes if not mode.endswith("i")]) >= 21
    # half the sum of h ν, harmonic
    assert numbers(r"Zero-point energy: (\S+) eV", output)[0] == pytest.approx(2.12, abs=0.08)


def test_phonons(run, tmp_path):
    pytest.importorskip("phonopy", reason='needs phonopy: pip install "attncalc[phonons]"')
    output = run("07_phonons")
    six = " ".join([r"(\S+)"] * 6)
    at = {name: numbers(rf"{name} {six} THz", output) for name in ("Γ", "X", "L")}
    assert np.abs(at["Γ"][:3]).max() < 0.02  # acoustic: zero
    measured = {  # neutrons and Raman at 300 K, THz
        "Γ": [0, 0, 0, 15.5, 15.5, 15.5],
        "X": [4.5, 4.5, 12.3, 12.3, 13.9, 13.9],
        "L": [3.4, 3.4, 11.4, 12.6, 14.7, 14.7],
    }
    for point, expected in measured.items():
        found = sorted(at[point])
        assert found[0] == pytest.approx(found[1], abs=0.02)  # degenerate
        assert found == pytest.approx(expected, rel=0.15, abs=0.05)
    (heat_capacity,) = numbers(r"heat capacity at 300 K (\S+)", output)
    assert heat_capacity == pytest.approx(2 * 20.0, rel=0.06)  # experiment: 20.0 per mol of atoms
    assert (tmp_path / "silicon-phonons.yaml").is_file()


def test_batch_evaluation(run, tmp_path):
    output = run("08_batch_evaluation")
    assert "120 structures, 740 atoms" in output
    assert 0 < numbers(r"energy MAE (\S+) meV/atom", output)[0] < 2
    assert 0 < numbers(r"largest force error (\S+) eV/Å", output)[0] < 1
    frames = read(tmp_path / "evaluated.extxyz", ":")
    assert len(frames) == 120
    assert np.isfinite([frame.get_potential_energy() for frame in frames]).all()


def test_training(run, tmp_path):
    output = run("09_training")
    (test_error,) = numbers(r"test: force error (\S+)", output)
    error, size = numbers(r"108 atoms: force error (\S+) of (\S+) eV/Å", output)
    assert 0 < test_error < 0.1
    assert 0 < error < 0.25 * size  # learnt, and true in a crystal that is larger
    written = {file.name for file in (tmp_path / "runs" / "aluminium").iterdir()}
    assert {"aluminium.safetensors", "aluminium.md", "metrics.csv"} <= written


def test_cell_relaxation(run, tmp_path):
    run("10_cell_relaxation")
    lengths = []
    for pressure in (0, 10):
        atoms = read(tmp_path / f"silicon-{pressure}GPa.extxyz")
        assert largest_force(atoms) <= 2e-3
        stress = atoms.get_stress() / GPa
        assert stress == pytest.approx([-pressure] * 3 + [0] * 3, abs=0.05)
        a, b, c, *angles = atoms.cell.cellpar()
        assert [b, c] == pytest.approx([a, a], abs=0.01)  # cubic again
        assert angles == pytest.approx([90] * 3, abs=0.2)
        lengths.append(a)
    assert lengths[0] == pytest.approx(LATTICE_CONSTANT, abs=0.03)
    compression = 1 - (lengths[1] / lengths[0]) ** 3
    # Murnaghan's equation, with B' = 4.2 of silicon
    expected = 1 - (1 + 4.2 * 10 / BULK_MODULUS) ** (-1 / 4.2)
    assert compression == pytest.approx(expected, rel=0.12)


def test_metadynamics(run):
    """Of 6 ps: the hills fill all three minima, and trans and gauche are a barrier apart."""
    output = run("11_metadynamics")
    trans, *gauche, first, second, cis = numbers(r": " + " ".join([r"(-?\d+)"] * 6), output)
    assert min(trans, *gauche) < 15
    assert max(abs(trans - one) for one in gauche) < 60  # experiment: 5 meV
    for barrier in (first, second, cis):
        assert 15 < barrier - min(trans, *gauche) < 160  # experiment: 50 meV
