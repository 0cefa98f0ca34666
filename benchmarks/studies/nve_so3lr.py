"""Drift of the total energy in NVE dynamics: SO3LR or another model, float32, compiled loops.

    python benchmarks/studies/nve_so3lr.py so3lr.safetensors structure.xyz

2 ps of Langevin dynamics at 300 K, then 20 ps of velocity Verlet at 0.5 fs. The drift is the slope
of a line through the total energy. The script prints one line.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch
from ase.io import read
from ase.units import fs

from attncalc import System, load, md
from attncalc.evaluator import Evaluator

TIMESTEP, EVERY, FRAMES = 0.5, 100, 400  # fs, steps


def main() -> None:
    """Equilibrate, run, and fit the line."""
    model, structure = sys.argv[1:]
    torch.set_num_threads(1)
    evaluator = Evaluator(load(model, device="cpu"))
    system = System.from_ase(read(structure))
    langevin = md.Langevin(TIMESTEP * fs, temperature=300.0, friction=0.02 / fs)
    state = md.run(langevin, evaluator, langevin.init(evaluator, system, seed=0), 4000)
    verlet, rows = md.Verlet(TIMESTEP * fs), []
    state, begun = verlet.init(evaluator, state), time.perf_counter()
    for k in range(FRAMES):
        state = md.run(verlet, evaluator, state, EVERY)
        rows.append(((k + 1) * EVERY * TIMESTEP * 1e-3, float(state.conserved.sum())))
    seconds = time.perf_counter() - begun
    times, energies = np.array(rows).T
    line = np.polyfit(times, energies, 1)
    rms = (energies - np.polyval(line, times)).std()
    print(
        f"{system.n_atoms} atoms, {times[-1]:.0f} ps: drift {1e3 * line[0] / system.n_atoms:.4f} "
        f"meV/atom/ps, rms about the line {1e3 * rms:.2f} meV, "
        f"{1e3 * seconds / (FRAMES * EVERY):.2f} ms per step"
    )


if __name__ == "__main__":
    main()
