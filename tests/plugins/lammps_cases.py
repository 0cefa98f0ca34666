"""Runs of LAMMPS with models, for test_lammps.py.

`mpiexec -n 2 python lammps_cases.py FOLDER [CASE]` writes results of all cases or one to
FOLDER/ranks-N.json or FOLDER/CASE-N.json; structures and models are there already.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mpi4py import MPI  # isort: split

import numpy as np
import torch
from lammps import lammps

from attncalc.plugins.lammps import attach
from attncalc.plugins.lammps_script import Script, run

COMM = MPI.COMM_WORLD
BAR = 1 / 1.6021765e6  # eV/Å³, as LAMMPS has it

START = """units metal
atom_style atomic
boundary {boundary}
atom_modify map array
read_data {data}
"""
PRESSURE = """compute virial all pressure NULL virial
thermo_style custom step pe etotal c_virial[1] c_virial[2] c_virial[3] &
  c_virial[4] c_virial[5] c_virial[6]
"""


def started(data: str, boundary: str = "p p p") -> lammps:
    lmp = lammps(cmdargs=["-screen", "none", "-log", "none"], comm=COMM)
    lmp.commands_string(START.format(data=data, boundary=boundary))
    return lmp


def results(lmp: lammps) -> dict[str, object]:
    """Energy, virial [6] eV, forces and velocities in the order of the ids."""
    pressure = lmp.numpy.extract_compute("virial", 0, 1)
    found = {
        "energy": lmp.get_thermo("pe"),
        "total": lmp.get_thermo("etotal"),
        "virial": (pressure * lmp.get_thermo("vol") * BAR).tolist(),
        "forces": np.ctypeslib.as_array(lmp.gather_atoms("f", 1, 3)).tolist(),
        "positions": np.ctypeslib.as_array(lmp.gather_atoms("x", 1, 3)).tolist(),
        "volume": lmp.get_thermo("vol"),
        "fewest": COMM.allreduce(lmp.extract_global("nlocal"), MPI.MIN),
    }
    return found


def single(name: str, elements: list[str], boundary: str = "p p p", **options) -> dict:
    """One evaluation."""
    model = options.pop("model", name)
    lmp = started(f"{name}.data", boundary)
    attach(lmp, model, elements, **options)
    lmp.commands_string(PRESSURE + "run 0")
    found = results(lmp)
    lmp.close()
    return found


def moving(commands: str, n: int, **options) -> dict:
    """Silicon in float32 that moves: energies of steps, and what is left at the end."""
    lmp = started("silicon.data")
    fix = attach(lmp, "so3krates-silicon", ["Si"], **options)
    lmp.commands_string(PRESSURE + "velocity all create 1500 7 loop geom\n" + commands + "\nrun 0")
    energies = []
    for _ in range(n):
        lmp.command("run 10")
        energies.append(lmp.get_thermo("etotal"))
    found = results(lmp) | {"energies": energies, "exchanges": fix.exchanges}
    lmp.close()
    return found | {"calls": fix.n_calls, "rebuilds": fix.n_rebuilds}


def restarted() -> dict:
    lmp = started("silicon.data")
    attach(lmp, "so3krates-silicon", ["Si"], dtype="float64")
    moves = "fix nve all nve\n"
    lmp.commands_string(PRESSURE + "velocity all create 600 7 loop geom\n" + moves + "run 10")
    before = results(lmp)
    lmp.command("write_restart middle.restart")  # sorts atoms, but not their forces
    lmp.command("run 10")
    end = results(lmp)
    lmp.close()
    lmp = lammps(cmdargs=["-screen", "none", "-log", "none"], comm=COMM)
    lmp.commands_string("units metal\natom_modify map array\nread_restart middle.restart")
    attach(lmp, "so3krates-silicon", ["Si"], dtype="float64")
    lmp.commands_string(PRESSURE + moves + "run 0")
    after = results(lmp)
    lmp.command("run 10")
    end_after = results(lmp)
    lmp.close()
    return {"before": before, "after": after, "end": end, "end after": end_after}


def minimized() -> dict:
    lmp = started("silicon.data")
    attach(lmp, "so3krates-silicon", ["Si"])
    lmp.commands_string(PRESSURE + "min_style fire\nminimize 0 0.01 200 400")
    found = results(lmp)
    lmp.close()
    return found


def scripted(name: str, variables: Sequence[str] = (), **options) -> dict:
    """A script, with variables and options of the command."""
    path = Path(name)
    lmp = lammps(cmdargs=["-screen", "none", "-log", "none", *variables], comm=COMM)
    run(lmp, path, Script.read(path), **options)
    found = results(lmp)
    lmp.close()
    return found


def retyped() -> dict:
    """Types that change between steps, beside instances that have had them from the start."""
    changes = "set atom 1 type 1\nset atom 2 type 2\nset atom 7 type 1"
    found = {}
    for elements in (["H", "O"], ["H", "NULL"]):
        energies = []
        for first in ("run 0", ""):
            lmp = started("water.data")
            attach(lmp, "water.safetensors", elements)
            lmp.commands_string(PRESSURE + f"{first}\n{changes}\nrun 0")
            energies.append(lmp.get_thermo("pe"))
            lmp.close()
        found[" ".join(elements)] = energies
    return found


def of_atoms(name: str, elements: list[str], model: str) -> dict:
    """One evaluation with energies and virials of atoms, in the order of the ids."""
    lmp = started(f"{name}.data")
    attach(lmp, model, elements, dtype="float64", per_atom=True)
    lmp.commands_string("compute e all pe/atom\ncompute s all stress/atom NULL virial")
    lmp.commands_string("dump keep all custom 1 of_atoms.dump id c_e c_s[*]")
    lmp.commands_string(PRESSURE + "dump_modify keep sort id format float %.17g\nrun 0")
    found = results(lmp)
    lmp.close()
    COMM.Barrier()
    found["rows"] = np.loadtxt("of_atoms.dump", skiprows=9).tolist()
    return found


def opened() -> list[float]:
    """Energies in a periodic box, open along z, and periodic again."""
    lmp = started("water.data")
    attach(lmp, "water.safetensors", ["H", "O"])
    energies = []
    for change in ("", "change_box all boundary p p f", "change_box all boundary p p p"):
        lmp.commands_string(f"{change}\nrun 0")
        energies.append(lmp.get_thermo("pe"))
    lmp.close()
    return energies


CASES = {
    "silicon": lambda: single("silicon", ["Si"], model="so3krates-silicon", dtype="float64"),
    "silicon32": lambda: single("silicon", ["Si"], model="so3krates-silicon"),
    "molecule": lambda: single(
        "molecule", ["C", "H", "O"], "f f f", model="so3krates-ethanol", dtype="float64"
    ),
    "equiformer": lambda: single(
        "molecule", ["C", "H", "O"], "s s s", model="equiformer-ethanol-distilled", dtype="float64"
    ),
    "water": lambda: single("water", ["H", "O"], model="water.safetensors"),
    "organic": lambda: single("water", ["H", "O"], model="so3krates-organic"),
    "ion": lambda: single(
        "water", ["H", "O"], model="so3krates-organic", charge=-2, dtype="float64"
    ),
    "quartet": lambda: single(
        "water", ["H", "O"], model="electrons.safetensors", charge=-1, spin=4
    ),
    "charged": lambda: single("water", ["H", "O"], model="charged.safetensors", dtype="float64"),
    "nve": lambda: moving("fix move all nve", 20),
    "nve deep": lambda: moving("fix move all nve", 20, exchange=False),
    "npt": lambda: moving("fix move all npt temp 600 600 0.1 tri 0 0 1.0", 4),
    "restart": restarted,
    "minimize": minimized,
    # with variables, a loop, and argon of another pair style
    "script": lambda: scripted("in.mixed", ["-var", "E", "Si"], dtype="float64"),
    "script of electrons": lambda: scripted("in.electrons", charge=-1, spin=4),
    "of atoms": lambda: of_atoms("water", ["H", "O"], "charged.safetensors"),
    "opened": opened,
    "retyped": retyped,
}


def main() -> None:
    torch.set_num_threads(1)
    found = {case: compute() for case, compute in CASES.items()}
    if COMM.rank == 0:
        Path(f"ranks-{COMM.size}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    import os

    os.chdir(sys.argv[1])
    main()
