"""Cost of an Ewald sum: time and memory against the number of atoms.

    python benchmarks/studies/ewald_cost.py

Boxes of water with given charges, damping length 4 Å: energy, then its derivatives by positions,
strain and charges; one thread, float64. If torch-pme 0.5 is installed, its meshes compute the same
sum for comparison with `attncalc.physics.ewald`. Every row is a process of its own. Times are
medians of five. Memory is the rise of the peak above that for 24 atoms. Deviations are the largest
difference of a derivative over its largest value. Results go to benchmarks/results/ewald-cost.json,
.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from result_files import in_a_process, machine_name, peak_mib, table, write

RESULTS = Path(__file__).resolve().parents[1] / "results"
BOXES = {24: (2, 2, 2), 192: (4, 4, 4), 1536: (8, 8, 8), 12288: (16, 16, 16)}
SIGMA = 4.0
MESHES = {  # class of torch-pme, largest mesh spacing in Å, mesh points per atom along an axis
    "P3M, 2 Å, 5 points": ("P3MCalculator", 2.0, 5),
    "P3M, 1 Å, 5 points": ("P3MCalculator", 1.0, 5),
    "PME, 1 Å, 7 points": ("PMECalculator", 1.0, 7),
}


def worker(name: str, n_atoms: int) -> dict:
    """Return the measurements of one process."""
    import torch
    from structures import water_box

    from attncalc import System
    from attncalc.graph import AtomOutputs, Graphs
    from attncalc.physics.ewald import Ewald, EwaldConfig
    from attncalc.physics.pair_term import strained
    from attncalc.physics.zbl import COULOMB_CONSTANT

    torch.set_num_threads(1)
    term = Ewald(EwaldConfig(SIGMA), (1, 8))

    def plain(q, system):
        return term(None, AtomOutputs(q, charges=q), system).sum()

    def on_mesh(q, system):
        import torchpme

        kind, spacing, nodes = MESHES[name]
        smooth = torchpme.CoulombPotential(smearing=SIGMA / math.sqrt(2))
        mesh = getattr(torchpme, kind)(smooth, spacing, interpolation_nodes=nodes).double()
        none = torch.zeros(0, 2, dtype=torch.int64), q.new_zeros(0)
        potentials = mesh(q[:, None], system.cell[0], system.positions, *none)
        return COULOMB_CONSTANT * (q * potentials[:, 0]).sum()

    def slopes(size, energy, times):
        atoms = water_box(BOXES[size])
        q = torch.as_tensor([{8: -0.8, 1: 0.4}[z] for z in atoms.numbers]).double()
        q += 0.02 * torch.randn(len(q), generator=torch.Generator().manual_seed(0)).double()
        q -= q.mean()
        moved, *inputs = strained(Graphs(None, system=System.from_ase(atoms)))
        inputs = [*inputs, q.requires_grad_(True)]
        start = time.process_time()
        found = torch.autograd.grad(energy(q, moved.system), inputs)
        times.append(1e3 * (time.process_time() - start))
        return found

    energy, times = on_mesh if name in MESHES else plain, []
    slopes(24, energy, [])
    before = peak_mib()
    for _ in range(6):
        found = slopes(n_atoms, energy, times)
    row = {"sum": name, "atoms": n_atoms, "cpu_ms": statistics.median(times[1:])}
    row["rise_MiB"] = peak_mib() - before
    pairs = zip(found, slopes(n_atoms, plain, []), strict=True)
    row["off"] = [float((a - b).abs().max() / b.abs().max()) for a, b in pairs]
    return row


def markdown(rows: list[dict], machine: str) -> str:
    """Return the table in Markdown."""
    head = ["sum", "atoms", "CPU ms", "memory, MiB", "forces off", "stress off", "dE/dq off"]
    cells = [
        [row["sum"], *(f"{row[key]:,.0f}" for key in ("atoms", "cpu_ms", "rise_MiB"))]
        + [f"{off:.0e}" if off else "" for off in row["off"]]
        for row in rows
    ]
    lines = ["# An Ewald sum", "", f"{machine}, one thread", "", *table(head, cells), ""]
    return "\n".join([*lines, "`python benchmarks/studies/ewald_cost.py`", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        name, n_atoms = arguments.worker
        print(json.dumps(worker(name, int(n_atoms))))
        return
    installed = importlib.util.find_spec("torchpme")
    machine, rows = machine_name(), []
    for name in ("attncalc", *(MESHES if installed else ())):
        for n_atoms in (192, 1536, 12288):
            rows.append(in_a_process(__file__, "--worker", name, str(n_atoms)))
            print(rows[-1], file=sys.stderr, flush=True)
    content = {"machine": machine, "rows": rows}
    write(RESULTS / "ewald-cost.json", json.dumps(content, indent=1) + "\n")
    write(RESULTS / "ewald-cost.md", markdown(rows, machine))


if __name__ == "__main__":
    main()
