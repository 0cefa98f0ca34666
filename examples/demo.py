"""`make demo`: relax ethanol, run Langevin dynamics, write a trajectory and a picture."""

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
from ase.build import molecule
from ase.io import read
from ase.optimize import LBFGS
from ase.units import fs
from tqdm import tqdm

from attncalc import AttnCalculator
from attncalc.md import Settings, read_log, run_with_ase
from attncalc.plots import md_summary

arguments = argparse.ArgumentParser(description=__doc__)
arguments.add_argument("--out", type=Path, default=Path("demo"), help="folder (default: demo)")
folder = arguments.parse_args().out
folder.mkdir(parents=True, exist_ok=True)
trajectory = folder / "ethanol-300K.xyz"
for old in (trajectory, trajectory.with_suffix(".csv")):
    old.unlink(missing_ok=True)

if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(1)  # more threads do not help with nine atoms

atoms = molecule("CH3CH2OH")
atoms.calc = AttnCalculator("so3krates-ethanol")
atoms.calc.verify(atoms)

atoms.rattle(0.05, seed=1)
LBFGS(atoms, logfile=None).run(fmax=0.01)
fmax = (atoms.get_forces() ** 2).sum(axis=1).max() ** 0.5
print(f"relaxed: energy {atoms.get_potential_energy():.4f} eV, largest force {fmax:.4f} eV/Å")
atoms.write(folder / "ethanol-relaxed.xyz")

settings = Settings(ensemble="nvt", temperature=300, timestep=0.5 * fs, n_steps=6000, every=10)
start = time.perf_counter()
with tqdm(total=settings.n_steps, unit="step", disable=None) as bar:
    run_with_ase(atoms, settings, trajectory, progress=lambda n, status: bar.update(n))
rows = read_log(trajectory.with_suffix(".csv"))
print(f"3 ps of Langevin dynamics at 300 K in {time.perf_counter() - start:.0f} s")
blocks = np.reshape([row["temperature_K"] for row in rows[-400:]], (10, 40)).mean(1)  # 0.2 ps each
error = blocks.std(ddof=1) / len(blocks) ** 0.5
print(f"mean of the last 2 ps: {blocks.mean():.0f} K, standard error {error:.0f} K")
figure = md_summary(rows, read(trajectory, ":"), title="ethanol, 300 K", target=300, n_dof=27)
figure.savefig(folder / "ethanol-300K.png")
print(f"look at {folder}/ethanol-300K.png; open the trajectory with: ase gui {trajectory}")
